use super::*;
use crate::{
    config::{Origin, load},
    discovery::{
        Discovery, Handle,
        follower::tests::{instance, settle, telemetry},
        snapshot::Store as Disk,
    },
    registry::{
        self, Registry, RegistryError,
        store::{self, Claim, Put, Store},
    },
};
use futures_util::future::BoxFuture;
use std::{path::Path, sync::Weak};
use tokio::sync::mpsc;

/// A registry with a store, whose watch the test speaks for.
struct Scripted {
    watched: mpsc::UnboundedSender<store::Sink>,
    followed: mpsc::UnboundedSender<registry::Sink>,
    /// Held by watches that were not dropped.
    watching: Arc<()>,
}

impl Registry for Scripted {
    fn name(&self) -> &str {
        "main"
    }

    fn kind(&self) -> &'static str {
        "scripted"
    }

    fn follow(self: Arc<Self>, _: String, sink: registry::Sink) -> BoxFuture<'static, ()> {
        self.followed.send(sink).unwrap();
        Box::pin(pending())
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        Ok(self)
    }

    fn silence_limit(&self) -> Duration {
        Duration::from_secs(90)
    }
}

impl Store for Scripted {
    fn watch(self: Arc<Self>, path: String, sink: store::Sink) -> BoxFuture<'static, ()> {
        assert_eq!(path, "pillion/routes");
        self.watched.send(sink).unwrap();
        let watching = self.watching.clone();
        Box::pin(async move {
            let _watching = watching;
            pending().await
        })
    }

    fn get(self: Arc<Self>, _: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>> {
        unreachable!("routes are only watched")
    }

    fn put_if(
        self: Arc<Self>,
        _: String,
        _: Option<Version>,
        _: bytes::Bytes,
    ) -> BoxFuture<'static, Result<Put, RegistryError>> {
        unreachable!("routes are only watched")
    }

    fn claim(self: Arc<Self>, _: String, _: String, _: Duration) -> Box<dyn Claim> {
        unreachable!("routes are only watched")
    }
}

struct Setup {
    config: Config,
    registries: Registries,
    handle: Handle,
    watched: mpsc::UnboundedReceiver<store::Sink>,
    followed: mpsc::UnboundedReceiver<registry::Sink>,
    disk: Option<Arc<Disk>>,
    telemetry: Arc<Telemetry>,
    watching: Weak<()>,
}

const SERVICES: &str = "services:
  users: { timeouts: { request: 5s }, subsets: { own: { version: v0 } } }
  orders: {}
";

fn config(text: &str) -> Config {
    let text = format!(
        "registries: {{ main: {{ kind: consul }} }}\nrouting: {{ store: {{ registry: main }} }}\ndiscovery: {{ coalesce: 10s }}\n{text}"
    );
    load(Origin::text("f", text), &|_| None).unwrap().config
}

fn start(folder: Option<&Path>) -> Setup {
    let (watched, watches) = mpsc::unbounded_channel();
    let (followed, follows) = mpsc::unbounded_channel();
    let watching = Arc::new(());
    let weak = Arc::downgrade(&watching);
    let registry: Arc<dyn Registry> = Arc::new(Scripted { watched, followed, watching });
    let registries = Registries::from([("main".to_owned(), registry)]);
    let telemetry = Arc::new(telemetry());
    let snapshots = telemetry.metrics.snapshots.clone();
    let disk = folder.map(|dir| Disk::open(&config::Snapshot::new(dir), snapshots).unwrap());
    let config = config(SERVICES);
    let (discovery, handle) = Discovery::new(
        Arc::new(config.clone()),
        registries.clone(),
        disk.clone(),
        Default::default(),
        telemetry.clone(),
    )
    .unwrap();
    tokio::spawn(discovery.run());
    Setup { config, registries, handle, watched: watches, followed: follows, disk, telemetry, watching: weak }
}

impl Setup {
    fn subsets(&self, service: &str) -> Vec<String> {
        let cluster = self.handle.table().get(service).unwrap();
        cluster.load().settings.service.subsets.keys().cloned().collect()
    }

    async fn routes_of(&self, service: &str) -> RoutesOf {
        let status = self.handle.routes().await;
        status.services.into_iter().find(|routes| routes.service == service).unwrap()
    }

    fn metrics(&self) -> String {
        self.telemetry.metrics.render(None).1
    }
}

