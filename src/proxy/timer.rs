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

/// Notices that nothing moved for a time, without looking at the clock when something does: a counter of what has moved
/// is compared four times per period.
#[derive(Debug)]
pub struct IdleWatch {
    period: Duration,
    seen: u64,
    quiet: u32,
}

impl IdleWatch {
    const LOOKS: u32 = 4;

    /// Starts to watch; sets the timer.
    pub fn new(period: Duration, timer: &mut Timer) -> Self {
        timer.set(Instant::now() + period / Self::LOOKS);
        Self { period, seen: 0, quiet: 0 }
    }

    /// Ready with the error when `moved` has not changed for the period, give or take a quarter of it.
    pub fn poll_idle(&mut self, moved: u64, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<ProxyError> {
        loop {
            ready!(timer.poll_expired(cx));
            self.quiet = if moved == self.seen { self.quiet + 1 } else { 0 };
            self.seen = moved;
            if self.quiet >= Self::LOOKS {
                let detail = format!("nothing moved for {:?}", self.period);
                return Poll::Ready(ProxyError::new(Reason::IdleTimeout, detail));
            }
            timer.set(Instant::now() + self.period / Self::LOOKS);
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
        let mut watch = IdleWatch::new(Duration::from_secs(60), &mut timer);
        let moved = || if start.elapsed() < Duration::from_secs(100) { start.elapsed().as_secs() + 1 } else { 100 };
        poll_fn(|cx| watch.poll_idle(moved(), &mut timer, cx)).await;
        let idle = start.elapsed().as_secs();
        assert!((160..=180).contains(&idle), "{idle}");
    }
}
