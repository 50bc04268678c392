//! From answers to instances. Pure.

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;

use super::message::{Data, Message, Question, Record, Srv};
use crate::registry::{Address, Instance};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// The response codes that are answers, and those that have a meaning of their own here.
pub const NO_ERROR: u16 = 0;
pub const FORMAT_ERROR: u16 = 1;
pub const SERVER_FAILURE: u16 = 2;
pub const NO_SUCH_NAME: u16 = 3;
pub const NOT_IMPLEMENTED: u16 = 4;
pub const REFUSED: u16 = 5;

/// Beside a weight of 0 others are multiplied by this, so that it can be less than any of them: RFC 2782 wants "a very
/// small chance" for it.
const BESIDE_ZERO: u32 = 100;

/// Aliases that are followed within an answer. Each is looked for among all records.
const MOST_ALIASES: usize = 16;
/// An answer has room for thousands of ports and of addresses, and each port may be at each address. No service has as many
/// endpoints as that comes to.
const MOST_ENDPOINTS: usize = 10_000;

/// What an answer says to its question.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding<'m> {
    /// Of the type that was asked for, and for how many seconds they hold.
    Records { data: Vec<&'m Data>, ttl: u32 },
    /// The name does not exist, or has no such records. For how many seconds that holds, if the answer says so.
    Nothing { ttl: Option<u32> },
    /// The name is an alias for this one, of which nothing more is said.
    Alias { name: &'m str, ttl: u32 },
}

/// Reads an answer whose code is [`NO_ERROR`] or [`NO_SUCH_NAME`].
pub fn finding<'m>(message: &'m Message, question: &'m Question) -> Finding<'m> {
    let (mut name, mut ttl, mut followed) = (question.name.as_str(), u32::MAX, false);
    // A circle ends, too.
    for _ in 0..=MOST_ALIASES {
        let own = || message.answers.iter().filter(|record| record.name == name);
        let wanted = || own().filter(|record| record.data.is_of(question.of));
        if wanted().next().is_some() {
            let ttl = wanted().map(|record| record.ttl).fold(ttl, u32::min);
            return Finding::Records { data: wanted().map(|record| &record.data).collect(), ttl };
        }
        let alias = own().find_map(|record| match &record.data {
            Data::Cname(target) => Some((target, record.ttl)),
            _ => None,
        });
        let Some((target, its)) = alias else { break };
        (name, ttl, followed) = (target, ttl.min(its), true);
    }
    let negative = message.authorities.iter().find_map(|record| match record.data {
        Data::Soa { minimum } => Some(minimum.min(record.ttl)),
        _ => None,
    });
    if !followed || message.code == NO_SUCH_NAME || negative.is_some() {
        return Finding::Nothing { ttl: negative.map(|negative| negative.min(ttl)) };
    }
    // A server of certain names only does not follow an alias out of them. (A circle is no answer, and ends there as well;
    // and of a row that is too long the rest is asked for.)
    Finding::Alias { name, ttl }
}

/// The addresses of `name` among records that came along, and for how long they hold.
pub fn addresses(records: &[Record], name: &str) -> Option<(Vec<IpAddr>, u32)> {
    let own = || records.iter().filter(|record| record.name == name);
    let v4 = own().filter_map(|record| record.data.address().filter(IpAddr::is_ipv4));
    let mut addresses: Vec<IpAddr> = v4.collect();
    if addresses.is_empty() {
        addresses.extend(own().filter_map(|record| record.data.address()));
    }
    let ttl = own().filter(|record| record.data.address().is_some()).map(|record| record.ttl).min()?;
    Some((addresses, ttl))
}

/// Instances at these addresses, all of one weight.
pub fn plain_instances(addresses: &[IpAddr], port: u16) -> (Vec<Instance>, Vec<String>) {
    let all: BTreeSet<_> = addresses.iter().copied().collect();
    let mut unreadable = Vec::new();
    let instances = all.into_iter().filter_map(|ip| usable(ip, port).map_err(|why| unreadable.push(why)).ok());
    (instances.map(|at| Instance::new(at.to_string(), Address::Ip(at))).collect(), unreadable)
}

/// Instances of the SRV records, each with its target's addresses.
pub fn srv_instances(records: &[(Srv, Vec<IpAddr>)]) -> (Vec<Instance>, Vec<String>) {
    let mut unreadable = Vec::new();
    // One address twice counts as what it is in the group that is preferred.
    let mut found: BTreeMap<SocketAddr, &Srv> = BTreeMap::new();
    let mut endpoints = records.iter().flat_map(|(srv, addresses)| addresses.iter().map(move |ip| (srv, *ip)));
    for (srv, ip) in endpoints.by_ref().take(MOST_ENDPOINTS) {
        match usable(ip, srv.port) {
            Ok(at) => {
                let there = found.entry(at).or_insert(srv);
                if srv.priority < there.priority {
                    *there = srv;
                }
            }
            Err(why) => unreadable.push(format!("{}: {why}", srv.target)),
        }
    }
    if endpoints.next().is_some() {
        unreadable.push(format!("more than {MOST_ENDPOINTS} endpoints; the others are left out"));
    }
    let with_zero: BTreeSet<u16> = found.values().filter(|srv| srv.weight == 0).map(|srv| srv.priority).collect();
    let instance = |(at, srv): (&SocketAddr, &&Srv)| {
        let mut instance = Instance::new(at.to_string(), Address::Ip(*at));
        instance.weight = match u32::from(srv.weight) {
            0 => 1,
            weight if with_zero.contains(&srv.priority) => weight * BESIDE_ZERO,
            weight => weight,
        };
        instance.priority = u32::from(srv.priority);
        instance.labels.insert("dns.priority".into(), srv.priority.to_string());
        instance.labels.insert("dns.target".into(), srv.target.clone());
        instance
    };
    (found.iter().map(instance).collect(), unreadable)
}

fn usable(ip: IpAddr, port: u16) -> Result<SocketAddr, String> {
    let at = SocketAddr::new(ip, port);
    if ip.is_unspecified() || ip.is_multicast() || port == 0 {
        return Err(format!("`{at}` is not an address to connect to"));
    }
    Ok(at)
}
