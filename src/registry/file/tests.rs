use super::*;
use crate::registry::{Observation, sink};
use std::{fs, os::unix::fs::symlink, path::Path};
use tokio::{sync::watch, task::JoinHandle};

// Time is virtual, so that polls come as fast as the file can be read.

fn services(users: &[&str]) -> String {
    let lines: Vec<_> = users.iter().map(|address| format!("    - {address}\n")).collect();
    format!("services:\n  orders: [ 10.9.9.9:80 ]\n  users:\n{}", lines.concat())
}

fn open(path: &Path) -> Arc<FileRegistry> {
    FileRegistry::new("list", &config::FileRegistry { path: path.into(), scope: config::Scope::default() })
}

fn follow(registry: &Arc<FileRegistry>, service: &str) -> (JoinHandle<()>, watch::Receiver<Observation>) {
    let (sink, seen) = sink();
    (tokio::spawn(registry.clone().follow(service.into(), sink)), seen)
}

/// Waits for a set of this size from a source that has no failure.
async fn wait_for(seen: &mut watch::Receiver<Observation>, count: usize) {
    let there = |seen: &Observation| {
        seen.failure.is_none() && seen.instances.as_ref().is_some_and(|instances| instances.len() == count)
    };
    seen.wait_for(there).await.unwrap();
}

async fn wait_for_failure(seen: &mut watch::Receiver<Observation>) -> String {
    seen.wait_for(|seen| seen.failure.is_some()).await.unwrap().failure.as_ref().unwrap().to_string()
}

#[tokio::test(start_paused = true)]
async fn every_way_to_change_a_file_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, services(&["10.0.0.1:80"])).unwrap();
    let registry = open(&path);
    let (_task, mut seen) = follow(&registry, "users");
    wait_for(&mut seen, 1).await;
    fs::write(&path, services(&["10.0.0.1:80", "10.0.0.2:80"])).unwrap();
    wait_for(&mut seen, 2).await;
    let beside = dir.path().join("a.yaml.new");
    fs::write(&beside, services(&[])).unwrap();
    fs::rename(&beside, &path).unwrap();
    wait_for(&mut seen, 0).await;
    assert_eq!(registry.list().await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_config_map_turns_its_link() {
    let dir = tempfile::tempdir().unwrap();
    for (version, users) in [("1", &["10.0.0.1:80"][..]), ("2", &["10.0.0.1:80", "10.0.0.2:80"])] {
        fs::create_dir(dir.path().join(version)).unwrap();
        fs::write(dir.path().join(version).join("a.yaml"), services(users)).unwrap();
    }
    let data = dir.path().join("..data");
    symlink("1", &data).unwrap();
    symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
    let (_task, mut seen) = follow(&open(&dir.path().join("a.yaml")), "users");
    wait_for(&mut seen, 1).await;
    symlink("2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), &data).unwrap();
    fs::remove_dir_all(dir.path().join("1")).unwrap();
    wait_for(&mut seen, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_or_missing_file_keeps_the_last_good_set_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    let registry = open(&path);
    let (_task, mut seen) = follow(&registry, "users");
    assert!(wait_for_failure(&mut seen).await.contains("No such file"));
    assert!(seen.borrow().instances.is_none(), "that is no empty set");
    assert!(registry.clone().list().await.is_err());
    fs::write(&path, services(&["10.0.0.1:80"])).unwrap();
    wait_for(&mut seen, 1).await;
    fs::write(&path, services(&["10.0.0.1", "10.0.0.2"])).unwrap();
    let failure = wait_for_failure(&mut seen).await;
    assert!(failure.contains("a.yaml:4:7: ") && failure.contains("a.yaml:5:7: "), "{failure}");
    assert_eq!(seen.borrow().instances.as_ref().unwrap().len(), 1);
    let (_late, mut late) = follow(&registry, "orders");
    wait_for_failure(&mut late).await;
    assert_eq!(late.borrow().instances.as_ref().unwrap().len(), 1, "the last good set is there for new followers");
    fs::write(&path, services(&["10.0.0.1:80"])).unwrap();
    wait_for(&mut seen, 1).await;
    fs::remove_file(&path).unwrap();
    wait_for_failure(&mut seen).await;
    assert_eq!(seen.borrow().instances.as_ref().unwrap().len(), 1);
    fs::write(&path, services(&["10.0.0.1:80"])).unwrap();
    wait_for(&mut seen, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_a_good_file_does_not_name_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    fs::write(&path, r#"{"services": {"users": ["10.0.0.1:80"]}}"#).unwrap();
    let (_task, mut seen) = follow(&open(&path), "nobody");
    wait_for(&mut seen, 0).await;
}

#[tokio::test(start_paused = true)]
async fn followers_outlive_the_one_that_looks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, services(&["10.0.0.1:80"])).unwrap();
    let registry = open(&path);
    let (first, mut seen) = follow(&registry, "users");
    wait_for(&mut seen, 1).await;
    let (second, mut other) = follow(&registry, "users");
    wait_for(&mut other, 1).await;
    first.abort();
    let _ = first.await;
    fs::write(&path, services(&[])).unwrap();
    wait_for(&mut other, 0).await;
    second.abort();
    let _ = second.await;

    fs::remove_file(&path).unwrap();
    let (_third, mut seen) = follow(&registry, "users");
    wait_for_failure(&mut seen).await;
    assert!(seen.borrow().instances.is_none(), "what was seen long ago is not told as if it were true");
}

#[tokio::test(start_paused = true)]
async fn followers_hear_from_it_within_the_silence_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, services(&["10.0.0.1:80"])).unwrap();
    let registry = open(&path);
    let (_task, mut seen) = follow(&registry, "users");
    wait_for(&mut seen, 1).await;
    for bad in [false, true] {
        if bad {
            fs::write(&path, "services: 7").unwrap();
            wait_for_failure(&mut seen).await;
        }
        for _ in 0..10 {
            tokio::time::sleep(registry.silence_limit() / 2).await;
            assert!(seen.borrow().heard.unwrap().elapsed() < registry.silence_limit());
            assert_eq!(seen.borrow().failure.is_some(), bad);
        }
    }
}
