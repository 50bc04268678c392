//! Asking a Prometheus server: for the value of a query, and for what the whole fleet's counters of two subsets say.
//!
//! Its HTTP API is stable since its version 2 ("HTTP API", prometheus.io/docs/prometheus/latest/querying/api).

use crate::{
    config::{self, Rollout},
    registry::{HttpClient, RegistryError, Server},
    rollout::Side,
    telemetry::metrics::{LATENCY_BOUNDS, LATENCY_BUCKETS},
};
use bytes::Bytes;
use http::{
    Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::Full;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::{collections::BTreeMap, time::Duration};

/// For the answer to one query.
const LIMIT: Duration = Duration::from_secs(10);

/// A scrape is stored under the time at which it began. So the newest moments are left to the next look, by when all that
/// belongs to them is there.
const LAG: Duration = Duration::from_secs(2);

/// How far back it is looked at least, should the looks before have come to nothing.
const LONGEST: Duration = Duration::from_secs(15);

pub struct Prometheus {
    client: HttpClient,
    token: Option<config::Secret>,
    service: String,
    /// The canary and the baseline.
    subsets: [String; 2],
    /// How far back it is looked, after looks that came to nothing: there may have been nothing to be had then.
    longest: Duration,
    interval: Duration,
    /// Up to when it was looked, by the server's clock, in seconds: this machine's may say something else.
    looked_at: Option<f64>,
}

/// From when to when, in seconds.
#[derive(Clone, Copy)]
struct Window {
    to: f64,
    long: f64,
}

/// What is asked for.
#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer {
    Success { data: Data },
    Error { error: String },
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Sample>),
    Scalar(Point),
    /// Other than that is no number.
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Sample {
    metric: Labels,
    value: Point,
}

#[derive(Deserialize, Default)]
struct Labels {
    #[serde(default)]
    le: Option<String>,
}

