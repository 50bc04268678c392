use super::*;
use crate::telemetry::flags::{Flag, Flags};
use bytes::Bytes;
use config::{LogFormat, Sample};
use http::{HeaderValue, Method};
use proptest::prelude::*;
use std::{io::Write, sync::mpsc, time::UNIX_EPOCH};

fn record(path: impl Into<Text>) -> AccessRecord {
    AccessRecord {
        time: UNIX_EPOCH,
        listener: "egress".into(),
        peer: "127.0.0.1:5000".parse().unwrap(),
        method: Some(Method::GET),
        authority: Some("users".into()),
        path: Some(path.into()),
        protocol: "HTTP/1.1",
        service: Some(Arc::<str>::from("users").into()),
        endpoint: Some(Text::Address("10.0.0.7:80".parse().unwrap())),
        status: 200,
        bytes_in: 1,
        bytes_out: 2,
        duration: Duration::from_micros(1234),
        attempts: 1,
        request_id: None,
        caller: None,
        routed: None,
        reason: None,
        fallback: None,
        fault: None,
        flags: Flags::default(),
    }
}

fn config(mode: AccessLogMode, sample: f64) -> config::AccessLog {
    config::AccessLog { mode, sample: Sample(sample), ..Default::default() }
}

fn json(record: &AccessRecord) -> serde_json::Value {
    let mut out = Vec::new();
    record.write(&mut out, LogFormat::Json);
    assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
    serde_json::from_slice(&out).unwrap()
}

fn text(record: &AccessRecord) -> String {
    let mut out = Vec::new();
    record.write(&mut out, LogFormat::Text);
    String::from_utf8(out).unwrap()
}

#[test]
fn lines_read_as_documented() {
    let mut record = record("/users/7?a=b");
    assert_eq!(
        text(&record),
        "1970-01-01T00:00:00.000Z egress 127.0.0.1:5000 \"GET /users/7?a=b HTTP/1.1\" users 200 - in=1 out=2 \
         took=1.234ms service=users endpoint=10.0.0.7:80 attempts=1 id=-\n"
    );
    record.reason = Some("no_endpoints");
    record.endpoint = None;
    let line = json(&record);
    assert_eq!(
        line,
        serde_json::json!({
            "time": "1970-01-01T00:00:00.000Z", "listener": "egress", "peer": "127.0.0.1:5000", "method": "GET",
            "authority": "users", "path": "/users/7?a=b", "protocol": "HTTP/1.1", "status": 200,
            "reason": "no_endpoints", "bytes_in": 1, "bytes_out": 2, "duration_ms": 1.234, "service": "users",
            "attempts": 1,
        })
    );
    (record.fallback, record.fault) = (Some("last-good"), Some("delay"));
    assert!(text(&record).ends_with(" id=- fallback=last-good fault=delay\n"), "{}", text(&record));
    let line = json(&record);
    assert_eq!((&line["fallback"], &line["fault"]), (&"last-good".into(), &"delay".into()));
    record.flags.set(Flag::Probe);
    record.flags.retried(crate::error::Reason::TryTimeout);
    assert!(text(&record).ends_with(" fault=delay flags=probe,retried:try_timeout\n"), "{}", text(&record));
    assert_eq!(json(&record)["flags"], "probe,retried:try_timeout");
}

#[test]
fn the_caller_is_told_where_there_is_one() {
    let mut record = record("/");
    record.caller = Some("web \"1\"".into());
    assert!(text(&record).ends_with(" attempts=1 id=- caller=web\\x20\\x221\\x22\n"), "{}", text(&record));
    assert_eq!(json(&record)["caller"], "web \"1\"");
}

proptest! {
    #[test]
    fn json_lines_parse_whatever_a_caller_sends(path in any::<Vec<u8>>(), id in any::<Vec<u8>>(), host in any::<String>()) {
        let mut record = record(Bytes::from(path.clone()));
        record.request_id = HeaderValue::from_bytes(&id).ok().map(Text::from);
        record.authority = Some(Arc::<str>::from(host.as_str()).into());
        let line = json(&record);
        prop_assert_eq!(line["authority"].as_str().unwrap(), host);
        if let Ok(path) = std::str::from_utf8(&path) {
            prop_assert_eq!(line["path"].as_str().unwrap(), path);
        }
    }

    #[test]
    fn text_lines_cannot_be_forged(path in any::<Vec<u8>>(), host in any::<String>()) {
        let mut record = record(Bytes::from(path));
        record.authority = Some(Arc::<str>::from(host.as_str()).into());
        let line = text(&record);
        let line = line.strip_suffix('\n').unwrap();
        prop_assert!(line.bytes().all(|b| (b' '..0x7f).contains(&b)), "{line}");
        prop_assert_eq!(line.matches('"').count(), 2);
        // An empty authority leaves two spaces, which is still one field.
        prop_assert_eq!(line.split(' ').count(), 16);
    }
}

#[test]
fn bytes_that_are_no_text_stay_visible() {
    let record = record(Bytes::from_static(b"/\xff\x1b[2J\n"));
    assert_eq!(json(&record)["path"], "/\\xff\u{1b}[2J\n");
    assert!(text(&record).contains(r"/\xff\x1b[2J\x0a HTTP/1.1"));
}

