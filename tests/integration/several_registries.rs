//! Several registries for one service: failover, a migration, environments, datacenters.

use crate::{
    e2e::{ANY, Load, Pillion, Upstream, pillion, until, until_answer},
    instance::Instance,
};
use http::Version;
use std::{fs, path::PathBuf};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Registries in files, and a pillion that reads them.
struct Setup {
    folder: TempDir,
}

impl Setup {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    fn path(&self, registry: &str) -> PathBuf {
        self.folder.path().join(format!("{registry}.yaml"))
    }

    fn write(&self, registry: &str, service: &str, instances: &[String]) {
        let new = self.folder.path().join("new");
        fs::write(&new, format!("services: {{ {service}: [{}] }}", instances.join(", "))).unwrap();
        fs::rename(new, self.path(registry)).unwrap();
    }

    /// With each registry's scope, and other settings.
    async fn start(&self, registries: &[(&str, &str)], settings: &str) -> Pillion {
        let registries: Vec<_> = registries
            .iter()
            .map(|(name, scope)| format!("  {name}: {{ kind: file, path: {name}.yaml, scope: {{ {scope} }} }}\n"))
            .collect();
        let path = self.folder.path().join("pillion.yaml");
        fs::write(&path, format!("registries:\n{}{settings}\n", registries.concat())).unwrap();
        let mut command = pillion(&["run", "--listen", ANY, "--admin", ANY, "--config"]);
        Pillion::start(command.arg(path)).await
    }
}

fn quoted(upstreams: &[&Upstream]) -> Vec<String> {
    upstreams.iter().map(|upstream| format!("'{}'", upstream.address)).collect()
}

#[tokio::test]
async fn a_registry_that_fails_gives_way_and_comes_back_without_flapping() {
    let setup = Setup::new();
    let (first, second) = (Upstream::start("first").await, Upstream::start("second").await);
    setup.write("main", "users", &quoted(&[&first]));
    setup.write("backup", "users", &quoted(&[&second]));
    let settings = "discovery: { failover: { after: 300ms, hold: 5s } }";
    let pillion = setup.start(&[("main", ""), ("backup", "")], settings).await;
    until_answer(pillion.egress(), "users", |_, name| name == "first").await;
    let mut load = Load::start(pillion.egress(), Version::HTTP_11, "users", 2);
    fs::remove_file(setup.path("main")).unwrap();
    until_answer(pillion.egress(), "users", |_, name| name == "second").await;
    // Back for a moment, and gone again: nothing changes until it stays.
    let before = first.requests();
    setup.write("main", "users", &quoted(&[&first]));
    until("it to be seen", async || pillion.log().contains("the registry answers again")).await;
    fs::remove_file(setup.path("main")).unwrap();
    load.more(100).await;
    assert_eq!(first.requests(), before);
    setup.write("main", "users", &quoted(&[&first]));
    until_answer(pillion.egress(), "users", |_, name| name == "first").await;
    load.more(50).await;
    load.end_without_failure().await;
    let log = pillion.log();
    let changes: Vec<_> = log.lines().filter(|line| line.contains("another source is believed now")).collect();
    assert_eq!(changes.len(), 2, "{changes:#?}");
}

#[tokio::test]
async fn during_a_migration_both_registries_count() {
    let setup = Setup::new();
    let [a, b, c] = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
    setup.write("old", "users", &quoted(&[&a, &b]));
    setup.write("new", "people", &quoted(&[&b]));
    let settings = "discovery: { sources: [{ merge: [new, old] }] }";
    let pillion = setup.start(&[("old", ""), ("new", "names: { users: people }")], settings).await;
    let mut load = Load::start(pillion.egress(), Version::HTTP_2, "users", 3);
    let all_get = async |upstreams: &[&Upstream], load: &mut Load| {
        let before: Vec<_> = upstreams.iter().map(|upstream| upstream.requests()).collect();
        until("all of them to get requests", async || {
            load.more(20).await;
            upstreams.iter().zip(&before).all(|(upstream, before)| upstream.requests() > *before)
        })
        .await;
    };
    all_get(&[&a, &b], &mut load).await;
    setup.write("new", "people", &quoted(&[&b, &c]));
    all_get(&[&a, &b, &c], &mut load).await;
    setup.write("new", "people", &quoted(&[&a, &b, &c]));
    fs::remove_file(setup.path("old")).unwrap();
    all_get(&[&a, &b, &c], &mut load).await;
    load.end_without_failure().await;
}

#[tokio::test]
async fn one_environment_never_calls_another() {
    let setup = Setup::new();
    let (prod, dev) = (Upstream::start("prod").await, Upstream::start("dev").await);
    let labelled =
        |upstream: &Upstream| format!("{{ address: '{}', labels: {{ stage: {} }} }}", upstream.address, upstream.name);
    setup.write("main", "users", &[labelled(&prod), labelled(&dev)]);
    let pillion = setup.start(&[("main", "env_label: stage")], "node: { env: dev }").await;
    let mut load = Load::start(pillion.egress(), Version::HTTP_11, "users", 2);
    load.more(200).await;
    // Not even when there is nobody else.
    setup.write("main", "users", &[labelled(&prod)]);
    dev.leave().await;
    until_answer(pillion.egress(), "users", |status, _| status == 503).await;
    load.end().await;
    assert_eq!(prod.requests(), 0);
}

#[tokio::test]
async fn the_nearest_datacenter_is_used_and_the_next_when_it_is_out_of_reach() {
    let setup = Setup::new();
    let (executed, _kept) = mpsc::unbounded_channel();
    // It answers with the path.
    let near = Instance::start(&executed).await;
    let address = near.address;
    let far = Upstream::start("far").await;
    setup.write("here", "users", &[format!("'{}'", near.address)]);
    setup.write("there", "users", &quoted(&[&far]));
    let settings = "discovery: { sources: [{ nearest: [here, there] }], failover: { hold: 1s } }";
    let pillion = setup.start(&[("here", ""), ("there", "")], settings).await;
    until_answer(pillion.egress(), "users", |status, name| status == 200 && name != "far").await;
    near.kill().await;
    until_answer(pillion.egress(), "users", |_, name| name == "far").await;
    let _near = Instance::start_at(address, &executed).await;
    until_answer(pillion.egress(), "users", |status, name| status == 200 && name != "far").await;
}
