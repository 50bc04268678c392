//! etcd (version 3): a range, then a watch from that revision, over one HTTP/2 connection for all services.

mod connection;
mod follow;
mod link;
mod proto;

use super::{Registry, RegistryError, SetupError, Sink, layout::Keys};
use crate::config::EtcdRegistry;
use connection::{CallError, Credentials};
use futures_util::future::BoxFuture;
use link::Link;
use proto::RangeRequest;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// Keys per page of a listing, which are read without their values.
const LIST_PAGE: i64 = 5000;
/// A listing is asked for by a person, who would rather have an error than wait for a cluster to come back.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// One etcd cluster.
pub struct Etcd {
    name: String,
    keys: Keys,
    link: Link,
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
        Ok(Self {
            name: name.into(),
            keys: Keys::new(config.layout, config.prefix.as_deref()),
            link: Link::new(&config.endpoints, &config.tls, credentials)?,
        })
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
                Err(CallError::Member(error)) => {
                    self.link.give_up(&connection);
                    return Err(error);
                }
                Err(CallError::Call(error)) => return Err(error),
                Err(CallError::Revision(cause)) => {
                    return Err(RegistryError::Busy { server: connection.server().into(), cause });
                }
            };
            if request.revision == 0 {
                request.revision = page.header.map_or(0, |header| header.revision);
            }
            for kv in &page.kvs {
                if let Some(service) = self.keys.service_at(&kv.key)
                    && !services.contains(service)
                {
                    services.insert(service.to_owned());
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
        Box::pin(follow::follow(self, service, sink))
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move {
            tokio::time::timeout(LIST_TIMEOUT, self.services()).await.unwrap_or_else(|_| {
                Err(RegistryError::Unreachable {
                    server: self.name.clone(),
                    cause: format!("no answer within {LIST_TIMEOUT:?}"),
                })
            })
        })
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
