//! pillion registers the local application with a real Consul agent.

use crate::{
    e2e::until,
    peer::Peer,
    pillion::Setup,
    programs::{self, run},
    registering::{self, App, LONG, Place, Registering, SERVICE, until_failing, until_gone, until_state, until_there},
    servers::ConsulServer,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// On a busy machine nobody may come round to renew a shorter one in time.
const TTL: Duration = Duration::from_secs(8);

/// An agent, and the token that pillion has for it.
struct Agent {
    consul: ConsulServer,
    token: Option<&'static str>,
}

impl Agent {
    async fn start() -> Self {
        Self { consul: ConsulServer::start().await, token: None }
    }

    async fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.consul.get(path).await).unwrap()
    }

    /// The entries of the service, whatever their checks say.
    async fn all(&self) -> Vec<Value> {
        let all = self.get(&format!("/v1/health/service/{SERVICE}")).await;
        all.as_array().unwrap().clone()
    }

    /// The status and the output of our check. (The catalog hears of an output alone only minutes later.)
    async fn check(&self) -> Option<(String, String)> {
        let checks = self.get("/v1/agent/checks").await;
        let ours = checks.as_object().unwrap().values().next()?.clone();
        assert!(ours["CheckID"].as_str().unwrap().starts_with("service:"), "{ours}");
        Some((ours["Status"].as_str().unwrap().into(), ours["Output"].as_str().unwrap().into()))
    }
}

impl Place for Agent {
    fn settings(&self) -> String {
        let token = self.token.map(|token| format!(", token: {token}")).unwrap_or_default();
        format!("kind: consul, address: \"http://127.0.0.1:{}\"{token}", self.consul.port)
    }

    async fn addresses(&self) -> Vec<String> {
        let passing = self.get(&format!("/v1/health/service/{SERVICE}?passing")).await;
        let address =
            |row: &Value| format!("{}:{}", row["Service"]["Address"].as_str().unwrap(), row["Service"]["Port"]);
        passing.as_array().unwrap().iter().map(address).collect()
    }
}

#[tokio::test]
async fn it_follows_the_application() {
    registering::follows_the_application(&Agent::start().await, LONG).await;
}

#[tokio::test]
async fn its_entry_outlives_a_kill_for_the_ttl() {
    registering::outlives_a_kill(&Agent::start().await, TTL, TTL).await;
}

#[tokio::test]
async fn another_one_with_its_id_is_left_alone() {
    registering::refuses_a_clash(&Agent::start().await, TTL).await;
}

#[tokio::test]
async fn what_is_lost_is_put_again() {
    // A development agent forgets all when it is restarted.
    registering::is_put_again(&mut Agent::start().await, TTL, async |agent| agent.consul.restart().await).await;
    let agent = Agent::start().await;
    let app = App::started().await;
    let pillion = Registering::new(&app, TTL).with("id: one, metadata: { a: b }").registered(&agent).await;
    let other = json!({"ID": "one", "Name": SERVICE, "Address": "127.0.0.1", "Port": app.address.port()});
    for (what, path, body) in [
        ("deregistered", "/v1/agent/service/deregister/one", Value::Null),
        ("of another content", "/v1/agent/service/register", other),
        ("without its check", "/v1/agent/check/deregister/service:one", Value::Null),
        ("critical", "/v1/agent/check/fail/service:one", Value::Null),
    ] {
        agent.consul.put(path, &body).await;
        let lost = Instant::now();
        until("the entry to be right again", async || {
            let services = agent.get("/v1/agent/services").await;
            services["one"]["Meta"]["a"] == "b" && agent.check().await.is_some_and(|(status, _)| status == "passing")
        })
        .await;
        println!("{what}: right again after {:?}", lost.elapsed());
        assert!(lost.elapsed() < TTL, "{what}: {:?}", lost.elapsed());
        until_there(&agent, &[app.address]).await;
    }
    pillion.stop().await;
    assert!(agent.all().await.is_empty());
}

