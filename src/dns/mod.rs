//! Answers applications' DNS questions: services' names with virtual addresses, by which connections are known that the kernel
//! redirects; all others with what other servers say, untouched.
//!
//! It lives on the control thread: finding a name is no part of a request's way.

mod forward;
mod sockets;

pub use sockets::Sockets;

use crate::{
    cluster::table::State,
    config,
    discovery::{Handle, SourceState},
    registry::dns::{
        answer::{NO_ERROR, NO_SUCH_NAME, REFUSED, SERVER_FAILURE},
        message::{Query, Type, Unread, refusal},
    },
    telemetry::{labels::DnsOutcome, metrics::DnsMetrics},
};
use forward::Forwarder;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};

/// Questions at one time, of all applications. Beyond that they are answered with SERVFAIL at once.
const MOST_AT_ONCE: usize = 1024;

/// What an answer over UDP may have if the client does not say more.
const ROOM: usize = 512;

/// Who answers.
pub struct Server {
    config: config::Dns,
    discovery: Handle,
    forwarder: Forwarder,
    metrics: Arc<DnsMetrics>,
    turns: Semaphore,
}

/// How a question came, and how it is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
}

/// What a name stands for.
enum Meaning {
    Addresses(Vec<IpAddr>),
    /// There is no such service.
    Nobody,
    /// It cannot be told now.
    Unsettled(String),
}

impl Server {
    /// Fails if nobody is there who knows other names.
    pub fn new(config: &config::Dns, discovery: Handle, metrics: Arc<DnsMetrics>) -> anyhow::Result<Self> {
        discovery.table().virtuals().set_ranges(config.addresses.clone());
        let forwarder = Forwarder::new(config)?;
        Ok(Self { config: config.clone(), discovery, forwarder, metrics, turns: Semaphore::new(MOST_AT_ONCE) })
    }

    /// The answer, if there is to be one.
    async fn answer(&self, bytes: &[u8], from: SocketAddr, over: Over) -> Option<Vec<u8>> {
        let query = match Query::read(bytes) {
            Ok(query) => query,
            Err(unread) => {
                self.metrics.queries.inc(DnsOutcome::Malformed as usize);
                return match unread {
                    Unread::Nothing => None,
                    Unread::Refused(code) => refusal(bytes, code),
                };
            }
        };
        let (outcome, answer) = match self.turn() {
            Ok(_turn) => match service_of(&query.name, &self.config.suffix) {
                Some(service) => self.about_service(&query, service, over).await,
                None => self.about_others(&query, from, over).await,
            },
            Err(_) => {
                tracing::warn!(limit = MOST_AT_ONCE, "too many DNS questions at one time; this one is not answered");
                self.failed(&query)
            }
        };
        self.metrics.queries.inc(outcome as usize);
        Some(answer)
    }

