//! Redis, one or behind Sentinels: keys or hashes that are read each interval, and at once where something says that they
//! have changed. One connection for commands and one for messages serve all services.
//!
//! The protocol is spoken here rather than by the `redis` crate: that takes rustls' process-wide provider and no name for
//! the server's certificate, does not hear of a fail-over from the sentinels, and brings forty crates for the nine
//! commands that are needed.

mod commands;
mod end;
mod entry;
mod events;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hash;
mod keys;
mod resp;
mod sentinel;
mod session;
mod sweep;
mod wire;

use super::{
    Entry, Registration, Registry, RegistryError, SetupError, Sink, in_time, link::Link, server::Server, watch,
};
use crate::{
    config::{RedisRegistry, Tls},
    net::tls,
};
use entry::OwnEntry;
use follow::Follower;
use futures_util::future::BoxFuture;
use keys::Keys;
use sentinel::Sentinels;
use session::{Connect, Session};
use std::{sync::Arc, time::Duration};
use wire::Access;

/// One Redis.
pub struct Redis {
    name: String,
    keys: Arc<Keys>,
    interval: Duration,
    link: Link<Connect>,
    /// For what is written, where reads are a replica's.
    masters: Link<Connect>,
}

impl Redis {
    /// A client for the Redis in `config`, known as `name`. Does not connect yet.
    ///
    /// Fails if an address is no `HOST:PORT`, or if TLS is asked for and its files cannot be used.
    pub fn new(name: &str, config: &RedisRegistry) -> Result<Self, SetupError> {
        let access = Access { user: config.user.clone(), password: config.password.clone(), tls: config.tls.clone() };
        let keys = Arc::new(Keys::new(config.layout, config.prefix.as_deref(), config.db));
        let (servers, sentinels) = match &config.master {
            None => (servers(&config.addresses, config.tls.as_ref())?, None),
            Some(master) => {
                // The master's name is not known yet.
                config.tls.as_ref().map(|settings| tls::client_config(settings, &[])).transpose()?;
                let servers = servers(&config.sentinels, config.sentinel_tls.as_ref())?;
                let access = Access {
                    user: config.sentinel_user.clone(),
                    password: config.sentinel_password.clone(),
                    tls: config.sentinel_tls.clone(),
                };
                (servers.clone(), Some(Arc::new(Sentinels::new(servers, master, access))))
            }
        };
        let interval = config.interval;
        let connect = Connect { access, db: config.db, sentinels, only_masters: false, keys: keys.clone(), interval };
        let only_masters = Connect { only_masters: true, ..connect.clone() };
        let (link, masters) = (Link::new(servers.clone(), connect), Link::new(servers, only_masters));
        Ok(Self { name: name.into(), keys, interval, link, masters })
    }

    /// One that can be written to.
    async fn master(&self) -> Result<Arc<Session>, RegistryError> {
        let session = self.link.connection().await?;
        if session.is_master() { Ok(session) } else { self.masters.connection().await }
    }
}

/// Those servers. What is wrong with the files for TLS is said now, rather than as a failure to connect.
fn servers(addresses: &[String], settings: Option<&Tls>) -> Result<Vec<Server>, SetupError> {
    if addresses.is_empty() {
        return Err(SetupError::Address { text: String::new(), expected: "at least one `HOST:PORT`" });
    }
    let servers = addresses.iter().map(|text| Server::from_host_and_port(text)).collect::<Result<Vec<_>, _>>()?;
    if let Some(settings) = settings {
        tls::client_config(settings, &[])?;
        for server in &servers {
            tls::server_name(settings, &server.host)?;
        }
    }
    Ok(servers)
}

impl Registry for Redis {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "redis"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move { watch::follow(&self.name, &service, sink, Follower::new(self.clone(), &service)).await })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move {
            let services = async { self.link.connection().await?.services(&self.keys).await };
            in_time(&self.name, services).await
        })
    }

    fn entry(self: Arc<Self>, registration: Arc<Registration>) -> Result<Box<dyn Entry>, RegistryError> {
        Ok(Box::new(OwnEntry::new(self, registration)?))
    }

    fn silence_limit(&self) -> Duration {
        // A check that fails is heard of as well, after the limits on an answer and on connecting anew.
        2 * self.interval + Duration::from_secs(60)
    }
}

/// A little less than the interval, so that what follows at one time does not go on in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.8 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_that_cannot_work_is_refused_at_once() {
        let refused = |config: RedisRegistry| Redis::new("main", &config).err().unwrap().to_string();
        let url = RedisRegistry { addresses: vec!["redis://a:6379".into()], ..RedisRegistry::default() };
        assert!(refused(url).contains("expected `HOST:PORT`"));
        assert!(refused(RedisRegistry { addresses: Vec::new(), ..RedisRegistry::default() }).contains("at least one"));
        let missing = Some(Tls { ca: Some("/no/such/ca.pem".into()), ..Tls::default() });
        let addresses = vec!["a:6379".into()];
        let secure = RedisRegistry { addresses, tls: missing.clone(), ..RedisRegistry::default() };
        assert!(refused(secure).contains("/no/such/ca.pem"));
        let sentinels =
            RedisRegistry { sentinels: vec!["a:26379".into()], master: Some("m".into()), ..RedisRegistry::default() };
        assert!(refused(RedisRegistry { tls: missing.clone(), ..sentinels.clone() }).contains("/no/such/ca.pem"));
        assert!(refused(RedisRegistry { sentinel_tls: missing, ..sentinels }).contains("/no/such/ca.pem"));
    }
}
