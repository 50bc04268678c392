//! Names, and what the real API server cannot be made to do at a chosen moment, from a server that follows a script.

use super::{objects::Objects, *};
use crate::registry::{Observation, sink};
use proptest::prelude::*;
use std::collections::VecDeque;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch as channel},
    task::JoinHandle,
    time::{Instant, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);
const GONE: &str = r#"{"kind":"Status","message":"too old resource version: 5 (9)","reason":"Expired","code":410}"#;

/// What a script does with the next request.
enum Answer {
    /// A status with a header line or none, and a body.
    Whole(u16, &'static str, String),
    /// Lines of a watch, after which it ends in order.
    Watch(Vec<String>),
    /// A watch that is cut off after these bytes.
    Cut(String),
    /// A watch that says these lines, and goes on without another.
    Open(Vec<String>),
}

/// A server that gives these answers in their order, to requests that it tells of.
struct Script {
    requests: mpsc::UnboundedReceiver<String>,
    seen: channel::Receiver<Observation>,
    _tasks: [JoinHandle<()>; 2],
}

impl Script {
    async fn of(answers: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (told, requests) = mpsc::unbounded_channel();
        let mut answers: VecDeque<_> = answers.into_iter().collect();
        // One connection at a time: there is one follower, and each answer ends its connection.
        let serving = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                stream.read_line(&mut head).await.unwrap();
                let mut line = String::new();
                while stream.read_line(&mut line).await.unwrap() > 2 {
                    line.clear();
                }
                told.send(head.split(' ').nth(1).unwrap_or_default().to_owned()).unwrap();
                let mut stream = stream.into_inner();
                match answers.pop_front() {
                    Some(answer) => answer.write_to(&mut stream).await,
                    None => Answer::Open(Vec::new()).write_to(&mut stream).await,
                }
                .then(|| open.push(stream));
            }
        });
        let config = KubernetesRegistry { servers: vec![url], ..KubernetesRegistry::default() };
        let registry = Arc::new(Kubernetes::new("main", &config, None).unwrap());
        let (sink, seen) = sink();
        let following = tokio::spawn(registry.follow("users".into(), sink));
        Self { requests, seen, _tasks: [serving, following] }
    }

    /// The query of the next request, without the part that all have.
    async fn request(&mut self) -> String {
        let request = timeout(PATIENCE, self.requests.recv()).await.expect("another request").unwrap();
        let query = request.split_once("service-name%3Dusers&").unwrap_or_else(|| panic!("{request}")).1;
        // How long a watch shall last is a matter of chance.
        match query.split_once("&timeoutSeconds=") {
            Some((query, seconds)) => {
                assert!((240..=300).contains(&seconds.parse().unwrap()), "{seconds}");
                query.to_owned()
            }
            None => query.to_owned(),
        }
    }

    /// Waits for exactly these instances, and returns how often it has failed so far.
    async fn until(&mut self, ids: &[&str]) -> u64 {
        let fits = |seen: &Observation| {
            let set = seen.instances.as_deref().unwrap_or_default();
            seen.failure.is_none() && set.iter().map(|one| one.id.as_str()).eq(ids.iter().copied())
        };
        if let Ok(seen) = timeout(PATIENCE, self.seen.wait_for(fits)).await {
            return seen.unwrap().failures;
        }
        panic!("waited in vain for {ids:?}: {:?}", self.seen.borrow())
    }
}

impl Answer {
    /// Whether the connection stays open.
    async fn write_to(self, stream: &mut TcpStream) -> bool {
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        let lines = |lines: Vec<String>| {
            head.to_owned() + &lines.iter().map(|line| chunk(&format!("{line}\n"))).collect::<String>()
        };
        let (text, stays) = match self {
            Self::Whole(status, header, body) => {
                let length = body.len();
                (
                    format!(
                        "HTTP/1.1 {status} X\r\n{header}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                    ),
                    false,
                )
            }
            Self::Watch(events) => (lines(events) + "0\r\n\r\n", false),
            Self::Cut(text) => (format!("{head}{}", chunk(&text)), false),
            Self::Open(events) => (lines(events), true),
        };
        stream.write_all(text.as_bytes()).await.unwrap();
        stays
    }
}

fn slice(name: &str, version: u64, address: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}},"addressType":"IPv4",
        "endpoints":[{{"addresses":["{address}"]}}],"ports":[{{"port":80}}]}}"#
    )
    .replace('\n', "")
}

