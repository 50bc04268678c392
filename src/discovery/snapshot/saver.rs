//! Brings what is in force to disk: one file at a time, the newest set of each service, at most one per second of each.

use super::folder::{Folder, MAX_BYTES, Written};
use crate::{registry::Instance, telemetry::metrics::SnapshotMetrics};
use std::{
    collections::{HashMap, HashSet},
    future::pending,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};

/// From the end of one write of a service to the start of its next.
const INTERVAL: Duration = Duration::from_secs(1);

/// The same after a write that failed.
const RETRY: Duration = Duration::from_secs(10);

/// A set that stays is written again when it was confirmed so much later than the file says.
const REFRESH: Duration = Duration::from_secs(300);

/// A service that nobody has said anything of for so long is not followed any more.
const FORGOTTEN: Duration = Duration::from_secs(2 * 300);

/// Between two looks at what is too old.
const SWEEP: Duration = Duration::from_secs(3600);

pub(super) enum Order {
    Save { service: String, set: Set },
    SaveRoutes { name: String, bytes: Arc<[u8]> },
    Flush(oneshot::Sender<()>),
}

/// What a source said about a service.
#[derive(Clone)]
pub(super) struct Set {
    source: String,
    instances: Arc<[Instance]>,
    /// Of these two, to tell whether they changed without keeping them.
    hash: u64,
    confirmed: Instant,
}

pub(super) struct Saver {
    folder: Arc<Folder>,
    metrics: Arc<SnapshotMetrics>,
    refresh: Duration,
    sweep: Duration,
    services: HashMap<String, Service>,
    /// By store, as a rule one.
    routes: HashMap<String, Routes>,
    running: Option<Running>,
    sweep_at: Instant,
    /// Snapshots in the folder, as far as is known here.
    files: usize,
    /// What is to be tried until a flush is over, and who waits for that.
    flushing: HashSet<Job>,
    waiting: Vec<oneshot::Sender<()>>,
    /// What failed and was not done since.
    failing: HashSet<Job>,
}

struct Service {
    /// What is to be written.
    wanted: Option<Set>,
    /// What is in the file, or being written into it: the hash of the set, and when it was confirmed.
    written: Option<(u64, Instant)>,
    /// The next write is not before this.
    next: Instant,
    /// When something was last said of it.
    noted: Instant,
    /// Its newest set cannot be kept, and that was told.
    too_large: bool,
}

/// The file of a store of routes.
struct Routes {
    /// What is to be in it.
    wanted: Arc<[u8]>,
    /// What is in it, or being written into it.
    written: Option<Arc<[u8]>>,
    /// The next write is not before this.
    next: Instant,
}

/// What the other thread does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Job {
    /// One service's file.
    Write(String),
    /// That of a store of routes.
    WriteRoutes(String),
    Sweep,
}

struct Running {
    job: Job,
    /// What is being written.
    set: Option<Set>,
    task: JoinHandle<io::Result<Done>>,
}

enum Done {
    Written(Written),
    WrittenRoutes,
    /// So many files are there.
    Swept(usize),
}

impl Order {
    pub(super) fn save(service: &str, source: &str, instances: &Arc<[Instance]>, confirmed: Instant) -> Self {
        let mut hash = DefaultHasher::new();
        (source, instances).hash(&mut hash);
        let set = Set { source: source.into(), instances: instances.clone(), hash: hash.finish(), confirmed };
        Self::Save { service: service.into(), set }
    }
}

impl Saver {
    pub(super) fn new(folder: Arc<Folder>, max_age: Duration, metrics: Arc<SnapshotMetrics>) -> Self {
        Self {
            folder,
            metrics,
            // So that what stays in force does not grow too old between two.
            refresh: REFRESH.min(max_age / 4),
            sweep: SWEEP.min(max_age / 4),
            services: HashMap::new(),
            routes: HashMap::new(),
            running: None,
            sweep_at: Instant::now(),
            files: 0,
            flushing: HashSet::new(),
            waiting: Vec::new(),
            failing: HashSet::new(),
        }
    }

