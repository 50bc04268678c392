//! Which service an address belongs to, of all that are followed. Made anew by whoever asks first after a change.

use super::Cluster;
use crate::registry::Address;
use arc_swap::ArcSwap;
use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire},
        },
    },
};

/// Counts the changes of all that is in the index. Each cluster that is listed has it.
pub type Changes = Arc<AtomicU64>;

#[derive(Debug, Default)]
pub struct Addresses {
    changes: Changes,
    index: ArcSwap<Index>,
}

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub service: Arc<str>,
    pub kind: Kind,
    /// Whether it is another service's, too, and `service` only the first by name.
    pub is_shared: bool,
}

/// What an address is to its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One that the config or a DNS answer gives it: nobody listens there, all its endpoints are meant.
    Virtual,
    /// That of the endpoint with this number, unless there was a change.
    Endpoint(usize),
}

#[derive(Debug, Default)]
struct Index {
    /// The number of changes that it has in it.
    changes: u64,
    sockets: HashMap<SocketAddr, Owner, foldhash::fast::FixedState>,
    /// Virtual addresses with all their ports.
    ips: HashMap<IpAddr, Owner, foldhash::fast::FixedState>,
}

impl Owner {
    /// Of an address that stands for a service alone.
    pub(super) fn virtual_of(service: Arc<str>) -> Self {
        Self { service, kind: Kind::Virtual, is_shared: false }
    }
}

impl Addresses {
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    pub fn changed(&self) {
        self.changes.fetch_add(1, AcqRel);
    }

    /// Whose this address is. `all`: every service that is followed.
    pub fn owner(&self, address: SocketAddr, all: impl FnOnce() -> Vec<Arc<Cluster>>) -> Option<Owner> {
        // Before what it counts is looked at, so that nothing is missed.
        let changes = self.changes.load(Acquire);
        let index = self.index.load();
        if index.changes == changes {
            return index.owner(address).cloned();
        }
        let index = Index::new(changes, &all());
        let owner = index.owner(address).cloned();
        self.index.store(Arc::new(index));
        owner
    }
}

impl Index {
    /// `all`: in the order of their names.
    fn new(changes: u64, all: &[Arc<Cluster>]) -> Self {
        let mut index = Self { changes, ..Self::default() };
        for cluster in all {
            let snapshot = cluster.load();
            let owner = |kind| Owner { service: cluster.name.clone(), kind, is_shared: false };
            for address in &snapshot.settings.service.addresses {
                match address.port {
                    Some(port) => add(index.sockets.entry(SocketAddr::new(address.ip, port)), owner(Kind::Virtual)),
                    None => add(index.ips.entry(address.ip), owner(Kind::Virtual)),
                }
            }
            for (number, endpoint) in snapshot.endpoints.iter().enumerate() {
                if let Address::Ip(address) = endpoint.instance.address {
                    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                    add(index.sockets.entry(address), owner(Kind::Endpoint(number)));
                }
            }
        }
        index
    }

    fn owner(&self, address: SocketAddr) -> Option<&Owner> {
        self.sockets.get(&address).or_else(|| self.ips.get(&address.ip()))
    }
}

