//! What `pillion net up` is told, and whether it goes together.

use super::{
    rules::{Inbound, Outbound, Own, Rules},
    values::{Cidr, Ports, group, mark, port, user},
};
use clap::Args;
use std::str::FromStr;

/// Names have to be found while pillion is restarted, too, and their connections are none that it could balance.
const DNS: u16 = 53;

/// Where all inbound connections are wanted, these are not: without SSH a mistake could not be undone, and pillion's own ports
/// (inbound, admin) are meant for it anyway.
const NOT_INBOUND: [u16; 3] = [22, 4143, 4191];

#[derive(Debug, Args)]
pub struct Options {
    /// The user that pillion runs as, by name or number. Its connections go straight: they must not come back to it.
    #[arg(long, value_name = "USER", value_parser = user, value_delimiter = ',')]
    pillion_user: Vec<u32>,
    /// The group that pillion runs as, by name or number. Its connections go straight.
    #[arg(long, value_name = "GROUP", value_parser = group, value_delimiter = ',')]
    pillion_group: Vec<u32>,
    /// The mark that pillion's sockets have. They go straight.
    #[arg(long, value_name = "MARK", value_parser = mark)]
    pillion_mark: Option<u32>,
    /// Redirect no outbound connections: only what --inbound-ports and --keep-source say.
    #[arg(
        long,
        conflicts_with_all = ["outbound_port", "dns_port", "users", "groups", "exclude_users", "exclude_groups", "exclude_ports", "exclude_cidrs"]
    )]
    no_outbound: bool,
    /// Where pillion takes outbound connections.
    #[arg(long, value_name = "PORT", value_parser = port, default_value_t = 15001)]
    outbound_port: u16,
    /// DNS questions go to pillion as well, to this port (`dns` of its config; 15053 by custom), over UDP and TCP, whichever server they
    /// are for. Of these options, only those about users, groups and marks hold for them. Without it, they go straight.
    #[arg(long, value_name = "PORT", value_parser = port)]
    dns_port: Option<u16>,
    /// Only connections of these users; without --users and --groups, of all.
    #[arg(long, value_name = "USER", value_parser = user, value_delimiter = ',')]
    users: Vec<u32>,
    /// Only connections of these groups (a process's own, not those that its user is a member of besides).
    #[arg(long, value_name = "GROUP", value_parser = group, value_delimiter = ',')]
    groups: Vec<u32>,
    /// Connections of these users go straight.
    #[arg(long, value_name = "USER", value_parser = user, value_delimiter = ',')]
    exclude_users: Vec<u32>,
    /// Connections of these groups go straight.
    #[arg(long, value_name = "GROUP", value_parser = group, value_delimiter = ',')]
    exclude_groups: Vec<u32>,
    /// Connections to these ports go straight, e.g. `3306,9000-9099`. Those to 53 (DNS) always do, but for --dns-port.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    exclude_ports: Vec<Ports>,
    /// Connections to these addresses go straight, e.g. `10.0.0.0/8,fd00::/8`.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    exclude_cidrs: Vec<Cidr>,
    /// Inbound connections to these ports go through pillion, too: `8080,9000-9099`, or `all` but 22 (SSH) and pillion's own,
    /// 4143 and 4191. Without it, none do.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    inbound_ports: Vec<Wanted>,
    /// Inbound connections to these ports go straight.
    #[arg(long, value_name = "PORTS", value_delimiter = ',', requires = "inbound_ports")]
    exclude_inbound_ports: Vec<Ports>,
    /// Where pillion takes inbound connections.
    #[arg(long, value_name = "PORT", value_parser = port, default_value_t = 15006, requires = "inbound_ports")]
    inbound_port: u16,
    /// What applications answer from these ports of 127.0.0.1 and ::1 goes back to pillion, although it has connected to them from its
    /// clients' addresses (a listener with `app.source: client`). Needs `ip`.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    keep_source: Vec<Ports>,
}

/// Which inbound connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Ports(Ports),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" { Ok(Self::All) } else { text.parse().map(Self::Ports).map_err(|error| error + ", or `all`") }
    }
}

