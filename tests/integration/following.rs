//! Watching what a registry says about one service, with time limits.

use pillion::registry::{Instance, Observation, Registry, sink};
use std::{fmt::Write as _, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// Far more than anything should take; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A follower that runs until this is dropped.
pub struct Following {
    seen: watch::Receiver<Observation>,
    task: JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Following {
    pub fn start<R: Registry>(registry: &Arc<R>, service: &str) -> Self {
        let (sink, seen) = sink();
        Self { seen, task: tokio::spawn(registry.clone().follow(service.into(), sink)) }
    }

    /// Waits until the newest observation is as wanted.
    pub async fn until(&mut self, wanted: &str, fits: impl Fn(&Observation) -> bool) -> Observation {
        if let Ok(seen) = timeout(PATIENCE, self.seen.wait_for(|seen| fits(seen))).await {
            return seen.expect("the follower never ends").clone();
        }
        panic!("waited in vain for {wanted}; last seen: {:#?}", *self.seen.borrow())
    }

    /// Waits for exactly these instances, each written as `ID ADDRESS WEIGHT`, and returns them. Those that the registry
    /// holds unfit may be left out of what is wanted.
    pub async fn until_set(&mut self, wanted: &[&str]) -> Vec<Instance> {
        let fit = |set: &[Instance]| set.iter().filter(|instance| instance.healthy).cloned().collect::<Vec<_>>();
        let is_it = |set: &[Instance]| shown(set) == wanted || shown(&fit(set)) == wanted;
        let seen = self
            .until(&format!("{wanted:?}"), |seen| {
                seen.failure.is_none() && seen.instances.as_deref().is_some_and(is_it)
            })
            .await;
        let set = seen.instances.unwrap();
        if shown(&set) == wanted { set.to_vec() } else { fit(&set) }
    }

    /// Waits for a failure, which must have left the instances alone.
    pub async fn until_failure(&mut self, kept: &[&str]) -> String {
        let seen = self.until("a failure", |seen| seen.failure.is_some()).await;
        assert_eq!(shown(seen.instances.as_deref().unwrap_or_default()), kept, "a failure keeps the last set");
        seen.failure.unwrap().to_string()
    }

    /// Waits for the next change after now.
    pub async fn changed(&mut self) {
        timeout(PATIENCE, self.seen.changed()).await.expect("a change within the time limit").unwrap();
    }

    pub fn mark_seen(&mut self) {
        self.seen.mark_unchanged();
    }
}

/// Each as `ID ADDRESS WEIGHT`.
pub fn shown(set: &[Instance]) -> Vec<String> {
    set.iter()
        .map(|instance| {
            let mut text = String::new();
            write!(text, "{} {} {}", instance.id, instance.address, instance.weight).unwrap();
            text
        })
        .collect()
}
