//! The loop that follows one service, or what is below one path of a [`super::store`], once for all backends: list, then
//! hear what changes, list again whenever that cannot be trusted to be whole, and wait ever longer while it fails. A backend
//! supplies its protocol as a [`Watch`].
//!
//! What this loop cannot notice, a watch that hangs, discovery's watchdog does ([`super::Registry::silence_limit`]).

use super::{Instance, RegistryError, Sink};
use crate::backoff::Backoff;
use std::{future::Future, time::Duration};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

/// Waits between attempts: short enough that a registry is in use soon after it is up, long enough that a fleet does not
/// hammer one that is down.
pub const SHORTEST_WAIT: Duration = Duration::from_millis(100);
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// About what cannot be read there is at most one burst of lines per service in this time, of at most so many lines.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
const COMPLAINTS: usize = 5;

/// A backend's protocol for one service, or for whatever else has sets of type `S`. It lives for as long as that is followed,
/// over failures.
pub trait Watch<S = Found>: Send {
    /// Connects where that is needed, and reads the whole current set. Called at the start, and whenever `list` or `next`
    /// failed.
    fn list(&mut self) -> impl Future<Output = Result<S, Failure>> + Send;

    /// Waits for the next news since then: a push, the answer to a poll, a sign of life.
    fn next(&mut self) -> impl Future<Output = Result<News<S>, Failure>> + Send;
}

/// Who is told what was heard.
pub trait Listener<S> {
    fn set(&mut self, set: S);

    /// The last set still holds.
    fn alive(&self);

    /// The last set stays.
    fn failed(&self, error: RegistryError);
}

/// A whole set.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    pub instances: Vec<Instance>,
    /// What is there and makes no sense, as `KEY: WHAT IS WRONG`: one writer's mistake must not hide the others.
    pub unreadable: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub enum News<S = Found> {
    /// What is there now, whether it changed or not.
    Set(S),
    /// Proof that the last set still holds.
    Alive,
}

/// Why a watch ended.
#[derive(Debug)]
pub enum Failure {
    Error(RegistryError),
    /// There is no connection. [`super::link::Link`], which says so, itself waits before the next attempt.
    NoConnection(RegistryError),
    /// Nothing failed, but what was missed can only be had from a new list (a compacted revision, a lost session).
    Stale(String),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Error(error)
    }
}

impl From<Vec<Instance>> for Found {
    fn from(instances: Vec<Instance>) -> Self {
        Self { instances, unreadable: Vec::new() }
    }
}

/// Follows `service` by `watch` for ever, on behalf of the registry of that name.
pub async fn follow(registry: &str, service: &str, sink: Sink, watch: impl Watch) {
    let listener = Instances { registry, service, sink, complaints: Complaints::default() };
    follow_sets(registry, service, listener, watch).await;
}

/// The same for sets of any kind. `what` is followed, as the log calls it.
pub async fn follow_sets<S>(registry: &str, what: &str, mut listener: impl Listener<S>, mut watch: impl Watch<S>) {
    let mut backoff = Backoff::new(SHORTEST_WAIT, LONGEST_WAIT);
    loop {
        let failure = match watch.list().await {
            Ok(found) => {
                listener.set(found);
                loop {
                    match watch.next().await {
                        Ok(News::Set(found)) => listener.set(found),
                        Ok(News::Alive) => listener.alive(),
                        Err(failure) => break failure,
                    }
                    // Not after the list already: something between may let lists through and no watch, and then every
                    // attempt would seem to work.
                    backoff.reset();
                }
            }
            Err(failure) => failure,
        };
        match failure {
            Failure::NoConnection(error) => {
                listener.failed(error);
                continue;
            }
            Failure::Error(error) => {
                debug!(registry, what, %error, "the watch failed");
                listener.failed(error);
            }
            Failure::Stale(reason) => debug!(registry, what, reason, "listing again"),
        }
        sleep(backoff.next_wait()).await;
    }
}

/// The instances of a service, on their way to its sink.
struct Instances<'a> {
    registry: &'a str,
    service: &'a str,
    sink: Sink,
    complaints: Complaints,
}

impl Listener<Found> for Instances<'_> {
    fn set(&mut self, found: Found) {
        self.complaints.hear(self.registry, self.service, found.unreadable);
        self.sink.set(found.instances);
    }

    fn alive(&self) {
        self.sink.alive();
    }

    fn failed(&self, error: RegistryError) {
        self.sink.failed(error);
    }
}

/// Says what cannot be read when that changes, and keeps a writer that repeats its mistake from filling the log.
#[derive(Default)]
struct Complaints {
    told: Vec<String>,
    not_before: Option<Instant>,
}

