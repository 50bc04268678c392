//! `pillion demo` as a user starts it.

use crate::pillion::tested;
use std::{
    io::Read,
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};
use tokio::time::Instant;

/// On ports of its own.
fn demo(more: &[&str]) -> Child {
    let any = "127.0.0.1:0";
    Command::new(tested())
        .args(["demo", "--listen", any, "--admin", any, "--registry-listen", any, "--churn", "1s"])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The number before `word`.
fn number_before(text: &str, word: &str) -> u64 {
    let (before, _) = text.split_once(word).unwrap_or_else(|| panic!("no `{word}` in\n{text}"));
    before.trim_end().rsplit([' ', '\n']).next().unwrap().parse().unwrap_or_else(|_| panic!("no number: {before}"))
}

#[test]
fn instances_leave_die_and_return_and_no_request_fails() {
    // An instance leaves after half a second, and dies a second or two later; the rest is for machines that are busy with other things.
    let output = demo(&["--for", "10s"]).wait_with_output().unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for word in ["leaves", "dies", "is back, on port"] {
        assert!(text.contains(&format!("user-service-2 {word}")), "{word}: {text}");
    }
    let (_, closing) = text.split_once("Stopped after ").unwrap_or_else(|| panic!("no closing words\n{text}"));
    assert!(number_before(&format!(" {closing}"), " s: ") >= 10, "{text}");
    assert!(number_before(closing, " requests carried") >= 100, "{text}");
    assert_eq!(number_before(closing, " failed"), 0, "{text}");
}

#[test]
fn a_signal_ends_it_cleanly_and_soon() {
    // Two seconds is the promise. What else the machine does may take its time, but not each time.
    let mut took = Vec::new();
    while took.last().is_none_or(|took| *took >= Duration::from_secs(4)) {
        assert!(took.len() < 5, "{took:?}");
        took.push(ended_by_a_signal());
    }
}

/// How long that takes.
fn ended_by_a_signal() -> Duration {
    let mut child = demo(&[]);
    let mut out = child.stdout.take().unwrap();
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&seen).contains("user-service-2 is back") {
        let count = out.read(&mut buffer).unwrap();
        assert!(count > 0, "it ended early");
        seen.extend_from_slice(&buffer[..count]);
    }
    let signalled = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => sleep(Duration::from_millis(10)),
        }
    };
    let took = signalled.elapsed();
    assert_eq!(status.code(), Some(0));
    out.read_to_end(&mut seen).unwrap();
    assert!(String::from_utf8_lossy(&seen).contains("Stopped after"));
    took
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let there = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = there.local_addr().unwrap().to_string();
    let any = "127.0.0.1:0";
    let output = Command::new(tested())
        .args(["demo", "--for", "1s", "--listen", &address, "--admin", any, "--registry-listen", any])
        .output()
        .unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("{address} for the proxy")) && text.contains("--listen IP:PORT"), "{text}");
}
