//! The TCP connections that a worker carries, looked at once a second: so none of them needs a timer of its own, and none of
//! its bytes an atomic.

use crate::{
    cluster::{Cluster, Endpoint},
    config::WhenGone,
    error::Reason,
    net::relay::Moved,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ops::Deref,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often they are looked at.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Connections {
    all: RefCell<HashMap<u64, Rc<Watched>, foldhash::fast::FixedState>>,
    next: Cell<u64>,
}

/// One connection, as those who look at it see it: until its handle is dropped.
#[derive(Debug)]
pub struct Handle {
    connections: Rc<Connections>,
    number: u64,
    watched: Rc<Watched>,
}

#[derive(Debug)]
pub struct Watched {
    pub moved: Moved,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    opened: Instant,
    /// What has moved when it was last looked at.
    counted: Cell<(u64, u64)>,
    /// Whether anything has moved between the last two looks.
    moving: Cell<bool>,
    /// Since when nothing has.
    quiet: Cell<Instant>,
    gone: Cell<Option<Instant>>,
    enough: Cell<Option<Reason>>,
    waker: RefCell<Option<Waker>>,
}

impl Connections {
    /// Counts what has moved, and ends what is to end. Never ends itself.
    pub async fn look_after(self: Rc<Self>) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await;
            self.all.borrow().values().for_each(|connection| connection.look(now));
        }
    }
}

impl Handle {
    pub fn new(connections: &Rc<Connections>, cluster: Arc<Cluster>, endpoint: Arc<Endpoint>) -> Self {
        let number = connections.next.get();
        connections.next.set(number + 1);
        let watched = Rc::new(Watched::new(cluster, endpoint));
        connections.all.borrow_mut().insert(number, watched.clone());
        Self { connections: connections.clone(), number, watched }
    }
}

impl Deref for Handle {
    type Target = Watched;

    fn deref(&self) -> &Watched {
        &self.watched
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.watched.count();
        self.connections.all.borrow_mut().remove(&self.number);
    }
}

impl Watched {
    fn new(cluster: Arc<Cluster>, endpoint: Arc<Endpoint>) -> Self {
        let now = Instant::now();
        Self {
            moved: Moved::default(),
            cluster,
            endpoint,
            opened: now,
            counted: Cell::default(),
            moving: Cell::new(true),
            quiet: Cell::new(now),
            gone: Cell::new(None),
            enough: Cell::new(None),
            waker: RefCell::default(),
        }
    }

    /// Ready, with the reason, once it is to be closed.
    pub fn poll_enough(&self, cx: &Context<'_>) -> Poll<Reason> {
        if let Some(reason) = self.enough.get() {
            return Poll::Ready(reason);
        }
        // It is mostly the same.
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether bytes were on their way a moment ago.
    pub fn is_moving(&self) -> bool {
        self.moving.get() || self.counted.get() != self.moved.both()
    }

    /// Adds to its service's numbers what has moved since the last time. Whether anything has.
    fn count(&self) -> bool {
        let (before, now) = (self.counted.get(), self.moved.both());
        self.counted.set(now);
        let metrics = &self.cluster.metrics.tcp;
        metrics.sent.add(now.0 - before.0);
        metrics.received.add(now.1 - before.1);
        before != now
    }

    fn look(&self, now: Instant) {
        self.moving.set(self.count());
        if self.moving.get() {
            self.quiet.set(now);
        } else if self.moved.stalled.get() {
            self.moved.suspect.set(true);
            self.wake();
        }
        // Else its service would be forgotten as idle, and with it whom it has, and which of them leave.
        self.cluster.mark_used();
        let snapshot = self.cluster.load();
        let tcp = &snapshot.settings.service.tcp;
        if self.gone.get().is_none() && self.endpoint.live.has_left() {
            self.gone.set(Some(now));
        }
        let allowed = match tcp.when_gone {
            WhenGone::Keep => None,
            WhenGone::Drain => Some(tcp.drain),
            WhenGone::Cut => Some(Duration::ZERO),
        };
        let has_passed = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        let reason = if self.gone.get().zip(allowed).is_some_and(|(since, allowed)| has_passed(since, allowed)) {
            Reason::EndpointGone
        } else if tcp.max_age.is_some_and(|age| has_passed(self.opened, age)) {
            Reason::StreamTimeout
        } else if has_passed(self.quiet.get(), tcp.idle_timeout) {
            Reason::IdleTimeout
        } else {
            return;
        };
        self.enough.set(Some(reason));
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
