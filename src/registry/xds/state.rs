//! What the control plane has said so far, and what that means for each service that is followed. No I/O here.

use super::{
    decode::{self, Cluster, Endpoints, Source},
    variant::{Kind, Part, Refused, Update, Wanted},
};
use crate::{
    config::XdsDiscover,
    registry::{Instance, RegistryError},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use twox_hash::XxHash64;

/// So long a server may say nothing of something that it was asked for. (Envoy's and gRPC's time, too.)
const PATIENCE: Duration = Duration::from_secs(15);

/// What is known about a service.
#[derive(Debug, Clone, Default)]
pub enum Said {
    #[default]
    Nothing,
    Set(Arc<Endpoints>),
    Failing(RegistryError),
}

/// Somebody wants a list of all services.
pub type Asker = oneshot::Sender<Result<Vec<String>, RegistryError>>;

pub struct State {
    discover: XdsDiscover,
    services: BTreeMap<String, Service>,
    /// All that there are. `None` until the server has told them.
    clusters: Option<BTreeMap<String, Held<Cluster>>>,
    /// Those that are asked for, by the name of the assignment.
    assignments: BTreeMap<String, Assignment>,
    /// The names of those.
    names: BTreeSet<String>,
    askers: Vec<Asker>,
    /// The server at the other end of the stream that there is.
    server: Option<String>,
}

struct Service {
    followers: Vec<watch::Sender<Said>>,
    /// Since when the server owes an answer, if it does.
    asked: Instant,
}

/// A resource: the last that could be used, and why the newest could not.
struct Held<T> {
    value: Option<T>,
    /// Of the bytes that the value was read from. Some servers send all again at each change of one.
    hash: u64,
    refused: Option<String>,
}

#[derive(Default)]
struct Assignment {
    /// `None` until the server has said something of it.
    held: Option<Held<Arc<Endpoints>>>,
    stale_at: Option<Instant>,
    stale: bool,
}

impl State {
    pub fn new(discover: XdsDiscover) -> Self {
        Self {
            discover,
            services: BTreeMap::new(),
            clusters: None,
            assignments: BTreeMap::new(),
            names: BTreeSet::new(),
            askers: Vec::new(),
            server: None,
        }
    }

    /// Whether nobody wants anything.
    pub fn is_idle(&self) -> bool {
        self.services.is_empty() && self.askers.is_empty()
    }

    pub fn wanted(&self, kind: Kind) -> Wanted<'_> {
        match kind {
            Kind::Clusters if self.discover == XdsDiscover::Cds => Wanted::All,
            // Never any.
            Kind::Clusters => Wanted::Names(const { &BTreeSet::new() }),
            Kind::Endpoints => Wanted::Names(&self.names),
        }
    }

    /// Settles which assignments are wanted, after services or clusters changed; others are forgotten. To be called before
    /// they are asked for, and not more often: what is dropped and taken up again in between stays known.
    pub fn settle(&mut self, now: Instant) {
        let wanted = self.services.keys().filter_map(|service| Some((service, self.assignment_of(service)?)));
        let wanted: Vec<_> = wanted.map(|(service, name)| (service.clone(), name.to_owned())).collect();
        self.names = wanted.iter().map(|(_, name)| name.clone()).collect();
        self.assignments.retain(|name, _| self.names.contains(name));
        for (service, name) in &wanted {
            // From now on the server owes an answer.
            if !self.assignments.contains_key(name)
                && let Some(service) = self.services.get_mut(service)
            {
                service.asked = now;
            }
        }
        for name in &self.names {
            if !self.assignments.contains_key(name) {
                self.assignments.insert(name.clone(), Assignment::default());
            }
        }
    }

    /// Whether something usable is known of a resource.
    pub fn holds(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Clusters => self.clusters.as_ref().is_some_and(|clusters| clusters.contains_key(name)),
            Kind::Endpoints => self.assignments.get(name).is_some_and(|assignment| assignment.held.is_some()),
        }
    }

    pub fn follow(&mut self, service: String, follower: watch::Sender<Said>, now: Instant) {
        let entry = self.services.entry(service.clone());
        let followed = entry.or_insert_with(|| Service { followers: Vec::new(), asked: now });
        followed.followers.push(follower);
        if self.server.is_some() {
            self.tell(&service);
        }
    }

    /// Somebody has stopped following `service`.
    pub fn left(&mut self, service: &str) {
        let Some(followed) = self.services.get_mut(service) else { return };
        followed.followers.retain(|follower| !follower.is_closed());
        if followed.followers.is_empty() {
            self.services.remove(service);
        }
    }

    pub fn list(&mut self, asker: Asker) {
        self.askers.push(asker);
        // What was heard on an earlier stream may be old.
        if self.server.is_some() {
            self.answer_askers();
        }
    }

    /// A stream begins: the server at its other end has `PATIENCE` to answer.
    pub fn connected(&mut self, server: &str, now: Instant) {
        self.server = Some(server.into());
        self.services.values_mut().for_each(|service| service.asked = now);
    }

    /// There is no stream, or no more. What was heard stays.
    pub fn failed(&mut self, error: &RegistryError) {
        self.server = None;
        for asker in self.askers.drain(..) {
            let _ = asker.send(Err(error.clone()));
        }
        for service in self.services.values() {
            service.tell(&Said::Failing(error.clone()));
        }
    }

    /// Takes in what the server said. What cannot be used is returned, and changes nothing.
    pub fn apply(&mut self, update: Update, now: Instant) -> Refused {
        let (refused, touched) = match update.kind {
            Kind::Clusters => self.apply_clusters(update),
            Kind::Endpoints => self.apply_assignments(update, now),
        };
        for service in touched {
            self.tell(&service);
        }
        refused
    }

    fn apply_clusters(&mut self, update: Update) -> (Refused, Vec<String>) {
        let (mut refused, mut seen, mut changed) = (Refused::new(), BTreeSet::new(), BTreeSet::new());
        let first = self.clusters.is_none();
        let mut known = self.clusters.take().unwrap_or_default();
        for Part { name, bytes } in update.resources {
            let name = if name.is_empty() { decode::name(&bytes) } else { name };
            let hash = hash(&bytes);
            seen.insert(name.clone());
            if known.get(&name).is_some_and(|held| held.is_of(hash)) {
                continue;
            }
            let result = decode::cluster(&bytes);
            if name.is_empty() {
                refused.insert(name, result.err().unwrap_or_default());
                continue;
            }
            hold(known.entry(name.clone()).or_insert(Held::NOTHING), result, hash, &name, &mut refused);
            changed.insert(name);
        }
        let mut removed = update.removed;
        // One that cannot be read may be any of those that seem to be missing.
        if update.complete && !refused.contains_key("") {
            removed.extend(known.keys().filter(|name| !seen.contains(*name)).cloned());
        }
        for name in removed {
            known.remove(&name);
            changed.insert(name);
        }
        self.clusters = Some(known);
        self.answer_askers();
        // Of those that are not there it is known now, too.
        let touched = self.services.keys().filter(|service| first || changed.contains(*service)).cloned().collect();
        (refused, touched)
    }

    fn apply_assignments(&mut self, update: Update, now: Instant) -> (Refused, Vec<String>) {
        let (mut refused, mut changed) = (Refused::new(), BTreeSet::new());
        for Part { name, bytes } in update.resources {
            let name = if name.is_empty() { decode::name(&bytes) } else { name };
            let hash = hash(&bytes);
            let Some(assignment) = self.assignments.get_mut(&name) else {
                // Servers may send more than was asked for.
                if name.is_empty() {
                    refused.insert(name, "an assignment without a name that can be read".into());
                }
                continue;
            };
            let held = assignment.held.get_or_insert(Held::NOTHING);
            if !held.is_of(hash) || assignment.stale {
                let result = decode::assignment(&bytes).map(Arc::new);
                hold(held, result, hash, &name, &mut refused);
                changed.insert(name);
            }
            if let (Some(endpoints), None) = (&held.value, &held.refused) {
                assignment.stale = false;
                assignment.stale_at = endpoints.stale_after.and_then(|time| now.checked_add(time));
            }
        }
        for name in update.removed {
            if let Some(assignment) = self.assignments.get_mut(&name) {
                *assignment = Assignment::default();
                assignment.held = Some(Held { value: Some(Arc::default()), ..Held::NOTHING });
                changed.insert(name);
            }
        }
        (refused, self.services.keys().filter(|service| self.uses(service, &changed)).cloned().collect())
    }

    /// The server has shown that it is there, and has said nothing else: what is known still holds.
    pub fn confirm(&mut self) {
        for service in self.services.keys() {
            self.tell(service);
        }
        self.answer_askers();
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_tick(&self) -> Option<Instant> {
        let stale = self.assignments.values().filter_map(|assignment| assignment.stale_at).min();
        let owed = self.services.iter().filter(|(name, _)| self.server.is_some() && self.is_waiting(name));
        let overdue = owed.map(|(_, service)| service.asked + PATIENCE).min();
        stale.into_iter().chain(overdue).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        let mut stale = BTreeSet::new();
        for (name, assignment) in &mut self.assignments {
            if assignment.stale_at.is_some_and(|at| at <= now) {
                assignment.stale_at = None;
                assignment.stale = true;
                stale.insert(name.clone());
            }
        }
        // Also without a stream: that is what the control plane asked for.
        for service in self.services.keys().filter(|service| self.uses(service, &stale)) {
            self.tell(service);
        }
        let Some(server) = &self.server else { return };
        let due = |(name, service): &(&String, &Service)| service.asked + PATIENCE <= now && self.is_waiting(name);
        let overdue: Vec<String> = self.services.iter().filter(due).map(|(name, _)| name.clone()).collect();
        for name in overdue {
            // No answer: a server that is slow to learn its own world looks the same.
            let cause = format!("nothing about `{name}` within {PATIENCE:?}; does it have that service?");
            let said = Said::Failing(RegistryError::Busy { server: server.clone(), cause });
            let Some(service) = self.services.get_mut(&name) else { continue };
            service.asked = now;
            service.tell(&said);
        }
    }

    /// Tells the followers of `service` what is known of it, also if they know.
    fn tell(&self, service: &str) {
        if let Some(followed) = self.services.get(service)
            && !self.is_waiting(service)
        {
            followed.tell(&self.said(service));
        }
    }

    /// Whether nothing is known of `service`.
    fn is_waiting(&self, service: &str) -> bool {
        let unknown = |name| self.assignments.get(name).is_none_or(|assignment| assignment.held.is_none());
        match self.assignment_of(service) {
            Some(name) => unknown(name),
            None => self.clusters.is_none(),
        }
    }

    /// Whether the endpoints of `service` are in one of these assignments.
    fn uses(&self, service: &str, assignments: &BTreeSet<String>) -> bool {
        self.assignment_of(service).is_some_and(|name| assignments.contains(name))
    }

    /// The assignment that has the endpoints of `service`, as far as is known.
    fn assignment_of<'a>(&'a self, service: &'a str) -> Option<&'a str> {
        if self.discover == XdsDiscover::Eds {
            return Some(service);
        }
        match &self.clusters.as_ref()?.get(service)?.value.as_ref()?.source {
            Source::Eds(name) => Some(name.as_deref().unwrap_or(service)),
            _ => None,
        }
    }

    fn said(&self, service: &str) -> Said {
        if self.discover == XdsDiscover::Eds {
            return self.endpoints(service, service, None);
        }
        let Some(clusters) = &self.clusters else { return Said::Nothing };
        // A cluster that is not among all of them: an answer, and a certain one.
        let Some(held) = clusters.get(service) else { return Said::Set(Arc::default()) };
        let Some(cluster) = &held.value else { return self.unusable(service, held.refused.as_deref()) };
        let mut said = match &cluster.source {
            Source::Eds(name) => self.endpoints(service, name.as_deref().unwrap_or(service), Some(cluster)),
            Source::Inline(endpoints) => Said::Set(of_cluster(endpoints, Some(cluster))),
            Source::None(kind) => {
                self.unusable(service, Some(&format!("a cluster of the kind {kind} has no list of endpoints")))
            }
        };
        if let (Said::Set(set), Some(cause)) = (&mut said, &held.refused) {
            Arc::make_mut(set).notes.push(format!("its newest version is not in use: {cause}"));
        }
        said
    }

    fn endpoints(&self, service: &str, name: &str, cluster: Option<&Cluster>) -> Said {
        let Some(assignment) = self.assignments.get(name) else { return Said::Nothing };
        let Some(held) = &assignment.held else { return Said::Nothing };
        let Some(endpoints) = &held.value else { return self.unusable(service, held.refused.as_deref()) };
        let mut set = of_cluster(endpoints, cluster);
        if assignment.stale || held.refused.is_some() {
            let set = Arc::make_mut(&mut set);
            if let Some(cause) = &held.refused {
                set.notes.push(format!("its newest version is not in use: {cause}"));
            }
            if assignment.stale {
                set.notes.push(format!("not renewed within {:?}", endpoints.stale_after.unwrap_or_default()));
                set.instances.iter_mut().for_each(|instance| instance.healthy = false);
            }
        }
        Said::Set(set)
    }

    fn unusable(&self, service: &str, cause: Option<&str>) -> Said {
        let server = self.server.clone().unwrap_or_default();
        let cause = format!("`{service}` cannot be used: {}", cause.unwrap_or("no reason"));
        Said::Failing(RegistryError::Protocol { server, cause })
    }

    fn answer_askers(&mut self) {
        let Some(clusters) = &self.clusters else { return };
        for asker in self.askers.drain(..) {
            let _ = asker.send(Ok(clusters.keys().cloned().collect()));
        }
    }
}

