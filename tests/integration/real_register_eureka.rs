//! pillion registers the local application in a real Eureka.

use crate::{
    e2e::until,
    peer::Peer,
    pillion::Setup,
    programs::run,
    registering::{self, App, LONG, Place, Registering, SERVICE, until_gone, until_state, until_there},
    servers::EurekaServer,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// On a busy machine nobody may come round to renew a shorter one in time.
const TTL: Duration = Duration::from_secs(8);

/// It shows at once what it has (what was put into its cache while that changed, for a second longer), believes that who does not renew is gone, and looks for such often.
const QUICK: [&str; 4] = [
    "--eureka.server.use-read-only-response-cache=false",
    "--eureka.server.response-cache-auto-expiration-in-seconds=1",
    "--eureka.server.enable-self-preservation=false",
    "--eureka.server.eviction-interval-timer-in-ms=200",
];

/// One server or several, of which the last is looked at.
struct Servers {
    all: Vec<EurekaServer>,
    by_hostname: bool,
}

impl Servers {
    async fn start() -> Self {
        Self { all: vec![EurekaServer::start_with(&QUICK).await], by_hostname: false }
    }

    fn last(&self) -> &EurekaServer {
        self.all.last().unwrap()
    }

    /// The instances of the service, in whatever status.
    async fn instances(&self) -> Vec<Value> {
        let app = self.last().get(&format!("/apps/{}", SERVICE.to_uppercase())).await;
        app.map_or_else(Vec::new, |app| app["application"]["instance"].as_array().unwrap().clone())
    }

    async fn instance(&self) -> Value {
        let [one] = &self.instances().await[..] else { panic!("not one: {:?}", self.instances().await) };
        one.clone()
    }
}

impl Place for Servers {
    fn settings(&self) -> String {
        let urls: Vec<_> = self.all.iter().map(|server| format!("\"{}\"", server.url())).collect();
        let connect_to = if self.by_hostname { ", connect_to: hostname" } else { "" };
        format!("kind: eureka, servers: [{}], interval: 1s{connect_to}", urls.join(", "))
    }

    async fn addresses(&self) -> Vec<String> {
        let mut up = Vec::new();
        for listed in self.instances().await {
            // A list may be older than what it lists, by a second; one alone is told as it is.
            let path = format!("/apps/{}/{}", SERVICE.to_uppercase(), listed["instanceId"].as_str().unwrap());
            if let Some(one) = self.last().get(&path).await
                && one["instance"]["status"] == "UP"
            {
                let (ip, port) = (one["instance"]["ipAddr"].as_str().unwrap(), &one["instance"]["port"]["$"]);
                up.push(format!("{ip}:{port}"));
            }
        }
        up
    }
}

#[tokio::test]
async fn it_does_what_every_registry_does() {
    let servers = Servers::start().await;
    registering::follows_the_application(&servers, LONG).await;
    registering::outlives_a_kill(&servers, TTL, TTL).await;
    registering::refuses_a_clash(&servers, TTL).await;
}

#[tokio::test]
async fn what_is_lost_is_put_again() {
    let mut servers = Servers::start().await;
    registering::is_put_again(&mut servers, TTL, async |servers| servers.all[0].restart_with(&QUICK).await).await;

    let app = App::started().await;
    let pillion = Registering::new(&app, TTL).with("id: one, metadata: { a: b }").registered(&servers).await;
    let eureka = servers.last();
    for what in ["removed", "of other metadata", "of another content"] {
        let before = servers.instance().await["lastDirtyTimestamp"].clone();
        match what {
            "removed" => eureka.remove("USERS", "one").await,
            "of other metadata" => eureka.set_metadata("USERS", "one", "a=c").await,
            _ => {
                let other = json!({"ipAddr": "127.0.0.1", "hostName": "x"});
                eureka.register("USERS", "one", app.address.port(), other).await;
            }
        }
        let lost = Instant::now();
        until("the entry to be there again", async || {
            let all = servers.instances().await;
            let is_ours = |one: &Value| one["metadata"]["a"] == "b" && one["hostName"] == "127.0.0.1";
            all.len() == 1 && is_ours(&all[0]) && all[0]["lastDirtyTimestamp"] != before
        })
        .await;
        println!("{what}: right again after {:?}", lost.elapsed());
        assert!(lost.elapsed() < TTL, "{what}: {:?}", lost.elapsed());
        until_there(&servers, &[app.address]).await;
    }
    pillion.stop().await;
    until("the list to be empty", async || servers.instances().await.is_empty()).await;
}

#[tokio::test]
async fn one_that_is_not_fit_is_down_and_an_operators_word_stands() {
    let servers = Servers::start().await;
    let mut app = App::started().await;
    let pillion = Registering::new(&app, TTL).registered(&servers).await;
    let id = format!("127.0.0.1:{SERVICE}:{}", app.address.port());
    assert_eq!(servers.instance().await["instanceId"], id);
    app.kill().await;
    until_gone(&servers).await;
    assert_eq!(servers.instance().await["status"], "DOWN");
    until_state(&pillion, "unhealthy").await;
    sleep(TTL).await;
    assert_eq!(servers.instance().await["status"], "DOWN", "it is renewed all the same");
    app.start().await;
    until_there(&servers, &[app.address]).await;

    servers.last().set_status("USERS", &id, "OUT_OF_SERVICE").await;
    until_gone(&servers).await;
    let before = servers.instance().await["lastDirtyTimestamp"].clone();
    sleep(TTL).await;
    let now = servers.instance().await;
    assert_eq!((&now["status"], &now["lastDirtyTimestamp"]), (&json!("OUT_OF_SERVICE"), &before), "no quarrel");
    servers.last().clear_status("USERS", &id).await;
    until_there(&servers, &[app.address]).await;
    pillion.stop().await;
    until("the list to be empty", async || servers.instances().await.is_empty()).await;
}

#[tokio::test]
async fn all_that_is_known_is_written_and_read() {
    let mut servers = Servers::start().await;
    let mut app = App::started().await;
    let settings = "version: v2, zone: az-1, weight: 30, tags: [blue], metadata: { team: shop }";
    let pillion = Registering::new(&app, TTL).with(settings).registered(&servers).await;
    let one = servers.instance().await;
    let id = format!("127.0.0.1:{SERVICE}:{}", app.address.port());
    assert_eq!((&one["instanceId"], &one["vipAddress"], &one["app"]), (&json!(id), &json!(SERVICE), &json!("USERS")));
    let metadata = json!({"team": "shop", "version": "v2", "zone": "az-1", "weight": "30", "tag.blue": "true"});
    assert_eq!(one["metadata"], metadata);
    assert_eq!(one["leaseInfo"]["durationInSecs"], TTL.as_secs() / 2, "half of the TTL, see the encoder");

    let url = format!("{}/", servers.last().url());
    let said = run("consumer-eureka", ["-eureka", &url, "-service", SERVICE, "-path", "/from-java"]).await;
    assert_eq!(said.stdout, format!("{} {id} az-1 /from-java\n", app.address), "{}", said.stderr);
    assert_eq!(app.called().await, "GET /from-java");
    for by_hostname in [false, true] {
        servers.by_hostname = by_hostname;
        let other = Setup::default().registry("real", &servers.settings()).start().await;
        let mut client = Peer::connect(other.egress()).await;
        client.send(&format!("GET /from-pillion HTTP/1.1\r\nhost: {SERVICE}\r\n\r\n")).await;
        assert_eq!(client.response().await.text(), "/from-pillion");
    }
    pillion.stop().await;
}

#[tokio::test]
async fn it_goes_to_another_server_when_one_is_gone() {
    let mut servers = Servers { all: EurekaServer::start_two().await.into(), by_hostname: false };
    let app = App::started().await;
    let pillion = Registering::new(&app, TTL).registered(&servers).await;
    for turn in 0..2 {
        // Whichever is in use, one of the two turns takes it away.
        servers.all.rotate_left(1);
        servers.all[0].kill();
        let start = Instant::now();
        let renewed = async || registering::registration(&pillion).await["renewed_seconds_ago"].as_f64();
        until("a renewal after that", async || {
            let ago = renewed().await.unwrap_or(f64::MAX);
            Duration::from_secs_f64(ago.min(1e6)) + Duration::from_millis(50) < start.elapsed()
        })
        .await;
        assert_eq!(registering::registration(&pillion).await["state"], "registered");
        until_there(&servers, &[app.address]).await;
        println!("turn {turn}: renewed at the other server after {:?}", start.elapsed());
        servers.all[0].restart_with(&QUICK).await;
    }
    pillion.stop().await;
}

#[tokio::test]
async fn a_rolling_deployment_fails_no_request() {
    registering::is_deployed_under_load(&Servers::start().await, TTL).await;
}