#[tokio::test]
async fn one_that_is_not_fit_is_critical_and_says_why() {
    let agent = Agent::start().await;
    let mut app = App::started().await;
    let pillion = Registering::new(&app, TTL).registered(&agent).await;
    assert_eq!(agent.check().await.unwrap(), ("passing".into(), "pillion: it passes its checks".into()));
    app.kill().await;
    let start = Instant::now();
    until_gone(&agent).await;
    println!("application killed: critical after {:?}", start.elapsed());
    // By its own word: who does not renew it is told off with another one.
    let (status, output) = agent.check().await.unwrap();
    assert!(status == "critical" && output.contains("onnection refused"), "{status}: {output}");
    until_state(&pillion, "unhealthy").await;
    // It stays so for as long as pillion is there.
    sleep(TTL * 3 / 2).await;
    assert_eq!(agent.check().await.unwrap(), (status, output));
    app.start().await;
    until_there(&agent, &[app.address]).await;
    assert_eq!(agent.all().await.len(), 1);
    pillion.stop().await;
    assert!(agent.all().await.is_empty());
}

/// Consul takes it out after a minute at the least, and looks only twice a minute; so it is seen that it knows.
#[tokio::test]
async fn the_agent_knows_when_to_take_out_what_nobody_renews() {
    let agent = Agent { consul: ConsulServer::start_with_data().await, token: None };
    let app = App::started().await;
    for (settings, nanoseconds) in [("", 60_000_000_000_u64), (", deregister_critical_after: 90s", 90_000_000_000)] {
        let pillion =
            Registering::new(&app, TTL).with(&format!("consul: {{ check: ttl{settings} }}")).registered(&agent).await;
        let kept = agent.consul.kept_checks();
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert_eq!(kept[0]["Check"]["CheckID"].as_str().map(|id| id.starts_with("service:")), Some(true), "{kept:?}");
        assert_eq!(kept[0]["ChkType"]["DeregisterCriticalServiceAfter"], nanoseconds, "{kept:?}");
        pillion.stop().await;
    }
}

#[tokio::test]
async fn what_a_killed_pillion_left_elsewhere_is_written_over() {
    let agent = Agent::start().await;
    let (old, new) = (App::started().await, App::started().await);
    let first = Registering::new(&old, TTL).with("id: one").registered(&agent).await;
    first.kill().await;
    // It has moved, and has kept its id.
    let second = Registering::new(&new, TTL).with("id: one").start(&agent).await;
    until_failing(&second, "already").await;
    until_there(&agent, &[new.address]).await;
    until_state(&second, "registered").await;
    second.stop().await;
    assert!(agent.all().await.is_empty());
}

#[tokio::test]
async fn all_that_is_known_is_written_and_read() {
    let agent = Agent::start().await;
    let mut app = App::started().await;
    let settings = "version: v2, zone: az-1, weight: 30, tags: [blue], metadata: { team: shop }";
    let pillion = Registering::new(&app, TTL).with(settings).registered(&agent).await;
    let service = agent.all().await[0]["Service"].clone();
    assert_eq!(service["ID"], format!("users-127-0-0-1-{}", app.address.port()));
    assert_eq!(service["Tags"], json!(["blue", "version=v2"]));
    assert_eq!(service["Meta"], json!({"team": "shop", "version": "v2", "zone": "az-1", "weight": "30"}));
    assert_eq!(service["Weights"], json!({"Passing": 30, "Warning": 1}));
    let consul = format!("127.0.0.1:{}", agent.consul.port);
    for framework in ["api", "go-micro", "kratos"] {
        let path = format!("/from-{framework}");
        let args = ["-framework", framework, "-consul", &consul, "-service", SERVICE, "-path", &path];
        let said = run("consumer-consul", args).await;
        let at = if framework == "kratos" { format!("http://{}", app.address) } else { app.address.to_string() };
        assert_eq!(said.stdout, format!("{at} {path}\n"), "{framework}: {}", said.stderr);
        assert_eq!(app.called().await, format!("GET {path}"));
    }
    // And by another pillion.
    let other = Setup::default().registry("real", &agent.settings()).start().await;
    let mut client = Peer::connect(other.egress()).await;
    client.send(&format!("GET /from-pillion HTTP/1.1\r\nhost: {SERVICE}\r\n\r\n")).await;
    assert_eq!(client.response().await.text(), "/from-pillion");
    pillion.stop().await;
}

