//! The way from a registry's follower to discovery: the newest observation wins, slow readers miss nothing but history.

use super::{Instance, RegistryError};
use std::sync::Arc;
use tokio::{sync::watch, time::Instant};

/// What one source has said about one service so far.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// The newest whole set, sorted by id; `None` until the source has answered once. Kept when the source fails.
    pub instances: Option<Arc<[Instance]>>,
    /// When that set came.
    pub changed: Option<Instant>,
    /// When the source last said anything that proves that this set is current.
    pub confirmed: Option<Instant>,
    /// When anything at all was heard (an answer, a sign of life, or a failure): what the watchdog looks at.
    pub heard: Option<Instant>,
    /// The failure that the source is in, if it is in one.
    pub failure: Option<RegistryError>,
    /// Counts failures since the start.
    pub failures: u64,
}

/// Makes the two ends of one follower's channel.
pub fn sink() -> (Sink, watch::Receiver<Observation>) {
    let (sender, receiver) = watch::channel(Observation::default());
    (Sink { sender }, receiver)
}

/// The follower's end. Calls never block.
#[derive(Debug, Clone)]
pub struct Sink {
    sender: watch::Sender<Observation>,
}

impl Sink {
    /// The source gave the whole current set. Duplicated ids keep the last one. Readers are woken only by a change.
    pub fn set(&self, mut instances: Vec<Instance>) {
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        instances.reverse();
        instances.dedup_by(|a, b| a.id == b.id);
        instances.reverse();
        let now = Instant::now();
        self.sender.send_if_modified(|seen| {
            seen.heard = Some(now);
            seen.confirmed = Some(now);
            let recovered = seen.failure.take().is_some();
            if seen.instances.as_deref() == Some(&instances[..]) {
                return recovered;
            }
            seen.instances = Some(instances.into());
            seen.changed = Some(now);
            true
        });
    }

    /// The source proved that it is alive and that the last set still holds (a heartbeat, a wake-up without change).
    pub fn alive(&self) {
        let now = Instant::now();
        self.sender.send_if_modified(|seen| {
            seen.heard = Some(now);
            if seen.instances.is_some() {
                seen.confirmed = Some(now);
            }
            seen.failure.take().is_some()
        });
    }

    /// The source failed. The last set stays.
    pub fn failed(&self, error: RegistryError) {
        let now = Instant::now();
        self.sender.send_modify(|seen| {
            seen.heard = Some(now);
            seen.failures += 1;
            seen.failure = Some(error);
        });
    }

    /// Whether the source has answered at least once.
    pub fn answered(&self) -> bool {
        self.sender.borrow().instances.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, weight: u32) -> Instance {
        Instance { weight, ..Instance::new(id, "10.0.0.1:80".parse().unwrap()) }
    }

    #[test]
    fn only_a_change_wakes_the_reader() {
        let (sink, mut reader) = sink();
        sink.set(vec![instance("b", 1), instance("a", 1)]);
        assert!(reader.has_changed().unwrap());
        assert_eq!(reader.borrow_and_update().instances.as_ref().unwrap()[0].id, "a", "sorted by id");
        sink.set(vec![instance("a", 1), instance("b", 1)]);
        sink.alive();
        assert!(!reader.has_changed().unwrap(), "the same set in another order is no change");
        sink.set(vec![instance("a", 2), instance("b", 1)]);
        assert!(reader.has_changed().unwrap());
    }

    #[test]
    fn a_failure_keeps_the_last_set_and_an_answer_clears_it() {
        let (sink, reader) = sink();
        sink.set(vec![instance("a", 1)]);
        sink.failed(RegistryError::Busy { server: "s".into(), cause: "no leader".into() });
        assert!(reader.borrow().failure.is_some());
        assert_eq!(reader.borrow().instances.as_ref().unwrap().len(), 1);
        sink.alive();
        assert!(reader.borrow().failure.is_none());
    }

    #[test]
    fn of_two_instances_with_one_id_the_last_stays() {
        let (sink, reader) = sink();
        sink.set(vec![instance("a", 1), instance("a", 2)]);
        let seen = reader.borrow();
        let set = seen.instances.as_ref().unwrap();
        assert_eq!((set.len(), set[0].weight), (1, 2));
    }
}