    fn turn(&self) -> Result<SemaphorePermit<'_>, TryAcquireError> {
        self.turns.try_acquire()
    }

    async fn about_service(&self, query: &Query<'_>, service: &str, over: Over) -> (DnsOutcome, Vec<u8>) {
        let ttl = u32::try_from(self.config.ttl.as_secs()).unwrap_or(u32::MAX);
        let room = if over == Over::Udp { ROOM } else { usize::from(u16::MAX) };
        if !query.is_of_internet() {
            return (DnsOutcome::Failed, query.answer(REFUSED, &[], ttl, room));
        }
        match self.meaning(service).await {
            Meaning::Addresses(all) => {
                let is_asked_for = |ip: &IpAddr| query.asks_for(if ip.is_ipv4() { Type::A } else { Type::Aaaa });
                let found: Vec<_> = all.into_iter().filter(is_asked_for).collect();
                let outcome = if found.is_empty() { DnsOutcome::NoData } else { DnsOutcome::Answered };
                (outcome, query.answer(NO_ERROR, &found, ttl, room))
            }
            Meaning::Nobody => (DnsOutcome::NoSuchName, query.answer(NO_SUCH_NAME, &[], ttl, room)),
            Meaning::Unsettled(cause) => {
                tracing::debug!(name = query.name, cause, "a service's DNS name cannot be answered now");
                self.failed(query)
            }
        }
    }

    async fn about_others(&self, query: &Query<'_>, from: SocketAddr, over: Over) -> (DnsOutcome, Vec<u8>) {
        match self.forwarder.ask(query, from, over).await {
            Ok(answer) => (DnsOutcome::Forwarded, answer),
            Err(cause) => {
                tracing::debug!(name = query.name, cause, "a DNS question could not be passed on");
                self.failed(query)
            }
        }
    }

    fn failed(&self, query: &Query<'_>) -> (DnsOutcome, Vec<u8>) {
        (DnsOutcome::Failed, query.answer(SERVER_FAILURE, &[], 0, ROOM))
    }

    /// The service is followed as one that a request is for, so that the first request need not wait.
    async fn meaning(&self, service: &str) -> Meaning {
        // The suffix itself, below which there are names.
        if service.is_empty() {
            return Meaning::Addresses(Vec::new());
        }
        // With an escape it has bytes that no service's name has.
        if service.contains('\\') {
            return Meaning::Nobody;
        }
        let cluster = match self.discovery.of_host(service).await {
            Ok(cluster) => cluster,
            Err(error) => return Meaning::Unsettled(error.to_string()),
        };
        cluster.mark_used();
        let snapshot = cluster.first_answer(self.discovery.first_answer()).await.clone();
        match snapshot.state {
            State::Unknown if self.all_answer(&cluster.name).await => return Meaning::Nobody,
            State::Unknown => return Meaning::Unsettled("a registry fails that may know it".into()),
            State::Pending => return Meaning::Unsettled("no registry has answered".into()),
            State::Known => {}
        }
        let mut fixed: Vec<IpAddr> = Vec::new();
        for address in &snapshot.settings.service.addresses {
            if !fixed.contains(&address.ip) {
                fixed.push(address.ip);
            }
        }
        if !fixed.is_empty() {
            return Meaning::Addresses(fixed);
        }
        let table = self.discovery.table();
        let pair = table.virtuals().of(&cluster.name, |service| table.get(service).is_some());
        let (v4, v6) = (pair.v4.map(IpAddr::from), pair.v6.map(IpAddr::from));
        Meaning::Addresses(v4.into_iter().chain(v6).collect())
    }

    /// Whether no registry fails that is asked about this service: "there is no such name" would be believed.
    async fn all_answer(&self, service: &str) -> bool {
        let status = self.discovery.status(service).await;
        status.sources.iter().all(|source| source.state == SourceState::Answering)
    }
}

/// The service that a name is that of, if it ends with the suffix; `""`: it is the suffix itself.
fn service_of<'n>(name: &'n str, suffix: &str) -> Option<&'n str> {
    let bare = suffix.strip_prefix('.').unwrap_or(suffix);
    if name.eq_ignore_ascii_case(bare) {
        return Some("");
    }
    let cut = name.len().checked_sub(suffix.len())?;
    // What is not printable is escaped, so all of it is ASCII.
    (name.is_char_boundary(cut) && name[cut..].eq_ignore_ascii_case(suffix)).then(|| &name[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_may_have_dots_in_its_name_and_the_suffix_any_case() {
        for (name, wanted) in [
            ("user-service.mesh", Some("user-service")),
            ("User-Service.MESH", Some("User-Service")),
            ("com.example.users.mesh", Some("com.example.users")),
            ("mesh", Some("")),
            ("mesh.example.com", None),
            ("users.smesh", None),
            ("users", None),
            ("", None),
        ] {
            assert_eq!(service_of(name, ".mesh"), wanted, "{name}");
        }
        assert_eq!(service_of("users.svc.mesh", ".svc.mesh"), Some("users"));
        assert_eq!(service_of("svc.mesh", ".svc.mesh"), Some(""));
        assert_eq!(service_of("users.mesh", ".svc.mesh"), None);
    }
}