impl Options {
    /// The rules, or what contradicts itself.
    pub fn rules(self) -> Result<Rules, Vec<String>> {
        let mut mistakes = Vec::new();
        if self.no_outbound && self.inbound_ports.is_empty() && self.keep_source.is_empty() {
            mistakes
                .push("--no-outbound leaves nothing to do; expected --inbound-ports or --keep-source as well".into());
        }
        if !self.no_outbound
            && self.pillion_user.is_empty()
            && self.pillion_group.is_empty()
            && self.pillion_mark.is_none()
        {
            mistakes.push(
                "it is not known which connections are pillion's own, and those must not come back to it; expected \
                 --pillion-user with the user that pillion runs as (or --pillion-group, or --pillion-mark), or --no-outbound"
                    .into(),
            );
        }
        for (flag, wanted, other, unwanted) in [
            ("--users", &self.users, "--pillion-user", &self.pillion_user),
            ("--groups", &self.groups, "--pillion-group", &self.pillion_group),
            ("--users", &self.users, "--exclude-users", &self.exclude_users),
            ("--groups", &self.groups, "--exclude-groups", &self.exclude_groups),
        ] {
            for id in wanted.iter().filter(|id| unwanted.contains(id)) {
                mistakes.push(format!("{flag} and {other} contradict each other about {id}"));
            }
        }
        if self.dns_port == Some(self.outbound_port) {
            mistakes
                .push(format!("--dns-port and --outbound-port are both {}; expected two ports", self.outbound_port));
        }
        let inbound = self.inbound(&mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let kept_sources = Ports::merge(self.keep_source);
        if self.no_outbound {
            return Ok(Rules { outbound: None, inbound, kept_sources });
        }
        let outbound = Outbound {
            port: self.outbound_port,
            dns_port: self.dns_port,
            own: Own { users: once(self.pillion_user), groups: once(self.pillion_group), mark: self.pillion_mark },
            users: once(self.users),
            groups: once(self.groups),
            excluded_users: once(self.exclude_users),
            excluded_groups: once(self.exclude_groups),
            excluded_ports: Ports::merge([self.exclude_ports, vec![Ports::one(DNS)]].concat()),
            excluded_cidrs: Cidr::merge(self.exclude_cidrs),
        };
        Ok(Rules { outbound: Some(outbound), inbound, kept_sources })
    }

    fn inbound(&self, mistakes: &mut Vec<String>) -> Option<Inbound> {
        if self.inbound_ports.is_empty() {
            return None;
        }
        if !self.no_outbound && self.outbound_port == self.inbound_port {
            mistakes
                .push(format!("--outbound-port and --inbound-port are both {}; expected two ports", self.inbound_port));
        }
        // What comes to them is not pillion's to redirect: it would come back to it for ever.
        let own: Vec<_> = match self.no_outbound {
            true => vec![Ports::one(self.inbound_port)],
            false => vec![Ports::one(self.outbound_port), Ports::one(self.inbound_port)],
        };
        let mut excluded = [&own[..], &self.exclude_inbound_ports].concat();
        let ports = if self.inbound_ports.contains(&Wanted::All) {
            if self.inbound_ports.len() > 1 {
                mistakes.push("--inbound-ports has `all` and more; expected `all` alone, or ports".into());
            }
            excluded.extend(NOT_INBOUND.map(Ports::one));
            None
        } else {
            let wanted = self.inbound_ports.iter().filter_map(|wanted| match wanted {
                Wanted::All => None,
                Wanted::Ports(ports) => Some(*ports),
            });
            let wanted: Vec<_> = wanted.collect();
            for ports in &wanted {
                if own.iter().any(|own| own.contains(*ports)) {
                    mistakes
                        .push(format!("--inbound-ports {ports}: pillion itself is there; expected an application's"));
                } else if self.exclude_inbound_ports.iter().any(|excluded| excluded.contains(*ports)) {
                    mistakes.push(format!(
                        "--inbound-ports and --exclude-inbound-ports contradict each other about {ports}"
                    ));
                }
            }
            Some(Ports::merge(wanted))
        };
        Some(Inbound { port: self.inbound_port, ports, excluded_ports: Ports::merge(excluded) })
    }
}

/// In order, each once.
fn once(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}
