//! Many rollouts in virtual time: how often a canary that is as good as the baseline is taken back, and how soon a bad one
//! is. What decides is the real thing; requests are drawn. `cargo bench --bench rollouts` prints the tables of
//! `docs/rollouts.md`; `cargo test` runs fewer of them, prints what came of them, and holds it against what is promised there.

use pillion::{
    config::Rollout,
    rollout::{At, Look, Phase, Side, State, Verdict, Why},
    telemetry::metrics::{LATENCY_BOUNDS, LATENCY_BUCKETS},
};
use std::{
    fmt,
    time::{Duration, SystemTime},
};

/// What this holds the outcome against.
const DOCS: &str = include_str!("../docs/rollouts.md");

/// Of the baseline, and of a canary that is as good.
const FAILING: f64 = 0.002;
/// Latencies are lognormal: the median in seconds, and the deviation of the logarithm. The p99 is 102 ms, just inside of a
/// bucket that ends at 250 ms.
const MEDIAN: f64 = 0.02;
const DEVIATION: f64 = 0.7;
/// A rollout that is not over by then holds.
const LONGEST: Duration = Duration::from_secs(8 * 60 * 60);

/// How a side behaves.
#[derive(Clone, Copy)]
struct Behaviour {
    failing: f64,
    /// All latencies times so much.
    slower: f64,
    /// Such a share takes half a second more.
    stalling: f64,
}

const GOOD: Behaviour = Behaviour { failing: FAILING, slower: 1.0, stalling: 0.0 };

/// What happens: the canary's behaviour by its share in percent, and the baseline's by the time.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    canary: fn(f64, Duration) -> Behaviour,
    baseline: fn(Duration) -> Behaviour,
    /// The share in percent from which the canary is bad.
    bad_from: f64,
}

const fn case(name: &'static str, canary: fn(f64, Duration) -> Behaviour) -> Case {
    Case { name, canary, baseline: |_| GOOD, bad_from: 0.0 }
}

const EQUAL: Case = case("as good as the baseline", |_, _| GOOD);
const AT_THE_LIMIT: Case =
    case("at the limit of the error rate, 0.74 %", |_, _| Behaviour { failing: FAILING * 1.2 + 0.005, ..GOOD });
/// Two minutes in which all that both call is down, and slow.
const INCIDENT: Case = Case {
    canary: |_, time| incident(time),
    baseline: incident,
    ..case("as good, and both fail and are slow for two minutes", |_, _| GOOD)
};
const DEAD: Case = case("every request fails", |_, _| Behaviour { failing: 1.0, ..GOOD });
const FIVE_MORE: Case = case("5 % more errors", |_, _| Behaviour { failing: FAILING + 0.05, ..GOOD });
const ONE_MORE: Case = case("1 % more errors", |_, _| Behaviour { failing: FAILING + 0.01, ..GOOD });
const DOUBLED: Case = case("all latencies doubled, so the p99", |_, _| Behaviour { slower: 2.0, ..GOOD });
const STALLING: Case = case("3 % of requests take 500 ms more", |_, _| Behaviour { stalling: 0.03, ..GOOD });
const BREAKS: Case = Case {
    bad_from: 50.0,
    ..case("5 % more errors from 50 % on", |percent, _| match percent < 50.0 {
        true => GOOD,
        false => Behaviour { failing: FAILING + 0.05, ..GOOD },
    })
};

/// Four minutes into the step of 25 %.
const LATE: Case = Case {
    bad_from: 25.0,
    ..case("5 % more errors from minute 14 on, four into 25 %", |_, time| match time < Duration::from_secs(14 * 60) {
        true => GOOD,
        false => Behaviour { failing: FAILING + 0.05, ..GOOD },
    })
};

fn incident(time: Duration) -> Behaviour {
    match (400..520).contains(&time.as_secs()) {
        true => Behaviour { failing: 0.3, slower: 5.0, ..GOOD },
        false => GOOD,
    }
}

/// Where the figures come from.
#[derive(Clone, Copy, PartialEq)]
enum Evidence {
    /// A pillion's own counters, in all its buckets.
    Own,
    /// The few buckets that a scrape shows.
    Prometheus,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "own",
            Self::Prometheus => "prometheus",
        })
    }
}

impl Evidence {
    fn of(self, side: Side) -> Side {
        if self == Self::Own {
            return side;
        }
        let up_to = |end: usize| side.latencies[..=end].iter().sum();
        let shown = Side::of_shown(&Side::shown().map(|end| (end, up_to(end))).collect());
        Side { failures: side.failures, ..shown }
    }
}

/// What came of one rollout.
struct Outcome {
    end: End,
    /// Of the whole rollout.
    long: Duration,
    /// Of the step that it ended in.
    in_step: Duration,
    percent: f64,
    held_for_requests: bool,
}

#[derive(PartialEq)]
enum End {
    Done,
    RolledBack,
    Holds,
}

