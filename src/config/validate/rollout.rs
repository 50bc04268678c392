//! Checks of `rollout`.

use super::{Check, Spot, routes::Whose};
use crate::config::{Percent, Prometheus, QueryGuard, Rollout, RolloutEvidence, Service, error::shorten, human};
use std::time::Duration;

const MOST_STEPS: usize = 20;
const MOST_QUERIES: usize = 20;
const MOST_REQUESTS: u64 = 1_000_000_000;
const LEAST_HOLD: Duration = Duration::from_secs(1);
/// The registry's store is asked as often.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
/// What is longer than the histogram's last bound cannot be told apart.
const LONGEST_P99: Duration = Duration::from_secs(10);

impl<'t> Check<'_, 't> {
    pub(super) fn rollout(&mut self, spot: &Spot<'t>, rollout: &Rollout, whose: Whose<'_>) {
        if whose.name.is_none() {
            self.fail(spot, "a rollout belongs to one service; expected it in `services`");
            return;
        }
        if whose.config.routing.rollout_store().is_none() {
            self.fail(
                spot,
                "all pillions follow its state in a store; expected `routing: { rollouts: { registry: NAME } }`",
            );
        }
        self.sides(spot, rollout, whose.service);
        if let Some(release) = &rollout.release
            && (release.is_empty() || release.len() > 253 || release.chars().any(char::is_control))
        {
            let release = shorten(release);
            self.fail(
                &spot.key("release"),
                format!("found `{release}`; expected 1 to 253 bytes without control characters"),
            );
        }
        self.steps(&spot.key("steps"), &rollout.steps);
        self.times(spot, rollout);
        self.range(&spot.key("min_requests"), rollout.min_requests, 1, MOST_REQUESTS);
        self.range(&spot.key("attempts"), rollout.attempts, 1, 100);
        self.range(&spot.key("false_rollbacks"), rollout.false_rollbacks.0, 0.001, 10.0);
        let at = spot.key("error_rate");
        self.ratio(&at.key("ratio"), rollout.error_rate.ratio);
        self.percent(&at.key("margin"), rollout.error_rate.margin);
        self.percent(&at.key("max"), rollout.error_rate.max);
        let at = spot.key("p99");
        self.ratio(&at.key("ratio"), rollout.p99.ratio);
        self.at_most(&at.key("margin"), rollout.p99.margin);
        if let Some(max) = rollout.p99.max {
            let at = at.key("max");
            self.positive(&at, max);
            self.shorter(&at, max, LONGEST_P99, "where pillion's histograms end");
        }
        let queries = spot.key("queries");
        if rollout.queries.len() > MOST_QUERIES {
            self.fail(&queries, format!("found {} queries; expected at most {MOST_QUERIES}", rollout.queries.len()));
        }
        for (index, query) in rollout.queries.iter().enumerate() {
            self.query(&queries.live_item(index), query);
        }
        let nothing = !rollout.error_rate.enabled && !rollout.p99.enabled && rollout.queries.is_empty();
        if nothing && queries.elements().is_empty() {
            self.fail(spot, "nothing would take a bad canary back; expected `error_rate`, `p99` or `queries`");
        }
        self.prometheus(spot, rollout);
    }

    /// The two subsets, and a split between them.
    fn sides(&mut self, spot: &Spot<'t>, rollout: &Rollout, service: &Service) {
        let Rollout { canary, baseline, .. } = rollout;
        self.is_subset(&spot.key("baseline"), baseline, &service.subsets);
        self.is_subset(&spot.key("canary"), canary, &service.subsets);
        if canary == baseline {
            self.fail(
                &spot.key("canary"),
                format!("`{}` is the baseline too; expected another subset", shorten(canary)),
            );
        } else if let (Some(labels), Some(others)) = (service.subsets.get(canary), service.subsets.get(baseline))
            && labels == others
        {
            let other = shorten(baseline);
            self.fail(&spot.key("canary"), format!("it has the same labels as `{other}`; expected other ones"));
        } else if [canary, baseline].iter().all(|name| service.subsets.contains_key(*name))
            && !service.routes.iter().any(|route| rollout.governs(route))
        {
            let (baseline, canary) = (shorten(baseline), shorten(canary));
            self.fail(
                spot,
                format!(
                    "no route splits between the two; expected one with `split: {{ {baseline}: 100, {canary}: 0 }}`"
                ),
            );
        }
    }

    fn steps(&mut self, spot: &Spot<'t>, steps: &[Percent]) {
        if steps.is_empty() && spot.elements().is_empty() {
            self.fail(spot, "the list is empty; expected shares in percent, like `[1, 5, 25, 50, 100]`");
        } else if steps.len() > MOST_STEPS {
            self.fail(spot, format!("found {} steps; expected at most {MOST_STEPS}", steps.len()));
        }
        let mut before = 0.0;
        for (index, Percent(step)) in steps.iter().enumerate() {
            let spot = spot.live_item(index);
            if !(0.001..=100.0).contains(step) {
                self.fail(&spot, format!("found `{step}`; expected a number from 0.001 to 100"));
            } else if *step <= before {
                self.fail(&spot, format!("found `{step}`; expected more than the step before, which is `{before}`"));
            }
            before = *step;
        }
    }

    fn times(&mut self, spot: &Spot<'t>, rollout: &Rollout) {
        let Rollout { hold, interval, cool_down, p99, .. } = rollout;
        self.at_least(&spot.key("hold"), *hold, LEAST_HOLD);
        let at = spot.key("interval");
        self.at_least(&at, *interval, LEAST_INTERVAL);
        let third = Duration::from_millis(hold.as_millis() as u64 / 3);
        // A hold that is wrong itself says nothing about the others.
        if *hold >= LEAST_HOLD {
            self.shorter(&at, *interval, third, "a third of `hold`");
        }
        self.at_most(&spot.key("cool_down"), *cool_down);
        let warm_up = p99.warm_up(*hold);
        if p99.enabled && warm_up >= *hold {
            let (found, hold) = (human::format(warm_up), human::format(*hold));
            self.fail(
                &spot.key("p99").key("warm_up"),
                format!("found `{found}`; expected less than `hold`, which is `{hold}`"),
            );
        }
    }

    fn shorter(&mut self, spot: &Spot<'_>, found: Duration, most: Duration, which: &str) {
        if found > most {
            let (found, most) = (human::format(found), human::format(most));
            self.fail(spot, format!("found `{found}`; expected at most `{most}`, {which}"));
        }
    }

    fn ratio(&mut self, spot: &Spot<'t>, ratio: f64) {
        if !(1.0..=100.0).contains(&ratio) {
            self.fail(spot, format!("found `{ratio}`; expected a number from 1.0 to 100.0"));
        }
    }

    fn query(&mut self, spot: &Spot<'t>, query: &QueryGuard) {
        if query.query.trim().is_empty() {
            self.fail(&spot.key("query"), "found an empty text; expected a query in PromQL");
        }
        if query.name.as_deref() == Some("") {
            self.fail(&spot.key("name"), "found an empty text; expected some text");
        }
        let (above, below) = (spot.key("above"), spot.key("below"));
        match (query.above, query.below) {
            (None, None) if above.dead || below.dead => {}
            (None, None) => self.fail(spot, "expected `above` or `below`"),
            (Some(_), Some(_)) => self.fail(&below, "`above` is there already; expected only one of the two"),
            (Some(_), None) | (None, Some(_)) => {}
        }
        for (spot, bound) in [(above, query.above), (below, query.below)] {
            if bound.is_some_and(|bound| !bound.is_finite()) {
                self.fail(&spot, "expected a number");
            }
        }
        self.at_most(&spot.key("for"), query.lasting);
    }

    fn prometheus(&mut self, spot: &Spot<'t>, rollout: &Rollout) {
        let at = spot.key("prometheus");
        let Some(Prometheus { address, tls, .. }) = &rollout.prometheus else {
            let missing = |what| format!("{what} goes with `prometheus`, which is missing");
            if at.dead {
            } else if rollout.evidence == RolloutEvidence::Prometheus {
                self.fail(&spot.key("evidence"), missing("`evidence: prometheus`"));
            } else if !rollout.queries.is_empty() {
                self.fail(&spot.key("queries"), missing("`queries`"));
            }
            return;
        };
        let secure =
            self.url(&at.key("address"), address, "`http://HOST:PORT` or `https://HOST:PORT`, with a path or without");
        self.client_tls(&at.key("tls"), tls, secure);
        if rollout.evidence == RolloutEvidence::Own
            && rollout.queries.is_empty()
            && spot.key("queries").elements().is_empty()
        {
            self.fail(&at, "nothing would be asked there; expected `queries`, or `evidence: prometheus`");
        }
    }
}
