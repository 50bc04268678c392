//! Canaries over a chain of services: three of them, each with a stable instance and a canary, each instance with a pillion of
//! its own, registered and found in a real Consul. The applications, two in Go and one in Java, pass on what OpenTelemetry's
//! SDKs pass on, and know nothing else.

use crate::{
    e2e::until,
    peer::Peer,
    pillion::{Pillion, Setup},
    programs::Server,
    registering::until_state,
    servers::{ConsulServer, Process, free_port},
};
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};

const STABLE: &str = "a:stable b:stable c:stable";
const CANARY: &str = "a:canary b:canary c:canary";
const VERSIONS: [(&str, &str); 2] = [("stable", "v1"), ("canary", "v2")];

/// What everybody knows of a service that they call.
fn called(service: &str, routes: &str) -> String {
    format!(
        "{service}: {{ guard: {{ enabled: false }}, subsets: {{ stable: {{ version: v1 }}, canary: {{ version: v2 }} }}, \
         when_empty: {{ canary: stable, stable: fail }}, routes: [{routes}] }}"
    )
}

/// One instance of a service with its pillion.
struct Instance {
    pillion: Pillion,
    /// Held for its drop.
    _app: Server,
}

impl Instance {
    async fn start(registry: &str, service: &str, (version, label): (&str, &str)) -> Self {
        let next = match service {
            "a" => "b",
            "b" => "c",
            _ => "",
        };
        let address = format!("127.0.0.1:{}", free_port());
        let mut setup = Setup::default()
            .node(&format!("service: {service}, version: {label}"))
            .registry("real", registry)
            .listener("inbound", &format!("app: {{ address: \"{address}\", version_baggage: {{ mode: passed }} }}"))
            .register("registry: real, address: 127.0.0.1, port: { listener: inbound }, health: { interval: 1s }");
        if !next.is_empty() {
            setup = setup.service(&called(next, "{ to: stable }"));
        }
        let pillion = setup.start().await;
        let egress = pillion.egress().to_string();
        let args = ["-listen", &address, "-service", service, "-version", version, "-next", next, "-egress", &egress];
        // Whatever the SDK's language: what is passed on is the same.
        let (program, _start) = match service {
            "b" => ("chain-java", Some(Process::java_start().await)),
            _ => ("chain", None),
        };
        let app = Server::start(program, &args).await;
        until_state(&pillion, "registered").await;
        Self { pillion, _app: app }
    }
}

/// All of them, and in front of them a pillion that brings requests in.
struct Chain {
    front: Pillion,
    /// By service and version.
    instances: BTreeMap<(&'static str, &'static str), Instance>,
    registry: String,
    _consul: ConsulServer,
}

impl Chain {
    async fn start() -> Self {
        let consul = ConsulServer::start().await;
        let registry = format!("kind: consul, address: \"http://127.0.0.1:{}\"", consul.port);
        let by_user = "split: { stable: 60, canary: 40 }, sticky: { header: x-user }";
        let routes = format!(
            "{{ match: {{ path: {{ prefix: /split/unmarked }} }}, {by_user} }}, \
             {{ match: {{ path: {{ prefix: /split }} }}, {by_user}, mark: true }}, \
             {{ match: {{ path: {{ prefix: /canary }} }}, to: canary }}, {{ to: stable }}"
        );
        let front = Setup::default().registry("real", &registry).service(&called("a", &routes)).start().await;
        let all = ["a", "b", "c"].into_iter().flat_map(|service| VERSIONS.map(|version| (service, version)));
        let started = all
            .map(async |(service, version)| ((service, version.0), Instance::start(&registry, service, version).await));
        let instances = join_all(started).await.into_iter().collect();
        let chain = Self { front, instances, registry, _consul: consul };
        for service in ["a", "b", "c"] {
            chain.until_known(service).await;
        }
        chain
    }

    async fn add(&mut self, service: &'static str, version: (&'static str, &str)) {
        let instance = Instance::start(&self.registry, service, version).await;
        self.instances.insert((service, version.0), instance);
        self.until_known(service).await;
    }

    /// As an orchestrator takes an instance away.
    async fn remove(&mut self, service: &'static str, version: &'static str) {
        let Instance { pillion, _app } = self.instances.remove(&(service, version)).unwrap();
        pillion.stop().await;
        self.until_known(service).await;
    }

    /// Waits until those who call the service know which instances of it there are.
    async fn until_known(&self, service: &str) {
        let count = self.instances.keys().filter(|(name, _)| *name == service).count() as f64;
        let calls = |name: &str| matches!((name, service), ("a", "b") | ("b", "c"));
        let beside = self.instances.iter().filter(|((name, _), _)| calls(name)).map(|(_, instance)| &instance.pillion);
        let label = format!("service=\"{service}\"");
        for caller in beside.chain((service == "a").then_some(&self.front)) {
            until("the callers to know it", async || {
                caller.metric("pillion_endpoints", &[&label, "state=\"available\""]).await == count
            })
            .await;
        }
    }

    async fn client(&self) -> Client {
        Client(self.front.connect().await)
    }

    fn pillion(&mut self, service: &'static str, version: &'static str) -> &mut Pillion {
        &mut self.instances.get_mut(&(service, version)).unwrap().pillion
    }
}