/// A time, and a number as a text.
#[derive(Deserialize)]
struct Point(#[allow(dead_code, reason = "it is the time that was asked for")] f64, String);

impl Prometheus {
    pub fn new(config: &config::Prometheus, service: &str, rollout: &Rollout) -> Result<Self, String> {
        let expected = "`http://HOST:PORT` or `https://HOST:PORT`, with a path or without";
        let server = Server::with_base(&config.address, expected).map_err(|error| error.to_string())?;
        let client = HttpClient::new(server, &config.tls).map_err(|error| error.to_string())?;
        let subsets = [rollout.canary.clone(), rollout.baseline.clone()];
        let longest = LONGEST.max(2 * rollout.interval);
        Ok(Self {
            client,
            token: config.token.clone(),
            service: service.into(),
            subsets,
            longest,
            interval: rollout.interval,
            looked_at: None,
        })
    }

    /// The value of a query now.
    pub async fn number(&self, query: &str) -> Result<f64, String> {
        let Point(_, text) = match self.ask(query, None).await? {
            Data::Scalar(point) => point,
            Data::Vector(mut samples) => match (samples.pop(), samples.len()) {
                (Some(sample), 0) => sample.value,
                (None, _) => return Err("it gives nothing; expected one number".into()),
                (Some(_), others) => return Err(format!("it gives {} numbers; expected one", others + 1)),
            },
            Data::Matrix(_) | Data::String(_) => return Err("it gives no number at one time; expected one".into()),
        };
        match text.parse::<f64>() {
            Ok(number) if !number.is_nan() => Ok(number),
            _ => Err(format!("it gives `{text}`; expected a number")),
        }
    }

    /// What came up to now does not count.
    pub fn start(&mut self) {
        self.looked_at = None;
    }

    /// What canary and baseline did since the last time, all pillions together.
    pub async fn sides(&mut self) -> Result<[Side; 2], String> {
        let now = self.number("time()").await? - LAG.as_secs_f64();
        let since = self.looked_at.unwrap_or(now - self.interval.as_secs_f64());
        let window = Window { to: now, long: (now - since).clamp(0.001, self.longest.as_secs_f64()) };
        let [canary, baseline] = &self.subsets;
        let (canary, baseline) = tokio::try_join!(self.side(canary, window), self.side(baseline, window))?;
        self.looked_at = Some(now);
        if canary.is_none() && baseline.is_none() {
            let server = self.client.server();
            return Err(format!("{server} has nothing of `{}` from any pillion, for then and now", self.service));
        }
        Ok([canary, baseline].map(Option::unwrap_or_default))
    }

    /// `None` if it has no such counters.
    async fn side(&self, subset: &str, window: Window) -> Result<Option<Side>, String> {
        let growth = |counter, by| self.growth(counter, by, subset, window);
        let errors = growth("pillion_subset_errors_total", "");
        let durations = growth("pillion_subset_request_duration_seconds_bucket", "by (le) ");
        // As with a pillion's own figures: what went elsewhere has failed.
        let elsewhere = growth("pillion_subset_fallbacks_total", "");
        let ask = async |query: &str| self.ask(query, Some(window.to)).await;
        let (errors, elsewhere, durations) = tokio::try_join!(ask(&errors), ask(&elsewhere), ask(&durations))?;
        let (errors, elsewhere) = (sum(errors)?, sum(elsewhere)?);
        let buckets = samples(durations)?;
        let mut cumulative = BTreeMap::new();
        for Sample { metric, value } in &buckets {
            let bucket = metric.le.as_deref().and_then(bucket).ok_or("its buckets are not those of a pillion")?;
            cumulative.insert(bucket, value.count()?);
        }
        let answered = Side::of_shown(&cumulative);
        let side = Side { requests: answered.requests + elsewhere, failures: errors + elsewhere, ..answered };
        Ok((!buckets.is_empty()).then_some(side))
    }

    /// A query by how much a counter grew: other than `increase`, which estimates. A pillion that came meanwhile counts from the next
    /// look on, and one that started anew as soon as it has counted as much as before.
    fn growth(&self, counter: &str, by: &str, subset: &str, window: Window) -> String {
        let series = format!("{counter}{{service={},subset={}}}", quoted(&self.service), quoted(subset));
        let milliseconds = (window.long * 1e3).round().max(1.0);
        format!("sum {by}(clamp_min({series} - ({series} offset {milliseconds}ms), 0))")
    }

    async fn ask(&self, query: &str, at: Option<f64>) -> Result<Data, String> {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut form = format!("query={}", encoded(query));
        if let Some(at) = at {
            form += &format!("&time={at:.3}");
        }
        let mut request = Request::post("/api/v1/query").header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let answer = self.client.send(request.body(Full::new(Bytes::from(form))), LIMIT).await;
        let answer = answer.map_err(|error| error.to_string())?;
        match serde_json::from_slice(&answer.body) {
            Ok(Answer::Success { data }) => Ok(data),
            Ok(Answer::Error { error }) => Err(format!("{}: {error}", self.client.server())),
            Err(error) if answer.status == StatusCode::OK => Err(self.client.protocol(error).to_string()),
            Err(_) => Err(RegistryError::to_string(&self.client.refusal(answer.status, &answer.body))),
        }
    }
}

impl Point {
    fn count(&self) -> Result<u64, String> {
        match self.1.parse::<f64>() {
            Ok(count) if count.is_finite() && count >= 0.0 => Ok(count.round() as u64),
            _ => Err(format!("a counter grew by `{}`", self.1)),
        }
    }
}

/// That of all pillions; 0 without any.
fn sum(data: Data) -> Result<u64, String> {
    samples(data)?.first().map_or(Ok(0), |sample| sample.value.count())
}

fn samples(data: Data) -> Result<Vec<Sample>, String> {
    match data {
        Data::Vector(samples) => Ok(samples),
        Data::Scalar(_) | Data::Matrix(_) | Data::String(_) => Err("the sum of a counter is not a vector".into()),
    }
}

/// The number of the bucket that ends at `le`, in seconds, if `/metrics` shows it.
fn bucket(le: &str) -> Option<usize> {
    let end: f64 = le.parse().ok()?;
    if end == f64::INFINITY {
        return Some(LATENCY_BUCKETS - 1);
    }
    let microseconds = (end * 1e6).round() as u64;
    Side::shown().find(|number| LATENCY_BOUNDS.get(*number) == Some(&microseconds))
}

/// A text in PromQL.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
    }

    #[test]
    fn buckets_are_found_however_they_are_written() {
        for (le, expected) in
            [("0.0005", Some(0)), ("0.001", Some(4)), ("1", Some(40)), ("1.0", Some(40)), ("10", Some(52))]
        {
            assert_eq!(bucket(le), expected, "{le}");
        }
        assert_eq!(bucket("+Inf"), Some(LATENCY_BUCKETS - 1));
        // Those that a pillion has, and does not show, would count twice.
        for le in ["0.31", "", "many", "0.00125"] {
            assert_eq!(bucket(le), None, "{le}");
        }
    }
}
