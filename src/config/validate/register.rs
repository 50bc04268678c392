//! What there is to check of `register`.

use super::{Check, Spot};
use crate::{
    config::{
        Config, ConsulCheck, ConsulRegister, LocalHealth, NacosRegister, Network, Register, RegisterAddress,
        RegisterPort, Registry,
        error::{one_of, shorten},
    },
    pattern::Pattern,
};
use std::time::Duration;

/// What registries and networks can bear, and what a registry can still be told in time.
const LEAST_TTL: Duration = Duration::from_secs(1);
const MOST_TTL: Duration = Duration::from_secs(3600);
/// Consul takes less for this.
const LEAST_CRITICAL: Duration = Duration::from_secs(60);

impl<'t> Check<'_, 't> {
    pub(super) fn registrations(&mut self, spot: &Spot<'t>, config: &Config) {
        let mut known: Vec<(String, &Register)> = Vec::new();
        for (index, register) in config.register.iter().enumerate() {
            let spot = spot.live_item(index);
            self.registration(&spot, register, config);
            let Ok(name) = register.full_name(&config.node) else { continue };
            let same = |(other_name, other): &(String, &Register)| {
                *other_name == name && other.id == register.id && other.port == register.port
            };
            if known.iter().any(same) {
                self.fail(&spot, format!("`{}` is there with the same `id` and `port` already", shorten(&name)));
            }
            known.push((name, register));
        }
    }

    fn registration(&mut self, spot: &Spot<'t>, register: &Register, config: &Config) {
        match (register.full_name(&config.node), Pattern::new(&register.name_pattern)) {
            (_, Err(error)) => {
                self.fail(&spot.key("name_pattern"), format!("it is no regular expression: {error}"));
            }
            (Err(error), _) => {
                let at =
                    if register.service.is_none() && error.wants_service() { spot.clone() } else { spot.key("name") };
                self.fail(&at, error.to_string());
            }
            (Ok(name), Ok(_)) => {
                self.service_name(&spot.key("name"), &name);
                if !register.fits_pattern(&name) {
                    let pattern = &register.name_pattern;
                    let at = if register.service.is_some() { spot.key("service") } else { spot.clone() };
                    self.fail(&at, format!("the name `{}` does not match `{pattern}`", shorten(&name)));
                }
            }
        }
        if let Some(id) = &register.id {
            self.service_name(&spot.key("id"), id);
        }
        match &register.address {
            RegisterAddress::Host(host) if bare_host(host).is_none() => {
                let message =
                    format!("found `{}`; expected an IP address or a host name, without a port", shorten(host));
                self.fail(&spot.key("address"), message);
            }
            RegisterAddress::Network(Network { bits: 0, .. }) => {
                self.fail(&spot.key("address").key("network"), "every address is in it; expected a smaller network");
            }
            _ => {}
        }
        match &register.port {
            Some(RegisterPort::Listener(name)) => self.registered_listener(spot, name, register, config),
            // One that could not be read was reported.
            None if spot.key("port").node.is_some() => {}
            None => self.fail(spot, "`port` is missing; expected a number, or a map that tells where it comes from"),
            Some(_) => {}
        }
        self.target_registries(&spot.key("registry"), spot, register, config);
        if let Some(weight) = register.weight {
            self.range(&spot.key("weight"), weight, 1, 1_000_000);
        }
        if register.ttl < LEAST_TTL || register.ttl > MOST_TTL {
            let found = crate::config::human::format(register.ttl);
            self.fail(&spot.key("ttl"), format!("found `{found}`; expected `1s` to `1h`"));
        }
        self.none_empty(&spot.key("tags"), &register.tags);
        self.local_health(&spot.key("health"), &register.health, register.tls);
        if let Some(consul) = &register.consul {
            self.in_consul(&spot.key("consul"), consul, register, config);
        }
        if let Some(nacos) = &register.nacos {
            self.in_nacos(&spot.key("nacos"), nacos, register, config);
        }
    }

    fn in_consul(&mut self, spot: &Spot<'t>, consul: &ConsulRegister, register: &Register, config: &Config) {
        let is_named = |name: &String| register.registry.is_empty() || register.registry.contains(name);
        let mut targets = config.registries.iter().filter(|(name, _)| is_named(name));
        if !targets.any(|(_, registry)| matches!(registry, Registry::Consul(_))) {
            self.fail(spot, "none of its registries is of kind consul");
        }
        let check = spot.key("check");
        match consul.check {
            ConsulCheck::Http if register.health.http.is_none() => {
                self.fail(&check, "`http` goes with `health.http`, which is missing");
            }
            ConsulCheck::Grpc if register.health.grpc.is_none() => {
                self.fail(&check, "`grpc` goes with `health.grpc`, which is missing");
            }
            _ => {}
        }
        self.at_least(&spot.key("deregister_critical_after"), consul.deregister_critical_after, LEAST_CRITICAL);
    }

    fn in_nacos(&mut self, spot: &Spot<'t>, nacos: &NacosRegister, register: &Register, config: &Config) {
        let is_named = |name: &String| register.registry.is_empty() || register.registry.contains(name);
        let mut targets = config.registries.iter().filter(|(name, _)| is_named(name));
        if !targets.any(|(_, registry)| matches!(registry, Registry::Nacos(_))) {
            self.fail(spot, "none of its registries is of kind nacos");
        }
        // What Nacos itself takes.
        let fits = |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if let Some(cluster) = nacos.cluster.as_ref().filter(|name| !fits(name)) {
            let message = format!("found `{}`; expected letters, digits and `-`", shorten(cluster));
            self.fail(&spot.key("cluster"), message);
        }
    }

    /// Others are to reach the application through it.
    fn registered_listener(&mut self, spot: &Spot<'t>, name: &str, register: &Register, config: &Config) {
        let at = spot.key("port").key("listener");
        let Some(listener) = config.listeners.iter().find(|listener| listener.name == *name) else {
            let names: Vec<_> = config.listeners.iter().map(|listener| listener.name.as_str()).collect();
            let message =
                format!("no listener is named `{}`; expected {}", shorten(name), one_of(names.iter().copied()));
            return self.fail(&at, message);
        };
        let on_purpose = matches!(register.address, RegisterAddress::Host(_));
        if listener.app.is_none() {
            self.fail(&at, format!("`{}` is not in front of the application; expected one with `app`", shorten(name)));
        } else if listener.listen.ip().is_loopback() && !on_purpose {
            let message = format!(
                "`{}` listens on {}, which others cannot reach; expected another `listen`, or `address` here",
                shorten(name),
                listener.listen
            );
            self.fail(&at, message);
        }
    }

    fn target_registries(&mut self, spot: &Spot<'t>, whole: &Spot<'t>, register: &Register, config: &Config) {
        let able: Vec<_> = config.registries.iter().filter(|(_, registry)| registry.takes_registrations()).collect();
        let names: Vec<_> = able.iter().map(|(name, _)| name.as_str()).collect();
        if register.registry.is_empty() {
            match names.len() {
                1 => {}
                // That there is no registry at all is said elsewhere.
                0 if config.registries.is_empty() => {}
                0 => self.fail(whole, "none of the registries takes registrations"),
                _ => self.fail(
                    whole,
                    format!("`registry` is missing; expected {}, or a list of them", one_of(names.iter().copied())),
                ),
            }
        }
        let is_list = !spot.elements().is_empty();
        for (index, name) in register.registry.iter().enumerate() {
            let at = if is_list { spot.live_item(index) } else { spot.clone() };
            match config.registries.get(name) {
                None => {
                    let all: Vec<_> = config.registries.keys().map(String::as_str).collect();
                    self.fail(
                        &at,
                        format!("no registry is named `{}`; expected {}", shorten(name), one_of(all.iter().copied())),
                    );
                }
                Some(registry) if !registry.takes_registrations() => {
                    let kind = registry.kind();
                    self.fail(&at, format!("`{}` is of kind {kind}, which takes no registrations", shorten(name)));
                }
                Some(_) if register.registry[..index].contains(name) => {
                    self.fail(&at, format!("`{}` is there twice", shorten(name)));
                }
                Some(_) => {}
            }
        }
    }

    fn local_health(&mut self, spot: &Spot<'t>, health: &LocalHealth, tls: bool) {
        if let Some(http) = &health.http {
            self.http_check(&spot.key("http"), http);
        }
        if tls && (health.http.is_some() || health.grpc.is_some()) {
            let message =
                "requests of checks are sent without TLS; expected only `command`, or `port` of one without TLS";
            if health.port.is_none() {
                self.fail(spot, message);
            }
        }
        if health.command.first().is_some_and(String::is_empty) {
            self.fail(&spot.key("command"), "found an empty text; expected a program and its arguments");
        }
        if let Some(host) = &health.host
            && bare_host(host).is_none()
        {
            self.fail(&spot.key("host"), format!("found `{}`; expected an IP address or a host name", shorten(host)));
        }
        self.at_least(&spot.key("interval"), health.interval, Duration::from_millis(10));
        self.positive(&spot.key("timeout"), health.timeout);
        self.range(&spot.key("rise"), health.rise, 1, 100);
        self.range(&spot.key("fall"), health.fall, 1, 100);
    }
}

/// The host, if it is one.
fn bare_host(host: &str) -> Option<&str> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_ip = bare.parse::<std::net::IpAddr>().is_ok();
    let is_name = !bare.is_empty()
        && bare.len() <= 253
        && bare.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    (is_ip || is_name).then_some(bare)
}