    /// Serves orders until nobody is left to give any, and writes then what there is to write.
    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut open = true;
        loop {
            if self.flushing.is_empty() {
                for done in self.waiting.drain(..) {
                    // Whoever waited may have given up.
                    let _ = done.send(());
                }
                if !open {
                    return;
                }
            }
            let next = self.running.is_none().then(|| self.next());
            let due = async {
                match next {
                    Some((at, job)) => {
                        sleep_until(at).await;
                        job
                    }
                    None => pending().await,
                }
            };
            tokio::select! {
                // Orders first: the newest set is the one to write.
                biased;
                order = orders.recv(), if open => match order {
                    Some(Order::Save { service, set }) => self.take(service, set),
                    Some(Order::SaveRoutes { name, bytes }) => self.take_routes(name, bytes),
                    Some(Order::Flush(done)) => {
                        self.flush();
                        self.waiting.push(done);
                    }
                    None => {
                        open = false;
                        self.flush();
                    }
                },
                result = ended(&mut self.running) => self.ended(result),
                job = due => self.start(job),
            }
        }
    }

    fn take(&mut self, name: String, set: Set) {
        let service = self.services.entry(name.clone()).or_insert_with(Service::new);
        service.noted = Instant::now();
        let is_known = service
            .written
            .is_some_and(|(hash, confirmed)| hash == set.hash && set.confirmed < confirmed + self.refresh);
        // Whatever waits to be written is older than this.
        service.wanted = (!is_known).then_some(set);
        let job = Job::Write(name);
        if is_known && !self.running.as_ref().is_some_and(|running| running.job == job) {
            self.flushing.remove(&job);
        }
    }

    fn take_routes(&mut self, name: String, wanted: Arc<[u8]>) {
        let now = Instant::now();
        let routes =
            self.routes.entry(name).or_insert_with(|| Routes { wanted: wanted.clone(), written: None, next: now });
        routes.wanted = wanted;
    }

    /// What there is to write is due now. What is being written is waited for.
    fn flush(&mut self) {
        let services = self.services.iter().filter(|(_, service)| service.wanted.is_some());
        self.flushing.extend(services.map(|(name, _)| Job::Write(name.clone())));
        let routes = self.routes.iter().filter(|(_, routes)| !routes.is_written());
        self.flushing.extend(routes.map(|(name, _)| Job::WriteRoutes(name.clone())));
        if let Some(Running { job: job @ (Job::Write(_) | Job::WriteRoutes(_)), .. }) = &self.running {
            self.flushing.insert(job.clone());
        }
    }

    /// What to do next, and when.
    fn next(&self) -> (Instant, Job) {
        let now = Instant::now();
        let services = self.services.iter().filter(|(_, service)| service.wanted.is_some());
        let services = services.map(|(name, service)| (service.next, Job::Write(name.clone())));
        let routes = self.routes.iter().filter(|(_, routes)| !routes.is_written());
        let routes = routes.map(|(name, routes)| (routes.next, Job::WriteRoutes(name.clone())));
        let writes = services.chain(routes).map(|(at, job)| (if self.flushing.contains(&job) { now } else { at }, job));
        match writes.min_by_key(|(at, _)| *at) {
            Some((at, job)) if at < self.sweep_at || !self.flushing.is_empty() => (at, job),
            _ => (self.sweep_at, Job::Sweep),
        }
    }

    fn start(&mut self, job: Job) {
        let folder = self.folder.clone();
        let (set, task) = match &job {
            Job::Write(name) => {
                let Some(service) = self.services.get_mut(name) else { return };
                let Some(set) = service.wanted.take() else { return };
                service.written = Some((set.hash, set.confirmed));
                let (name, kept) = (name.clone(), set.clone());
                let write = move || {
                    let saved = SystemTime::now().checked_sub(set.confirmed.elapsed()).unwrap_or(UNIX_EPOCH);
                    folder.write(&name, &set.source, &set.instances, saved).map(Done::Written)
                };
                (Some(kept), spawn_blocking(write))
            }
            Job::WriteRoutes(name) => {
                let Some(routes) = self.routes.get_mut(name) else { return };
                let (name, bytes) = (name.clone(), routes.wanted.clone());
                routes.written = Some(bytes.clone());
                (None, spawn_blocking(move || folder.write_routes(&name, &bytes).map(|()| Done::WrittenRoutes)))
            }
            Job::Sweep => (None, spawn_blocking(move || folder.sweep(SystemTime::now()).map(Done::Swept))),
        };
        self.running = Some(Running { job, set, task });
    }

    fn ended(&mut self, result: io::Result<Done>) {
        let Some(Running { job, set, .. }) = self.running.take() else { return };
        let now = Instant::now();
        match (&job, &result) {
            (Job::Sweep, Ok(Done::Swept(files))) => {
                self.files = *files;
                self.sweep_at = now + self.sweep;
            }
            (Job::Sweep, _) => self.sweep_at = now + RETRY,
            (Job::WriteRoutes(name), result) => {
                let is_newest = self.routes.get(name).is_none_or(Routes::is_written);
                if is_newest || result.is_err() {
                    self.flushing.remove(&job);
                }
                if let Some(routes) = self.routes.get_mut(name)
                    && result.is_err()
                {
                    routes.written = None;
                    routes.next = now + RETRY;
                }
            }
            (Job::Write(name), result) => {
                let is_newest = self.services.get(name).is_none_or(|service| service.wanted.is_none());
                if is_newest || result.is_err() {
                    self.flushing.remove(&job);
                }
                if let Some(service) = self.services.get_mut(name) {
                    service.next = now + if result.is_ok() { INTERVAL } else { RETRY };
                    if result.is_err() {
                        service.written = None;
                        service.wanted = service.wanted.take().or(set);
                    }
                }
            }
        }
        match result {
            Ok(done) => {
                if let (Job::Write(name), Done::Written(written)) = (&job, done) {
                    self.written(name, written);
                }
                if self.failing.remove(&job) && self.failing.is_empty() {
                    tracing::info!("snapshots of services are saved again");
                }
            }
            Err(error) => {
                self.metrics.write_failures.inc();
                // Once per spell, not for each service and try.
                if self.failing.is_empty() {
                    let file = match &job {
                        Job::Write(name) => self.folder.path(name),
                        Job::WriteRoutes(name) => self.folder.routes_path(name),
                        Job::Sweep => self.folder.dir().to_owned(),
                    };
                    tracing::warn!(file = %file.display(), %error, "snapshots of services cannot be saved; trying on");
                }
                self.failing.insert(job);
            }
        }
        // Memory follows what is followed.
        self.services.retain(|_, service| now < service.noted + FORGOTTEN);
        let services = &self.services;
        let is_followed = |job: &Job| !matches!(job, Job::Write(name) if !services.contains_key(name));
        self.flushing.retain(is_followed);
        self.failing.retain(is_followed);
    }

    fn written(&mut self, name: &str, written: Written) {
        match written {
            Written::Nothing => return,
            Written::TooLarge(bytes) => {
                self.metrics.write_failures.inc();
                let told =
                    self.services.get_mut(name).is_some_and(|service| std::mem::replace(&mut service.too_large, true));
                if !told {
                    tracing::warn!(service = name, bytes, MAX_BYTES, "its instances are too many for a snapshot");
                }
                return;
            }
            Written::First => self.files += 1,
            Written::Again => {}
        }
        self.metrics.writes.inc();
        if let Some(service) = self.services.get_mut(name) {
            service.too_large = false;
        }
        if self.files > self.folder.max_services() {
            self.sweep_at = Instant::now();
        }
    }
}

