//! The rules as `nft` takes them.

use super::{
    answers,
    values::{Cidr, Ports},
};
use std::fmt::{self, Display};

/// The table that is pillion's own, of the family `inet`: IPv4 and IPv6.
pub const TABLE: &str = "pillion";

/// The names of the chains.
pub const OUTBOUND: &str = "outbound";
pub const INBOUND: &str = "inbound";
pub const DNS: &str = "dns";

/// Before what others do to addresses (-100): pillion wants those that the application asked for.
const PRIORITY: i32 = -110;

/// Before the rules for all connections, of which some are about DNS: what is redirected here is not looked at there.
const DNS_PRIORITY: i32 = PRIORITY - 1;

/// Only the first packet of a connection. A connection that was there before the kernel began to track connections would look like
/// a new one in its midst, and would break.
const UNDER_WAY: &str =
    "tcp flags & (fin | syn | rst | ack) != syn return comment \"connections that were there before\"";

/// Everybody whom the kernel knows. Its own connections (NFS) and all else without a known user are not redirected: it cannot be told
/// that they are not pillion's.
const ANYBODY: &str = "0-4294967294";

/// What goes through pillion, and what does not.
#[derive(Debug, PartialEq, Eq)]
pub struct Rules {
    pub outbound: Option<Outbound>,
    pub inbound: Option<Inbound>,
    /// Whose answers go back to pillion, which asks as its clients.
    pub kept_sources: Vec<Ports>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Outbound {
    pub port: u16,
    /// Where DNS questions go, if they are redirected as well.
    pub dns_port: Option<u16>,
    pub own: Own,
    /// Only those of these, if there are any.
    pub users: Vec<u32>,
    pub groups: Vec<u32>,
    pub excluded_users: Vec<u32>,
    pub excluded_groups: Vec<u32>,
    pub excluded_ports: Vec<Ports>,
    pub excluded_cidrs: Vec<Cidr>,
}

/// How pillion's own connections are told from others.
#[derive(Debug, PartialEq, Eq)]
pub struct Own {
    pub users: Vec<u32>,
    pub groups: Vec<u32>,
    pub mark: Option<u32>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Inbound {
    pub port: u16,
    /// All of them without it.
    pub ports: Option<Vec<Ports>>,
    pub excluded_ports: Vec<Ports>,
}

/// What removes the table, whether it is there or not.
pub fn removal() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

impl Display for Rules {
    /// One transaction: the kernel takes over all of it or nothing, and there is no moment without rules.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&removal())?;
        if self.outbound.is_some() || self.inbound.is_some() {
            writeln!(f, "table inet {TABLE} {{")?;
            if let Some(outbound) = &self.outbound {
                if let Some(port) = outbound.dns_port {
                    chain(f, DNS, "output", DNS_PRIORITY, &outbound.dns_rules(port))?;
                }
                chain(f, OUTBOUND, "output", PRIORITY, &outbound.rules())?;
            }
            if let Some(inbound) = &self.inbound {
                chain(f, INBOUND, "prerouting", PRIORITY, &inbound.rules())?;
            }
            writeln!(f, "}}")?;
        }
        if !self.kept_sources.is_empty() {
            writeln!(
                f,
                "# what these applications answer goes back to pillion, which asks as its clients; nft does not make that:"
            )?;
            answers::commands(&self.kept_sources).lines().try_for_each(|command| writeln!(f, "# {command}"))?;
        }
        Ok(())
    }
}

fn chain(f: &mut fmt::Formatter, name: &str, hook: &str, priority: i32, rules: &[String]) -> fmt::Result {
    writeln!(f, "\tchain {name} {{\n\t\ttype nat hook {hook} priority {priority}; policy accept;")?;
    rules.iter().try_for_each(|rule| writeln!(f, "\t\t{rule}"))?;
    writeln!(f, "\t}}")
}

// The comments are what `pillion net show` prints, followed by the rule's values after a colon.
impl Outbound {
    fn rules(&self) -> Vec<String> {
        let mut rules =
            vec![UNDER_WAY.to_owned(), "oifname \"lo\" return comment \"to this machine itself\"".to_owned()];
        rules.extend(self.own.rules());
        let (v4, v6): (Vec<Cidr>, Vec<Cidr>) = self.excluded_cidrs.iter().partition(|cidr| cidr.address.is_ipv4());
        rules.extend(straight("ip daddr", &v4, "to addresses:"));
        rules.extend(straight("ip6 daddr", &v6, "to addresses:"));
        rules.extend(straight("tcp dport", &self.excluded_ports, "to ports:"));
        rules.extend(straight("meta skuid", &self.excluded_users, "users:"));
        rules.extend(straight("meta skgid", &self.excluded_groups, "groups:"));
        rules.extend(self.redirects("meta l4proto tcp", self.port));
        rules
    }

    /// Whichever server is asked, and wherever it is: many ask one on this machine.
    fn dns_rules(&self, port: u16) -> Vec<String> {
        let mut rules = vec![UNDER_WAY.to_owned()];
        rules.extend(self.own.rules());
        rules.extend(straight("meta skuid", &self.excluded_users, "users:"));
        rules.extend(straight("meta skgid", &self.excluded_groups, "groups:"));
        rules.extend(self.redirects("meta l4proto { tcp, udp } th dport 53", port));
        rules
    }

    /// What all users open, or some.
    fn redirects(&self, what: &str, port: u16) -> Vec<String> {
        let mut rules = Vec::new();
        if self.users.is_empty() && self.groups.is_empty() {
            rules.push(redirect(&format!("{what} meta skuid {ANYBODY}"), port, "all users"));
        }
        if !self.users.is_empty() {
            rules.push(redirect(&format!("{what} meta skuid {}", set(&self.users)), port, "users:"));
        }
        if !self.groups.is_empty() {
            rules.push(redirect(&format!("{what} meta skgid {}", set(&self.groups)), port, "groups:"));
        }
        rules
    }
}

impl Own {
    fn rules(&self) -> Vec<String> {
        let users = straight("meta skuid", &self.users, "pillion's own, users:");
        let groups = straight("meta skgid", &self.groups, "pillion's own, groups:");
        let mark =
            self.mark.map(|mark| format!("meta mark {mark:#x} return comment \"pillion's own, mark {mark:#x}\""));
        users.into_iter().chain(groups).chain(mark).collect()
    }
}

impl Inbound {
    fn rules(&self) -> Vec<String> {
        let mut rules = vec![
            UNDER_WAY.to_owned(),
            "iifname \"lo\" return comment \"from this machine itself\"".to_owned(),
            "fib daddr type != local return comment \"through this machine to others\"".to_owned(),
        ];
        rules.extend(straight("tcp dport", &self.excluded_ports, "to ports:"));
        rules.push(match &self.ports {
            None => redirect("meta l4proto tcp", self.port, "to all ports"),
            Some(ports) => redirect(&format!("tcp dport {}", set(ports)), self.port, "to ports:"),
        });
        rules
    }
}

fn straight<T: Display>(what: &str, values: &[T], comment: &str) -> Option<String> {
    (!values.is_empty()).then(|| format!("{what} {} return comment \"{comment}\"", set(values)))
}

fn redirect(what: &str, port: u16, comment: &str) -> String {
    format!("{what} counter redirect to :{port} comment \"{comment}\"")
}

fn set<T: Display>(values: &[T]) -> String {
    let values: Vec<_> = values.iter().map(T::to_string).collect();
    format!("{{ {} }}", values.join(", "))
}
