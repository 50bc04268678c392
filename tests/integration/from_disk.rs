//! A start while no registry answers: what was kept on disk is used, and marked as such.

use crate::e2e::{ANY, Load, Pillion, Upstream, get, pillion, until, until_answer};
use http::Version;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::Instant;

fn write(folder: &Path, upstreams: &[&Upstream]) {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| format!("'{}'", upstream.address)).collect();
    let new = folder.join("new");
    fs::write(&new, format!("services: {{ users: [{}] }}", addresses.join(", "))).unwrap();
    fs::rename(new, folder.join("instances.yaml")).unwrap();
}

async fn start(folder: &Path) -> Pillion {
    let config = "registries: { main: { kind: file, path: instances.yaml } }\n\
                  discovery: { snapshot: { dir: kept } }\n\
                  services: { users: {} }\n";
    let path = folder.join("pillion.yaml");
    fs::write(&path, config).unwrap();
    Pillion::start(pillion(&["run", "--listen", ANY, "--admin", ANY, "--config"]).arg(path)).await
}

/// Waits for the file, which is written under another name first.
async fn until_kept(folder: &Path) -> PathBuf {
    let mut kept = None;
    until("it to be kept", async || {
        let mut files = fs::read_dir(folder.join("kept")).unwrap().map(|entry| entry.unwrap().path());
        kept = files.find(|file| file.extension().is_none_or(|extension| extension != "tmp"));
        kept.is_some()
    })
    .await;
    kept.unwrap()
}

async fn users(pillion: &Pillion) -> Value {
    pillion.json("/api/services/users").await
}

#[tokio::test]
async fn it_serves_at_once_and_takes_over_what_the_registry_says_when_it_is_back() {
    let folder = TempDir::new().unwrap();
    let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
    write(folder.path(), &[&old]);
    let pillion = start(folder.path()).await;
    until_answer(pillion.egress(), "users", |_, name| name == "old").await;
    until_kept(folder.path()).await;
    // Killed, and the registry with it.
    drop(pillion);
    fs::remove_file(folder.path().join("instances.yaml")).unwrap();

    // What else the machine does may take its time, but not each time.
    let mut took = Vec::new();
    let pillion = loop {
        let asked = Instant::now();
        let pillion = start(folder.path()).await;
        assert_eq!(get(pillion.egress(), "users").await, Ok((200, "old".into())));
        took.push(asked.elapsed());
        if asked.elapsed() < Duration::from_secs(3) {
            break pillion;
        }
        assert!(took.len() < 5, "{took:?}");
    };
    println!("the first answer came {took:.1?} after the start");
    let seen = users(&pillion).await;
    assert_eq!(
        (seen["state"].as_str(), seen["snapshot"]["source"].as_str()),
        (Some("known"), Some("main")),
        "{seen:#}"
    );
    assert!(seen["snapshot"]["age_seconds"].as_f64().unwrap() < 60.0, "{seen:#}");
    assert_eq!(seen["sources"][0]["state"], "failing");
    assert_eq!(pillion.metric("pillion_discovery_from_snapshot").await, 1.0);
    let (status, ready) = pillion.admin_text("/ready").await;
    assert_eq!((status, ready.as_str()), (200, "ok\nfrom snapshot: users\n"));

    // It comes back with something else.
    let mut load = Load::start(pillion.egress(), Version::HTTP_11, "users", 3);
    load.more(50).await;
    write(folder.path(), &[&new]);
    until_answer(pillion.egress(), "users", |_, name| name == "new").await;
    let before = old.requests();
    load.more(100).await;
    assert_eq!(old.requests(), before);
    load.end_without_failure().await;
    let seen = users(&pillion).await;
    assert!(seen.get("snapshot").is_none() && seen["sources"][0]["state"] == "answering", "{seen:#}");
    assert_eq!(pillion.admin_text("/ready").await.1, "ok\n");
}

#[tokio::test]
async fn a_damaged_file_is_put_aside_and_told() {
    let folder = TempDir::new().unwrap();
    let old = Upstream::start("old").await;
    write(folder.path(), &[&old]);
    let pillion = start(folder.path()).await;
    until_answer(pillion.egress(), "users", |_, name| name == "old").await;
    let file = until_kept(folder.path()).await;
    drop(pillion);
    fs::remove_file(folder.path().join("instances.yaml")).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let mut pillion = start(folder.path()).await;
    pillion.until_logged("its snapshot cannot be used and is put aside").await;
    assert_eq!(get(pillion.egress(), "users").await.unwrap().0, 503);
    assert_eq!(pillion.metric("pillion_snapshot_errors_total").await, 1.0);
    let names: Vec<_> =
        fs::read_dir(folder.path().join("kept")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.len() == 1 && names[0].to_string_lossy().ends_with(".corrupt"), "{names:?}");
}
