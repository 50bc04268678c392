//! etcd (version 3): a range, then a watch from that revision, over one HTTP/2 connection for all services.

mod connection;
mod entry;
mod follow;
mod instances;
mod proto;
mod store;

use super::{
    Entry, Registration, Registry, RegistryError, SetupError, Sink, in_time, layout::Keys, link::Link,
    registration::since_1970, server::Server, store::Store, watch,
};
use crate::config::EtcdRegistry;
use connection::{CallError, Connect, Connection, Credentials};
use entry::Key;
use follow::Keyspace;
use futures_util::future::BoxFuture;
use instances::Instances;
use proto::RangeRequest;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// Keys per page of a listing, which are read without their values.
const LIST_PAGE: i64 = 5000;

/// One etcd cluster.
pub struct Etcd {
    name: String,
    keys: Keys,
    link: Link<Connect>,
}

impl Etcd {
    /// A client for the cluster in `config`, known as `name`. Does not connect yet.
    ///
    /// Fails if an endpoint is no URL, or if TLS is asked for and its files cannot be used.
    pub fn new(name: &str, config: &EtcdRegistry) -> Result<Self, SetupError> {
        let credentials = config.user.as_ref().map(|user| Credentials {
            user: user.clone(),
            password: config.password.clone().unwrap_or_else(|| crate::config::Secret::new("")),
        });
        let members = Server::parse_all(&config.endpoints)?;
        let connect = Connect::new(&members, &config.tls, credentials)?;
        Ok(Self {
            name: name.into(),
            keys: Keys::new(config.layout, config.prefix.as_deref()),
            link: Link::new(members, connect),
        })
    }

    /// What a caller is told of `error`, after which the next call may go to another member.
    fn error(&self, connection: &Arc<Connection>, error: CallError) -> RegistryError {
        let busy = |cause| RegistryError::Busy { server: connection.server().into(), cause };
        match error {
            CallError::Member(error) => {
                self.link.give_up(connection);
                error
            }
            CallError::Call(error) => error,
            CallError::Revision(cause) => busy(cause),
            CallError::Lease => busy("the lease has run out".into()),
        }
    }

    async fn services(&self) -> Result<Vec<String>, RegistryError> {
        let connection = self.link.connection().await?;
        let mut services = BTreeSet::new();
        let base = self.keys.base().as_bytes();
        let mut request = RangeRequest {
            // An empty key would be an error; the lowest one is a single zero byte.
            key: if base.is_empty() { vec![0] } else { base.to_vec() },
            range_end: range_end(base),
            limit: LIST_PAGE,
            revision: 0,
            keys_only: true,
        };
        loop {
            let page = match connection.range(request.clone()).await {
                Ok(page) => page,
                Err(error) => return Err(self.error(&connection, error)),
            };
            if request.revision == 0 {
                request.revision = page.header.map_or(0, |header| header.revision);
            }
            for kv in &page.kvs {
                if let Some(service) = self.keys.service_at(&kv.key)
                    && !services.contains(&*service)
                {
                    services.insert(service.into_owned());
                }
            }
            match page.kvs.into_iter().next_back() {
                Some(mut last) if page.more => {
                    last.key.push(0);
                    request.key = last.key;
                }
                _ => return Ok(services.into_iter().collect()),
            }
        }
    }
}

impl Registry for Etcd {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "etcd"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let instances = Instances::new(self.clone(), &service);
            let keyspace = Keyspace::new(self.clone(), self.keys.of_service(&service), instances);
            watch::follow(&self.name, &service, sink, keyspace).await;
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move { in_time(&self.name, self.services()).await })
    }

    fn entry(self: Arc<Self>, registration: Arc<Registration>) -> Result<Box<dyn Entry>, RegistryError> {
        let Registration { service, instance, .. } = &*registration;
        let record = self.keys.encode(service, instance, since_1970());
        let record = record.map_err(|error| RegistryError::Impossible { cause: error.to_string() })?;
        Ok(Box::new(Key::new(self, registration, record)))
    }

    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        Ok(self)
    }

    fn silence_limit(&self) -> Duration {
        // Two of a watch's requests for progress without an answer, and the time to notice.
        Duration::from_secs(150)
    }
}

/// The end of the range of all keys that begin with `prefix`: the prefix with its last byte one higher.
fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's word for "to the last key".
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_after_the_prefix() {
        assert_eq!(range_end(b"/a/"), b"/a0");
        assert_eq!(range_end(b"a\xff"), b"b");
        assert_eq!(range_end(b""), [0]);
        assert_eq!(range_end(b"\xff"), [0]);
    }

    #[test]
    fn a_config_that_cannot_work_is_refused_at_once() {
        let bad = EtcdRegistry { endpoints: vec!["127.0.0.1:2379".into()], ..EtcdRegistry::default() };
        assert!(Etcd::new("main", &bad).err().unwrap().to_string().contains("expected `http://HOST:PORT`"));
        let none = EtcdRegistry { endpoints: Vec::new(), ..EtcdRegistry::default() };
        assert!(Etcd::new("main", &none).is_err());
        let tls = crate::config::Tls { ca: Some("/no/such/ca.pem".into()), ..Default::default() };
        let secure = EtcdRegistry { endpoints: vec!["https://a:2379".into()], tls, ..EtcdRegistry::default() };
        assert!(Etcd::new("main", &secure).err().unwrap().to_string().contains("/no/such/ca.pem"));
    }
}
