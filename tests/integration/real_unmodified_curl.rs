//! An unmodified `curl` on a machine whose connections `pillion net` redirects.

use crate::{
    e2e::{output, until},
    netns::{Caller, Namespace},
    scene::Scene,
    servers::{Process, program},
};
use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Stdio};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

/// Nobody listens there.
const VIRTUAL: &str = "198.51.100.7";
/// Each of three must be met in so many.
const REQUESTS: usize = 30;

/// A web server in a namespace: it answers everything with its name, on 80 and, over TLS, on 443.
struct Web {
    process: Process,
    /// Its own certificate.
    certificate: String,
    _dir: TempDir,
}

impl Web {
    async fn start(namespace: &Namespace, name: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let made = rcgen::generate_simple_self_signed(["user-service".into(), "secure-service".into()]).unwrap();
        let (certificate, at) = (made.cert.pem(), dir.path().display());
        fs::write(dir.path().join("server.pem"), certificate.clone() + &made.signing_key.serialize_pem()).unwrap();
        let config = format!(
            "defaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  timeout connect 5s\n\
             frontend web\n  bind :::80 v4v6\n  bind :::443 v4v6 ssl crt {at}/server.pem alpn h2,http/1.1\n  \
             http-request return status 200 content-type text/plain string {name}\n"
        );
        fs::write(dir.path().join("haproxy.cfg"), config).unwrap();
        let mut command = namespace.command(program("haproxy"));
        command.args(["-db", "-f"]).arg(dir.path().join("haproxy.cfg"));
        let mut process = Process::start(command.into_std(), &dir.path().join("log"));
        let address = "127.0.0.1:443".parse().unwrap();
        process.until(async || namespace.connect(Caller::default(), address).is_ok()).await;
        Self { process, certificate, _dir: dir }
    }
}

impl Scene {
    /// The answer to one `curl`, on a machine that finds names in `hosts`.
    async fn curl(&self, hosts: &Path, args: &[&str]) -> String {
        let mut command = self.machine.command("sh");
        // `ip netns exec` gave it a view of its own of what is mounted.
        command.args(["-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(hosts);
        command.arg(program("curl")).args(["-sS", "--noproxy", "*"]).args(args);
        let output = output(&mut command).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// How many of the answers to so many were whose.
    async fn answers(&self, hosts: &Path, args: &[&str]) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for _ in 0..REQUESTS {
            *answers.entry(self.curl(hosts, args).await).or_default() += 1;
        }
        answers
    }
}

/// What another firewall has.
const OTHERS: &str = "table inet firewall {\n\tset trusted { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }\n\
     \tchain output { type filter hook output priority filter; policy accept; ip daddr @trusted accept; tcp dport 4444 drop; }\n}\n";

#[tokio::test]
async fn an_unmodified_curl_is_balanced_while_its_connections_are_redirected() {
    let scene = Scene::new(3);
    let nft = async |args: &[&str]| scene.run("nft", args).await;
    let mut loading = scene.machine.command(program("nft"));
    let mut loading = loading.args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    loading.stdin.take().unwrap().write_all(OTHERS.as_bytes()).await.unwrap();
    assert!(loading.wait().await.unwrap().success());
    let before = nft(&["list", "ruleset"]).await;
    assert!(before.contains("dport 4444"), "{before}");

    let mut webs = Vec::new();
    for (world, name) in scene.worlds.iter().zip(["one", "two", "three"]) {
        webs.push(Web::start(world, name).await);
    }
    let trusted = scene.dir.path().join("trusted.pem");
    fs::write(&trusted, webs.iter().map(|web| &*web.certificate).collect::<String>()).unwrap();
    let trusted = trusted.to_str().unwrap();
    let instances = |port: u16| [1, 2, 3].map(|world| format!("\"10.77.{world}.2:{port}\"")).join(", ");
    let instances = format!("user-service: [{}]\nsecure-service: [{}]", instances(80), instances(443));
    // In turn, so that each gets some of the few requests: a balancer that looks at latencies rightly stays away from the one that a
    // busy machine made slow.
    let config = format!(
        "listeners:\n  - {{ name: redirected, listen: \"[::]:15001\", protocol: auto, transparent: {{}} }}\n\
         services:\n  user-service: {{ balance: {{ policy: round-robin }}, addresses: [\"{VIRTUAL}:80\"] }}\n  \
         secure-service: {{ balance: {{ policy: round-robin }}, addresses: [\"{VIRTUAL}:443\"] }}\n"
    );
    let pillion = scene.pillion(&instances, &config).await;
    pillion.until_metric("pillion_endpoints", "state=\"available\"", 6.0).await;
    // Where names lead: to one of the instances, as a registry's DNS may have it, or to an address that nobody has.
    let hosts = |name: &str, ip: &str| {
        let path = scene.dir.path().join(name);
        fs::write(&path, format!("127.0.0.1 localhost\n{ip} user-service secure-service\n")).unwrap();
        path
    };
    let (first, nowhere) = (hosts("first", "10.77.1.2"), hosts("nowhere", VIRTUAL));
    let http = ["http://user-service/"];
    let https = ["--cacert", trusted, "https://secure-service/"];
    assert_eq!(
        scene.answers(&first, &http).await,
        BTreeMap::from([("one".into(), REQUESTS)]),
        "nothing is redirected yet"
    );

    scene.redirect(15001).await;
    let newer = ["--http2-prior-knowledge", "http://user-service/"];
    let mut told = String::new();
    for hosts in [&first, &nowhere] {
        for args in [&http[..], &newer, &https] {
            let answers = scene.answers(hosts, args).await;
            writeln!(told, "{} {args:?}: {answers:?}", hosts.file_name().unwrap().display()).unwrap();
        }
    }
    println!("{told}");
    assert_eq!(told.matches("one").count(), 6, "{told}");
    assert_eq!(told.matches("two").count(), 6, "{told}");
    assert_eq!(told.matches("three").count(), 6, "{told}");
    // What is no service's goes where it was to go.
    for args in [
        &["http://192.0.2.9/"][..],
        &["-k", "https://192.0.2.9/"],
        &["-H", "host: www.example.com", "http://192.0.2.9/"],
    ] {
        assert_eq!(scene.answers(&first, args).await, BTreeMap::from([("one".into(), REQUESTS)]), "{args:?}");
    }
    // The one to which the names lead is killed, and nobody notices.
    webs[0].process.kill();
    for hosts in [&first, &nowhere] {
        for args in [&http[..], &https] {
            let answers = scene.answers(hosts, args).await;
            let names: Vec<_> = answers.keys().map(String::as_str).collect();
            assert_eq!(names, ["three", "two"], "{args:?}");
        }
    }
    scene.redirect_nothing().await;
    assert_eq!(nft(&["list", "ruleset"]).await, before);
    until("pillion to have nothing left", async || pillion.metric("pillion_tcp_connections", "").await == 0.0).await;
}