fn run(case: &Case, rate: f64, evidence: Evidence, config: &Rollout) -> Outcome {
    let start = At::from(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    let mut state = State::begin("v2", 1, config, "simulation", start);
    let mut now = start;
    let mut held_for_requests = false;
    let (mut percent, mut step_since) = (state.percent, start);
    while state.is_live() && now.since(start) < LONGEST {
        if state.percent != percent {
            (percent, step_since) = (state.percent, now);
        }
        let time = now.since(start);
        now = now + config.interval;
        let requests = rate * config.interval.as_secs_f64();
        let look = Look {
            canary: evidence.of(draw(requests * percent / 100.0, (case.canary)(percent, time))),
            baseline: evidence.of(draw(requests * (1.0 - percent / 100.0), (case.baseline)(time))),
            queries: Vec::new(),
            canary_is_gone: false,
        };
        let decision = state.look(&look, config, "simulation", now);
        held_for_requests |= decision.verdict == Verdict::Hold { why: Why::TooFewRequests };
    }
    let end = match state.phase {
        Phase::RolledBack { .. } | Phase::Aborted { .. } => End::RolledBack,
        Phase::Done => End::Done,
        Phase::Running | Phase::Paused => End::Holds,
    };
    Outcome { end, long: now.since(start), in_step: now.since(step_since), percent, held_for_requests }
}

/// Requests that come at random, so many on average.
fn draw(requests: f64, behaviour: Behaviour) -> Side {
    let latencies: [u64; LATENCY_BUCKETS] = std::array::from_fn(|bucket| {
        let above = |bound: Option<&u64>| bound.map_or(0.0, |bound| slower_than(*bound as f64 / 1e6, behaviour));
        let from = bucket.checked_sub(1).map_or(1.0, |before| above(LATENCY_BOUNDS.get(before)));
        poisson(requests * (from - above(LATENCY_BOUNDS.get(bucket))))
    });
    let requests_drawn: u64 = latencies.iter().sum();
    let failures = match behaviour.failing >= 1.0 {
        true => requests_drawn,
        false => poisson(requests * behaviour.failing).min(requests_drawn),
    };
    Side { requests: requests_drawn, failures, latencies }
}

fn slower_than(seconds: f64, behaviour: Behaviour) -> f64 {
    let plain = |seconds: f64| match seconds > 0.0 {
        true => 1.0 - normal((seconds / (MEDIAN * behaviour.slower)).ln() / DEVIATION),
        false => 1.0,
    };
    (1.0 - behaviour.stalling) * plain(seconds) + behaviour.stalling * plain(seconds - 0.5)
}

/// The normal distribution (Abramowitz and Stegun, 26.2.17).
fn normal(x: f64) -> f64 {
    const FACTORS: [f64; 5] = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    if x < 0.0 {
        return 1.0 - normal(-x);
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * x);
    let sum = FACTORS.iter().rev().fold(0.0, |sum, factor| (sum + factor) * t);
    1.0 - (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * sum
}

fn poisson(mean: f64) -> u64 {
    if mean > 200.0 {
        let (one, other) = (1.0 - fastrand::f64(), fastrand::f64());
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos();
        return (mean + mean.sqrt() * normal).round().max(0.0) as u64;
    }
    let (least, mut product, mut count) = ((-mean).exp(), fastrand::f64(), 0);
    while product > least {
        product *= fastrand::f64();
        count += 1;
    }
    count
}

fn main() {
    fastrand::seed(7);
    if std::env::args().any(|argument| argument == "--bench") {
        large();
    } else if std::env::args().skip(1).all(|argument| argument.starts_with('-')) {
        small();
    }
}

fn many(case: &Case, rate: f64, evidence: Evidence, runs: usize) -> Vec<Outcome> {
    (0..runs).map(|_| run(case, rate, evidence, &Rollout::default())).collect()
}

fn share(outcomes: &[Outcome], which: impl Fn(&Outcome) -> bool) -> f64 {
    outcomes.iter().filter(|outcome| which(outcome)).count() as f64 / outcomes.len() as f64 * 100.0
}

const BOTH: [Evidence; 2] = [Evidence::Own, Evidence::Prometheus];

fn large() {
    good(&[EQUAL, AT_THE_LIMIT, INCIDENT], &[(10.0, 2000), (100.0, 4000), (1000.0, 4000)]);
    bad(&[DEAD, FIVE_MORE, ONE_MORE, DOUBLED, STALLING, BREAKS, LATE], &[10.0, 100.0, 1000.0], 500);
    soon(&[FIVE_MORE, DOUBLED, STALLING, BREAKS], &[20.0, 50.0, 100.0, 150.0, 200.0, 300.0, 500.0], 500);
}

/// How often a good canary is taken back, with each number of requests per second in so many rollouts; the largest share of that, and
/// the least of those that get all.
fn good(cases: &[Case], rates: &[(f64, usize)]) -> (f64, f64) {
    println!(
        "| canary | evidence | requests/s | rollouts | taken back | done, in (median) |\n|---|---|---|---|---|---|"
    );
    let (mut most, mut least): (f64, f64) = (0.0, 100.0);
    for (case, evidence) in cases.iter().flat_map(|case| BOTH.map(|evidence| (case, evidence))) {
        for (rate, runs) in rates {
            let outcomes = many(case, *rate, evidence, *runs);
            let taken_back = share(&outcomes, |outcome| outcome.end == End::RolledBack);
            let done: Vec<_> = outcomes.iter().filter(|outcome| outcome.end == End::Done).map(|o| o.long).collect();
            let percent = done.len() as f64 / *runs as f64 * 100.0;
            let long = text(percentile(done, 50.0));
            println!("| {} | {evidence} | {rate} | {runs} | {taken_back:.3} % | {percent:.1} %, {long} |", case.name);
            (most, least) = (most.max(taken_back), least.min(percent));
        }
    }
    (most, least)
}

/// How surely and how soon a bad one is.
fn bad(cases: &[Case], rates: &[f64], runs: usize) {
    println!(
        "\n| canary | requests/s | taken back | at (median) | time in that step: median, 95 % | within one hold time \
         of being bad |\n|---|---|---|---|---|---|"
    );
    for (case, rate) in cases.iter().flat_map(|case| rates.iter().map(move |rate| (case, rate))) {
        let outcomes = many(case, *rate, Evidence::Own, runs);
        let back: Vec<_> = outcomes.iter().filter(|outcome| outcome.end == End::RolledBack).collect();
        let mut percents: Vec<f64> = back.iter().map(|outcome| outcome.percent).collect();
        percents.sort_by(f64::total_cmp);
        let times: Vec<_> = back.iter().map(|outcome| outcome.in_step).collect();
        let at = percents.get(percents.len() / 2).map_or("-".into(), |percent| format!("{percent} %"));
        println!(
            "| {} | {rate} | {:.1} % | {at} | {}, {} | {:.0} % |",
            case.name,
            share(&outcomes, |outcome| outcome.end == End::RolledBack),
            text(percentile(times.clone(), 50.0)),
            text(percentile(times, 95.0)),
            share(&outcomes, |outcome| in_time(case, outcome)),
        );
    }
}

/// How many bad ones are taken back within one hold time, by evidence; the least share.
fn soon(cases: &[Case], rates: &[f64], runs: usize) -> f64 {
    let heads: String = rates.iter().map(|rate| format!(" {rate} |")).collect();
    println!("\n| canary | evidence |{heads}\n|---|---|{}", "---|".repeat(rates.len()));
    let mut least: f64 = 100.0;
    for (case, evidence) in cases.iter().flat_map(|case| BOTH.map(|evidence| (case, evidence))) {
        let mut line = format!("| {} | {evidence} |", case.name);
        for rate in rates {
            let outcomes = many(case, *rate, evidence, runs);
            let in_time = share(&outcomes, |outcome| in_time(case, outcome));
            line += &format!(" {in_time:.1} % |");
            least = least.min(in_time);
        }
        println!("{line}");
    }
    least
}

/// Whether it was taken back within one hold time of its first bad request.
fn in_time(case: &Case, outcome: &Outcome) -> bool {
    let config = Rollout::default();
    let first = config.steps.iter().map(|step| step.0).find(|step| *step >= case.bad_from);
    outcome.end == End::RolledBack && first == Some(outcome.percent) && outcome.in_step <= config.hold
}

fn percentile(mut times: Vec<Duration>, percent: f64) -> Duration {
    times.sort_unstable();
    let place = (times.len().saturating_sub(1)) as f64 * percent / 100.0;
    times.get(place as usize).copied().unwrap_or_default()
}

fn text(time: Duration) -> String {
    if time < Duration::from_secs(120) {
        format!("{} s", time.as_secs())
    } else {
        format!("{:.0} min", time.as_secs_f64() / 60.0)
    }
}

/// What has to hold, at a size that takes seconds.
fn small() {
    let promised = Rollout::default().false_rollbacks.0;
    assert!(DOCS.contains(&format!("| `false_rollbacks` | `{promised}` |")), "the docs promise something else");
    let (taken_back, done) = good(&[EQUAL], &[(100.0, 200)]);
    assert!(taken_back < promised, "{taken_back} % of good canaries were taken back");
    assert!(done > 98.0, "{done} % of good canaries get all");
    let (taken_back, _) = good(&[INCIDENT], &[(100.0, 20)]);
    assert!(taken_back == 0.0, "an incident of both is nobody's fault");
    let in_time = soon(&[DEAD, FIVE_MORE, DOUBLED, STALLING, BREAKS], &[1000.0], 40);
    assert!(in_time > 95.0, "{in_time} % were taken back in time");
    let in_time = soon(&[BREAKS], &[20.0], 40);
    assert!(in_time > 95.0, "{in_time} % were taken back in time");
    let few = many(&EQUAL, 1.0, Evidence::Own, 5);
    assert!(few.iter().all(|outcome| outcome.held_for_requests), "a hundred requests take hours");
}
