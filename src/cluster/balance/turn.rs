//! Taking turns.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Weighted round robin, worked out in advance for one whole period: each endpoint's turns lie evenly in it.
#[derive(Debug, Default)]
pub struct Turn {
    sequence: Box<[u32]>,
    next: AtomicUsize,
}

impl Turn {
    /// A period longer than this, or than [`PER_ENDPOINT`](Self::PER_ENDPOINT) turns for each on average, is shortened by
    /// scaling the weights, each of which stays at least 1.
    const MAX_PERIOD: u64 = 8192;
    const PER_ENDPOINT: u64 = 8;

    pub fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
        let mut weights: Vec<u64> = weights.iter().map(|w| u64::from(*w / divisor)).collect();
        let period: u64 = weights.iter().sum();
        let longest = Self::MAX_PERIOD.max(Self::PER_ENDPOINT * weights.len() as u64);
        if period > longest {
            for weight in weights.iter_mut().filter(|w| **w > 0) {
                *weight = (*weight * longest / period).max(1);
            }
        }
        let mut turns: Vec<(f64, u32)> = Vec::new();
        for (index, weight) in weights.iter().enumerate() {
            // Where in its own part of the period an endpoint has its turn. Multiples of the golden ratio are far apart
            // from each other, so those of few turns do not all come at the same time.
            let phase = (index as f64 * 0.618_033_988_749_895).fract();
            let Ok(index) = u32::try_from(index) else { break };
            turns.extend((0..*weight).map(|turn| ((turn as f64 + phase) / *weight as f64, index)));
        }
        turns.sort_unstable_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
        let sequence = turns.into_iter().map(|(_, index)| index).collect();
        // Many sidecars that start together must not all begin with the same endpoint.
        Self { sequence, next: AtomicUsize::new(fastrand::usize(..)) }
    }

    pub fn next(&self) -> Option<usize> {
        if self.sequence.is_empty() {
            return None;
        }
        let turn = self.next.fetch_add(1, Relaxed) % self.sequence.len();
        Some(self.sequence[turn] as usize)
    }
}

pub fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
