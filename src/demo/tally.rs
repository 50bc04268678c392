//! Counts what became of the traffic, and puts it in words.

use super::{
    samples::{LEAVING, SERVICES, Which},
    traffic::{End, Outcome},
};
use std::{collections::BTreeMap, fmt::Write, time::Duration};
use tokio::time::Instant;

/// What the terminal is taken to have room for.
pub const WIDTH: usize = 100;

pub struct Tally {
    carried: u64,
    /// By reason.
    failed: BTreeMap<String, u64>,
    /// Tries that pillion made again elsewhere: after a 503, and where an instance had died.
    pub retried: u64,
    /// The instances' own failures that reached a caller.
    own_failures: u64,
    leaves: u64,
    deaths: u64,
    returns: u64,
    gone: Vec<Which>,
    recent: Recent,
}

/// What came since the last line.
struct Recent {
    since: Instant,
    times: Vec<Duration>,
    /// Answers per service and instance.
    answers: Vec<Vec<u64>>,
}

impl Recent {
    fn new(since: Instant) -> Self {
        Self { since, times: Vec::new(), answers: SERVICES.iter().map(|service| vec![0; service.len()]).collect() }
    }
}

impl Tally {
    pub fn new(now: Instant) -> Self {
        Self {
            carried: 0,
            failed: BTreeMap::new(),
            retried: 0,
            own_failures: 0,
            leaves: 0,
            deaths: 0,
            returns: 0,
            gone: Vec::new(),
            recent: Recent::new(now),
        }
    }

    pub fn add(&mut self, outcome: Outcome) {
        self.recent.times.push(outcome.took);
        match outcome.end {
            End::Answered { by, status } => {
                self.carried += 1;
                self.own_failures += u64::from(status.is_server_error());
                self.recent.answers[by.service][by.instance] += 1;
            }
            End::Failed(reason) => *self.failed.entry(reason).or_default() += 1,
        }
    }

    pub fn left(&mut self, which: Which) {
        self.leaves += 1;
        self.gone.push(which);
    }

    pub fn died(&mut self, which: Which) {
        self.deaths += 1;
        self.gone.push(which);
    }

    pub fn returned(&mut self, which: Which) {
        self.returns += 1;
        self.gone.retain(|gone| *gone != which);
    }

    /// One line on the time since the last one.
    pub fn line(&mut self, now: Instant) -> String {
        let mut recent = std::mem::replace(&mut self.recent, Recent::new(now));
        recent.times.sort_unstable();
        let seconds = (now - recent.since).as_secs_f64().max(0.001);
        let mut line = format!(
            "{:3.0} rps  {} failed  {} retried  p50/p99 {}/{} ms",
            recent.times.len() as f64 / seconds,
            self.failed.values().sum::<u64>(),
            self.retried,
            milliseconds(percentile(&recent.times, 50)),
            milliseconds(percentile(&recent.times, 99)),
        );
        for (service, answers) in recent.answers.iter().enumerate() {
            let name = SERVICES[service].name;
            let _ = write!(line, "  {}", name.strip_suffix("-service").unwrap_or(name));
            let all = answers.iter().sum::<u64>().max(1) as f64;
            for (instance, count) in answers.iter().enumerate() {
                if self.gone.contains(&Which { service, instance }) {
                    line += " --";
                } else {
                    let _ = write!(line, " {:2.0}", *count as f64 * 100.0 / all);
                }
            }
        }
        // A line that wraps could not be written over.
        line.truncate(WIDTH);
        line
    }

    /// The last words.
    pub fn closing(&self, ran: Duration) -> String {
        let failed: u64 = self.failed.values().sum();
        let mut text = format!(
            "Stopped after {:.0} s: {} requests carried, {failed} failed. {} {} made again \
             elsewhere; of the flaky instance's 503s {} reached a caller.\n{} left {}, died {}, and came back {}.",
            ran.as_secs_f64(),
            self.carried,
            self.retried,
            if self.retried == 1 { "try was" } else { "tries were" },
            self.own_failures,
            LEAVING.name(),
            times(self.leaves),
            times(self.deaths),
            times(self.returns),
        );
        for (reason, count) in &self.failed {
            let _ = write!(text, "\nfailed {}: {reason}", times(*count));
        }
        text
    }
}

fn times(count: u64) -> String {
    match count {
        1 => "once".into(),
        2 => "twice".into(),
        count => format!("{count} times"),
    }
}

/// Of times in order.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}

/// With as many digits as mean anything.
fn milliseconds(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    if milliseconds < 9.95 { format!("{milliseconds:.1}") } else { format!("{milliseconds:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn outcome(milliseconds: u64, end: End) -> Outcome {
        Outcome { took: Duration::from_millis(milliseconds), end }
    }

    fn answered(service: usize, instance: usize, status: StatusCode) -> End {
        End::Answered { by: Which { service, instance }, status }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_tells_of_the_time_since_the_last_and_fits() {
        let start = Instant::now();
        let mut tally = Tally::new(start);
        for number in 0..100 {
            tally.add(outcome(3, answered(0, number % 4, StatusCode::OK)));
            tally.add(outcome(31, answered(1, number % 3, StatusCode::SERVICE_UNAVAILABLE)));
        }
        tally.left(LEAVING);
        tally.retried = 7;
        let line = tally.line(start + Duration::from_secs(1));
        assert_eq!(
            line,
            "200 rps  0 failed  7 retried  p50/p99 3.0/31 ms  user 25 -- 25 25  orders 34 33 33  web  0  0  0"
        );
        assert!(line.len() <= WIDTH);
        tally.returned(LEAVING);
        tally.add(outcome(3, End::Failed("no_endpoints".into())));
        let line = tally.line(start + Duration::from_secs(2));
        assert!(line.starts_with("  1 rps  1 failed  7 retried") && line.contains("user  0  0  0  0"), "{line}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_words_name_what_failed() {
        let mut tally = Tally::new(Instant::now());
        tally.add(outcome(3, answered(0, 0, StatusCode::OK)));
        assert!(tally.closing(Duration::from_secs(9)).starts_with("Stopped after 9 s: 1 requests carried, 0 failed."));
        tally.add(outcome(3, End::Failed("no_endpoints".into())));
        tally.add(outcome(3, End::Failed("no_endpoints".into())));
        assert!(tally.closing(Duration::from_secs(9)).ends_with("\nfailed twice: no_endpoints"));
    }

    #[test]
    fn percentiles_are_of_what_there_is() {
        assert_eq!(percentile(&[], 99), Duration::ZERO);
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(100));
        assert_eq!(percentile(&times, 99), Duration::from_millis(198));
        assert_eq!(percentile(&times[..1], 99), Duration::from_millis(1));
    }
}