impl Service {
    fn new() -> Self {
        let now = Instant::now();
        Self { wanted: None, written: None, next: now, noted: now, too_large: false }
    }
}

impl Routes {
    fn is_written(&self) -> bool {
        self.written.as_deref() == Some(&*self.wanted)
    }
}

/// Waits for the end of what runs, if something does. May be dropped at any time.
async fn ended(running: &mut Option<Running>) -> io::Result<Done> {
    match running {
        Some(running) => (&mut running.task).await.unwrap_or_else(|error| Err(io::Error::other(error))),
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[tokio::test(start_paused = true)]
    async fn memory_follows_what_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(Folder::open(&config::Snapshot::new(dir.path())).unwrap());
        let mut saver = Saver::new(folder, Duration::from_secs(24 * 3600), Arc::default());
        let instances: Arc<[Instance]> = [Instance::new("a", "10.0.0.1:80".parse().unwrap())].into();
        let weak = Arc::downgrade(&instances);
        for service in ["a", "b", "a"] {
            let Order::Save { service, set } = Order::save(service, "main", &instances, Instant::now()) else {
                panic!()
            };
            saver.take(service, set);
        }
        drop(instances);
        saver.sweep_at += Duration::from_secs(1);
        for (expected, after) in [(2, 0), (2, 0), (2, 599), (0, 2)] {
            tokio::time::advance(Duration::from_secs(after)).await;
            let (at, job) = saver.next();
            // One file, the other, a sweep, and another one before its time.
            assert_eq!((at <= Instant::now(), job == Job::Sweep), (after != 2, after > 0));
            saver.start(job);
            let result = ended(&mut saver.running).await;
            saver.ended(result);
            assert_eq!(saver.services.len(), expected);
        }
        assert_eq!(weak.strong_count(), 0);

        // Nobody waits for what is forgotten.
        saver.flushing.insert(Job::Write("a".into()));
        saver.start(Job::Sweep);
        let result = ended(&mut saver.running).await;
        saver.ended(result);
        assert!(saver.flushing.is_empty());
    }
}
