//! Timeouts without a timer per request: one per connection, set anew only when it fires or must fire earlier.

use crate::error::{ProxyError, Reason};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// A deadline that can be moved for almost nothing. Moving it later does not touch the runtime's timer: when that
/// fires too early, it is set again. So a busy connection pays for one registration per timeout, not per request.
#[derive(Debug, Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

impl Timer {
    pub fn set(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
        if let Some(sleep) = &mut self.sleep
            && deadline < sleep.deadline()
        {
            sleep.as_mut().reset(deadline);
        }
    }

    pub fn clear(&mut self) {
        self.deadline = None;
    }

    /// Ready once the deadline has passed; never without one.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// How long an exchange may go on once its response has begun.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Without a byte.
    pub idle: Duration,
    /// In any case.
    pub until: Option<Instant>,
}

/// Notices that nothing moved for a time, without looking at the clock when something does: a counter of what has moved
/// is compared four times per period. And that it has been enough altogether, where that is limited.
#[derive(Debug)]
pub struct IdleWatch {
    patience: Patience,
    seen: u64,
    quiet: u32,
}

impl IdleWatch {
    const LOOKS: u32 = 4;

    /// Starts to watch; sets the timer.
    pub fn new(patience: Patience, timer: &mut Timer) -> Self {
        let watch = Self { patience, seen: 0, quiet: 0 };
        watch.set(timer);
        watch
    }

    fn set(&self, timer: &mut Timer) {
        let look = Instant::now() + self.patience.idle / Self::LOOKS;
        timer.set(self.patience.until.map_or(look, |until| until.min(look)));
    }

    /// Ready with the error when `moved` has not changed for the period, give or take a quarter of it, or all time is up.
    pub fn poll_idle(&mut self, moved: u64, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<ProxyError> {
        loop {
            ready!(timer.poll_expired(cx));
            if self.patience.until.is_some_and(|until| Instant::now() >= until) {
                let detail = "the exchange took longer than timeouts.stream allows";
                return Poll::Ready(ProxyError::new(Reason::StreamTimeout, detail));
            }
            self.quiet = if moved == self.seen { self.quiet + 1 } else { 0 };
            self.seen = moved;
            if self.quiet >= Self::LOOKS {
                let detail = format!("nothing moved for {:?}", self.patience.idle);
                return Poll::Ready(ProxyError::new(Reason::IdleTimeout, detail));
            }
            self.set(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_moved_later_or_earlier_fires_at_its_time() {
        let (start, mut timer) = (Instant::now(), Timer::default());
        timer.set(start + Duration::from_secs(5));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll_expired(cx))).await.is_pending());
        timer.set(start + Duration::from_secs(20));
        poll_fn(|cx| timer.poll_expired(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 20);
        timer.set(start + Duration::from_secs(60));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll_expired(cx))).await.is_pending());
        timer.set(start + Duration::from_secs(30));
        poll_fn(|cx| timer.poll_expired(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 30);
        timer.clear();
        assert!(poll_fn(|cx| Poll::Ready(timer.poll_expired(cx))).await.is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_when_nothing_moved_for_the_period() {
        let (start, mut timer) = (Instant::now(), Timer::default());
        let mut watch = IdleWatch::new(Patience { idle: Duration::from_secs(60), until: None }, &mut timer);
        let moved = || if start.elapsed() < Duration::from_secs(100) { start.elapsed().as_secs() + 1 } else { 100 };
        poll_fn(|cx| watch.poll_idle(moved(), &mut timer, cx)).await;
        let idle = start.elapsed().as_secs();
        assert!((160..=180).contains(&idle), "{idle}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_ends_what_moves_too() {
        let (start, mut timer) = (Instant::now(), Timer::default());
        let patience = Patience { idle: Duration::from_secs(60), until: Some(start + Duration::from_secs(100)) };
        let mut watch = IdleWatch::new(patience, &mut timer);
        let error = poll_fn(|cx| watch.poll_idle(start.elapsed().as_secs(), &mut timer, cx)).await;
        assert_eq!((error.reason, start.elapsed().as_secs()), (Reason::StreamTimeout, 100));
    }
}