#[tokio::test]
async fn the_agent_itself_checks_where_that_is_asked_for() {
    let agent = Agent::start().await;
    for (check, health, seen) in [
        ("tcp", "", "TCP connect 127.0.0.1:"),
        ("http", ", http: /health, host: 127.0.0.1", "200 OK Output: /health"),
        ("grpc", ", grpc: {}", "gRPC check 127.0.0.1:"),
    ] {
        let mut app = App::new();
        let mut server = None;
        if check == "grpc" {
            let started = programs::Server::start("grpc-echo-server", &[]).await;
            app.address = started.address;
            server = Some(started);
        } else {
            app.start().await;
        }
        let entry = format!(
            "service: {SERVICE}, registry: real, address: 127.0.0.1, port: {}, consul: {{ check: {check} }}, \
             health: {{ interval: 1s, timeout: 20s, fall: 2{health} }}",
            app.address.port()
        );
        let start = || Setup::default().registry("real", &agent.settings()).register(&entry).start();
        let pillion = start().await;
        until_there(&agent, &[app.address]).await;
        // The agent has looked: what it says of that is no more what it was registered with.
        let (mut status, mut output) = (String::new(), String::new());
        until("the agent's check", async || {
            (status, output) = agent.check().await.unwrap();
            output.contains(seen)
        })
        .await;
        assert_eq!(status, "passing", "{check}: {output}");
        println!("{check}: {output}");
        // Nobody needs to renew it.
        pillion.kill().await;
        sleep(TTL).await;
        assert_eq!(agent.addresses().await, [app.address.to_string()]);
        let again = start().await;
        until_state(&again, "registered").await;
        drop(server.take());
        if check != "grpc" {
            app.kill().await;
        }
        until_gone(&agent).await;
        // What the agent would not take from pillion.
        until("the entry to go", async || agent.all().await.is_empty()).await;
        again.stop().await;
    }
}

#[tokio::test]
async fn rights_that_are_missing_are_named() {
    let root = "11111111-1111-1111-1111-111111111111";
    let reader = "22222222-2222-2222-2222-222222222222";
    let writer = "33333333-3333-3333-3333-333333333333";
    let consul = ConsulServer::start_with(&format!(
        r#"acl {{ enabled = true, default_policy = "deny", tokens {{ initial_management = "{root}", agent = "{root}" }} }}"#
    ))
    .await
    .with_token(root)
    .await;
    for (token, policy) in [(reader, "read"), (writer, "write")] {
        let rules = format!(r#"service "{SERVICE}" {{ policy = "{policy}" }} node_prefix "" {{ policy = "read" }}"#);
        consul.put("/v1/acl/policy", &json!({"Name": policy, "Rules": rules})).await;
        consul.put("/v1/acl/token", &json!({"SecretID": token, "Policies": [{"Name": policy}]})).await;
    }
    let mut agent = Agent { consul, token: None };
    let app = App::started().await;
    for token in [None, Some("44444444-4444-4444-4444-444444444444"), Some(reader)] {
        agent.token = token;
        let pillion = Registering::new(&app, TTL).start(&agent).await;
        let needed = format!("needed are service:write and service:read for `{SERVICE}`");
        until_failing(&pillion, &needed).await;
        println!("{}", registering::registration(&pillion).await["failure"]);
        pillion.kill().await;
        assert!(agent.all().await.is_empty());
    }
    agent.token = Some(writer);
    let pillion = Registering::new(&app, TTL).registered(&agent).await;
    pillion.stop().await;
    assert!(agent.all().await.is_empty());
}

#[tokio::test]
async fn a_rolling_deployment_fails_no_request() {
    registering::is_deployed_under_load(&Agent::start().await, TTL).await;
}