struct Client(Peer);

impl Client {
    /// The services and versions that a request comes through.
    async fn way(&mut self, path: &str, fields: &str) -> String {
        self.0.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).await;
        let response = self.0.response().await;
        assert_eq!(response.status(), 200, "{}", response.text());
        response.text()
    }
}

#[tokio::test]
async fn a_canary_that_is_asked_for_at_the_front_is_one_at_every_hop() {
    let mut chain = Chain::start().await;
    let mut client = chain.client().await;
    let (asked, carried) = ("x-version: canary\r\n", "baggage: user=7,pillion.version=canary;p=q\r\n");
    for (path, fields, expected) in [
        ("/", "", STABLE),
        ("/", "baggage: user=7\r\n", STABLE),
        ("/", asked, CANARY),
        ("/", carried, CANARY),
        // The header is for where it comes, the baggage for all that comes after it.
        ("/", "x-version: canary\r\nbaggage: pillion.version=stable\r\n", "a:canary b:stable c:stable"),
        // Nobody has it.
        ("/", "x-version: blue\r\n", STABLE),
        // Sent there without a mark.
        ("/canary", "", "a:canary b:stable c:stable"),
    ] {
        assert_eq!(client.way(path, fields).await, expected, "{path} {fields}");
    }
    // What a canary calls can stay among canaries without anybody asking for it.
    let canary = chain.pillion("a", "canary");
    canary.change_config("mode: passed", "mode: own, value: canary").await;
    assert_eq!(client.way("/canary", "").await, CANARY);
    assert_eq!(client.way("/", "").await, STABLE);
    // Without it, the header ends where it came; baggage goes on.
    chain.pillion("a", "canary").change_config("mode: own, value: canary", "mode: off").await;
    assert_eq!(client.way("/", asked).await, "a:canary b:stable c:stable");
    assert_eq!(client.way("/", carried).await, CANARY);
}

#[tokio::test]
async fn a_hop_without_a_canary_is_stable_and_the_one_after_it_a_canary_again() {
    let mut chain = Chain::start().await;
    let mut client = chain.client().await;
    chain.remove("b", "canary").await;
    for fields in ["x-version: canary\r\n", "baggage: pillion.version=canary\r\n"] {
        assert_eq!(client.way("/", fields).await, "a:canary b:stable c:canary", "{fields}");
    }
    assert_eq!(client.way("/", "").await, STABLE);
    chain.add("b", VERSIONS[1]).await;
    for fields in ["x-version: canary\r\n", "baggage: pillion.version=canary\r\n"] {
        assert_eq!(client.way("/", fields).await, CANARY, "{fields}");
    }
}

#[tokio::test]
async fn a_marked_split_keeps_each_users_whole_chain_on_one_version() {
    const USERS: usize = 40;
    const REQUESTS: usize = 5;
    let chain = Chain::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for user in 0..USERS {
        let mut client = chain.client().await;
        tasks.spawn(async move {
            let by_user = format!("x-user: user-{user}\r\n");
            let first = client.way("/split", &by_user).await;
            for number in 0..REQUESTS {
                assert_eq!(client.way("/split", &by_user).await, first, "user {user}, request {number}");
                // In the midst of others, whoever asks for a version gets that.
                let canary = "x-version: canary\r\n";
                assert_eq!(client.way("/split", &format!("{by_user}{canary}")).await, CANARY, "user {user}");
                // The split alone says nothing of what comes after it.
                let unmarked = client.way("/split/unmarked", &by_user).await;
                assert_eq!(unmarked, format!("{} b:stable c:stable", &first[..first.find(' ').unwrap()]));
            }
            (user, first)
        });
    }
    let mut ways: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        let (user, way) = done.unwrap();
        ways.entry(way).or_default().insert(user);
    }
    // Who is where is the split's to say, and the same for ever.
    assert_eq!(ways.keys().map(String::as_str).collect::<Vec<_>>(), [CANARY, STABLE], "{ways:?}");
    assert!(ways.values().all(|users| users.len() >= USERS / 5), "{ways:?}");
}
