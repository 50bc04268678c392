//! Dividing a service's requests between targets, so that every pillion puts the same user to the same target.
//!
//! Each target draws a number for the key, from a hash of the two, and the smallest one in proportion to the weight wins:
//! weighted rendezvous hashing (D. Thaler and C. Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996; with
//! −ln(u) / weight, which gives each target exactly its share, as in J. Schindelhauer and G. Schomaker, "Weighted Distributed
//! Hash Tables", 2005). What it promises when weights change: of two targets, exactly the keys move that must; when one target's
//! weight grows, keys move only to it; and however weights change, at most 2d / (1 + d) of the keys move where at least d must
//! (the same draw is known as the Gumbel coupling; M. Daliri, C. Musco and A. Suresh, "Coupling without Communication and
//! Drafter-Invariant Speculative Decoding", 2024).

use super::{Baggage, cookie, table::Target};
use crate::config;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::IpAddr;
use twox_hash::XxHash64;

#[derive(Debug)]
pub struct Split {
    parts: Box<[Part]>,
    /// The sum of all weights.
    total: u64,
    pub key: Option<KeyFrom>,
    /// What the split is called.
    pub name: Box<str>,
    /// How the cookie is given to who has none: its attributes, with the `; ` before them.
    pub set_cookie: Option<Box<str>>,
}

#[derive(Debug)]
struct Part {
    target: Target,
    weight: u32,
    seed: u64,
}

/// What of a request the key is.
#[derive(Debug, PartialEq, Eq)]
pub enum KeyFrom {
    Header(HeaderName),
    Cookie(Box<str>),
    Source,
    Baggage(Baggage),
}

impl Split {
    /// `service`: whose split it is.
    pub fn new(service: &str, route: &config::Route) -> Self {
        let sticky = route.sticky.as_ref();
        let name = sticky.and_then(|sticky| sticky.name.as_deref()).unwrap_or(service);
        let part = |(target, weight): (&config::Target, &u32)| Part {
            target: Target::new(service, target),
            weight: *weight,
            seed: hash(0, format!("{name}\0{}", Target::new(service, target)).as_bytes()),
        };
        Self {
            parts: route.split.iter().map(part).collect(),
            total: route.split.values().map(|weight| u64::from(*weight)).sum(),
            key: sticky.and_then(KeyFrom::new),
            name: name.into(),
            set_cookie: sticky.and_then(|sticky| sticky.set_cookie.as_ref()).map(attributes),
        }
    }

    /// The target for a key, the same everywhere.
    pub fn choose(&self, key: &[u8]) -> &Target {
        let draw = |part: &Part| -uniform(hash(part.seed, key)).ln() / f64::from(part.weight);
        let mut best = (&self.parts[0], f64::INFINITY);
        for part in self.parts.iter().filter(|part| part.weight > 0) {
            let drawn = draw(part);
            if drawn < best.1 {
                best = (part, drawn);
            }
        }
        &best.0.target
    }

    /// A target for a request without a key.
    pub fn draw(&self) -> &Target {
        let mut left = fastrand::u64(..self.total.max(1));
        for part in &self.parts {
            match left.checked_sub(u64::from(part.weight)) {
                Some(rest) => left = rest,
                None => return &part.target,
            }
        }
        &self.parts[0].target
    }

    /// Each target with its share, from 0 to 1.
    pub fn shares(&self) -> impl Iterator<Item = (&Target, f64)> {
        self.parts.iter().map(|part| (&part.target, f64::from(part.weight) / self.total.max(1) as f64))
    }
}

impl KeyFrom {
    fn new(sticky: &config::Sticky) -> Option<Self> {
        // The config was validated: there is one of them.
        let config::Sticky { header, cookie, source, baggage, .. } = sticky;
        if let Some(header) = header {
            return header.parse().ok().map(Self::Header);
        }
        let cookie = cookie.as_deref().map(|cookie| Self::Cookie(cookie.into()));
        cookie
            .or_else(|| baggage.as_deref().map(|name| Self::Baggage(Baggage::new(name))))
            .or(source.then_some(Self::Source))
    }

    /// Does something with the request's key, if it has one.
    pub fn with<R>(&self, headers: &HeaderMap, source: IpAddr, work: impl FnOnce(&[u8]) -> R) -> Option<R> {
        // One that is empty is nobody's: all who have it would go to one target.
        let is_key = |value: &&[u8]| !value.is_empty();
        match self {
            Self::Header(name) => headers.get(name).map(HeaderValue::as_bytes).filter(is_key).map(work),
            Self::Cookie(name) => cookie(headers, name).filter(is_key).map(work),
            Self::Baggage(baggage) => baggage.find(headers).filter(|value| !value.is_empty()).map(|value| work(&value)),
            Self::Source => Some(match source.to_canonical() {
                IpAddr::V4(address) => work(&address.octets()),
                IpAddr::V6(address) => work(&address.octets()),
            }),
        }
    }
}

/// From 0 to 1, and neither of them.
fn uniform(hash: u64) -> f64 {
    ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

fn hash(seed: u64, bytes: &[u8]) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// (RFC 6265, section 4.1.) Scripts need not read it, and other sites' forms need not send it.
fn attributes(config: &config::SetCookie) -> Box<str> {
    let config::SetCookie { max_age, path, domain, secure } = config;
    let mut text = format!("; Path={path}");
    if let Some(domain) = domain {
        text += &format!("; Domain={domain}");
    }
    if let Some(max_age) = max_age {
        text += &format!("; Max-Age={}", max_age.as_secs());
    }
    if *secure {
        text += "; Secure";
    }
    text += "; HttpOnly; SameSite=Lax";
    text.into()
}
