//! pillion's own table, by `nft`.

use super::{
    programs::{self, failure, missing, said},
    rules::TABLE,
};
use anyhow::Context;
use serde_json::Value;
use std::process::Output;

/// Puts rules in force: all of them, or none.
pub fn load(rules: &str) -> anyhow::Result<()> {
    let output = run(&["-f", "-"], rules)?;
    if output.status.success() { Ok(()) } else { Err(failure("nft", &output)) }
}

/// Our table, as `nft -j` tells it; `None` if it is not there.
pub fn table() -> anyhow::Result<Option<Value>> {
    let output = run(&["-j", "list", "table", "inet", TABLE], "")?;
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).map(Some).context("`nft -j` printed no JSON");
    }
    if said(&output).contains("No such file or directory") { Ok(None) } else { Err(failure("nft", &output)) }
}

fn run(args: &[&str], input: &str) -> anyhow::Result<Output> {
    programs::run("nft", args, input)?.ok_or_else(|| missing("nft", "nftables", "nftables"))
}
