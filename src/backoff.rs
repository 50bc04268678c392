//! Waiting between attempts: exponential with full jitter, so that a fleet that lost its registry at one moment does
//! not come back at one moment. (Formula: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.)

use std::time::Duration;

/// Each wait is uniform between zero and a ceiling that doubles from `base` up to `limit`.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    limit: Duration,
    attempt: u32,
}

impl Backoff {
    pub fn new(base: Duration, limit: Duration) -> Self {
        Self { base, limit, attempt: 0 }
    }

    /// How long to wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        let wait = Self::nth_wait(self.base, self.limit, self.attempt);
        self.attempt = self.attempt.saturating_add(1);
        wait
    }

    /// How long to wait after `attempt` earlier waits.
    pub fn nth_wait(base: Duration, limit: Duration, attempt: u32) -> Duration {
        let ceiling = base.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(limit);
        ceiling.mul_f64(fastrand::f64())
    }

    /// After a success: the next wait is short again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_start_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        for attempt in 0..100 {
            let ceiling = Duration::from_millis(100 << attempt.min(10)).min(Duration::from_secs(5));
            assert!(backoff.next_wait() <= ceiling, "attempt {attempt}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let waits: Vec<_> =
            (0..1000).map(|_| Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).next_wait()).collect();
        let low = waits.iter().filter(|w| **w < Duration::from_millis(250)).count();
        let high = waits.iter().filter(|w| **w > Duration::from_millis(750)).count();
        assert!((150..350).contains(&low) && (150..350).contains(&high), "{low} low, {high} high of 1000");
    }
}