impl Service {
    fn tell(&self, said: &Said) {
        for follower in &self.followers {
            follower.send_replace(said.clone());
        }
    }
}

impl<T> Held<T> {
    const NOTHING: Self = Self { value: None, hash: 0, refused: None };

    /// Whether these bytes say what is known.
    fn is_of(&self, hash: u64) -> bool {
        self.hash == hash && self.value.is_some() && self.refused.is_none()
    }
}

fn hash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

fn hold<T>(held: &mut Held<T>, result: Result<T, String>, hash: u64, name: &str, refused: &mut Refused) {
    match result {
        Ok(value) => *held = Held { value: Some(value), hash, refused: None },
        Err(cause) => {
            refused.insert(name.into(), cause.clone());
            held.refused = Some(cause);
        }
    }
}

/// The endpoints with what their cluster says of all of them.
fn of_cluster(endpoints: &Arc<Endpoints>, cluster: Option<&Cluster>) -> Arc<Endpoints> {
    let (protocol, tls) = cluster.map_or((None, None), |cluster| (cluster.protocol, cluster.tls));
    let mut endpoints = endpoints.clone();
    if protocol.is_some() || tls.is_some() {
        let with = |instance: Instance| Instance { protocol, tls, ..instance };
        let set = Arc::make_mut(&mut endpoints);
        set.instances = std::mem::take(&mut set.instances).into_iter().map(with).collect();
    }
    endpoints
}

#[cfg(test)]
mod tests;
