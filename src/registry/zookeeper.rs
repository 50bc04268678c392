//! ZooKeeper: one session for all services, and watches on their nodes.
//!
//! Its wire format is written here and not taken from a crate: those that there are bring an I/O thread of their own,
//! whose clock tests cannot pause, and a second provider of cryptography. We use nine requests.

mod connection;
mod entry;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod instances;
mod proto;
mod store;
mod wire;

use super::{
    Entry, Registration, Registry, RegistryError, SetupError, Sink, in_time, layout::Keys, link::Link,
    registration::since_1970, server::Server, store::Store, watch,
};
use crate::config::{Layout, Secret, ZookeeperRegistry};
use arc_swap::ArcSwap;
use connection::{CallError, Connect, Connection};
use entry::Node;
use follow::{ALIVE_INTERVAL, Nodes};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use instances::Instances;
use proto::{Change, Code};
use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};
use wire::{Credentials, Opener, refusal};

/// Requests in flight while the services are listed: one per node.
const LIST_CONCURRENCY: usize = 128;

/// One ensemble of ZooKeepers.
pub struct Zookeeper {
    name: String,
    keys: Keys,
    /// What all paths begin with: empty, or with a `/` at the start and none at the end.
    chroot: String,
    session_timeout: Duration,
    /// What we write is for those only who have our user and password.
    private: bool,
    /// Below these keys are no services, but what this is a store for. Without the chroot.
    stored: ArcSwap<BTreeSet<String>>,
    link: Link<Connect>,
}

impl Zookeeper {
    /// A client for the ensemble in `config`, known as `name`. Does not connect yet.
    ///
    /// Fails if an endpoint is no address, or if TLS is asked for and its files cannot be used.
    pub fn new(name: &str, config: &ZookeeperRegistry) -> Result<Self, SetupError> {
        let credentials = config.user.as_ref().map(|user| Credentials {
            user: user.clone(),
            password: config.password.clone().unwrap_or_else(|| Secret::new("")),
        });
        if config.endpoints.is_empty() {
            return Err(SetupError::Address { text: String::new(), expected: "at least one address" });
        }
        let servers = config.endpoints.iter().map(|text| server(text)).collect::<Result<Vec<_>, _>>()?;
        let opener = Opener::new(&servers, &config.tls, credentials, config.session_timeout)?;
        let prefix = match (&config.prefix, config.layout) {
            (Some(prefix), _) => Some(prefix.as_str()),
            // Its plugins for ZooKeeper and for etcd disagree.
            (None, Layout::GoMicro) => Some("/micro-registry"),
            (None, _) => None,
        };
        Ok(Self {
            name: name.into(),
            keys: Keys::new(config.layout, prefix),
            chroot: rooted(config.chroot.as_deref().unwrap_or_default()),
            session_timeout: config.session_timeout,
            private: config.user.is_some(),
            stored: ArcSwap::default(),
            link: Link::new(servers, Connect::new(opener)),
        })
    }

    /// The path of what the layout calls `key`.
    fn path(&self, key: &str) -> String {
        format!("{}{}", self.chroot, rooted(key))
    }

    /// Makes the nodes above `path`, which stay.
    async fn make_way(&self, connection: &Connection, path: &str) -> Result<(), CallError> {
        for (end, _) in path.match_indices('/').skip(1) {
            let path = &path[..end];
            if connection.exists(path, false).await.is_ok() {
                continue;
            }
            let create = Change::Create { path, value: &[], ephemeral: false, ours: self.private };
            match connection.change(&[create]).await {
                Ok(_) | Err(CallError::Code(Code::NODE_EXISTS)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Walks the tree below the layout's prefix. A service is whatever has a child without children.
    async fn services(&self) -> Result<Vec<String>, RegistryError> {
        let connection = self.link.connection().await?;
        // The layout's keys as paths, however its prefix is written.
        let base = rooted(self.keys.base());
        let stored = self.stored.load_full();
        let mut services = BTreeSet::new();
        let (mut waiting, mut asked) = (vec![base.clone()], FuturesUnordered::new());
        loop {
            while asked.len() < LIST_CONCURRENCY
                && let Some(key) = waiting.pop()
            {
                asked.push(self.children(&connection, key));
            }
            let Some(answer) = asked.next().await else { return Ok(services.into_iter().collect()) };
            let (key, children) = answer?;
            if children.is_empty() && key != base {
                let key = key.strip_prefix(&base).and_then(|key| key.strip_prefix('/')).unwrap_or_default();
                let key = format!("{}{key}", self.keys.base());
                services.extend(self.keys.service_at(key.as_bytes()).map(Cow::into_owned));
            }
            let below = children.into_iter().map(|child| format!("{key}/{child}"));
            waiting.extend(below.filter(|key| !stored.contains(key)));
        }
    }

    /// What is below this key is not listed: it may be below the layout's prefix as well, and by default is.
    fn is_no_service(&self, key: &str) {
        let key = rooted(key);
        if !self.stored.load().contains(&key) {
            self.stored.rcu(|stored| stored.iter().cloned().chain([key.clone()]).collect::<BTreeSet<_>>());
        }
    }

    async fn children(&self, connection: &Connection, key: String) -> Result<(String, Vec<String>), RegistryError> {
        let path = match self.path(&key) {
            root if root.is_empty() => "/".into(),
            path => path,
        };
        match connection.children(&path, false).await {
            Ok(children) => Ok((key, children)),
            // There is nothing yet, or it went away meanwhile.
            Err(CallError::Code(Code::NO_NODE)) => Ok((key, Vec::new())),
            Err(CallError::Code(code)) => Err(refusal(connection.server(), code, &path)),
            Err(CallError::Broken(error)) => Err(error),
        }
    }
}

impl Registry for Zookeeper {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "zookeeper"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let path = self.path(&self.keys.of_service(&service));
            let instances = Instances { keys: &self.keys, service: &service };
            watch::follow(&self.name, &service, sink, Nodes::new(&self.link, path, instances)).await;
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move { in_time(&self.name, self.services()).await })
    }

    fn entry(self: Arc<Self>, registration: Arc<Registration>) -> Result<Box<dyn Entry>, RegistryError> {
        let Registration { service, instance, .. } = &*registration;
        let record = self.keys.encode(service, instance, since_1970()).map_err(|error| error.to_string());
        let record = record.and_then(|record| match record.suffix {
            Some(name) => Ok((name, record.value)),
            None => Err("this layout is not one for ZooKeeper, which has no leases".into()),
        });
        let (name, value) = record.map_err(|cause| RegistryError::Impossible { cause })?;
        Ok(Box::new(Node::new(self, registration, name, value)))
    }

    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        Ok(self)
    }

    fn silence_limit(&self) -> Duration {
        // A quiet watch says that it lives; a large service takes a while to read.
        2 * ALIVE_INTERVAL + 2 * self.session_timeout
    }
}

/// From `HOST:PORT`, or `tls://HOST:PORT`.
fn server(text: &str) -> Result<Server, SetupError> {
    let (scheme, address) = text.strip_prefix("tls://").map_or(("http", text), |address| ("https", address));
    let expected = "`HOST:PORT` or `tls://HOST:PORT`";
    match Server::parse(&format!("{scheme}://{address}")) {
        Ok(server) => Ok(Server { text: text.into(), ..server }),
        Err(_) => Err(SetupError::Address { text: text.into(), expected }),
    }
}

/// A path as ZooKeeper wants it: with a `/` at the start and none at the end; the root is empty.
fn rooted(path: &str) -> String {
    match path.trim_matches('/') {
        "" => String::new(),
        path => format!("/{path}"),
    }
}
