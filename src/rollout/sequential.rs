//! A test whether one share is larger than another allows, that may be looked at after each request.
//!
//! It bets against the claim that the canary is good enough. Each block of outcomes multiplies the stake by an *e-variable*,
//! a number that is 1 or less on average if the claim holds, so whoever bets against a claim that holds reaches `1 / p` with
//! probability `p` at most, ever (Ville's inequality). There is no schedule of looks to keep, and nothing is assumed of how
//! large the samples are or how seldom failures are. See `docs/rollouts.md` for where it is from.

use serde::{Deserialize, Serialize};

/// How much worse the canary could be than it may be, as a factor of the odds. The stake is spread over these evenly, so a
/// bet that fits is there whatever the truth is, at the price of a factor of eight.
const BETS: [f64; 8] = [1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0];
/// A share that is bet on is never 0 or 1: one outcome against it would lose everything.
const LEAST: f64 = 1e-6;

/// What may be: a straight line over the baseline's share, whose other side is therefore convex.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    pub factor: f64,
    pub more: f64,
}

/// So many, and how many of them were what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub of: u64,
    pub hits: u64,
}

/// What is not at play yet, as a logarithm: next to nothing, and a number that can be written.
const NOTHING: f64 = -600.0;

/// What the stake has become.
///
/// It is not all at play from the first block on: half is, and of the rest a little more with each block. So a canary that was
/// good for long and then breaks is found nearly as soon as one that was never good, for what was lost meanwhile need not be won
/// back. (A mixture over when it breaks, too. Each part is fair from when it is put at play, so the whole is.)
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stake {
    /// What has become of the part at play: of each of [`BETS`], the logarithm.
    logs: [f64; BETS.len()],
    /// The part that is not at play yet.
    kept: f64,
    blocks: u64,
}

impl Limit {
    /// The largest share that the canary may have.
    pub fn of(&self, baseline: f64) -> f64 {
        self.factor * baseline + self.more
    }
}

impl Default for Stake {
    fn default() -> Self {
        Self::NEW
    }
}

impl Stake {
    pub const NEW: Self = Self { logs: [NOTHING; BETS.len()], kept: 1.0, blocks: 0 };

    /// The logarithm of the whole stake, which began with 0.
    pub fn log(&self) -> f64 {
        (mean_log(&self.logs).exp() + self.kept).ln()
    }

    /// Plays one block. `expected` is the baseline's share as far as it was known before.
    ///
    /// `most` bounds what the block can win, as a logarithm. To win less than one could is always fair. About `blocks` are
    /// expected.
    pub fn play(
        &mut self,
        (canary, baseline): (Count, Count),
        expected: f64,
        limit: Limit,
        (most, blocks): (f64, f64),
    ) {
        let before = self.log();
        let expected = expected.clamp(LEAST, 1.0 - LEAST);
        let allowed = limit.of(expected);
        if allowed >= 1.0 - LEAST {
            return self.give_back();
        }
        if canary.of == 0 {
            return;
        }
        let more = self.put_more_at_play(blocks).ln();
        let odds = allowed.max(LEAST) / (1.0 - allowed.max(LEAST));
        for (log, factor) in self.logs.iter_mut().zip(BETS) {
            let bet = (factor * odds / (1.0 + factor * odds)).min(1.0 - LEAST);
            *log = (mean_log(&[*log, more]) + 2f64.ln() + win(canary, baseline, (bet, expected), limit)).max(NOTHING);
        }
        self.lower_to(before + most);
    }

    /// After the first block `blocks / (blocks + n)` of the other half is left: by then it broke as likely as not, and for
    /// however long it may go on, some is left.
    fn put_more_at_play(&mut self, blocks: f64) -> f64 {
        let more = match self.blocks {
            0 => 0.5,
            before => self.kept / (blocks.max(1.0) + before as f64),
        };
        self.blocks += 1;
        self.kept -= more;
        more
    }

    /// What was won does not count any more: there is nothing to bet on now, so it could not be lost again.
    pub fn give_back(&mut self) {
        self.lower_to(0.0);
    }

    fn lower_to(&mut self, most: f64) {
        let excess = mean_log(&self.logs) - (most.exp() - self.kept).max(f64::MIN_POSITIVE).ln();
        if excess > 0.0 {
            self.logs.iter_mut().for_each(|log| *log = (*log - excess).max(NOTHING));
        }
    }
}

/// The logarithm of the mean of what these are logarithms of.
pub fn mean_log(logs: &[f64]) -> f64 {
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + (logs.iter().map(|log| (log - largest).exp()).sum::<f64>() / logs.len() as f64).ln()
}

/// What a block wins: the likelihood of its outcomes by the bet over that by what comes closest to it within the limit.
/// (That closest point makes it an e-variable: the reverse information projection of Turner, Ly and Grünwald.)
fn win(canary: Count, baseline: Count, bet: (f64, f64), limit: Limit) -> f64 {
    let closest = project((canary.of as f64, baseline.of as f64), bet, limit);
    gain(canary, bet.0, closest.0) + gain(baseline, bet.1, closest.1)
}

fn gain(count: Count, bet: f64, closest: f64) -> f64 {
    let hits = count.hits.min(count.of);
    hits as f64 * (bet / closest).ln() + (count.of - hits) as f64 * ((1.0 - bet) / (1.0 - closest)).ln()
}

