//! The addresses that DNS answers give to services, and the way back.
//!
//! An address is made of its service's name alone, so that every pillion with the same networks gives the same one, also after a
//! restart: nothing has to be remembered or agreed upon. Only where two names that this pillion knows would have the same one, the
//! second gets another.

use crate::config::AddressRange;
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};
use twox_hash::XxHash64;

/// So many addresses are tried for a name whose first ones others have.
const TRIES: u64 = 64;

/// With so many names in it, those that are not followed any more are forgotten.
const MANY: usize = 10_000;

/// Readers take no lock; the one writer is who answers DNS questions, on the control thread.
#[derive(Debug, Default)]
pub struct Virtuals {
    given: ArcSwap<Given>,
}

#[derive(Debug, Clone, Default)]
struct Given {
    ranges: Vec<AddressRange>,
    services: HashMap<IpAddr, Arc<str>, foldhash::fast::FixedState>,
}

/// A service's addresses, of the families that there are networks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pair {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Virtuals {
    /// From now on addresses are of these networks.
    pub fn set_ranges(&self, ranges: Vec<AddressRange>) {
        self.given.store(Arc::new(Given { ranges, ..Given::default() }));
    }

    /// The addresses of a service. `is_followed`: whose addresses are not to be forgotten.
    pub fn of(&self, service: &Arc<str>, is_followed: impl Fn(&str) -> bool) -> Pair {
        let given = self.given.load();
        let mut added: Vec<IpAddr> = Vec::new();
        let mut pair = Pair::default();
        for range in &given.ranges {
            let is_free = |ip: &IpAddr| given.services.get(ip).is_none_or(|owner| owner == service);
            let Some(ip) = (0..TRIES).map(|attempt| address(range, service, attempt)).find(is_free) else { continue };
            if !given.services.contains_key(&ip) {
                added.push(ip);
            }
            match ip {
                IpAddr::V4(ip) => pair.v4 = Some(ip),
                IpAddr::V6(ip) => pair.v6 = Some(ip),
            }
        }
        if !added.is_empty() {
            self.add(&given, service, &added, is_followed);
        }
        pair
    }

    fn add(&self, given: &Given, service: &Arc<str>, added: &[IpAddr], is_followed: impl Fn(&str) -> bool) {
        let mut new = given.clone();
        if new.services.len() >= MANY {
            new.services.retain(|_, service| is_followed(service));
        }
        for ip in added {
            let first = given.ranges.iter().find(|range| range.contains(*ip)).map(|range| address(range, service, 0));
            if let Some(other) = first.filter(|first| first != ip).and_then(|first| given.services.get(&first)) {
                tracing::warn!(
                    %service, address = %ip, %other,
                    "two services' names make the same address, so the second has another one, which may not be the same after a restart; \
                     `services.NAME.addresses` gives it one of its own"
                );
            }
            new.services.insert(*ip, service.clone());
        }
        self.given.store(Arc::new(new));
    }

    /// The service that has this address.
    pub fn owner(&self, ip: IpAddr) -> Option<Arc<str>> {
        self.given.load().services.get(&ip).cloned()
    }

    /// The one of these services whose name makes this address: nobody may have asked for it yet, since pillion was restarted.
    pub fn owner_among(&self, ip: IpAddr, services: impl IntoIterator<Item = Arc<str>>) -> Option<Arc<str>> {
        let given = self.given.load();
        let range = given.ranges.iter().find(|range| range.contains(ip))?;
        services.into_iter().find(|service| address(range, service, 0) == ip)
    }

    /// Whether addresses like this one are given to services, so that nobody else can have it.
    pub fn is_virtual(&self, ip: IpAddr) -> bool {
        self.given.load().ranges.iter().any(|range| range.contains(ip))
    }
}

