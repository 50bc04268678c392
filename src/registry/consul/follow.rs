//! Following one service by blocking queries.

use super::{Consul, decode};
use crate::{
    backoff::Backoff,
    registry::{Instance, Sink},
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tracing::{debug, warn};

/// Wake-ups without a change that are answered at once, as Consul's documentation allows.
const FREE_WAKE_UPS: u32 = 2;

/// Follows `service` for ever.
pub async fn follow(consul: Arc<Consul>, service: String, sink: Sink) {
    let mut index = 0;
    let mut last: Option<Vec<Instance>> = None;
    let mut failing = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    // Consul wakes a query also for changes elsewhere: of a check's output, or of any service when this one does not
    // exist. Such wake-ups in a row are slowed down; a real change is not, for it resets this.
    let mut idle = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let mut in_vain = 0;
    let mut complained = Vec::new();
    loop {
        let health = match consul.client.health(&service, index, consul.wait).await {
            Ok(health) => health,
            Err(error) => {
                debug!(registry = consul.name, service, %error, "query failed");
                sink.failed(error);
                // The agent may have been replaced meanwhile: what is current is asked for at once, not waited for.
                index = 0;
                sleep(failing.next_wait()).await;
                continue;
            }
        };
        failing.reset();
        let blocked = index > 0;
        let moved = health.index != index;
        index = next_index(index, health.index);
        if blocked && health.rows.is_empty() && last.as_ref().is_some_and(|last| !last.is_empty()) {
            // All gone: true perhaps, or the token lost its rights, which only a query that does not wait will tell.
            index = 0;
            continue;
        }
        let (instances, complaints) = decode::instances(health.rows, consul.only_passing);
        if complaints != complained {
            for complaint in &complaints {
                warn!(registry = consul.name, service, "ignoring an instance: {complaint}");
            }
            complained = complaints;
        }
        if last.as_ref() == Some(&instances) {
            sink.alive();
            in_vain = if blocked && moved { in_vain + 1 } else { 0 };
            if in_vain > FREE_WAKE_UPS {
                sleep(idle.next_wait()).await;
            } else {
                idle.reset();
            }
        } else {
            in_vain = 0;
            last = Some(instances.clone());
            sink.set(instances);
        }
    }
}

/// Consul's rules for the index: one that goes back means that the server's state was replaced, so start over; and
/// never wait on 0, which would not wait.
fn next_index(previous: u64, answered: u64) -> u64 {
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
