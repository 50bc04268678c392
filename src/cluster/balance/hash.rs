//! Choosing by a hash of something in the request, so that what is alike goes to the same endpoint, from every pillion.
//!
//! All of it is XXH64, which is the same on every machine and in every version; an endpoint counts by its address. So the
//! outcome depends neither on the order in which a registry lists instances nor on their ids.

use crate::{
    cluster::endpoint::Endpoint,
    config::{Balance, Policy},
    route,
};
use http::{HeaderName, request};
use std::{net::IpAddr, num::NonZeroU32, sync::Arc};
use twox_hash::XxHash64;

/// What of a request counts.
#[derive(Debug)]
pub enum HashBy {
    Header(HeaderName),
    Cookie(String),
    Source,
    Path,
}

/// What a request is hashed to, and what the bound on an endpoint's load goes by.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub hash: u64,
    /// Requests in flight to the service, this one included. Never none, which saves every connection the room for a tag.
    in_flight: NonZeroU32,
}

impl HashBy {
    /// `None` for policies that do not hash.
    pub fn new(balance: &Balance) -> Option<Self> {
        let hash = &balance.hash;
        if !balance.policy.hashes() {
            return None;
        }
        // The config was validated: there is one of them.
        match (&hash.header, &hash.cookie) {
            (Some(header), _) => header.parse().ok().map(Self::Header),
            (None, Some(cookie)) => Some(Self::Cookie(cookie.clone())),
            (None, None) if hash.source => Some(Self::Source),
            (None, None) => hash.path.then_some(Self::Path),
        }
    }

    /// `None` if the request lacks it.
    pub fn hash(&self, request: &request::Parts, source: IpAddr) -> Option<u64> {
        match self {
            Self::Header(name) => request.headers.get(name).map(|value| hash(0, value.as_bytes())),
            Self::Cookie(name) => route::cookie(&request.headers, name).map(|value| hash(0, value)),
            Self::Source => self.hash_of_source(source),
            Self::Path => Some(hash(0, request.uri.path().as_bytes())),
        }
    }

    /// The same where there is no request.
    pub fn hash_of_source(&self, source: IpAddr) -> Option<u64> {
        matches!(self, Self::Source).then(|| match source.to_canonical() {
            IpAddr::V4(address) => hash(0, &address.octets()),
            IpAddr::V6(address) => hash(0, &address.octets()),
        })
    }
}

impl Key {
    pub fn new(hash: u64, in_flight: i64) -> Self {
        let in_flight = u32::try_from(in_flight.max(1)).unwrap_or(u32::MAX);
        Self { hash, in_flight: NonZeroU32::new(in_flight).unwrap_or(NonZeroU32::MIN) }
    }

    pub fn in_flight(self) -> u32 {
        self.in_flight.get()
    }

    /// The same key's further choices, each as if it were another key: where its endpoint cannot be had, its keys spread
    /// over all others.
    pub fn nth(self, attempt: u32) -> u64 {
        if attempt == 0 { self.hash } else { hash(u64::from(attempt), &self.hash.to_le_bytes()) }
    }

