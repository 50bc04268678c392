//! The files under `config/`, which people copy.

use super::printing::walk;
use crate::config::{Config, Origin, load, print, schema};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Lists instances, and is no config itself.
const INSTANCES: &str = "instances.yaml";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn samples() -> BTreeSet<String> {
    let names = std::fs::read_dir(folder()).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn config(name: &str) -> Config {
    load(Origin::file(folder().join(name)), &|_| None).unwrap_or_else(|errors| panic!("{errors}")).config
}

#[test]
fn each_sample_loads_and_prints() {
    let samples = samples();
    for expected in
        ["minimal.yaml", "consul.yaml", "etcd-kratos.yaml", "file.yaml", "full.yaml", "inbound.yaml", INSTANCES]
    {
        assert!(samples.contains(expected), "{expected}");
    }
    for name in samples.iter().filter(|name| *name != INSTANCES) {
        let config = config(name);
        let again = load(Origin::text(name, print(&config)), &|_| None);
        assert_eq!(print(&again.unwrap_or_else(|errors| panic!("{errors}")).config), print(&config));
    }
}

#[test]
fn instances_are_found_beside_the_file_that_names_them() {
    let crate::config::Registry::File(file) = &config("file.yaml").registries["file"] else { panic!("file") };
    assert_eq!(file.path, folder().join(INSTANCES));

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        services: BTreeMap<String, Vec<serde_json::Value>>,
    }
    let bytes = std::fs::read(&file.path).unwrap();
    let file: File = crate::config::read(INSTANCES, &bytes).unwrap();
    assert_eq!(file.services["user-service"].len(), 2);
}

#[test]
fn a_path_given_by_a_flag_is_left_as_it_is() {
    let flags = crate::config::Overrides { registry: vec!["file:x.yaml".into()], ..Default::default() };
    let loaded = load(Origin::file(folder().join("file.yaml")).with(flags), &|_| None).unwrap().config;
    let crate::config::Registry::File(file) = &loaded.registries["file"] else { panic!("file") };
    assert_eq!(file.path, Path::new("x.yaml"));
}

#[test]
fn an_empty_path_in_a_file_is_a_mistake_and_not_the_files_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pillion.yaml");
    let snapshot_in = |found: &str| {
        let text =
            format!("registries: {{ a: {{ kind: embedded }} }}\ndiscovery: {{ snapshot: {{ dir: '{found}' }} }}\n");
        std::fs::write(&file, text).unwrap();
        load(Origin::file(&file), &|_| None).map(|loaded| loaded.config.discovery.snapshot.unwrap().dir)
    };
    assert_eq!(snapshot_in("snapshot").unwrap(), dir.path().join("snapshot"));
    assert!(snapshot_in("").unwrap_err().to_string().contains("discovery.snapshot.dir: found an empty text"));
}

#[test]
fn the_full_sample_has_every_key() {
    let text = std::fs::read_to_string(folder().join("full.yaml")).unwrap();
    let mut missing = BTreeSet::new();
    walk(&schema(), &mut |node| {
        for key in node["properties"].as_object().into_iter().flat_map(serde_json::Map::keys) {
            if !text.contains(&format!("{key}:")) {
                missing.insert(key.clone());
            }
        }
    });
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_full_sample_loads_with_its_commented_keys_too() {
    let files = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(folder().join("full.yaml")).unwrap();
    let text: String = text
        .lines()
        .map(|line| match line.trim_start().strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => line.replacen('#', "", 1) + "\n",
            _ => format!("{line}\n"),
        })
        .collect();
    let text = text.replace("/etc/pillion/tls", files.path().to_str().unwrap());
    for name in ["ca.pem", "client.pem", "client.key", "token", "kubeconfig"] {
        std::fs::write(files.path().join(name), "").unwrap();
    }
    let loaded = load(Origin::text("full.yaml", text), &|_| None).unwrap_or_else(|errors| panic!("{errors}")).config;
    let crate::config::Registry::Consul(consul) = &loaded.registries["consul"] else { panic!("consul") };
    assert!(consul.tls.ca.is_some() && consul.tls.cert.is_some() && consul.tls.key.is_some());
}

#[test]
fn the_full_sample_says_the_defaults() {
    // Where it gives an example instead, the line's comment says so; what is compared here has none.
    let (full, default) = (config("full.yaml"), Config::default().effective());
    assert_eq!(
        (full.workers, full.admin, full.drain, full.log),
        (default.workers, default.admin, default.drain, default.log)
    );
    let snapshot = Some(crate::config::Snapshot::new("/var/lib/pillion/snapshot"));
    assert_eq!(
        full.discovery,
        crate::config::Discovery { sources: full.discovery.sources.clone(), snapshot, ..default.discovery }
    );
    assert_eq!(full.defaults, default.defaults);
    assert_eq!(full.upgrade, Some(crate::config::Upgrade::new("/run/pillion/upgrade.sock")));
    let upstreams = full.dns.as_ref().unwrap().upstreams.clone();
    assert_eq!(full.dns, Some(crate::config::Dns { upstreams, ..Default::default() }));
    assert_eq!(full.listeners[0].limits, default.listeners[0].limits);
}
