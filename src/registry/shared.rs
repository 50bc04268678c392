//! A registry that is read as a whole: whoever follows longest reads it for all followers.

use super::{
    RegistryError, Sink,
    watch::{self, Failure, Found, News, Watch},
};
use std::{future::Future, sync::Arc};
use tokio::sync::{Semaphore, watch as channel};

/// What was read last, for all who follow a service in it.
#[derive(Debug)]
pub struct Shared<T> {
    view: channel::Sender<View<T>>,
    /// Whoever holds it reads for all followers. So no task has to be started and stopped: the next follower takes over
    /// when the one that reads is dropped.
    eyes: Semaphore,
}

#[derive(Debug)]
struct View<T> {
    /// The last good content.
    content: Option<Arc<T>>,
    failure: Option<RegistryError>,
}

// Derived, it would want one of `T`, too.
impl<T> Default for View<T> {
    fn default() -> Self {
        Self { content: None, failure: None }
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { view: channel::Sender::default(), eyes: Semaphore::new(1) }
    }
}

impl<T: Send + Sync> Shared<T> {
    /// The content is this now, or still.
    pub fn set(&self, content: Arc<T>) {
        self.view.send_modify(|view| *view = View { content: Some(content), failure: None });
    }

    /// It cannot be read. The last good content stays.
    pub fn failed(&self, error: RegistryError) {
        self.view.send_modify(|view| view.failure = Some(error));
    }

    /// All is as it was told last.
    pub fn beat(&self) {
        self.view.send_modify(|_| ());
    }

    /// Whether there is content that may be in use.
    pub fn has_content(&self) -> bool {
        self.view.borrow().content.is_some()
    }

    /// Follows `service` for ever, of which `find` finds the instances. When it is this follower's turn to read, that is
    /// `read`, which tells all by the calls above and never ends.
    pub async fn follow(
        &self,
        registry: &str,
        service: &str,
        sink: Sink,
        find: impl Fn(&T) -> Found + Send,
        read: impl Future<Output = ()>,
    ) {
        if self.view.receiver_count() == 0 {
            // Nobody has read for a while, so what was read may be long untrue.
            self.view.send_replace(View::default());
        }
        let mut view = self.view.subscribe();
        // What is there already is news, too.
        view.mark_changed();
        let read = async {
            // The semaphore is never closed.
            let _eyes = self.eyes.acquire().await;
            read.await;
        };
        tokio::join!(watch::follow(registry, service, sink, Follower { view, find, given: None }), read);
    }
}

/// One service, as seen by its follower.
struct Follower<T, F> {
    view: channel::Receiver<View<T>>,
    find: F,
    /// The content that was told last.
    given: Option<Arc<T>>,
}

impl<T: Send + Sync, F: Fn(&T) -> Found + Send> Follower<T, F> {
    /// What has not been told yet; if that is content and a failure after it, first the content.
    async fn wait(&mut self) -> Result<News, Failure> {
        loop {
            // It cannot end while there is somebody to read.
            let _ = self.view.changed().await;
            let view = self.view.borrow_and_update();
            let is_new = |content: &&Arc<T>| !self.given.as_ref().is_some_and(|given| Arc::ptr_eq(given, content));
            if let Some(content) = view.content.as_ref().filter(is_new) {
                self.given = Some(content.clone());
                let found = (self.find)(content);
                if view.failure.is_some() {
                    drop(view);
                    self.view.mark_changed();
                }
                return Ok(News::Set(found));
            }
            if let Some(failure) = &view.failure {
                // Who reads waits before the next attempt.
                return Err(Failure::NoConnection(failure.clone()));
            }
            if self.given.is_some() {
                return Ok(News::Alive);
            }
        }
    }
}

impl<T: Send + Sync, F: Fn(&T) -> Found + Send> Watch for Follower<T, F> {
    async fn list(&mut self) -> Result<Found, Failure> {
        match self.wait().await? {
            News::Set(found) => Ok(found),
            News::Alive => Ok(self.given.as_ref().map(|given| (self.find)(given)).unwrap_or_default()),
        }
    }