fn add<K>(entry: Entry<'_, K, Owner>, owner: Owner) {
    match entry {
        Entry::Vacant(free) => {
            free.insert(owner);
        }
        // The config says what is virtual, and the registry only what is there.
        Entry::Occupied(mut taken) if owner.kind == Kind::Virtual && taken.get().kind != Kind::Virtual => {
            taken.insert(owner);
        }
        Entry::Occupied(mut taken) => {
            let taken = taken.get_mut();
            taken.is_shared |= taken.kind != Kind::Virtual && taken.service != owner.service;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{
            Table,
            table::{Settings, State},
        },
        config::Service,
        registry::Instance,
        telemetry::{labels::WORDS, metrics::Metrics},
    };

    /// A table with these services: the addresses of their endpoints, and virtual ones.
    fn table(services: &[(&str, &[&str], &[&str])]) -> Table {
        let table = Table::default();
        for (name, endpoints, addresses) in services {
            let cluster = cluster(name, addresses);
            publish(&cluster, endpoints);
            table.insert(cluster);
        }
        table
    }

    fn cluster(name: &str, addresses: &[&str]) -> Arc<Cluster> {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let settings = Settings { service: Service { addresses, ..Service::default() }, ..Settings::default() };
        Arc::new(Cluster::new(name, Arc::new(settings), Metrics::new(WORDS).service(name), Arc::default()))
    }

    fn publish(cluster: &Cluster, endpoints: &[&str]) {
        let instances: Vec<_> = endpoints.iter().map(|at| Instance::new(*at, at.parse().unwrap())).collect();
        cluster.publish(&cluster.load().settings.clone(), &instances, State::Known);
    }

    fn owner(table: &Table, address: &str) -> Option<(String, Kind, bool)> {
        let owner = table.owner(address.parse().unwrap())?;
        Some((owner.service.to_string(), owner.kind, owner.is_shared))
    }

    #[test]
    fn endpoints_and_virtual_addresses_belong_to_their_services() {
        let table = table(&[
            ("orders", &["10.0.0.1:80", "[::ffff:10.0.0.2]:80"], &[]),
            ("users", &["[fd00::1]:80", "names.do.not:80"], &["10.96.0.1:80", "10.96.0.2", "fd00::2"]),
        ]);
        for (address, wanted) in [
            ("10.0.0.1:80", Some(("orders", Kind::Endpoint(0)))),
            ("10.0.0.2:80", Some(("orders", Kind::Endpoint(1)))),
            ("10.0.0.1:81", None),
            ("[fd00::1]:80", Some(("users", Kind::Endpoint(0)))),
            ("10.96.0.1:80", Some(("users", Kind::Virtual))),
            ("10.96.0.1:81", None),
            ("10.96.0.2:81", Some(("users", Kind::Virtual))),
            ("[fd00::2]:5432", Some(("users", Kind::Virtual))),
        ] {
            assert_eq!(owner(&table, address), wanted.map(|(name, kind)| (name.into(), kind, false)), "{address}");
        }
    }

    #[test]
    fn what_several_have_is_said_to_be_shared_and_virtual_addresses_win() {
        let table = table(&[
            ("b", &["10.0.0.1:80", "10.0.0.2:80"], &[]),
            ("a", &["10.0.0.1:80", "10.0.0.3:80"], &[]),
            ("c", &["10.0.0.1:80"], &["10.0.0.2:80", "10.0.0.3"]),
        ]);
        assert_eq!(owner(&table, "10.0.0.1:80"), Some(("a".into(), Kind::Endpoint(0), true)));
        assert_eq!(owner(&table, "10.0.0.2:80"), Some(("c".into(), Kind::Virtual, false)));
        // With all its ports it is less exact than an endpoint.
        assert_eq!(owner(&table, "10.0.0.3:80"), Some(("a".into(), Kind::Endpoint(1), false)));
        assert_eq!(owner(&table, "10.0.0.3:81"), Some(("c".into(), Kind::Virtual, false)));
    }

    #[test]
    fn changes_are_seen_at_once() {
        let table = Table::default();
        assert_eq!(owner(&table, "10.0.0.1:80"), None);
        let users = cluster("users", &[]);
        table.insert(users.clone());
        assert_eq!(owner(&table, "10.0.0.1:80"), None);
        publish(&users, &["10.0.0.1:80"]);
        assert_eq!(owner(&table, "10.0.0.1:80"), Some(("users".into(), Kind::Endpoint(0), false)));
        publish(&users, &["10.0.0.2:80"]);
        assert_eq!(owner(&table, "10.0.0.1:80"), None);
        table.remove("users");
        assert_eq!(owner(&table, "10.0.0.2:80"), None);
    }
}
