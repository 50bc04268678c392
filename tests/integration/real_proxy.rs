//! `curl` with pillion as its proxy, by the environment that it has from its user.

use crate::{
    e2e,
    netns::Namespace,
    peer::Upstream,
    pillion::{Pillion, Setup},
    programs::{Output, wait},
    servers::{free_port, program},
    tcp_names::tls,
};
use std::{fs, net::SocketAddr};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
};

/// A web server behind TLS, which answers with `name`.
fn web(listener: TcpListener, name: &'static str) {
    let (acceptor, _) = tls("localhost");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let answer =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
}

async fn local_web(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    web(listener, name);
    address
}

/// `curl`, told by its environment of the proxy alone.
async fn curl(mut command: Command, proxy: SocketAddr, args: &[&str]) -> Output {
    let proxy = format!("http://{proxy}");
    command.env_clear().envs([("http_proxy", &proxy), ("HTTPS_PROXY", &proxy)]).args(["-sSk", "-m", "60"]).args(args);
    wait(&mut command).await
}

async fn through(pillion: &Pillion, args: &[&str]) -> Output {
    curl(Command::new(program("curl")), pillion.egress(), args).await
}

#[tokio::test]
async fn services_by_http_proxy_and_https_proxy() {
    let refusing = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let plain = Upstream::bind().await.answering(|request| crate::peer::ok(&request.start));
    let secure = [refusing, local_web("one").await, local_web("other").await];
    let pillion = Setup::users(secure)
        .instances("web", [plain.address])
        .egress("host_suffixes: [.mesh], connect: {}")
        .service("user-service: { balance: { policy: round-robin } }")
        .access_log()
        .start()
        .await;
    let got = through(&pillion, &["http://web.mesh/a?b"]).await;
    assert!(got.ok && got.stdout == "GET /a?b HTTP/1.1", "{} {}", got.stdout, got.stderr);
    let mut answers = Vec::new();
    for number in 0..30 {
        let url = ["https://user-service/", "https://user-service.mesh:8443/"][number % 2];
        let got = through(&pillion, &[url]).await;
        assert!(got.ok, "{}\n{}", got.stderr, pillion.metrics().await);
        answers.push(got.stdout);
    }
    // Balanced over those who are there.
    for name in ["one", "other"] {
        assert!(answers.iter().filter(|answer| *answer == name).count() > 3, "{answers:?}");
    }
    // (Some end by a reset: curl does not wait for TLS's goodbye.)
    pillion.until_metric("pillion_tcp_duration_seconds_count", &["service=\"user-service\""], 30.0).await;
    assert_eq!(pillion.metric("pillion_tcp_closed_total", &["outcome=\"connect_failed\""]).await, 0.0);
    pillion.access_line("\"CONNECT - HTTP/1.1\" user-service.mesh:8443 200 - ").await;
    // Two requests through one tunnel, and a tunnel for what is not encrypted.
    let got = through(&pillion, &["--proxytunnel", "http://web:80/1", "http://web:80/2"]).await;
    assert!(got.ok && got.stdout == "GET /1 HTTP/1.1GET /2 HTTP/1.1", "{} {}", got.stdout, got.stderr);
    pillion.until_metric("pillion_tcp_duration_seconds_count", &["service=\"web\""], 1.0).await;
}

#[tokio::test]
async fn what_is_no_service_is_refused_with_a_reason() {
    let pillion = Setup::users([local_web("one").await]).egress("connect: {}").start().await;
    for url in ["https://nobody.example/", "https://192.0.2.1/", "https://[2001:db8::1]/"] {
        let got = through(&pillion, &["-i", url]).await;
        assert!(!got.ok && got.stderr.contains("403"), "{url}: {}", got.stderr);
        assert!(got.stdout.contains("x-pillion-error: destination_refused"), "{url}: {}", got.stdout);
    }
    let got = through(&pillion, &["-o", "/dev/null", "-w", "%{http_code}", "http://nobody.example/"]).await;
    assert_eq!(got.stdout, "404");
}

/// A machine with pillion on it, and a world around that no registry knows.
#[tokio::test]
async fn what_is_no_service_is_passed_on_to_others_and_never_to_this_machine() {
    let (machine, world) = (Namespace::new(), Namespace::new());
    machine.cable(&world, 1);
    for address in ["10.77.1.2:443", "[fd77:1::2]:443", "10.77.1.2:8443"] {
        web(world.listen(address.parse().unwrap()), "world");
    }
    for address in ["10.77.1.1:443", "[fd77:1::1]:443", "127.0.0.1:443"] {
        web(machine.listen(address.parse().unwrap()), "machine");
    }
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("instances.yaml"), "services: { known: [10.77.1.2:8443] }\n").unwrap();
    let config = "admin: { listen: 127.0.0.1:4191 }\nregistries: { main: { kind: file, path: instances.yaml } }\n\
                  listeners: [{ name: egress, listen: 10.77.1.1:4140, connect: { unknown: pass, ports: [443, 4140, 4191] } }]\n";
    let path = dir.path().join("pillion.yaml");
    fs::write(&path, config).unwrap();
    let pillion = e2e::Pillion::start(&mut machine.pillion(&["run", "--config", path.to_str().unwrap()])).await;
    let proxy = pillion.egress();
    let get = async |url: &str| curl(machine.command(program("curl")), proxy, &["-i", url]).await;
    for url in ["https://10.77.1.2/", "https://[fd77:1::2]/", "https://known:1/"] {
        let got = get(url).await;
        assert!(got.ok && got.stdout.ends_with("world"), "{url}: {} {}", got.stdout, got.stderr);
    }
    for url in [
        "https://10.77.1.1/",
        "https://[fd77:1::1]/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://10.77.1.1:4140/",
        "https://127.0.0.1:4191/",
        "https://10.77.1.2:8443/",
    ] {
        let got = get(url).await;
        assert!(!got.ok && got.stdout.contains("x-pillion-error: destination_refused"), "{url}: {}", got.stdout);
    }
    // Nobody is there.
    let got = get("https://10.77.1.77/").await;
    assert!(!got.ok && got.stdout.contains("x-pillion-error: connect_"), "{}", got.stdout);
}
