//! What the parts of the request path cost by themselves: `cargo bench`. `cargo test` runs each of them once.

use bytes::{Bytes, BytesMut};
use divan::{Bencher, black_box};
use http::{Method, Request};
use pillion::{
    cluster::{
        Cluster,
        balance::{Ask, Key},
        table::{Settings, State},
    },
    config::{self, Balance, Hash, Layout, Policy, Service},
    proxy::h1::head::{self, HeadLimits, HeadScan},
    registry::{Instance, layout::Keys},
    route,
    telemetry::{labels::WORDS, metrics::Metrics},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--bench") {
        divan::main();
    } else if arguments.iter().all(|argument| argument.starts_with('-')) {
        // `cargo test` passes flags that are meant for tests and that divan does not know.
        divan::Divan::default().test_benches();
    }
}

const SIZES: [usize; 3] = [3, 100, 1000];

const POLICIES: [Policy; 8] = [
    Policy::PeakEwma,
    Policy::LeastRequest,
    Policy::LeastConnections,
    Policy::RoundRobin,
    Policy::Random,
    Policy::ResponseTime,
    Policy::Maglev,
    Policy::RingHash,
];

fn settings(policy: Policy) -> Arc<Settings> {
    let hash = Hash { path: true, ..Hash::default() };
    let service = Service { balance: Balance { policy, hash, ..Balance::default() }, ..Service::default() };
    Arc::new(Settings { service, ..Settings::default() })
}

fn instances(count: usize) -> Vec<Instance> {
    let instance = |number: usize| {
        let address = format!("10.0.{}.{}:8080", number / 250, number % 250 + 1);
        let mut instance = Instance::new(number.to_string(), address.parse().unwrap());
        // Two weights, lest the shortcut for equal ones be all that is measured.
        instance.weight = 50 + 50 * (number % 2) as u32;
        instance
    };
    (0..count).map(instance).collect()
}

fn cluster(policy: Policy) -> Cluster {
    Cluster::new("users", settings(policy), Metrics::new(WORDS).service("users"), Arc::default())
}

#[divan::bench(args = POLICIES.into_iter().flat_map(|policy| SIZES.map(|size| Pick { policy, size })).collect::<Vec<_>>())]
fn pick(bencher: Bencher<'_, '_>, Pick { policy, size }: &Pick) {
    let cluster = cluster(*policy);
    cluster.publish(&settings(*policy), &instances(*size), State::Known);
    let (snapshot, now) = (cluster.load(), Instant::now());
    for (number, endpoint) in snapshot.endpoints.iter().enumerate() {
        endpoint.live.observe(Duration::from_micros(1000 + 37 * (number as u64 % 100)), now);
    }
    let mut number = 0;
    bencher.bench_local(|| {
        number += 1;
        let key = policy.hashes().then_some(Key::new(number, 1));
        black_box(snapshot.pick(false, Ask { key, ..Ask::default() }, &[], now)).is_some()
    });
}

struct Pick {
    policy: Policy,
    size: usize,
}

impl std::fmt::Display for Pick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {}", self.policy, self.size)
    }
}

/// One of a thousand endpoints changes its weight, as it does when a registry tells of a change.
#[divan::bench(args = [Policy::PeakEwma, Policy::RoundRobin, Policy::Maglev, Policy::RingHash])]
fn publish_1000(bencher: Bencher<'_, '_>, policy: Policy) {
    let (cluster, settings) = (cluster(policy), settings(policy));
    let mut sets = [instances(1000), instances(1000)];
    sets[1][500].weight += 1;
    let mut turn = 0;
    bencher.bench_local(|| {
        turn = 1 - turn;
        assert!(cluster.publish(&settings, &sets[turn], State::Known));
    });
}

mod route_to_service {
    use super::*;

    fn request(host: &str) -> Request<()> {
        Request::get("/users/7?full=1").header("accept", "*/*").header("host", host).body(()).unwrap()
    }