impl Complaints {
    fn hear(&mut self, registry: &str, service: &str, unreadable: Vec<String>) {
        let now = Instant::now();
        if unreadable == self.told || self.not_before.is_some_and(|time| now < time) {
            return;
        }
        for complaint in unreadable.iter().take(COMPLAINTS) {
            warn!(registry, service, "ignoring what cannot be read: {complaint}");
        }
        if let Some(more) = unreadable.len().checked_sub(COMPLAINTS + 1) {
            warn!(registry, service, more = more + 1, "ignoring more that cannot be read");
        }
        // That all is well again is no complaint.
        self.not_before = (!unreadable.is_empty()).then(|| now + COMPLAINT_INTERVAL);
        self.told = unreadable;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Observation, sink},
        *,
    };
    use std::{
        collections::VecDeque,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
    };

    /// Answers to `list` and `next` in their order; then nothing more is heard.
    struct Script {
        lists: VecDeque<Result<Found, Failure>>,
        news: VecDeque<Result<News, Failure>>,
        listed: Arc<AtomicUsize>,
    }

    impl Watch for Script {
        async fn list(&mut self) -> Result<Found, Failure> {
            self.listed.fetch_add(1, Relaxed);
            self.lists.pop_front().unwrap_or_else(|| Err(failure()))
        }

        async fn next(&mut self) -> Result<News, Failure> {
            match self.news.pop_front() {
                Some(news) => news,
                None => std::future::pending().await,
            }
        }
    }

    fn failure() -> Failure {
        RegistryError::Unreachable { server: "s".into(), cause: "gone".into() }.into()
    }

    fn found(weight: u32) -> Found {
        vec![Instance { weight, ..Instance::new("a", "10.0.0.1:80".parse().unwrap()) }].into()
    }

    /// What is seen of `script` after `time`, and how often it listed.
    async fn seen(
        lists: impl IntoIterator<Item = Result<Found, Failure>>,
        news: impl IntoIterator<Item = Result<News, Failure>>,
        time: Duration,
    ) -> (Observation, usize) {
        let listed = Arc::<AtomicUsize>::default();
        let (lists, news) = (lists.into_iter().collect(), news.into_iter().collect());
        let script = Script { lists, news, listed: listed.clone() };
        let (sink, observed) = sink();
        let follower = tokio::spawn(async move { follow("r", "s", sink, script).await });
        sleep(time).await;
        follower.abort();
        let observed = observed.borrow().clone();
        (observed, listed.load(Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_then_its_changes() {
        let news = [Ok(News::Set(found(2))), Ok(News::Alive), Ok(News::Set(found(3)))];
        let (observed, listed) = seen([Ok(found(1))], news, Duration::from_secs(1)).await;
        assert_eq!((observed.instances.unwrap()[0].weight, listed, observed.failures), (3, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_keeps_the_set_and_a_stale_watch_is_no_failure() {
        let (observed, listed) = seen([Ok(found(1))], [Err(failure())], Duration::from_secs(1)).await;
        assert_eq!(observed.instances.unwrap()[0].weight, 1);
        assert!(observed.failure.is_some() && observed.failures >= 1 && listed >= 2, "{listed}");
        let stale = Err(Failure::Stale("compacted".into()));
        let (observed, listed) = seen([Ok(found(1)), Ok(found(2))], [stale], Duration::from_secs(1)).await;
        assert_eq!((observed.instances.unwrap()[0].weight, listed, observed.failures), (2, 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_become_rare_and_lists_that_no_watch_follows_do_not_reset_that() {
        let hour = Duration::from_secs(3600);
        let (_, listed) = seen([], [], hour).await;
        // Uniform waits of up to 10 s: 720 in the mean.
        assert!((600..900).contains(&listed), "{listed}");
        let lists = (0..2000).map(|_| Ok(found(1)));
        let news = (0..2000).map(|_| Err(failure()));
        let (_, listed) = seen(lists, news, hour).await;
        assert!((600..900).contains(&listed), "{listed}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_complaint_is_made_once_and_others_not_too_often() {
        let mut complaints = Complaints::default();
        complaints.hear("r", "s", vec!["a".into()]);
        assert_eq!(complaints.told, ["a"]);
        complaints.hear("r", "s", vec!["b".into()]);
        assert_eq!(complaints.told, ["a"], "too soon");
        sleep(COMPLAINT_INTERVAL).await;
        complaints.hear("r", "s", vec!["b".into()]);
        assert_eq!(complaints.told, ["b"]);
    }
}