/// The point within the limit from which the bet, for blocks of this size, is told with the most difficulty: the least
/// Kullback-Leibler divergence. It is on the limit itself, and there the divergence is convex in the baseline's share.
fn project(sizes: (f64, f64), bet: (f64, f64), limit: Limit) -> (f64, f64) {
    // Between the baseline as it is bet on, and where the limit would allow the canary all of the bet.
    let (mut from, mut to) = (bet.1, bet.1);
    if limit.factor > 0.0 {
        to = ((bet.0 - limit.more) / limit.factor).clamp(bet.1, 1.0 - LEAST);
    }
    let on_limit = |baseline: f64| limit.of(baseline).clamp(LEAST, 1.0 - LEAST);
    // The derivative of `-p ln q - (1 - p) ln (1 - q)` by `q`.
    let slope = |p: f64, q: f64| (q - p) / (q * (1.0 - q));
    for _ in 0..48 {
        let middle = f64::midpoint(from, to);
        let rises = sizes.0 * limit.factor * slope(bet.0, on_limit(middle)) + sizes.1 * slope(bet.1, middle) > 0.0;
        if rises { to = middle } else { from = middle }
    }
    let baseline = f64::midpoint(from, to);
    (on_limit(baseline).min(bet.0), baseline)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { factor: 1.2, more: 0.005 };
    /// Any block may win what it can.
    const FREE: (f64, f64) = (600.0, 60.0);

    /// The probability of so many hits.
    fn binomial(count: Count, share: f64) -> f64 {
        let ways = (0..count.hits).fold(1.0, |ways, i| ways * (count.of - i) as f64 / (i + 1) as f64);
        ways * share.powi(count.hits as i32) * (1.0 - share).powi((count.of - count.hits) as i32)
    }

    /// What a stake becomes on average over all outcomes of one block.
    fn expectation((canary, baseline): (u64, u64), shares: (f64, f64), expected: f64, limit: Limit) -> f64 {
        let mut sum = 0.0;
        for canary in (0..=canary).map(|hits| Count { of: canary, hits }) {
            for baseline in (0..=baseline).map(|hits| Count { of: baseline, hits }) {
                let mut stake = Stake::default();
                stake.play((canary, baseline), expected, limit, FREE);
                sum += binomial(canary, shares.0) * binomial(baseline, shares.1) * stake.log().exp();
            }
        }
        sum
    }

    #[test]
    fn nobody_wins_on_average_against_a_canary_within_the_limit() {
        for sizes in [(1, 1), (1, 12), (9, 3), (4, 0), (0, 5), (12, 12)] {
            for limit in [LIMIT, Limit { factor: 1.0, more: 0.0 }, Limit { factor: 0.0, more: 0.05 }] {
                for baseline in [0.0, 0.001, 0.02, 0.3, 0.9] {
                    let most = limit.of(baseline).min(1.0);
                    for canary in [most, most / 2.0, 0.0] {
                        // Whatever was expected.
                        for expected in [0.0005, 0.02, 0.5] {
                            let mean = expectation(sizes, (canary, baseline), expected, limit);
                            assert!(mean <= 1.0 + 1e-9, "{sizes:?} {limit:?} {canary} {baseline} {expected}: {mean}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_canary_beyond_the_limit_is_found_by_few_requests() {
        // 6 % and 1 %, as often as that is on average; the limit at 1 % is 1.7 %.
        let mut stake = Stake::default();
        for _ in 0..6 {
            let (canary, baseline) = (Count { of: 50, hits: 3 }, Count { of: 4950, hits: 50 });
            stake.play((canary, baseline), 0.01, LIMIT, FREE);
        }
        assert!(stake.log() > 1000f64.ln(), "{}", stake.log());
        // Total failure takes a handful.
        let mut stake = Stake::default();
        stake.play((Count { of: 4, hits: 4 }, Count { of: 396, hits: 4 }), 0.01, LIMIT, FREE);
        assert!(stake.log() > 1000f64.ln(), "{}", stake.log());
    }

    #[test]
    fn one_that_breaks_after_long_is_found_nearly_as_soon() {
        let bad = (Count { of: 50, hits: 3 }, Count { of: 4950, hits: 50 });
        let found_after = |good: u32| {
            let mut stake = Stake::default();
            for _ in 0..good {
                stake.play((Count { of: 50, hits: 0 }, Count { of: 4950, hits: 50 }), 0.01, LIMIT, FREE);
            }
            (1..100).find(|_| {
                stake.play(bad, 0.01, LIMIT, FREE);
                stake.log() > 1000f64.ln()
            })
        };
        let (at_once, late, very_late) = (found_after(0), found_after(50), found_after(5000));
        assert!(at_once <= Some(7) && late <= Some(12) && very_late <= Some(16), "{at_once:?} {late:?} {very_late:?}");
    }

    #[test]
    fn both_getting_bad_together_wins_nothing() {
        let mut stake = Stake::default();
        for _ in 0..100 {
            stake.play((Count { of: 100, hits: 30 }, Count { of: 900, hits: 270 }), 0.001, LIMIT, FREE);
        }
        assert!(stake.log() < 0.0, "{}", stake.log());
    }

    #[test]
    fn one_block_wins_no_more_than_it_may() {
        let mut stake = Stake::default();
        for blocks in 1..4 {
            stake.play((Count { of: 50, hits: 50 }, Count { of: 50, hits: 0 }), 0.01, LIMIT, (2.0, 60.0));
            assert!((stake.log() - 2.0 * f64::from(blocks)).abs() < 1e-9, "{}", stake.log());
        }
    }

    #[test]
    fn without_the_other_side_there_is_nothing_to_compare() {
        let mut stake = Stake::default();
        stake.play((Count { of: 50, hits: 50 }, Count::default()), 0.01, LIMIT, FREE);
        assert!(stake.log().abs() < 1e-3, "{}", stake.log());
        stake.play((Count::default(), Count { of: 50, hits: 50 }), 0.01, LIMIT, FREE);
        assert!(stake.log().abs() < 1e-3, "{}", stake.log());
    }
}