/// Neither the first nor the last address of the range, which have a meaning of their own in some networks.
fn address(range: &AddressRange, service: &str, attempt: u64) -> IpAddr {
    let hash = u128::from(XxHash64::oneshot(attempt, service.as_bytes()));
    let places = 1u128.checked_shl(u32::from(range.free_bits())).unwrap_or(u128::MAX);
    let place = 1 + hash % (places - 2).max(1);
    match range.first {
        // It has fewer than 32 bits then.
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() | place as u32).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() | place).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn virtuals(ranges: &[&str]) -> Virtuals {
        let virtuals = Virtuals::default();
        virtuals.set_ranges(ranges.iter().map(|range| range.parse().unwrap()).collect());
        virtuals
    }

    fn of(virtuals: &Virtuals, service: &str) -> Pair {
        virtuals.of(&service.into(), |_| true)
    }

    #[test]
    fn an_address_follows_from_the_name_alone() {
        let defaults = &["240.0.0.0/4", "fd70:696c:6c69:6f6e::/64"];
        let (one, other) = (virtuals(defaults), virtuals(defaults));
        let names = ["user-service", "orders", "a.b.c", "User-Service"];
        let first: Vec<_> = names.iter().map(|name| of(&one, name)).collect();
        let second: Vec<_> = names.iter().rev().map(|name| of(&other, name)).collect();
        assert!(first.iter().eq(second.iter().rev()), "{first:?} {second:?}");
        // What another version of pillion must give, too: a fleet is not updated in one moment.
        let users = first[0];
        let hash = XxHash64::oneshot(0, b"user-service");
        assert_eq!(users.v4.unwrap().to_bits(), 0xF000_0000 + 1 + (hash % ((1 << 28) - 2)) as u32);
        assert_eq!(users.v6.unwrap().to_bits(), 0xFD70_696C_6C69_6F6E << 64 | (1 + u128::from(hash) % ((1 << 64) - 2)));
        for (name, pair) in names.iter().zip(&first) {
            for ip in [IpAddr::from(pair.v4.unwrap()), pair.v6.unwrap().into()] {
                assert_eq!(one.owner(ip).as_deref(), Some(*name));
                assert!(one.is_virtual(ip));
            }
        }
        let nobodys: IpAddr = "240.0.0.1".parse().unwrap();
        assert!(one.is_virtual(nobodys) && one.owner(nobodys).is_none());
        assert!(!one.is_virtual("10.0.0.1".parse().unwrap()));
        // Before anybody has asked for the name.
        let fresh = virtuals(defaults);
        let all = || names.map(Arc::from);
        assert_eq!(fresh.owner(users.v4.unwrap().into()), None);
        assert_eq!(fresh.owner_among(users.v4.unwrap().into(), all()).as_deref(), Some("user-service"));
        assert_eq!(fresh.owner_among(users.v6.unwrap().into(), all()).as_deref(), Some("user-service"));
        assert_eq!(fresh.owner_among(nobodys, all()), None);
        assert!(!virtuals(&[]).is_virtual(nobodys));
        assert_eq!(of(&virtuals(&["fd00::/64"]), "orders").v4, None);
    }

    #[test]
    fn no_two_services_have_one_address() {
        // 65,534 places for 2,000 names: some want the same.
        let virtuals = virtuals(&["10.200.0.0/16"]);
        let names: Vec<_> = (0..2000).map(|number| format!("service-{number}")).collect();
        let given: Vec<_> = names.iter().map(|name| of(&virtuals, name).v4.unwrap()).collect();
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), 2000);
        let range: AddressRange = "10.200.0.0/16".parse().unwrap();
        let moved: Vec<_> = (0..2000).filter(|at| address(&range, &names[*at], 0) != given[*at]).collect();
        assert!(!moved.is_empty(), "nothing was tried");
        for (name, ip) in names.iter().zip(&given) {
            assert_eq!(of(&virtuals, name).v4, Some(*ip), "it stays");
            assert_eq!(virtuals.owner((*ip).into()).as_deref(), Some(name.as_str()));
            assert!(range.contains((*ip).into()) && !matches!(ip.octets()[2..], [0, 0] | [255, 255]), "{ip}");
        }
    }

    #[test]
    fn the_names_that_are_remembered_are_bounded() {
        let virtuals = virtuals(&["fd00::/64"]);
        for number in 0..MANY + 10 {
            let service: Arc<str> = format!("service-{number}").into();
            virtuals.of(&service, |name| name == "service-7");
        }
        let remembered = virtuals.given.load().services.len();
        assert_eq!(remembered, 11);
        let kept = of(&virtuals, "service-7").v6.unwrap();
        assert_eq!(virtuals.owner(kept.into()).as_deref(), Some("service-7"));
    }
}