    async fn next(&mut self) -> Result<News, Failure> {
        self.wait().await
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Instance, Observation, sink},
        *,
    };
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };
    use tokio::{task::JoinHandle, time::sleep};

    /// Its content is how often it was read, which shows as the weight of the one instance.
    #[derive(Default)]
    struct Counted {
        shared: Shared<u32>,
        readers: AtomicUsize,
        reads: AtomicUsize,
    }

    /// Counts itself out when it is dropped.
    struct Reader<'a>(&'a Counted);

    impl Drop for Reader<'_> {
        fn drop(&mut self) {
            self.0.readers.fetch_sub(1, Relaxed);
        }
    }

    impl Counted {
        /// Every second, of which each tenth read fails.
        async fn read(&self) {
            self.readers.fetch_add(1, Relaxed);
            let _reader = Reader(self);
            loop {
                let count = u32::try_from(self.reads.fetch_add(1, Relaxed) + 1).unwrap();
                if count.is_multiple_of(10) {
                    self.shared.failed(RegistryError::Busy { server: "s".into(), cause: format!("read {count}") });
                } else {
                    self.shared.set(Arc::new(count));
                }
                sleep(Duration::from_secs(1)).await;
            }
        }

        fn follow(self: &Arc<Self>) -> (JoinHandle<()>, channel::Receiver<Observation>) {
            let (sink, seen) = sink();
            let counted = self.clone();
            let find = |count: &u32| {
                Found::from(vec![Instance { weight: *count, ..Instance::new("a", "10.0.0.1:80".parse().unwrap()) }])
            };
            let task = tokio::spawn(async move { counted.shared.follow("r", "s", sink, find, counted.read()).await });
            (task, seen)
        }
    }

    fn weight(seen: &channel::Receiver<Observation>) -> Option<u32> {
        Some(seen.borrow().instances.as_ref()?[0].weight)
    }

    #[tokio::test(start_paused = true)]
    async fn one_reads_for_all_and_the_next_takes_over() {
        let counted = Arc::<Counted>::default();
        let (mut tasks, seen): (Vec<_>, Vec<_>) = (0..20).map(|_| counted.follow()).unzip();
        sleep(Duration::from_millis(4500)).await;
        assert_eq!((counted.readers.load(Relaxed), counted.reads.load(Relaxed)), (1, 5));
        assert!(seen.iter().all(|seen| weight(seen) == Some(5)));
        for task in tasks.drain(..19) {
            task.abort();
        }
        sleep(Duration::from_secs(1)).await;
        // Perhaps the last one was not the next in line, but there is exactly one.
        assert_eq!(counted.readers.load(Relaxed), 1);
        assert_eq!(weight(&seen[19]), u32::try_from(counted.reads.load(Relaxed)).ok());
        tasks[0].abort();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(counted.readers.load(Relaxed), 0, "nobody follows, nobody reads");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_once_per_attempt_and_the_content_stays() {
        let counted = Arc::<Counted>::default();
        let (_task, seen) = counted.follow();
        sleep(Duration::from_millis(9500)).await;
        assert_eq!((seen.borrow().failures, weight(&seen)), (1, Some(9)));
        assert!(seen.borrow().failure.as_ref().unwrap().to_string().contains("read 10"));
        // Who comes now gets the last good content, and the failure.
        let (_late, late) = counted.follow();
        sleep(Duration::from_millis(100)).await;
        assert_eq!((late.borrow().failures, weight(&late)), (1, Some(9)));
        sleep(Duration::from_secs(1)).await;
        for seen in [seen, late] {
            assert_eq!((seen.borrow().failures, weight(&seen)), (1, Some(11)));
            assert!(seen.borrow().failure.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_has_read_for_a_while_is_not_told() {
        let counted = Arc::<Counted>::default();
        let (task, _) = counted.follow();
        sleep(Duration::from_millis(8500)).await;
        task.abort();
        let _ = task.await;
        assert!(counted.shared.has_content());
        let (_task, seen) = counted.follow();
        sleep(Duration::from_millis(500)).await;
        // The tenth read, which fails.
        assert!(seen.borrow().failure.is_some() && seen.borrow().instances.is_none(), "{:?}", *seen.borrow());
    }

    #[tokio::test(start_paused = true)]
    async fn a_beat_is_a_sign_of_life() {
        let counted = Arc::<Counted>::default();
        let (_task, seen) = counted.follow();
        sleep(Duration::from_millis(500)).await;
        counted.shared.beat();
        sleep(Duration::from_millis(100)).await;
        assert!(seen.borrow().confirmed.unwrap().elapsed() <= Duration::from_millis(100));
    }
}