/// A target that takes a write only when the test lets it, and tells the test what it was.
struct Gate {
    results: mpsc::Receiver<io::Result<usize>>,
    written: mpsc::Sender<Vec<u8>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // When the test is over, everything goes through.
        let taken = self.results.recv().unwrap_or(Ok(usize::MAX))?.min(bytes.len());
        let _ = self.written.send(bytes[..taken].to_vec());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gated(mode: AccessLogMode) -> (AccessLog, mpsc::Sender<io::Result<usize>>, mpsc::Receiver<Vec<u8>>) {
    let ((allow, results), (written, seen)) = (mpsc::channel(), mpsc::channel());
    let target = Target::new(Gate { results, written });
    (AccessLog::start_with(&config(mode, 1.0), target, Arc::default()).unwrap(), allow, seen)
}

#[test]
fn a_stuck_writer_costs_lines_and_no_time() {
    let (log, allow, seen) = gated(AccessLogMode::All);
    // More than the queue and one batch hold, while not one write returns.
    let sent = 3 * QUEUE as u64;
    for _ in 0..sent {
        log.log(record("/"));
    }
    let dropped = log.dropped.get();
    assert!(dropped > 0 && dropped < sent, "{dropped}");
    drop(allow);
    let dropped = log.dropped.clone();
    drop(log);
    let written: Vec<u8> = seen.iter().flatten().collect();
    let lines = written.iter().filter(|byte| **byte == b'\n').count() as u64;
    assert_eq!(lines + dropped.get(), sent, "every line is written or counted");
}

#[tokio::test]
async fn after_a_full_disk_the_next_line_is_whole() {
    let (log, allow, seen) = gated(AccessLogMode::All);
    // The disk takes ten bytes of the first line, then nothing, then is freed.
    allow.send(Ok(10)).unwrap();
    allow.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
    log.log(record("/lost"));
    assert!(log.flush(Duration::from_secs(60)).await);
    assert_eq!(log.dropped.get(), 1);
    drop(allow);
    log.log(record("/kept"));
    assert!(log.flush(Duration::from_secs(60)).await);
    let written = String::from_utf8(seen.try_iter().flatten().collect()).unwrap();
    let lines: Vec<_> = written.lines().collect();
    assert_eq!((lines.len(), lines[0].len()), (2, 10), "{written}");
    assert!(lines[1].starts_with("1970") && lines[1].contains("/kept"), "{written}");
}

#[tokio::test]
async fn a_flush_that_cannot_be_ends_at_its_limit() {
    let (log, _allow, _seen) = gated(AccessLogMode::All);
    log.log(record("/"));
    tokio::time::pause();
    assert!(!log.flush(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn after_rotation_lines_go_to_the_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old, other) = (dir.path().join("a.log"), dir.path().join("a.log.1"), dir.path().join("b.log"));
    let mut config = config::AccessLog { path: Some(path.clone()), ..config(AccessLogMode::All, 1.0) };
    let log = AccessLog::start(&config, Arc::default()).unwrap();
    let count = |path| std::fs::read_to_string(path).unwrap().lines().count();
    log.log(record("/1"));
    assert!(log.flush(Duration::from_secs(60)).await);
    std::fs::rename(&path, &old).unwrap();
    log.reopen();
    log.log(record("/2"));
    log.log(record("/3"));
    assert!(log.flush(Duration::from_secs(60)).await);
    assert_eq!((count(&old), count(&path)), (1, 2));

    config.path = Some(other.clone());
    config.format = LogFormat::Json;
    log.configure(&config);
    log.log(record("/4"));
    assert!(log.flush(Duration::from_secs(60)).await);
    assert_eq!((count(&path), count(&other)), (2, 1));
    assert!(std::fs::read_to_string(&other).unwrap().starts_with('{'));

    config.path = Some(dir.path().join("missing").join("c.log"));
    log.configure(&config);
    log.log(record("/5"));
    assert!(log.flush(Duration::from_secs(60)).await);
    assert_eq!(count(&other), 2, "a path that cannot be opened changes nothing");
}

#[test]
fn what_is_logged_is_decided_before_a_record_is_made() {
    let (log, _allow, _seen) = gated(AccessLogMode::Errors);
    assert!(!log.wants(200, false) && !log.wants(404, false));
    assert!(log.wants(503, false) && log.wants(404, true) && log.wants(0, true));
    log.configure(&config(AccessLogMode::Off, 1.0));
    assert!(!log.wants(200, false) && !log.wants(503, true));
    log.configure(&config(AccessLogMode::All, 1.0));
    assert!(log.wants(200, false));
    log.configure(&config(AccessLogMode::All, 0.25));
    let logged = (0..10_000).filter(|_| log.wants(200, false)).count();
    assert!((2000..3000).contains(&logged), "{logged}");
    assert!((0..1000).all(|_| log.wants(500, false)), "failures are not sampled");
    log.configure(&config(AccessLogMode::All, 0.0));
    assert!(!log.wants(200, false));
}

#[test]
fn a_record_is_small_enough_to_move() {
    assert!(size_of::<AccessRecord>() <= 512, "{}", size_of::<AccessRecord>());
    assert!(size_of::<Message>() <= 16, "{}", size_of::<Message>());
}
