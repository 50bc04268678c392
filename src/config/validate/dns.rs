//! Answering DNS: networks that have room, and servers that are others.

use super::{
    Check, Spot,
    unused::{is_whole, redirects},
};
use crate::config::{AddressRange, Config, Direction, Dns, DnsRegistry, Listener, error::shorten};
use std::{net::IpAddr, time::Duration};

/// The address of a service is found by hashing its name, so there have to be far more addresses than services.
const LEAST_FREE_BITS: u8 = 16;
const LONGEST_LABEL: usize = 63;
/// What still leaves room for a service's name.
const LONGEST_SUFFIX: usize = 128;
/// A day. What is wrong should not stay in use for longer.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

impl<'t> Check<'_, 't> {
    pub(super) fn dns_server(&mut self, root: &Spot<'t>, config: &Config) {
        let Some(dns) = &config.dns else { return };
        let (spot, listeners) = (&root.key("dns"), root.key("listeners"));
        let is_transparent = |listener: &Listener| redirects(listener, Direction::Outbound);
        // One with a mistake may be the one.
        let is_in_doubt = listeners.node.is_some_and(|node| !is_whole(node));
        if !config.listeners.iter().any(is_transparent) && !is_in_doubt {
            let message = "nothing takes connections to the addresses that services get; expected only beside a listener with \
                           `transparent`";
            self.fail(spot, message);
        }
        let listen = spot.key("listen");
        if dns.listen.is_empty() && listen.elements().is_empty() {
            self.fail(&listen, "the list is empty; expected at least one `IP:PORT`");
        }
        self.suffix(&spot.key("suffix"), &dns.suffix);
        self.ranges(&spot.key("addresses"), &dns.addresses);
        self.not_in_ranges(&root.key("services"), dns, config);
        self.dns_upstreams(&spot.key("upstreams"), dns);
        self.positive(&spot.key("timeout"), dns.timeout);
        self.at_most(&spot.key("timeout"), dns.timeout);
        if dns.ttl > LONGEST_TTL {
            self.fail(&spot.key("ttl"), "expected at most `1d`");
        }
    }

    fn suffix(&mut self, spot: &Spot<'t>, suffix: &str) {
        let is_carried = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_label = |label: &str| (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(is_carried);
        let labels = suffix.strip_prefix('.').filter(|rest| rest.len() <= LONGEST_SUFFIX);
        if !labels.is_some_and(|labels| labels.split('.').all(is_label)) {
            let message = format!(
                "found `{}`; expected a dot and what services' names end with, like `.mesh`: letters, digits, `-` and `_`",
                shorten(suffix)
            );
            self.fail(spot, message);
        }
    }

    fn ranges(&mut self, spot: &Spot<'t>, ranges: &[AddressRange]) {
        if ranges.is_empty() && spot.elements().is_empty() {
            self.fail(spot, "the list is empty; expected a network of IPv4, like `240.0.0.0/4`, one of IPv6, or both");
        }
        for (index, range) in ranges.iter().enumerate() {
            let at = spot.live_item(index);
            let before = &ranges[..index];
            let (family, most) = if range.first.is_ipv4() { ("IPv4", 32) } else { ("IPv6", 128) };
            if let Some(other) = before.iter().find(|other| other.overlaps(range)) {
                self.fail(&at, format!("`{range}` overlaps `{other}`; expected one network of {family}"));
            } else if before.iter().any(|other| other.first.is_ipv4() == range.first.is_ipv4()) {
                self.fail(&at, format!("there is one of {family} already; expected one"));
            } else if range.free_bits() < LEAST_FREE_BITS {
                let most = most - LEAST_FREE_BITS;
                self.fail(
                    &at,
                    format!("`{range}` is too small for addresses that are made of names; expected at most `/{most}`"),
                );
            } else if !is_callable(range) {
                self.fail(
                    &at,
                    format!(
                        "`{range}` has addresses that cannot be called: loopback, multicast, link-local, or 0.0.0.0"
                    ),
                );
            }
        }
    }

    /// Addresses that the config gives are nobody else's.
    fn not_in_ranges(&mut self, services: &Spot<'t>, dns: &Dns, config: &Config) {
        for (name, service) in &config.services {
            let spot = services.key(name).key("addresses");
            for (index, address) in service.addresses.iter().enumerate() {
                if let Some(range) = dns.addresses.iter().find(|range| range.contains(address.ip)) {
                    let message = format!(
                        "`{address}` is in `{range}` (`dns.addresses`) and may be given to another; expected one outside"
                    );
                    self.fail(&spot.live_item(index), message);
                }
            }
        }
    }

    fn dns_upstreams(&mut self, spot: &Spot<'t>, dns: &Dns) {
        for (index, text) in dns.upstreams.iter().enumerate() {
            let at = spot.live_item(index);
            match DnsRegistry::server(text) {
                None => self.fail(&at, format!("found `{}`; expected `IP` or `IP:PORT`", shorten(text))),
                Some(server) if dns.is_own(server) => {
                    self.fail(
                        &at,
                        format!("`{server}` is where pillion itself answers (`dns.listen`); expected another server"),
                    );
                }
                Some(_) => {}
            }
        }
    }
}

/// Whether an application can call each of them, and the kernel lets the calls out.
fn is_callable(range: &AddressRange) -> bool {
    let refused = match range.first {
        IpAddr::V4(_) => ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4"].as_slice(),
        IpAddr::V6(_) => ["::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8"].as_slice(),
    };
    let refused = refused.iter().filter_map(|text| text.parse::<AddressRange>().ok());
    !refused.into_iter().any(|refused| refused.overlaps(range))
}
