//! Following one service: looked up again whenever the answer has run out.

use super::{
    Dns, answer,
    message::{Data, Srv, Type},
    resolver::Found as Records,
};
use crate::{
    config::DnsRecord,
    registry::{
        RegistryError,
        watch::{Failure, Found, News, Watch},
    },
};
use futures_util::future::join_all;
use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

/// How long "there is nothing" holds if nobody says: too long for a service that comes up, too short for a server that is
/// asked for many that never do.
const NOTHING_TTL: u32 = 5;
/// At most so long after the first, there is a second question to confirm that all is gone.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

/// What is known of one service.
pub struct Lookups {
    dns: Arc<Dns>,
    /// What is asked for; or why that is not possible.
    name: Result<String, RegistryError>,
    /// Where the targets of SRV records are.
    targets: HashMap<String, Target>,
    /// Whether the last set had anything in it.
    had_some: bool,
    run_out: Instant,
}

struct Target {
    /// The last that were told.
    addresses: Vec<IpAddr>,
    /// Why there is nothing newer.
    failure: Option<RegistryError>,
    run_out: Instant,
}

/// What one look gives, and for how long it holds.
struct Look {
    found: Found,
    ttl: Duration,
    /// Empty because the service's own record says so, and not because there is none.
    is_declared: bool,
}

impl Lookups {
    pub fn new(dns: Arc<Dns>, service: &str) -> Self {
        let name = dns.config.name_of(service).map_err(|expected| RegistryError::Impossible {
            cause: format!("DNS cannot carry the service `{service}` in `{}`; expected {expected}", dns.config.name),
        });
        Self { dns, name, targets: HashMap::new(), had_some: false, run_out: Instant::now() }
    }

    /// The current set. That all is gone is only believed when a second look, at another server if there is one, finds
    /// nothing either.
    async fn read(&mut self) -> Result<Found, RegistryError> {
        let mut look = self.look(0).await?;
        if self.had_some && look.found.instances.is_empty() && !look.is_declared {
            sleep(look.ttl.min(CONFIRM_WITHIN)).await;
            self.targets.retain(|_, target| !target.addresses.is_empty());
            look = self.look(1).await?;
        }
        self.had_some = !look.found.instances.is_empty();
        // Earlier rather than later, and not all at once.
        let early = look.ttl.mul_f64(0.9 + 0.1 * fastrand::f64());
        self.run_out = Instant::now() + early.max(self.dns.config.min_ttl);
        Ok(look.found)
    }

    async fn look(&mut self, passed_over: usize) -> Result<Look, RegistryError> {
        let name = self.name.clone()?;
        let resolver = &self.dns.resolver;
        let of = match self.dns.config.record {
            DnsRecord::Srv => Type::Srv,
            DnsRecord::A | DnsRecord::Ip => Type::A,
            DnsRecord::Aaaa => Type::Aaaa,
        };
        let mut records = resolver.lookup(&name, of, passed_over).await?;
        if records.data.is_empty() && self.dns.config.record == DnsRecord::Ip {
            records = resolver.lookup(&name, Type::Aaaa, passed_over).await?;
        }
        if of == Type::Srv {
            return self.look_at_targets(records, passed_over).await;
        }
        let addresses: Vec<IpAddr> = records.data.iter().filter_map(Data::address).collect();
        let port = self.dns.config.port.map_or(0, |port| port.get());
        let (instances, unreadable) = answer::plain_instances(&addresses, port);
        Ok(Look { found: Found { instances, unreadable }, ttl: self.held(records.ttl), is_declared: false })
    }

    async fn look_at_targets(&mut self, records: Records, passed_over: usize) -> Result<Look, RegistryError> {
        let srv = |data| if let Data::Srv(srv) = data { Some(srv) } else { None };
        let mut srvs: Vec<Srv> = records.data.into_iter().filter_map(srv).collect();
        // The root as target: the service is decidedly not available.
        let all = srvs.len();
        srvs.retain(|srv| !srv.target.is_empty());
        let is_declared = all > srvs.len() && srvs.is_empty();

        let now = Instant::now();
        self.targets.retain(|name, _| srvs.iter().any(|srv| srv.target == *name));
        let mut open = Vec::new();
        for srv in &srvs {
            if let Some((addresses, seconds)) = answer::addresses(&records.additionals, &srv.target) {
                let run_out = now + self.held(Some(seconds));
                self.targets.insert(srv.target.clone(), Target { addresses, failure: None, run_out });
            } else if self.targets.get(&srv.target).is_none_or(|target| target.run_out <= now)
                && !open.contains(&srv.target)
            {
                open.push(srv.target.clone());
            }
        }
        let asked = open.iter().map(|target| self.dns.resolver.addresses(target, passed_over));
        let asked = join_all(asked).await;
        for (name, result) in open.into_iter().zip(asked) {
            let target = match result {
                Ok((addresses, seconds)) => Target { addresses, failure: None, run_out: now + self.held(seconds) },
                // It is where it was.
                Err(failure) => {
                    let addresses = self.targets.remove(&name).map(|target| target.addresses).unwrap_or_default();
                    Target { addresses, failure: Some(failure), run_out: now + self.held(None) }
                }
            };
            self.targets.insert(name, target);
        }
        let mut ttl = self.held(records.ttl);
        let (mut unreadable, mut failure) = (Vec::new(), None);
        for (name, target) in &self.targets {
            ttl = ttl.min(target.run_out.saturating_duration_since(now));
            match &target.failure {
                Some(failure) if target.addresses.is_empty() => unreadable.push(format!("{name}: {failure}")),
                None if target.addresses.is_empty() => unreadable.push(format!("{name}: it has no address")),
                _ => {}
            }
            failure = failure.or(target.failure.as_ref());
        }
        let at = |srv: Srv| self.targets.get(&srv.target).map(|target| (srv, target.addresses.clone()));
        let with_addresses: Vec<_> = srvs.into_iter().filter_map(at).collect();
        let (instances, mut unusable) = answer::srv_instances(&with_addresses);
        if let Some(failure) = failure
            && instances.is_empty()
        {
            return Err(failure.clone());
        }
        unreadable.append(&mut unusable);
        unreadable.sort();
        Ok(Look { found: Found { instances, unreadable }, ttl: ttl.max(self.dns.config.min_ttl), is_declared })
    }

    /// For how long something holds, within the limits.
    fn held(&self, seconds: Option<u32>) -> Duration {
        let config = &self.dns.config;
        let ttl = Duration::from_secs(u64::from(seconds.unwrap_or(NOTHING_TTL)));
        ttl.max(config.min_ttl).min(config.max_ttl)
    }
}

impl Watch for Lookups {
    async fn list(&mut self) -> Result<Found, Failure> {
        Ok(self.read().await?)
    }

    async fn next(&mut self) -> Result<News, Failure> {
        sleep_until(self.run_out).await;
        Ok(News::Set(self.read().await?))
    }
}
