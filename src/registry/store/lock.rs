//! A lock that its holder can lose: kept by renewing a backend's [`Claim`], given back when it is dropped.

use crate::registry::RegistryError;
use futures_util::future::BoxFuture;
use std::{sync::LazyLock, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

/// A lock is renewed so many times in its TTL, so that one renewal may fail.
const RENEWALS: u32 = 3;

/// After a renewal that failed, the next follows sooner.
const RETRIES: u32 = 20;

/// The last part of the TTL is left unused, for the time that a request takes and for clocks that do not run alike: whoever
/// held a lock knows that it is lost before another can have it.
const USED: f64 = 0.8;

/// So long it is tried to give a lock back; after that it runs out.
const RELEASE: Duration = Duration::from_secs(5);
/// And so long before this process ends.
const LAST_RELEASE: Duration = Duration::from_secs(1);

/// How many locks this process holds, or is giving back.
static HELD: LazyLock<watch::Sender<usize>> = LazyLock::new(Default::default);

/// A backend's part of a lock: each call is one attempt.
pub trait Claim: Send {
    /// Tries to take the lock. False: somebody else has it.
    fn take(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>>;

    /// Starts its time anew. False: it is ours no more.
    fn renew(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>>;

    /// Gives it back. That it is not ours is a success.
    fn release(&mut self) -> BoxFuture<'_, Result<(), RegistryError>>;
}

/// A lock that is ours until it is dropped, or lost. Dropping it gives it back a moment later.
#[derive(Debug)]
pub struct Lock {
    lost: watch::Receiver<Option<String>>,
    /// Its end is the sign for the task to give the lock back.
    ours: oneshot::Sender<()>,
}

impl Lock {
    /// Returns when it is ours no more, and why. May be dropped at any time.
    pub async fn lost(&mut self) -> String {
        let told = self.lost.wait_for(Option::is_some).await;
        // The task ends without a word only when the runtime does.
        told.ok().and_then(|why| why.clone()).unwrap_or_else(|| "pillion is stopping".into())
    }

    pub fn is_held(&self) -> bool {
        self.lost.borrow().is_none() && self.lost.has_changed().is_ok()
    }

    /// Gives it back, and waits until that is done or was given up.
    pub async fn release(mut self) {
        drop(self.ours);
        while self.lost.changed().await.is_ok() {}
    }
}

/// Waits until what was dropped is given back, or that was given up: for who is about to end, as nothing is afterwards.
pub async fn all_given_back() {
    // (The sender is there for ever.)
    let _ = timeout(LAST_RELEASE, HELD.subscribe().wait_for(|held| *held == 0)).await;
}

/// Counts as held as long as it is there.
struct Held;

impl Held {
    fn new() -> Self {
        HELD.send_modify(|held| *held += 1);
        Self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.send_modify(|held| *held -= 1);
    }
}

/// Waits until `claim` has the lock. How often it asks goes by the TTL: a whole fleet may wait for the same one.
pub(super) async fn lock(mut claim: Box<dyn Claim>, ttl: Duration) -> Result<Lock, RegistryError> {
    loop {
        let asked = Instant::now();
        if claim.take().await? {
            let (tell, lost) = watch::channel(None);
            let (ours, given_up) = oneshot::channel();
            let held = Held::new();
            tokio::spawn(async move {
                keep(claim, asked, ttl, tell, given_up).await;
                drop(held);
            });
            return Ok(Lock { lost, ours });
        }
        sleep(ttl.mul_f64(0.25 + 0.25 * fastrand::f64())).await;
    }
}

/// Renews until the lock is lost or not wanted any more.
async fn keep(
    mut claim: Box<dyn Claim>,
    mut since: Instant,
    ttl: Duration,
    tell: watch::Sender<Option<String>>,
    mut given_up: oneshot::Receiver<()>,
) {
    let mut wait = ttl / RENEWALS;
    loop {
        let end = since + ttl.mul_f64(USED);
        let renewed = async {
            sleep(wait).await;
            // Its time begins at the latest when the store hears of it, and that is not before it was asked.
            let asked = Instant::now();
            (asked, timeout_at(end, claim.renew()).await)
        };
        let (asked, renewed) = tokio::select! {
            renewed = renewed => renewed,
            _ = &mut given_up => {
                // If that fails, it runs out.
                let _ = timeout(RELEASE, claim.release()).await;
                return;
            }
        };
        let failure = match renewed {
            Ok(Ok(true)) => {
                (since, wait) = (asked, ttl / RENEWALS);
                continue;
            }
            Ok(Ok(false)) => {
                tell.send_replace(Some("the store has given it to somebody else, or forgotten it".into()));
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the store does not answer".into(),
        };
        wait = ttl / RETRIES;
        if Instant::now() + wait >= end {
            tell.send_replace(Some(format!("it could not be renewed in time: {failure}")));
            // In case the store still has it as ours: another may take over sooner.
            let _ = timeout(RELEASE, claim.release()).await;
            return;
        }
    }
}
