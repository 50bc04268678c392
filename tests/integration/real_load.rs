//! Load from `wrk` and `h2load` through the running program to nginx: no request may fail.
//!
//! nginx closes a connection after a thousand requests, with `Connection: close` or GOAWAY, so many connections end in the
//! middle of it.

use crate::{
    pillion::{Pillion, Setup},
    programs::{Server, run},
};

const REQUESTS: &str = "30000";

async fn to_nginx(http2: bool) -> (Vec<Server>, Pillion) {
    let servers = vec![Server::nginx(http2).await, Server::nginx(http2).await];
    let protocol = if http2 { "http2" } else { "http1" };
    let instances = servers.iter().map(|server| format!("{{ address: {}, protocol: {protocol} }}", server.address));
    let pillion = Setup::users(instances).optimised().start().await;
    (servers, pillion)
}

#[tokio::test]
async fn wrk_sees_no_error() {
    for http2 in [false, true] {
        let (_servers, pillion) = to_nginx(http2).await;
        let url = format!("http://{}/", pillion.egress());
        // By default it takes what a busy machine answers after 2 s for an error.
        let got = run("wrk", ["-t1", "-c32", "-d5s", "--timeout", "30s", "-H", "Host: user-service", &url]).await;
        assert!(got.ok, "{} {}", got.stdout, got.stderr);
        assert!(!got.stdout.contains("Socket errors") && !got.stdout.contains("Non-2xx"), "{}", got.stdout);
        no_errors(&pillion).await;
    }
}

#[tokio::test]
async fn h2load_sees_no_error() {
    for http2 in [false, true] {
        let (_servers, pillion) = to_nginx(http2).await;
        let url = format!("http://{}/", pillion.egress());
        let modes: [&[&str]; 3] = [&["-c1", "-m100"], &["-c8", "-m10"], &["--h1", "-c16"]];
        for mode in modes {
            let got = run("h2load", [mode, &["-n", REQUESTS, "-H", ":authority: user-service", &url]].concat()).await;
            let wanted = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
            assert!(got.ok && got.stdout.contains(&wanted), "{mode:?}: {} {}", got.stdout, got.stderr);
            assert!(got.stdout.contains(&format!("status codes: {REQUESTS} 2xx")), "{mode:?}: {}", got.stdout);
        }
        no_errors(&pillion).await;
    }
}

async fn no_errors(pillion: &Pillion) {
    pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
    let all = pillion.metric("pillion_requests_total", &[]).await;
    let good = pillion.metric("pillion_requests_total", &["code=\"200\""]).await;
    println!(
        "{all} requests, {} upstream connections, {} sent again",
        pillion.metric("pillion_pool_opened_total", &[]).await,
        pillion.metric("pillion_retries_total", &[]).await
    );
    // A client that has enough at the end of its time leaves some requests behind.
    let left = pillion.metric("pillion_errors_total", &["reason=\"downstream_closed\""]).await;
    assert!(all - good <= left && pillion.metric("pillion_errors_total", &[]).await == left);
}
