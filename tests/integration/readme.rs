//! What README.md says is so.

use pillion::{
    config::{self, Origin},
    error::Reason,
};
use std::path::Path;

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

#[test]
fn every_reason_is_listed_with_what_callers_get() {
    let readme = readme();
    let rows = readme.lines().filter(|line| line.starts_with("| `")).filter(|line| line.matches('|').count() == 5);
    assert_eq!(rows.count(), Reason::ALL.len());
    for reason in Reason::ALL {
        let row = format!("| `{}` | {} | {} | ", reason.as_str(), reason.status().as_u16(), reason.grpc_status());
        assert!(readme.contains(&row), "{row}");
    }
}

#[test]
fn the_config_is_good() {
    let readme = readme();
    let (_, rest) = readme.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let loaded = config::load(Origin::text("README.md", example), &|_| None).unwrap();
    assert_eq!(loaded.config.listeners.len(), 2);
}
