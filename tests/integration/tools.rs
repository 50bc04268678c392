//! Load from well-known tools, and what they counted.

use crate::servers::program;
use std::{net::SocketAddr, time::Duration};
use tokio::process::Command;

/// What a tool says of its requests.
#[derive(Debug)]
pub struct Outcome {
    pub done: u64,
    pub failed: u64,
    text: String,
}

impl Outcome {
    /// Panics with the tool's own words if any request failed, or there were none.
    pub fn assert_good(&self) {
        assert!(self.failed == 0 && self.done > 0, "{}", self.text);
    }
}

/// HTTP/1.1: `wrk` on 16 connections.
pub async fn wrk(address: SocketAddr, host: &str, time: Duration) -> Outcome {
    let (duration, host) = (format!("-d{}s", time.as_secs()), format!("Host: {host}"));
    let args = ["-t1", "-c16", &duration, "--timeout", "30s", "-H", &host];
    let text = run("wrk", &args, &format!("http://{address}/")).await;
    // "  123 requests in 30.00s, 1.00MB read", and only if there were any:
    // "  Socket errors: connect 0, read 0, write 0, timeout 0" and "  Non-2xx or 3xx responses: 0".
    let done = text.lines().find(|line| line.contains(" requests in ")).map_or(0, |line| numbers(line)[0]);
    let bad = text.lines().filter(|line| line.contains("Socket errors") || line.contains("responses:"));
    let failed = bad.map(|line| numbers(line.split_once(':').unwrap().1).iter().sum::<u64>()).sum();
    Outcome { done, failed, text }
}

/// HTTP/2: `h2load` on 4 connections of 4 streams.
pub async fn h2load(address: SocketAddr, host: &str, time: Duration) -> Outcome {
    let (duration, host) = (format!("-D{}", time.as_secs()), format!(":authority: {host}"));
    let text = run("h2load", &["-t1", "-c4", "-m4", &duration, "-H", &host], &format!("http://{address}/")).await;
    // "requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout"
    // "status codes: 10 2xx, 0 3xx, 0 4xx, 0 5xx"
    let line = |begin| text.lines().find(|line: &&str| line.starts_with(begin)).unwrap_or_default();
    let (requests, codes) = (numbers(line("requests:")), numbers(line("status codes:")));
    assert!(requests.len() == 7 && codes.len() == 8, "{text}");
    let failed = requests[4..].iter().sum::<u64>() + codes[2] + codes[4] + codes[6];
    Outcome { done: codes[0], failed, text }
}

async fn run(tool: &str, args: &[&str], url: &str) -> String {
    let output = Command::new(program(tool)).args(args).arg(url).kill_on_drop(true).output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{tool}: {text}");
    text
}

fn numbers(line: &str) -> Vec<u64> {
    line.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}
