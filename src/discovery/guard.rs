//! Notices that a service suddenly lost far more of its instances than a rollout takes away. A registry that was emptied
//! by mistake looks like one from which everything was taken on purpose; so those that are gone are asked themselves
//! ([`super::linger`]) before it is believed.

use crate::config;
use std::collections::VecDeque;
use tokio::time::Instant;

/// One service's sizes of late, and whether an alarm is on.
#[derive(Debug, Default)]
pub struct Guard {
    /// How many instances were listed from when on; the first may be older than what counts.
    sizes: VecDeque<(Instant, usize)>,
    alarm: Option<Alarm>,
}

/// Too many are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alarm {
    pub since: Instant,
    /// How many instances there were before.
    pub before: usize,
}

impl Guard {
    /// Takes note of how many are listed now, and tells whether those that are gone are to be kept.
    pub fn sense(&mut self, listed: usize, config: &config::Guard, now: Instant) -> Option<Alarm> {
        if !config.enabled {
            *self = Self::default();
            return None;
        }
        // What was in force when the time began counts too, so the last one before it stays.
        while self.sizes.get(1).is_some_and(|(from, _)| now.duration_since(*from) >= config.grace) {
            self.sizes.pop_front();
        }
        let before = match self.alarm {
            Some(alarm) => alarm.before,
            None => self.sizes.iter().map(|(_, size)| *size).max().unwrap_or(0),
        };
        if self.sizes.back().is_none_or(|(_, size)| *size != listed) {
            self.sizes.push_back((now, listed));
        }
        let lost = before.saturating_sub(listed);
        // Once it is on, it ends when as many are listed as before: those that come back do so one by one.
        let many = self.alarm.is_some() || listed == 0 || lost * 100 > before * config.lost as usize;
        let too_many = lost > 0 && many;
        self.alarm = too_many.then(|| self.alarm.unwrap_or(Alarm { since: now, before }));
        self.alarm
    }

    /// So many were listed until just now, as far as is known from elsewhere.
    pub fn seed(&mut self, size: usize, now: Instant) {
        self.sizes.push_back((now, size));
    }

    /// Nothing is kept any more: what is listed is true.
    pub fn settle(&mut self) {
        if self.alarm.take().is_some() {
            self.sizes.drain(..self.sizes.len().saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::advance;

    async fn alarms(steps: &[(u64, usize)]) -> Vec<bool> {
        let (mut guard, mut seen) = (Guard::default(), Vec::new());
        for (seconds, listed) in steps {
            advance(Duration::from_secs(*seconds)).await;
            seen.push(guard.sense(*listed, &config::Guard::default(), Instant::now()).is_some());
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_sudden_loss_is_told_from_a_gradual_one() {
        for (steps, expected) in [
            // All of them, however few.
            (&[(0, 1), (500, 0)][..], vec![false, true]),
            (&[(0, 4), (500, 2)], vec![false, false]),
            (&[(0, 4), (500, 1)], vec![false, true]),
            // In several steps within the time.
            (&[(0, 10), (500, 8), (10, 6), (10, 4)], vec![false, false, false, true]),
            (&[(0, 10), (500, 8), (29, 6), (31, 4)], vec![false; 4]),
            // Over when as many are there as before.
            (&[(0, 10), (500, 0), (60, 3), (60, 9), (60, 10)], vec![false, true, true, true, false]),
            // Others in their place are no loss.
            (&[(0, 3), (500, 3)], vec![false, false]),
            (&[(0, 0), (500, 0)], vec![false, false]),
        ] {
            assert_eq!(alarms(steps).await, expected, "{steps:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn once_settled_what_is_listed_is_the_measure() {
        let (mut guard, config) = (Guard::default(), config::Guard::default());
        let sense = |guard: &mut Guard, listed| guard.sense(listed, &config, Instant::now()).is_some();
        assert!(!sense(&mut guard, 10) && sense(&mut guard, 2));
        guard.settle();
        assert!(!sense(&mut guard, 2) && !sense(&mut guard, 1), "of two, one is half");
        let off = config::Guard { enabled: false, ..config.clone() };
        assert!(guard.sense(0, &off, Instant::now()).is_none());
    }
}
