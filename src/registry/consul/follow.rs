//! Following one service by blocking queries.

use super::{
    Consul,
    client::Page,
    decode::{self, Row},
};
use crate::{
    backoff::Backoff,
    registry::{
        Instance,
        watch::{Failure, Found, News, Watch},
    },
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// Wake-ups without a change that are answered at once, as Consul's documentation allows.
const FREE_WAKE_UPS: u32 = 2;

/// Consul wakes a query also for changes elsewhere: of a check's output, or of any service when this one does not exist. Such
/// wake-ups in a row are slowed down; a real change is not, for it resets this.
pub struct Pace {
    idle: Backoff,
    in_vain: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)), in_vain: 0 }
    }
}

impl Pace {
    pub async fn slow_down(&mut self) {
        self.in_vain += 1;
        if self.in_vain > FREE_WAKE_UPS {
            sleep(self.idle.next_wait()).await;
        }
    }

    pub fn real_change(&mut self) {
        self.in_vain = 0;
        self.idle.reset();
    }
}

/// What is known of one service.
pub struct Queries {
    consul: Arc<Consul>,
    service: String,
    /// What the next query waits on.
    index: u64,
    last: Vec<Instance>,
    pace: Pace,
}

impl Queries {
    pub fn new(consul: Arc<Consul>, service: &str) -> Self {
        Self { consul, service: service.into(), index: 0, last: Vec::new(), pace: Pace::default() }
    }

    fn read(&mut self, health: Page<Vec<Row>>) -> Found {
        let (instances, unreadable) = decode::instances(health.rows, self.consul.only_passing);
        self.last.clone_from(&instances);
        Found { instances, unreadable }
    }
}

impl Watch for Queries {
    /// Asks for what is current, and does not wait: the agent may have been replaced meanwhile.
    async fn list(&mut self) -> Result<Found, Failure> {
        let health = self.consul.client.health(&self.service, 0, self.consul.wait).await?;
        self.index = health.index.max(1);
        Ok(self.read(health))
    }

    async fn next(&mut self) -> Result<News, Failure> {
        let asked = self.index;
        let health = self.consul.client.health(&self.service, asked, self.consul.wait).await?;
        let moved = health.index != asked;
        self.index = next_index(asked, health.index);
        if asked > 0 && health.rows.is_empty() && !self.last.is_empty() {
            // All gone: true perhaps, or the token lost its rights, which only a query that does not wait will tell.
            return Ok(News::Set(self.list().await?));
        }
        let before = std::mem::take(&mut self.last);
        let found = self.read(health);
        if found.instances != before {
            self.pace.real_change();
            return Ok(News::Set(found));
        }
        if asked > 0 && moved {
            self.pace.slow_down().await
        } else {
            self.pace.real_change()
        }
        Ok(News::Set(found))
    }
}

/// Consul's rules for the index: one that goes back means that the server's state was replaced, so start over; and
/// never wait on 0, which would not wait.
pub fn next_index(previous: u64, answered: u64) -> u64 {
    if answered < previous { 0 } else { answered.max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_follows_consuls_rules() {
        for (previous, answered, next) in [(0, 7, 7), (7, 7, 7), (7, 8, 8), (8, 7, 0), (0, 0, 1), (1, 0, 0)] {
            assert_eq!(next_index(previous, answered), next, "{previous} → {answered}");
        }
    }
}