    #[divan::bench(args = ["user-service", "user-service.svc.cluster.local:8080"])]
    fn by_host(bencher: Bencher<'_, '_>, host: &str) {
        let listener =
            config::Listener { host_suffixes: vec![".svc.cluster.local".into()], ..config::Listener::egress() };
        let (rule, request) = (route::Rule::new(&listener), request(host));
        bencher.bench_local(|| route::service(black_box(&request), &rule).map(str::len));
    }

    #[divan::bench]
    fn by_header(bencher: Bencher<'_, '_>) {
        let listener = config::Listener { service_header: Some("x-service".into()), ..config::Listener::egress() };
        let (rule, mut request) = (route::Rule::new(&listener), request("x"));
        request.headers_mut().insert("x-service", "user-service".parse().unwrap());
        bencher.bench_local(|| route::service(black_box(&request), &rule).map(str::len));
    }
}

/// One instance from one key's value, as each framework writes it.
#[divan::bench(args = [Layout::Plain, Layout::Kratos, Layout::GoMicro, Layout::GoZero, Layout::Grpc, Layout::Curator, Layout::Dubbo])]
fn decode(bencher: Bencher<'_, '_>, layout: Layout) {
    let (suffix, value) = match layout {
        Layout::Plain => ("a", r#"{"address":"10.0.0.7:8080","weight":50,"labels":{"version":"canary"}}"#),
        Layout::Kratos => (
            "7d9e",
            r#"{"id":"7d9e","name":"users","version":"v1","metadata":{"weight":"10"},"endpoints":["http://10.0.0.7:8000","grpc://10.0.0.7:9000"]}"#,
        ),
        Layout::GoMicro => (
            "users-5c7a",
            r#"{"name":"users","version":"v1","metadata":null,"endpoints":[],"nodes":[{"id":"users-5c7a","address":"10.0.0.7:8080","metadata":{"protocol":"grpc","registry":"etcd"}}]}"#,
        ),
        Layout::GoZero => ("7587870137262312214", "10.0.0.7:8080"),
        Layout::Grpc => ("10.0.0.7:8080", r#"{"Op":0,"Addr":"10.0.0.7:8080","Metadata":{"weight":7}}"#),
        Layout::Curator => (
            "7d9e",
            r#"{"name":"users","id":"7d9e","address":"10.0.0.7","port":8000,"sslPort":null,"payload":{"@class":"org.springframework.cloud.zookeeper.discovery.ZookeeperInstance","id":"application-1","name":"users","metadata":{"instance_status":"UP"}},"registrationTimeUTC":1795287803606,"serviceType":"DYNAMIC","uriSpec":null}"#,
        ),
        Layout::Dubbo => {
            ("tri%3A%2F%2F10.0.0.7%3A50051%2Fusers%3Fapplication%3Ddemo%26version%3D1.0%26weight%3D10", "")
        }
    };
    let keys = Keys::new(layout, None);
    assert!(!keys.decode("users", suffix, value.as_bytes()).unwrap().is_empty());
    bencher.bench_local(|| keys.decode("users", black_box(suffix), black_box(value.as_bytes())));
}

mod http1_head {
    use super::*;

    const SHORT: &str = "GET /small HTTP/1.1\r\nHost: user-service\r\n\r\n";

    const BROWSER: &str = "GET /users/7?full=1 HTTP/1.1\r\nHost: user-service\r\nUser-Agent: Mozilla/5.0 (X11; Linux \
        x86_64)\r\nAccept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en\r\nAccept-Encoding: gzip, \
        deflate, br\r\nConnection: keep-alive\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nX-Request-Id: \
        4bf92f3577b34da6\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nCache-Control: \
        no-cache\r\n\r\n";

    const RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 512\r\nDate: Thu, 01 Jan \
        2026 00:00:00 GMT\r\nServer: users\r\n\r\n";

    #[divan::bench(args = [SHORT.len(), BROWSER.len()])]
    fn find_end(bencher: Bencher<'_, '_>, length: usize) {
        let limits = HeadLimits { bytes: 64 * 1024, lines: 100 };
        let mut head = BytesMut::from(if length == SHORT.len() { SHORT } else { BROWSER });
        assert_eq!(HeadScan::default().find_end(&mut head, limits).unwrap(), Some(length));
        bencher.bench_local(|| HeadScan::default().find_end(black_box(&mut head), limits));
    }

    #[divan::bench(args = [SHORT.len(), BROWSER.len()])]
    fn request(bencher: Bencher<'_, '_>, length: usize) {
        let head = Bytes::from_static(if length == SHORT.len() { SHORT } else { BROWSER }.as_bytes());
        assert!(head::parse_request(head.clone(), false).unwrap().keep_alive);
        bencher.bench_local(|| head::parse_request(black_box(&head).clone(), false));
    }

    #[divan::bench]
    fn response(bencher: Bencher<'_, '_>) {
        let head = Bytes::from_static(RESPONSE.as_bytes());
        assert!(head::parse_response(head.clone(), &Method::GET, false).unwrap().keep_alive);
        bencher.bench_local(|| head::parse_response(black_box(&head).clone(), &Method::GET, false));
    }
}

/// A service whose routes are `count` virtual hosts with three routes each.
fn virtual_hosts(count: usize) -> route::Table {
    let matching = |host: usize, path: &str| config::Route {
        matches: config::RouteMatch {
            host: vec![format!("host-{host}.example.com")],
            path: Some(config::PathMatch { prefix: Some(path.into()), ..config::PathMatch::default() }),
            ..config::RouteMatch::default()
        },
        ..config::Route::default()
    };
    let routes = (0..count).flat_map(|host| ["/a", "/b", "/c"].map(|path| matching(host, path))).collect();
    route::Table::new("web", &Service { routes, ..Service::default() }).expect("it has routes")
}

/// The last route of the last host, among so many.
#[divan::bench(args = [10, 100, 1000])]
fn route_by_host(bencher: Bencher, hosts: usize) {
    let table = virtual_hosts(hosts);
    let host = format!("host-{}.example.com:8080", hosts - 1);
    let request = Request::get("/c/items?x=1").header("host", host).body(()).unwrap();
    bencher.bench_local(|| {
        let asked = route::Asked::new(black_box(&request), None);
        black_box(table.find(&asked)).is_some()
    });
}

/// The last of so many routes that ask for nothing but a path, one after the other.
#[divan::bench(args = [1, 10, 100])]
fn route_by_path(bencher: Bencher, count: usize) {
    let matching = |number: usize| config::Route {
        matches: config::RouteMatch {
            path: Some(config::PathMatch { prefix: Some(format!("/path-{number}")), ..config::PathMatch::default() }),
            ..config::RouteMatch::default()
        },
        ..config::Route::default()
    };
    let routes = (0..count).map(matching).collect();
    let table = route::Table::new("web", &Service { routes, ..Service::default() }).expect("it has routes");
    let request = Request::get(format!("/path-{}/items", count - 1)).header("host", "web").body(()).unwrap();
    bencher.bench_local(|| {
        let asked = route::Asked::new(black_box(&request), None);
        black_box(table.find(&asked)).is_some()
    });
}

/// A user's place in a split between two versions.
#[divan::bench]
fn split_by_key(bencher: Bencher) {
    let split = [("stable", 90), ("canary", 10)];
    let target = |name: &str| config::Target { service: None, subset: Some(name.into()) };
    let route = config::Route {
        split: split.iter().map(|(name, weight)| (target(name), *weight)).collect(),
        ..config::Route::default()
    };
    let split = route::Split::new("web", &route);
    bencher
        .bench_local(|| black_box(split.choose(black_box(b"8f14e45f-ceea-467f-a8b5-6d2d1b7f4c10"))).subset.is_some());
}