fn list(version: u64, next: &str, slices: &[String]) -> Answer {
    let slices = slices.join(",");
    let body = format!(r#"{{"metadata":{{"resourceVersion":"{version}","continue":"{next}"}},"items":[{slices}]}}"#);
    Answer::Whole(200, "", body)
}

fn event(kind: &str, object: &str) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

fn bookmark(version: u64) -> String {
    event(
        "BOOKMARK",
        &format!(r#"{{"kind":"EndpointSlice","metadata":{{"resourceVersion":"{version}"}},"endpoints":null}}"#),
    )
}

const WATCH: &str = "watch=1&allowWatchBookmarks=true&resourceVersion=";

#[tokio::test]
async fn a_list_comes_in_pages_and_a_watch_goes_on_where_the_last_one_ended() {
    let mut script = Script::of([
        list(5, "to/ken==", &[slice("a", 4, "10.0.0.1")]),
        list(5, "", &[slice("b", 3, "10.0.0.2")]),
        Answer::Watch(vec![event("ADDED", &slice("c", 6, "10.0.0.3")), event("DELETED", &slice("a", 7, "10.0.0.1"))]),
        Answer::Watch(vec![bookmark(9)]),
        Answer::Open(vec![event("MODIFIED", &slice("c", 10, "10.0.0.4"))]),
    ])
    .await;
    assert_eq!(script.request().await, "limit=500&resourceVersion=0");
    assert_eq!(script.request().await, "limit=500&continue=to%2Fken%3D%3D");
    assert_eq!(script.request().await, format!("{WATCH}5"));
    assert_eq!(script.request().await, format!("{WATCH}7"));
    assert_eq!(script.request().await, format!("{WATCH}9"));
    assert_eq!(script.until(&["10.0.0.2:80", "10.0.0.4:80"]).await, 0, "a watch's end is no failure");
}

#[tokio::test]
async fn a_version_that_is_gone_is_no_failure_and_the_newest_list_is_asked_for() {
    let first = || list(5, "", &[slice("a", 4, "10.0.0.1")]);
    let second = || list(9, "", &[slice("a", 8, "10.0.0.2")]);
    let backwards = Answer::Open(vec![bookmark(4)]);
    for gone in [Answer::Watch(vec![event("ERROR", GONE)]), Answer::Whole(410, "", GONE.into()), backwards] {
        let mut script = Script::of([first(), gone, second()]).await;
        for expected in ["limit=500&resourceVersion=0", &format!("{WATCH}5"), "limit=500", &format!("{WATCH}9")] {
            assert_eq!(script.request().await, expected);
        }
        assert_eq!(script.until(&["10.0.0.2:80"]).await, 0);
    }
    // While the pages were read.
    let mut script = Script::of([list(5, "x", &[]), Answer::Whole(410, "", GONE.into()), second()]).await;
    for expected in ["limit=500&resourceVersion=0", "limit=500&continue=x", "limit=500", &format!("{WATCH}9")] {
        assert_eq!(script.request().await, expected);
    }
    assert_eq!(script.until(&["10.0.0.2:80"]).await, 0);
}

#[tokio::test]
async fn after_a_failure_nothing_older_is_taken() {
    let whole = event("ADDED", &slice("b", 6, "10.0.0.2"));
    let half = event("ADDED", &slice("c", 7, "10.0.0.3"));
    let mut script = Script::of([
        list(5, "", &[slice("a", 4, "10.0.0.1")]),
        Answer::Cut(format!("{whole}\n{}", &half[..half.len() / 2])),
        list(8, "", &[slice("a", 4, "10.0.0.1"), slice("c", 7, "10.0.0.3")]),
        Answer::Watch(vec!["{\"type\":\"ADDED\",".into()]),
        list(8, "", &[slice("a", 4, "10.0.0.1")]),
    ])
    .await;
    let not_older = |version| format!("limit=500&resourceVersion={version}&resourceVersionMatch=NotOlderThan");
    let expected =
        ["limit=500&resourceVersion=0", &format!("{WATCH}5"), &not_older(6), &format!("{WATCH}8"), &not_older(8)];
    for expected in expected {
        assert_eq!(script.request().await, expected);
    }
    assert_eq!(script.until(&["10.0.0.1:80"]).await, 2, "a watch that was cut, and an event that makes no sense");
}

#[tokio::test]
async fn a_server_that_asks_to_be_left_alone_is() {
    let mut script = Script::of([
        Answer::Whole(429, "retry-after: 2\r\n", "too many requests".into()),
        list(5, "", &[slice("a", 4, "10.0.0.1")]),
    ])
    .await;
    let start = Instant::now();
    script.request().await;
    script.request().await;
    assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
    assert_eq!(script.until(&["10.0.0.1:80"]).await, 1);
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_a_failure_and_not_asked_for_without_end() {
    let watches = (0..100).map(|_| [list(5, "", &[slice("a", 4, "10.0.0.1")]), Answer::Watch(Vec::new())]);
    let mut script = Script::of(watches.flatten()).await;
    let seen = timeout(PATIENCE, script.seen.wait_for(|seen| seen.failures >= 3)).await.unwrap().unwrap().clone();
    assert_eq!(seen.instances.unwrap().len(), 1, "the set stays");
    assert!(seen.failure.unwrap().to_string().contains("ended at once"));
}

fn kubernetes() -> Kubernetes {
    let config = KubernetesRegistry {
        servers: vec!["http://127.0.0.1:1".into()],
        namespace: Some("shop".into()),
        ..KubernetesRegistry::default()
    };
    Kubernetes::new("main", &config, None).unwrap()
}

#[test]
fn names_say_which_namespace_and_port() {
    let kubernetes = kubernetes();
    let selector = "endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D";
    for (service, namespace, name, port) in [
        ("users", "shop", "users", None),
        ("users.prod", "prod", "users", None),
        ("users:grpc", "shop", "users", Some("grpc")),
        ("users.prod:8080", "prod", "users", Some("8080")),
    ] {
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/{selector}{name}");
        let target = Target { path, port: port.and_then(KubernetesPort::parse) };
        assert_eq!(kubernetes.target(service), Some(target), "{service}");
    }
    let long = "a".repeat(64);
    for service in ["", ".", "users.", ".prod", "users:", "users:0", "Users", "a b", "a.b.c", "a/../b", "a%2F", &long] {
        assert_eq!(kubernetes.target(service), None, "{service}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_no_service_can_have_is_an_empty_service() {
    let (sink, mut seen) = sink();
    let kubernetes = Arc::new(kubernetes());
    let limit = kubernetes.silence_limit();
    let follower = tokio::spawn(kubernetes.follow("www.example.com".into(), sink));
    let first = seen.wait_for(|seen| seen.instances.is_some()).await.unwrap().clone();
    assert_eq!(first.instances.as_deref(), Some(&[][..]));
    tokio::time::sleep(limit).await;
    let confirmed = seen.borrow().confirmed.unwrap();
    assert!(confirmed.elapsed() < limit, "it goes on to say so");
    follower.abort();
}

proptest! {
    #[test]
    fn no_line_of_a_watch_makes_it_panic(bytes in any::<Vec<u8>>(), at in 0usize..400, put in any::<u8>(), cut in 0usize..400) {
        let mut slices = Objects::<slices::Slice>::new(Arc::new(kubernetes()), String::new());
        let events = [event("ADDED", &slice("a", 6, "10.0.0.1")), bookmark(7), event("ERROR", GONE), event("DELETED", &slice("a", 8, "::"))];
        for event in events {
            let mut mutated = event.clone().into_bytes();
            let at = at % mutated.len();
            mutated[at] = put;
            for line in [&bytes[..], &mutated, &event.as_bytes()[..cut.min(event.len())], event.as_bytes()] {
                let _ = slices.apply(line, "s");
            }
        }
    }
}
