//! A request beside its copy: whether both were answered alike, and how much longer one took.

use crate::{proxy::headers::X_REQUEST_ID, telemetry::metrics::MirrorMetrics};
use http::{HeaderMap, HeaderValue};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// No more than one difference is told in this time.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// What came of one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub grpc_status: Option<HeaderValue>,
    /// How long its response took to begin, where that is known and says something.
    pub latency: Option<Duration>,
}

/// A request and its copy, until it is known what came of both.
#[derive(Debug)]
pub struct Comparison {
    service: Arc<str>,
    metrics: Arc<MirrorMetrics>,
    lines: Rc<Lines>,
    request_id: Option<HeaderValue>,
    /// When all of the request was there, so that a copy could be sent.
    whole: Cell<Option<Instant>>,
    own: RefCell<Option<Answer>>,
    copy: RefCell<Option<Answer>>,
}

/// Differences that one worker tells in its log.
#[derive(Debug, Default)]
pub struct Lines {
    last: Cell<Option<Instant>>,
    left_out: Cell<u64>,
}

impl Comparison {
    pub fn new(service: Arc<str>, metrics: Arc<MirrorMetrics>, lines: Rc<Lines>, headers: &HeaderMap) -> Self {
        Self {
            service,
            metrics,
            lines,
            request_id: headers.get(X_REQUEST_ID).cloned(),
            whole: Cell::new(None),
            own: RefCell::new(None),
            copy: RefCell::new(None),
        }
    }

    /// The copy is being sent.
    pub fn sent(&self) {
        self.whole.set(Some(Instant::now()));
    }

    /// What came of the request itself, whose response began then.
    pub fn own(&self, status: u16, grpc_status: Option<HeaderValue>, answered: Option<Instant>) {
        // One that was answered before it was whole cannot be compared.
        let latency =
            self.whole.get().zip(answered).and_then(|(whole, answered)| answered.checked_duration_since(whole));
        *self.own.borrow_mut() = Some(Answer { status, grpc_status, latency });
        self.compare();
    }

    /// What came of the copy.
    pub fn copy(&self, answer: Answer) {
        *self.copy.borrow_mut() = Some(answer);
        self.compare();
    }

    fn compare(&self) {
        let (own, copy) = (self.own.borrow(), self.copy.borrow());
        let (Some(own), Some(copy)) = (&*own, &*copy) else { return };
        let compared = self.metrics.compared();
        if let (Some(own), Some(copy)) = (own.latency, copy.latency)
            && !own.is_zero()
        {
            compared.latency.observe(copy.as_secs_f64() / own.as_secs_f64());
        }
        if own.status == copy.status && own.grpc_status == copy.grpc_status {
            return compared.same.inc();
        }
        compared.status_differs.inc();
        if let Some(left_out) = self.lines.next() {
            let text =
                |value: &Option<HeaderValue>| Some(String::from_utf8_lossy(value.as_ref()?.as_bytes()).into_owned());
            tracing::debug!(service = %self.service, route = %self.metrics.route, to = %self.metrics.to,
                request_id = text(&self.request_id), own = own.status, own_grpc = text(&own.grpc_status),
                copy = copy.status, copy_grpc = text(&copy.grpc_status), left_out, "a copy was answered otherwise");
        }
    }
}

impl Lines {
    /// Whether it is time for another; gives how many were left out since the last.
    fn next(&self) -> Option<u64> {
        let now = Instant::now();
        if self.last.get().is_some_and(|last| now - last < BETWEEN_LINES) {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.left_out.replace(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{labels::WORDS, metrics::Metrics};

    const MS: Duration = Duration::from_millis(1);

    fn comparison(metrics: &Arc<MirrorMetrics>) -> Comparison {
        Comparison::new("users".into(), metrics.clone(), Rc::default(), &HeaderMap::new())
    }

    fn answer(status: u16, millis: u32) -> Answer {
        Answer { status, grpc_status: None, latency: Some(MS * millis) }
    }

    fn shown(metrics: &Metrics, series: &str) -> String {
        let (_, page) = metrics.render(None);
        let line = page.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("{series}:\n{page}"));
        line.rsplit_once(' ').unwrap().1.to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn both_orders_give_the_same_result_once() {
        let metrics = Metrics::new(WORDS);
        let users = metrics.service("users");
        let mirror = users.mirror("0", "canary");
        for own_first in [true, false] {
            let comparison = comparison(&mirror);
            comparison.sent();
            tokio::time::advance(MS * 10).await;
            let answered = Some(Instant::now());
            if own_first {
                comparison.own(200, None, answered);
                comparison.copy(answer(200, 30));
            } else {
                comparison.copy(answer(200, 30));
                comparison.own(200, None, answered);
            }
        }
        let of = |series: &str| shown(&metrics, series);
        let labels = r#"{service="users",route="0",to="canary""#;
        assert_eq!(of(&format!("pillion_mirror_compared_total{labels},result=\"same\"}}")), "2");
        assert_eq!(of(&format!("pillion_mirror_compared_total{labels},result=\"status_differs\"}}")), "0");
        assert_eq!(of(&format!("pillion_mirror_latency_ratio_sum{labels}}}")), "6");
        assert_eq!(of(&format!("pillion_mirror_latency_ratio_bucket{labels},le=\"2\"}}")), "0");
        assert_eq!(of(&format!("pillion_mirror_latency_ratio_bucket{labels},le=\"3\"}}")), "2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_s_own_status_counts_too_and_one_alone_is_not_compared() {
        let metrics = Metrics::new(WORDS);
        let mirror = metrics.service("users").mirror("0", "canary");
        let compared = || (mirror.compared().same.get(), mirror.compared().status_differs.get());
        comparison(&mirror).own(200, None, None);
        comparison(&mirror).copy(answer(200, 1));
        assert_eq!(compared(), (0, 0));
        let call = comparison(&mirror);
        call.own(200, Some(HeaderValue::from_static("0")), None);
        call.copy(Answer { status: 200, grpc_status: Some(HeaderValue::from_static("13")), latency: None });
        assert_eq!(compared(), (0, 1));
        let other = comparison(&mirror);
        other.own(200, None, None);
        other.copy(answer(500, 1));
        assert_eq!(compared(), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_a_second_says_how_many_it_stands_for() {
        let lines = Lines::default();
        assert_eq!((lines.next(), lines.next(), lines.next()), (Some(0), None, None));
        tokio::time::advance(BETWEEN_LINES).await;
        assert_eq!((lines.next(), lines.next()), (Some(2), None));
        tokio::time::advance(BETWEEN_LINES).await;
        assert_eq!(lines.next(), Some(1));
    }
}
