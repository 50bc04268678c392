//! What is in force, as the kernel tells it.

use super::{
    listeners::{Listener, Own, There},
    rules::{DNS, INBOUND, OUTBOUND, TABLE},
};
use anyhow::anyhow;
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeSet, fmt::Write};

/// Where who answers DNS questions listens.
const RESOLVERS: u16 = 53;

/// What goes through pillion; nothing without rules.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct InForce {
    outbound: Option<Direction>,
    inbound: Option<Direction>,
    /// DNS questions; they are not redirected without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<Direction>,
    /// The ports of applications here whose answers go back to pillion, which asks as its clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept_sources: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Direction {
    /// Where pillion takes the connections.
    port: u16,
    /// Whether anybody listens there.
    listening: bool,
    /// Why it does not work, or not for all, as far as that can be seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    troubles: Vec<String>,
    redirected: Vec<Rule>,
    straight: Vec<Rule>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Rule {
    what: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
    /// How many it has redirected.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
}

impl InForce {
    /// From what `nft -j list table` prints.
    pub fn read(table: &Value, there: &dyn Fn(u16) -> There) -> anyhow::Result<Self> {
        let objects = table["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut found = Self::default();
        for chain in objects.iter().map(|object| &object["chain"]).filter(|chain| !chain.is_null()) {
            let direction = match chain["name"].as_str() {
                Some(OUTBOUND) => &mut found.outbound,
                Some(INBOUND) => &mut found.inbound,
                Some(DNS) => &mut found.dns,
                _ => return Err(strange()),
            };
            *direction = Some(Direction::default());
        }
        for rule in objects.iter().map(|object| &object["rule"]).filter(|rule| !rule.is_null()) {
            let direction = match rule["chain"].as_str() {
                Some(OUTBOUND) => found.outbound.as_mut(),
                Some(INBOUND) => found.inbound.as_mut(),
                Some(DNS) => found.dns.as_mut(),
                _ => None,
            };
            direction.and_then(|direction| direction.add(rule)).ok_or_else(strange)?;
        }
        let directions = [(false, &mut found.outbound), (false, &mut found.dns), (true, &mut found.inbound)];
        for (is_inbound, direction) in directions {
            let Some(direction) = direction else { continue };
            if direction.port == 0 {
                return Err(strange());
            }
            let there = there(direction.port);
            direction.listening = !there.listeners.is_empty();
            // What comes from this machine is no inbound connection, so those of pillion are none.
            let own = (!is_inbound).then(|| direction.own());
            direction.troubles = there.troubles(is_inbound, own.as_ref());
        }
        if let Some(dns) = &mut found.dns {
            let resolvers = there(RESOLVERS).listeners;
            let users: BTreeSet<u32> = resolvers.iter().filter(|it| dns.redirects(it)).map(|it| it.user).collect();
            dns.troubles.extend(users.into_iter().map(|user| {
                format!(
                    "user {user} answers DNS questions here itself, and those that it asks others for that are redirected, too: if pillion \
                     asks it, they come back; expected --exclude-users {user}"
                )
            }));
        }
        Ok(found)
    }

    pub fn words(&self) -> String {
        if *self == Self::default() {
            return "nothing goes through pillion: it has no rules here\n".into();
        }
        let mut out = String::new();
        if let Some(dns) = &self.dns {
            dns.words(DNS, &mut out);
        }
        for (name, direction) in [(OUTBOUND, &self.outbound), (INBOUND, &self.inbound)] {
            match direction {
                Some(direction) => direction.words(name, &mut out),
                None => {
                    let _ = writeln!(out, "{name}, straight:\n  all");
                }
            }
        }
        if !self.kept_sources.is_empty() {
            let ports = self.kept_sources.join(", ");
            let _ = writeln!(out, "answers to clients' addresses, back to pillion:\n  from ports: {ports}");
        }
        out
    }
}

impl Direction {
    /// `None`: it is no rule of ours.
    fn add(&mut self, rule: &Value) -> Option<()> {
        let what = rule["comment"].as_str()?;
        let statements = rule["expr"].as_array()?;
        let statement = |name: &str| statements.iter().rev().find_map(|statement| statement.get(name));
        let (list, connections) = if let Some(redirect) = statement("redirect") {
            self.port = redirect["port"].as_u64()?.try_into().ok()?;
            (&mut self.redirected, Some(statement("counter")?["packets"].as_u64()?))
        } else {
            statement("return")?;
            (&mut self.straight, None)
        };
        let values = match what.strip_suffix(':') {
            Some(_) => values(&statement("match")?["right"]),
            None => Vec::new(),
        };
        list.push(Rule { what: what.strip_suffix(':').unwrap_or(what).into(), values, connections });
        Some(())
    }

    /// Whether what the owner of this socket sends is redirected, as far as that can be told.
    fn redirects(&self, listener: &Listener) -> bool {
        let (user, group) = (listener.user.to_string(), listener.group.map(|group| group.to_string()));
        let has = |rule: &Rule| match rule.what.rsplit([' ', ',']).next() {
            Some("groups") => group.as_ref().is_some_and(|group| rule.values.contains(group)),
            Some("users") => rule.values.is_empty() || rule.values.contains(&user),
            _ => false,
        };
        self.redirected.iter().any(has) && !self.straight.iter().any(has)
    }

    /// Whose connections go straight because they are pillion's.
    fn own(&self) -> Own {
        let ids = |what: &str| {
            let rules = self.straight.iter().filter(|rule| rule.what == what);
            rules.flat_map(|rule| &rule.values).filter_map(|id| id.parse().ok()).collect()
        };
        Own {
            users: ids("pillion's own, users"),
            groups: ids("pillion's own, groups"),
            has_mark: self.straight.iter().any(|rule| rule.what.starts_with("pillion's own, mark")),
        }
    }

    fn words(&self, name: &str, out: &mut String) {
        let _ = writeln!(out, "{name}, to port {}:", self.port);
        for rule in &self.redirected {
            let count = rule.connections.unwrap_or_default();
            let _ = writeln!(out, "  {} ({count} connections so far)", rule.words());
        }
        for trouble in &self.troubles {
            let _ = writeln!(out, "  {trouble}");
        }
        let _ = writeln!(out, "{name}, straight:");
        for rule in &self.straight {
            let _ = writeln!(out, "  {}", rule.words());
        }
    }
}

impl Rule {
    fn words(&self) -> String {
        if self.values.is_empty() { self.what.clone() } else { format!("{}: {}", self.what, self.values.join(", ")) }
    }
}

/// One value, or a set of them.
fn values(right: &Value) -> Vec<String> {
    if let Some(set) = right["set"].as_array() {
        return set.iter().flat_map(values).collect();
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    vec![if let Some(range) = right["range"].as_array() {
        range.iter().map(text).collect::<Vec<_>>().join("-")
    } else if let Some(prefix) = right.get("prefix") {
        format!("{}/{}", text(&prefix["addr"]), text(&prefix["len"]))
    } else {
        text(right)
    }]
}

fn strange() -> anyhow::Error {
    anyhow!(
        "the table `inet {TABLE}` is not as this pillion makes it (`nft list table inet {TABLE}` shows it); `pillion net up` replaces it"
    )
}
