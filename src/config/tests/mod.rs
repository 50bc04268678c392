//! Tests of loading as a whole: text and settings in, config or errors out.

mod consul;
mod dns;
mod dns_server;
mod docs;
mod drain;
mod fallbacks;
mod faults;
mod inbound;
mod layers;
mod nacos;
mod printing;
mod reading;
mod redis;
mod reference;
mod register;
mod registries;
mod rollouts;
mod routes;
mod samples;
mod sources;
mod stored;
mod tcp;
mod unused;
mod urls;
mod zookeeper;

use super::{Loaded, Origin, Overrides, load};

/// Loads a text named `f` with these environment variables.
fn load_with(text: &str, env: &[(&str, &str)], overrides: Overrides) -> Result<Loaded, String> {
    let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    load(Origin::text("f", text).with(overrides), &env).map_err(|errors| errors.to_string())
}

fn load_text(text: &str) -> Result<Loaded, String> {
    load_with(text, &[], Overrides::default())
}

/// The config that a text gives.
#[track_caller]
fn config_of(text: &str) -> super::Config {
    load_text(text).unwrap_or_else(|errors| panic!("{errors}")).config
}

/// A registry, so that the rest of a test's text can be about something else.
const REGISTRY: &str = "registries: { main: { kind: consul } }\n";

/// The error lines of a text without `f:` and without the count.
fn errors_of(text: &str) -> Vec<String> {
    let shown = load_text(text).expect_err("should have been refused");
    let mut lines: Vec<_> = shown.lines().map(ToOwned::to_owned).collect();
    let count = lines.pop().unwrap_or_default();
    assert!(count.starts_with(&format!("{} error", lines.len())), "{shown}");
    lines.iter().map(|line| line.strip_prefix("f:").unwrap_or(line).to_owned()).collect()
}