    /// A number from 0 to 1 to decide `what` by, unrelated to the endpoints that the key chooses.
    pub fn fraction(self, what: What) -> f64 {
        (hash(u64::from(what as u32), &self.hash.to_le_bytes()) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What is decided by a key besides its endpoint. The numbers are seeds of the hash, far from those of [`Key::nth`].
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum What {
    /// Which part of the endpoints.
    Part = u32::MAX - 1,
    /// Whether it is among those that an endpoint gets which gets less than its share.
    Discount,
}

fn hash(seed: u64, bytes: &[u8]) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// Which endpoint has which hashes.
#[derive(Debug)]
pub struct HashTable {
    owners: Owners,
    /// All endpoints in an order that is the same everywhere.
    pub in_order: Box<[usize]>,
}

#[derive(Debug)]
enum Owners {
    /// Slot by slot. (D. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", 2016.)
    Maglev(Box<[u32]>),
    /// Points on the ring, and whose they are; to it belong the hashes up to the point. (D. Karger et al., "Consistent
    /// Hashing and Random Trees", 1997.)
    Ring(Box<[(u64, u32)]>),
}

/// A prime, and far more than there are endpoints; never another, because with the size all would move. Four times the
/// paper's smaller one and Envoy's: with 65,537 and 100 endpoints, 1.6 times the keys of the one that leaves move, with this
/// 1.25 times (medians, measured). It takes 1 MB per service.
const SLOTS: u64 = 262_147;
/// Points for an endpoint of mean weight. As many as ketama's.
const POINTS: f64 = 160.0;
/// So many endpoints of mean weight can have all of their points.
const MANY: usize = 4096;

impl HashTable {
    /// `weights` has one for each of `endpoints`; those with 0 are left out. `None` for policies that do not hash.
    pub fn new(policy: Policy, endpoints: &[Arc<Endpoint>], weights: &[u32]) -> Option<Self> {
        let mut named: Vec<(String, &str, u32)> = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate().filter(|(index, _)| weights[*index] > 0) {
            let Ok(index) = u32::try_from(index) else { break };
            named.push((endpoint.instance.address.to_string(), &endpoint.instance.id, index));
        }
        named.sort_unstable();
        let weight = |index: u32| f64::from(weights[index as usize]);
        let owners = match policy {
            _ if named.is_empty() => return None,
            Policy::Maglev => Owners::Maglev(maglev(&named, weight)),
            Policy::RingHash => Owners::Ring(ring(&named, weight)),
            _ => return None,
        };
        Some(Self { owners, in_order: named.iter().map(|(_, _, index)| *index as usize).collect() })
    }

    pub fn find(&self, hash: u64) -> usize {
        let index = match &self.owners {
            Owners::Maglev(slots) => slots[(hash % SLOTS) as usize],
            Owners::Ring(points) => {
                let at = points.partition_point(|(point, _)| *point < hash);
                points[if at == points.len() { 0 } else { at }].1
            }
        };
        index as usize
    }
}

/// Each endpoint has an order of its own of all slots, and takes the first of it that is free, in turns, until none is.
fn maglev(named: &[(String, &str, u32)], weight: impl Fn(u32) -> f64) -> Box<[u32]> {
    struct Taker {
        index: u32,
        at: u64,
        skip: u64,
        /// Turns per round, and what has come together of them.
        rate: f64,
        credit: f64,
    }
    let heaviest = named.iter().map(|(_, _, index)| weight(*index)).fold(0.0, f64::max);
    let taker = |(name, _, index): &(String, &str, u32)| Taker {
        index: *index,
        at: hash(0, name.as_bytes()) % SLOTS,
        skip: hash(1, name.as_bytes()) % (SLOTS - 1) + 1,
        rate: weight(*index) / heaviest,
        credit: 0.0,
    };
    let mut takers: Vec<Taker> = named.iter().map(taker).collect();
    let mut slots = vec![u32::MAX; SLOTS as usize].into_boxed_slice();
    let mut free = slots.len();
    loop {
        for taker in &mut takers {
            taker.credit += taker.rate;
            if taker.credit < 1.0 {
                continue;
            }
            taker.credit -= 1.0;
            while slots[taker.at as usize] != u32::MAX {
                taker.at = (taker.at + taker.skip) % SLOTS;
            }
            slots[taker.at as usize] = taker.index;
            free -= 1;
            if free == 0 {
                return slots;
            }
        }
    }
}

fn ring(named: &[(String, &str, u32)], weight: impl Fn(u32) -> f64) -> Box<[(u64, u32)]> {
    let mean = named.iter().map(|(_, _, index)| weight(*index)).sum::<f64>() / named.len() as f64;
    let each = POINTS * (MANY as f64 / named.len() as f64).min(1.0);
    let mut points: Vec<(u64, u32)> = Vec::new();
    for (name, _, index) in named {
        let count = (weight(*index) / mean * each).round().max(1.0) as u64;
        points.extend((0..count).map(|point| (hash(point, name.as_bytes()), *index)));
    }
    // Stable, so that of two at one point it is the one whose name comes first.
    points.sort_by_key(|(point, _)| *point);
    points.into_boxed_slice()
}
