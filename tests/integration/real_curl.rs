//! `curl` through the running program, over both versions of HTTP.

use crate::{
    memory::is_small,
    peer::{Answering, Upstream, ok},
    pillion::{Pillion, Setup},
    programs::{Output, run, wait},
    servers::program,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

const VERSIONS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];
const GIB: usize = 1 << 30;

fn url(pillion: &Pillion, path: &str) -> String {
    format!("http://{}{path}", pillion.egress())
}

async fn curl(pillion: &Pillion, version: &str, path: &str, more: &[&str]) -> Output {
    let url = url(pillion, path);
    let common = ["-sS", "--noproxy", "*", "-H", "Host: user-service", version];
    run("curl", common.iter().chain(more).copied().chain([url.as_str()])).await
}

#[tokio::test]
async fn methods_statuses_and_interim_responses() {
    let mut upstream = Upstream::bind().await.answering(|request| match request.start.split(' ').nth(1).unwrap() {
        "/204" => "HTTP/1.1 204 No Content\r\n\r\n".into(),
        "/304" => "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n".into(),
        "/103" => format!("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n{}", ok("page")),
        "/trailers" => {
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-status: fine\r\n\r\n".into()
        }
        _ if request.start.starts_with("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n".into(),
        _ => ok(&request.text()),
    });
    let pillion = Setup::users([upstream.address]).start().await;
    for version in VERSIONS {
        upstream.unseen();
        let got = curl(&pillion, version, "/", &["-i", "-d", "hello"]).await;
        assert!(got.ok && got.stdout.contains(" 200") && got.stdout.ends_with("hello"), "{}", got.stdout);
        let seen = upstream.seen().await;
        assert_eq!((seen.get("host"), seen.get("content-length")), (Some("user-service"), Some("5")));
        let got = curl(&pillion, version, "/", &["-I"]).await;
        assert!(got.ok && got.stdout.contains("content-length: 7"), "{} {}", got.stdout, got.stderr);
        for (path, status) in [("/204", " 204"), ("/304", " 304")] {
            let got = curl(&pillion, version, path, &["-i"]).await;
            assert!(got.ok && got.stdout.contains(status), "{} {}", got.stdout, got.stderr);
        }
        let got = curl(&pillion, version, "/103", &["-i"]).await;
        let (hints, page) = got.stdout.split_once(" 200").expect("the final response");
        assert!(hints.contains(" 103") && hints.contains("link: </a.css>") && page.ends_with("page"), "{}", got.stdout);
        let got = curl(&pillion, version, "/trailers", &["-i"]).await;
        assert!(got.ok && got.stdout.contains("ok") && got.stdout.contains("x-status: fine"), "{}", got.stdout);
        let got = curl(&pillion, version, "/chunked", &["-H", "Transfer-Encoding: chunked", "-d", "pieces"]).await;
        assert!(got.ok && got.stdout == "pieces", "{}", got.stderr);
    }
}

#[tokio::test]
async fn expect_is_answered_by_the_upstream() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let answer = async {
        let mut server = upstream.accept().await;
        let head = server.head().await;
        assert_eq!(head.get("expect"), Some("100-continue"));
        server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        server.take(5).await;
        server.send(ok("done")).await;
    };
    // Without the interim response it would wait for an hour.
    let wait = ["-v", "-H", "Expect: 100-continue", "--expect100-timeout", "3600", "-d", "hello"];
    let (got, ()) = tokio::join!(curl(&pillion, "--http1.1", "/", &wait), answer);
    assert!(got.ok && got.stdout == "done" && got.stderr.contains("100 Continue"), "{}", got.stderr);
}

#[tokio::test]
async fn a_gibibyte_up() {
    for version in VERSIONS {
        let upstream = Upstream::bind().await;
        let pillion = Setup::users([upstream.address]).optimised().start().await;
        let take = async {
            let mut server = upstream.accept().await;
            assert_eq!(server.head().await.get("transfer-encoding"), Some("chunked"));
            let (mut taken, mut buf, mut tail) = (0, vec![0; 1 << 20], server.buf.split_off(0));
            while !tail.ends_with(b"\r\n0\r\n\r\n") {
                let read = server.stream.read(&mut buf).await.unwrap();
                if read == 0 {
                    let (log, metrics) = (pillion.log(), pillion.metrics().await);
                    panic!("{version}: cut off after {taken} bytes\n{log}\n{metrics}");
                }
                taken += read;
                tail.extend_from_slice(&buf[..read]);
                tail.drain(..tail.len().saturating_sub(16));
            }
            server.send(ok("thanks")).await;
            taken
        };
        let command = format!(
            "head -c {GIB} /dev/zero | '{}' -sS --noproxy '*' {version} -H 'Host: user-service' -H 'Expect:' -T - {}",
            program("curl").display(),
            url(&pillion, "/")
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]);
        let (got, taken) = tokio::join!(wait(&mut shell), take);
        assert!(got.ok && got.stdout == "thanks", "{version}: {}", got.stderr);
        assert!((GIB..GIB + GIB / 100).contains(&taken), "{taken}");
        is_small(&pillion);
    }
}

#[tokio::test]
async fn a_gibibyte_down_to_a_slow_reader() {
    for version in VERSIONS {
        let upstream = Upstream::bind().await;
        let pillion = Setup::users([upstream.address]).optimised().start().await;
        let give = async {
            let mut server = upstream.accept().await;
            server.head().await;
            server.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {GIB}\r\n\r\n")).await;
            let data = vec![b'x'; 1 << 20];
            for _ in 0..GIB / data.len() {
                server.stream.write_all(&data).await.unwrap();
            }
        };
        let more = ["-o", "/dev/null", "-w", "%{size_download}", "--limit-rate", "150M"];
        let (got, ()) = tokio::join!(curl(&pillion, version, "/", &more), give);
        assert!(got.ok && got.stdout == GIB.to_string(), "{version}: {} {}", got.stdout, got.stderr);
        is_small(&pillion);
    }
}

#[tokio::test]
async fn many_transfers_in_one_run() {
    let upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    // Over HTTP/1.1 only: Debian's curl 7.88 fails when it uses an HTTP/2 connection a second time, with nginx, too.
    for parallel in ["--parallel", "--no-parallel"] {
        let got = curl(&pillion, VERSIONS[0], "/[1-500]", &[parallel, "--fail"]).await;
        assert!(got.ok, "{}", got.stderr);
        assert_eq!(got.stdout, "ok".repeat(500), "{parallel}");
    }
}
