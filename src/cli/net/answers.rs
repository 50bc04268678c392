//! The way back of what applications answer whom pillion calls as their clients (`app.source: client`): by `ip`, to pillion and not
//! to the clients.
//!
//! What comes from a loopback address can leave the machine by no other way, so nobody's packets are led elsewhere than before,
//! and no marks are needed.

use super::{
    programs::{self, failure, missing},
    values::Ports,
};
use std::{fmt::Write as _, fs};

/// The number of the routing table that is pillion's own, and of its rules' priority.
const TABLE: u16 = 4140;

/// The one route in there: everything is for this machine.
const ROUTE: &str = "local default dev lo";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// A rule up to its ports, as `ip` prints it, too.
    fn rule(self) -> &'static str {
        match self {
            Self::V4 => "from 127.0.0.0/8 iif lo ipproto tcp sport ",
            Self::V6 => "from ::1 iif lo ipproto tcp sport ",
        }
    }

    fn is_there(self) -> bool {
        let disabled = || fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
        self == Self::V4 || disabled().is_ok_and(|disabled| disabled.trim() == "0")
    }
}

/// What is to be done so that only the answers from these ports go back to pillion: lines for `ip -batch`, without "ip" and family.
fn changes(family: Family, there: &[String], has_route: bool, wanted: &[Ports]) -> String {
    let mut lines = String::new();
    let mut line = |what: &str| _ = writeln!(lines, "{what}");
    let wanted: Vec<_> = wanted.iter().map(Ports::to_string).collect();
    let (rule, at) = (family.rule(), format!("priority {TABLE}"));
    if !wanted.is_empty() && !has_route {
        line(&format!("route add {ROUTE} table {TABLE}"));
    }
    // New ones before the old ones go, so that what stays is never without.
    for ports in wanted.iter().filter(|ports| !there.contains(ports)) {
        line(&format!("rule add {at} {rule}{ports} lookup {TABLE}"));
    }
    for ports in there.iter().filter(|ports| !wanted.contains(ports)) {
        line(&format!("rule del {at} {rule}{ports} lookup {TABLE}"));
    }
    if wanted.is_empty() && has_route {
        line(&format!("route del {ROUTE} table {TABLE}"));
    }
    lines
}

/// The commands that put it in force where there is nothing of it.
pub fn commands(wanted: &[Ports]) -> String {
    let mut commands = String::new();
    for family in [Family::V4, Family::V6] {
        for line in changes(family, &[], false, wanted).lines() {
            let _ = writeln!(commands, "ip {} {line}", family.flag());
        }
    }
    commands
}

/// Lets the answers from these ports, and no others, go back to pillion. Whether anything had to be changed.
pub fn keep(wanted: &[Ports]) -> anyhow::Result<bool> {
    let mut is_changed = false;
    for family in [Family::V4, Family::V6].into_iter().filter(|family| family.is_there()) {
        let (there, has_route) = match (ports(family)?, has_route(family)?) {
            (Some(there), Some(has_route)) => (there, has_route),
            _ if wanted.is_empty() => return Ok(false),
            _ => return Err(missing("ip", "iproute2", "iproute")),
        };
        let changes = changes(family, &there, has_route, wanted);
        if changes.is_empty() {
            continue;
        }
        let output = programs::run("ip", &[family.flag(), "-batch", "-"], &changes)?;
        let output = output.ok_or_else(|| missing("ip", "iproute2", "iproute"))?;
        if !output.status.success() {
            return Err(failure("ip", &output));
        }
        is_changed = true;
    }
    Ok(is_changed)
}

/// The ports whose answers go back to pillion, as they are told.
pub fn kept() -> anyhow::Result<Vec<String>> {
    let mut kept = ports(Family::V4)?.unwrap_or_default();
    // As a rule they are the same.
    for ports in ports(Family::V6)?.unwrap_or_default() {
        if !kept.contains(&ports) {
            kept.push(ports);
        }
    }
    Ok(kept)
}

/// Those of our rules; `None`: there is no `ip` that could have made any.
fn ports(family: Family) -> anyhow::Result<Option<Vec<String>>> {
    let (table, start) = (TABLE.to_string(), format!("{TABLE}:"));
    let args = [family.flag(), "rule", "show", "table", &table];
    let Some(output) = programs::run("ip", &args, "")?.filter(|output| output.status.success()) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ports = text.lines().filter_map(|line| {
        let rule = line.strip_prefix(&start)?.trim().strip_prefix(family.rule())?;
        // (Where the table has a name, that is printed.)
        let (ports, lookup) = rule.split_once(' ')?;
        lookup.starts_with("lookup ").then(|| ports.to_owned())
    });
    Ok(Some(ports.collect()))
}

/// Whether our route is there; `None`: as above.
fn has_route(family: Family) -> anyhow::Result<Option<bool>> {
    let table = TABLE.to_string();
    let Some(output) = programs::run("ip", &[family.flag(), "route", "show", "table", &table], "")? else {
        return Ok(None);
    };
    // A table that nothing was put into yet is an error.
    Ok(Some(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.starts_with(ROUTE))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<Ports> {
        text.split_whitespace().map(|ports| ports.parse().unwrap()).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let there = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let v6 = |there: &[String], has_route, wanted: &str| changes(Family::V6, there, has_route, &ports(wanted));
        let rule = |what: &str, ports: &str| {
            format!("rule {what} priority 4140 from ::1 iif lo ipproto tcp sport {ports} lookup 4140\n")
        };
        let route = |what: &str| format!("route {what} local default dev lo table 4140\n");
        assert_eq!(v6(&[], false, ""), "");
        assert_eq!(v6(&there("80 90-99"), true, "80 90-99"), "");
        assert_eq!(v6(&[], false, "80 90-99"), route("add") + &rule("add", "80") + &rule("add", "90-99"));
        assert_eq!(v6(&there("80 90-99"), true, "80 81"), rule("add", "81") + &rule("del", "90-99"));
        assert_eq!(v6(&there("80"), true, ""), rule("del", "80") + &route("del"));
        assert_eq!(v6(&there("80"), false, "80"), route("add"), "somebody else removed it");
        assert_eq!(
            commands(&ports("80")).lines().nth(1).unwrap(),
            "ip -4 rule add priority 4140 from 127.0.0.0/8 iif lo ipproto tcp sport 80 lookup 4140"
        );
    }
}