fn items(values: &[(&str, u64, &str)]) -> Vec<Item> {
    let item = |(key, version, value): &(&str, u64, &str)| Item {
        key: (*key).into(),
        value: (*value).to_owned().into(),
        version: Version::new(version),
    };
    values.iter().map(item).collect()
}

const GOOD: &str = "subsets: { canary: { version: v2 } }\nroutes: [ { to: canary } ]";
const BAD: &str = "subsets: { canary: { version: v2 } }\nroutes: [ { to: cannary } ]";

#[tokio::test(start_paused = true)]
async fn what_the_store_says_goes_before_the_config_and_touches_no_other_service() {
    let mut setup = start(None);
    let (users, orders) = (setup.followed.recv().await.unwrap(), setup.followed.recv().await.unwrap());
    users.set(vec![instance(1)]);
    orders.set(vec![instance(2)]);
    let store = setup.watched.recv().await.unwrap();
    settle().await;
    let cluster = |name: &str| setup.handle.table().get(name).unwrap();
    let (endpoint, untouched) =
        (cluster("users").load().endpoints[0].clone(), cluster("orders").load().settings.clone());
    assert_eq!(setup.subsets("users"), ["own"]);
    store.set(items(&[("users", 7, GOOD)]));
    settle().await;
    assert_eq!(setup.subsets("users"), ["canary"]);
    let now = cluster("users").load().settings.service.clone();
    assert_eq!((now.routes.len(), now.timeouts.request), (1, Duration::from_secs(5)));
    assert!(Arc::ptr_eq(&endpoint, &cluster("users").load().endpoints[0]), "its endpoint has all that it had");
    assert!(Arc::ptr_eq(&untouched, &cluster("orders").load().settings));
    assert!(setup.followed.try_recv().is_err(), "nothing is followed anew");
    // It is gone: the config counts again.
    store.set(Vec::new());
    settle().await;
    assert_eq!(setup.subsets("users"), ["own"]);
    assert!(setup.handle.routes().await.services.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_refused_changes_nothing_and_is_shown() {
    let mut setup = start(None);
    let store = setup.watched.recv().await.unwrap();
    store.set(items(&[("users", 7, BAD)]));
    settle().await;
    assert_eq!(setup.subsets("users"), ["own"]);
    let RoutesOf { good, refused, .. } = setup.routes_of("users").await;
    let (version, error, _) = refused.unwrap();
    assert!(good.is_none() && version == Version::new(7));
    assert!(error.contains("pillion/routes/users:2:17: routes[0].to: `cannary` is no subset"), "{error}");
    store.set(items(&[("users", 8, GOOD)]));
    settle().await;
    store.set(items(&[("users", 9, "routes: [")]));
    settle().await;
    assert_eq!(setup.subsets("users"), ["canary"]);
    let RoutesOf { good, refused, .. } = setup.routes_of("users").await;
    assert_eq!((good.unwrap().0, refused.unwrap().0), (Version::new(8), Version::new(9)));
    for line in [
        "pillion_routes_updates_total{service=\"users\",result=\"accepted\"} 1",
        "pillion_routes_updates_total{service=\"users\",result=\"rejected\"} 2",
        "pillion_routes_rejected{service=\"users\"} 1",
        "pillion_store_up{registry=\"main\",path=\"pillion/routes\"} 1",
    ] {
        assert!(setup.metrics().contains(line), "{line}\n{}", setup.metrics());
    }
    // The good one comes back, as another version.
    store.set(items(&[("users", 10, GOOD)]));
    settle().await;
    let RoutesOf { good, refused, .. } = setup.routes_of("users").await;
    assert!(good.unwrap().0 == Version::new(10) && refused.is_none());
    assert!(setup.metrics().contains("pillion_routes_rejected{service=\"users\"} 0"));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_changes_nothing() {
    let mut setup = start(None);
    let store = setup.watched.recv().await.unwrap();
    assert!(!setup.handle.hears_stores());
    store.set(items(&[("users", 7, GOOD)]));
    settle().await;
    store.failed(RegistryError::Unreachable { server: "s".into(), cause: "gone".into() });
    settle().await;
    assert_eq!(setup.subsets("users"), ["canary"]);
    let seen = setup.handle.routes().await.store.unwrap();
    assert!(seen.answered && seen.failure.unwrap().contains("gone"));
    // A watch that is silent is begun anew.
    tokio::time::sleep(Duration::from_secs(100)).await;
    let again = setup.watched.recv().await.unwrap();
    assert_eq!(setup.subsets("users"), ["canary"]);
    again.set(items(&[("users", 7, GOOD)]));
    settle().await;
    assert!(setup.handle.routes().await.store.unwrap().failure.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_asked_for_later_has_its_routes_from_the_start() {
    let mut setup = start(None);
    let store = setup.watched.recv().await.unwrap();
    store.set(items(&[("later", 7, GOOD)]));
    settle().await;
    assert!(setup.handle.table().get("later").is_none(), "that it has routes is no reason to follow it");
    setup.handle.follow("later").await.unwrap();
    assert_eq!(setup.subsets("later"), ["canary"]);
}

#[tokio::test(start_paused = true)]
async fn routes_may_name_what_comes_in_the_same_breath() {
    let mut setup = start(None);
    let store = setup.watched.recv().await.unwrap();
    let to_users = "routes: [ { to: users/canary } ]";
    store.set(items(&[("orders", 7, to_users)]));
    settle().await;
    assert!(setup.routes_of("orders").await.refused.is_some());
    store.set(items(&[("orders", 7, to_users), ("users", 8, GOOD)]));
    settle().await;
    let orders = setup.routes_of("orders").await;
    assert!(orders.good.is_some() && orders.refused.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reload_lays_the_new_settings_under_the_stored_routes() {
    let mut setup = start(None);
    let store = setup.watched.recv().await.unwrap();
    let text = "subsets: { canary: { version: v2 } }\nroutes: [ { to: canary, timeouts: { idle: 9s }, retry: { attempts: 1 } } ]";
    store.set(items(&[("users", 7, text)]));
    settle().await;
    let request = |setup: &Setup| {
        let settings = setup.handle.table().get("users").unwrap().load().settings.clone();
        settings.service.routes[0].timeouts.as_ref().unwrap().request
    };
    assert_eq!(request(&setup), Duration::from_secs(5));
    setup.config.services["users"].timeouts.request = Duration::from_secs(3);
    setup.handle.reload(Arc::new(setup.config.clone()), setup.registries.clone()).await.unwrap();
    assert_eq!(request(&setup), Duration::from_secs(3));
    // Beside these settings it would not be accepted. It is in force, and stays.
    setup.config.services["users"].retry.per_try_timeout = Some(Duration::from_secs(3600));
    setup.handle.reload(Arc::new(setup.config.clone()), setup.registries.clone()).await.unwrap();
    assert_eq!(setup.subsets("users"), ["canary"]);
    assert!(setup.watched.try_recv().is_err(), "the store is watched as before");
    // Without a store there are only those in the config.
    setup.config.routing.store = None;
    setup.handle.reload(Arc::new(setup.config.clone()), setup.registries.clone()).await.unwrap();
    assert_eq!(setup.subsets("users"), ["own"]);
    settle().await;
    assert_eq!(setup.watching.strong_count(), 1, "only the registry itself is left");
}

#[tokio::test]
async fn the_last_good_ones_are_in_force_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = start(Some(folder.path()));
    let store = first.watched.recv().await.unwrap();
    store.set(items(&[("users", 7, GOOD), ("orders", 8, "{}")]));
    tokio::time::timeout(Duration::from_secs(60), first.handle.until_stores_heard()).await.unwrap();
    store.set(items(&[("users", 9, BAD), ("orders", 8, "{}")]));
    while first.routes_of("users").await.refused.is_none() {
        tokio::task::yield_now().await;
    }
    first.disk.as_ref().unwrap().flush().await;
    drop(first);

    // The store does not answer.
    let mut second = start(Some(folder.path()));
    assert_eq!(second.subsets("users"), ["canary"]);
    let (version, _, from_disk) = second.routes_of("users").await.good.unwrap();
    assert!(from_disk && version == Version::new(7));
    // Its value is still bad.
    let store = second.watched.recv().await.unwrap();
    store.set(items(&[("users", 9, BAD), ("orders", 8, "{}")]));
    while second.routes_of("users").await.refused.is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(second.subsets("users"), ["canary"]);
    assert!(!second.routes_of("orders").await.good.unwrap().2, "the store has confirmed it");
    // It has nothing any more.
    store.set(Vec::new());
    while !second.handle.routes().await.services.is_empty() {
        tokio::task::yield_now().await;
    }
    second.disk.as_ref().unwrap().flush().await;
    let third = start(Some(folder.path()));
    assert!(third.handle.routes().await.services.is_empty());
}
