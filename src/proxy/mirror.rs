//! Copies of requests, for another subset or service: sent beside the request, once all of it is there, and waited for by
//! nobody. What comes of them counts for the endpoints that they go to, and in numbers of their own.

mod comparison;
mod tee;

use super::{
    body::Body,
    headers::{self, GRPC_STATUS, X_PILLION_MIRROR},
    hedge::Nobody,
    http::{Downstream, Proxy, cluster_of, ready_snapshot},
    journey::{Destination, says_something},
    record::{Record, is_failure, is_grpc_failure, spare},
    timer::Timer,
    waiting::Waiting,
};
use crate::{
    cluster::{
        Cluster, Endpoint, Snapshot,
        balance::Ask,
        endpoint::InFlight,
        health::{Choice, Outcome},
        subset::Within,
    },
    error::{ProxyError, Reason},
    route::{self, Mirror, Route},
    telemetry::{labels::MirrorSkipped, metrics::MirrorMetrics},
};
use bytes::Bytes;
pub use comparison::Comparison;
use comparison::{Answer, Lines};
use http::{HeaderValue, Response, StatusCode, header::EXPECT, request};
use std::{cell::RefCell, collections::HashMap, future::poll_fn, net::IpAddr, rc::Rc, sync::Arc, time::Duration};
pub use tee::Tee;
use tee::Waiter;
use tokio::time::{Instant, timeout_at};

/// No more is read of a copy's response. The rest of a longer one is of no use to anybody, and its connection is closed.
const MOST_READ: usize = 1024 * 1024;

/// What one worker's copies share.
#[derive(Debug, Default)]
pub struct Mirrors {
    /// How many are in flight, by the address of their route's numbers, which they hold. A route without any is not here.
    in_flight: RefCell<HashMap<usize, u32, foldhash::fast::FixedState>>,
    lines: Rc<Lines>,
}

/// The lot has fallen on a request: a route that it takes is to make a copy of it.
#[derive(Debug)]
pub struct Lot {
    /// Whose route it is.
    cluster: Arc<Cluster>,
    mirror: Arc<Mirror>,
    metrics: Arc<MirrorMetrics>,
}

/// One copy's place among those in flight, from when it is drawn.
#[derive(Debug)]
struct Place {
    proxy: Rc<Proxy>,
    metrics: Arc<MirrorMetrics>,
}

/// A copy that is still to be sent.
#[derive(Debug)]
struct Copy {
    place: Place,
    lot: Lot,
    parts: request::Parts,
    /// Whom the request comes from.
    source: IpAddr,
    comparison: Option<Rc<Comparison>>,
}

/// Who may get a copy.
struct Target {
    cluster: Arc<Cluster>,
    snapshot: Arc<Snapshot>,
    within: Within,
}

impl Lot {
    /// Draws whether the request is copied on its way over this route, the `number`th of the service's.
    pub fn draw(cluster: &Arc<Cluster>, snapshot: &Snapshot, number: usize, route: &Route) -> Option<Self> {
        let mirror = route.mirror.as_ref().filter(|mirror| mirror.draw())?.clone();
        Some(Self { cluster: cluster.clone(), mirror, metrics: snapshot.mirror(number)?.clone() })
    }
}

/// Makes the copies that the request's routes ask for. Those of a body go with it as it passes.
pub fn copy(parts: &request::Parts, body: Body, down: &Downstream<'_>, record: &mut Record) -> Body {
    let lots = record.take_lots();
    if lots.is_empty() {
        return body;
    }
    // A copy of a copy would be nobody's request at all.
    let is_unfit = parts.headers.contains_key(X_PILLION_MIRROR) || headers::is_upgrade(&parts.headers);
    let mut waiters: Vec<Box<dyn Waiter>> = Vec::new();
    for lot in lots {
        let metrics = lot.metrics.clone();
        let place =
            if is_unfit { Err(MirrorSkipped::Unfit) } else { Place::take(down.proxy, &lot).ok_or(MirrorSkipped::Busy) };
        match place {
            Ok(place) => waiters.push(Box::new(Copy::new(lot, place, parts, down, record))),
            Err(why) => metrics.skipped.inc(why as usize),
        }
    }
    if body.is_done() {
        waiters.into_iter().for_each(|waiter| waiter.send(Bytes::new()));
        return body;
    }
    if waiters.is_empty() { body } else { Body::Teed(Box::new(Tee::new(body, waiters))) }
}

impl Place {
    fn take(proxy: &Rc<Proxy>, lot: &Lot) -> Option<Self> {
        let mut all = proxy.mirrors.in_flight.borrow_mut();
        let in_flight = all.entry(Arc::as_ptr(&lot.metrics).addr()).or_insert(0);
        if *in_flight >= lot.mirror.config.max_in_flight {
            return None;
        }
        *in_flight += 1;
        lot.metrics.in_flight.inc();
        Some(Self { proxy: proxy.clone(), metrics: lot.metrics.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        let mut all = self.proxy.mirrors.in_flight.borrow_mut();
        let address = Arc::as_ptr(&self.metrics).addr();
        if let Some(in_flight) = all.get_mut(&address) {
            *in_flight -= 1;
            if *in_flight == 0 {
                all.remove(&address);
            }
        }
    }
}

impl Waiter for Copy {
    fn max_body(&self) -> usize {
        self.lot.mirror.config.max_body
    }

    fn send(self: Box<Self>, body: Bytes) {
        if let Some(comparison) = &self.comparison {
            comparison.sent();
        }
        // Nobody owns it, and nobody waits for it, at the end of the process either: it has its time and ends by itself.
        tokio::task::spawn_local(self.run(body));
    }

    fn leave_out(self: Box<Self>, why: MirrorSkipped) {
        self.lot.metrics.skipped.inc(why as usize);
    }
}

impl Copy {
    fn new(lot: Lot, place: Place, parts: &request::Parts, down: &Downstream<'_>, record: &mut Record) -> Self {
        let mut parts = parts.clone();
        parts.headers.insert(X_PILLION_MIRROR, lot.mirror.mark.clone());
        // Its body is there already.
        parts.headers.remove(EXPECT);
        let comparison = lot.mirror.config.compare.then(|| {
            let (service, lines) = (lot.cluster.name.clone(), down.proxy.mirrors.lines.clone());
            let comparison = Rc::new(Comparison::new(service, lot.metrics.clone(), lines, &parts.headers));
            record.compared_in(comparison.clone());
            comparison
        });
        Self { place, lot, parts, source: down.origin.peer.ip(), comparison }
    }

    async fn run(mut self: Box<Self>, body: Bytes) {
        let Some(Target { cluster, snapshot, within }) = self.target().await else {
            return self.leave_out(MirrorSkipped::NoEndpoints);
        };
        let proxy = self.place.proxy.clone();
        let is_grpc = route::is_grpc(&self.parts.headers);
        let key = snapshot.key(&self.parts, self.source, cluster.metrics.in_flight.get());
        // Whatever it was to do is done by the request itself, so nothing is lost with it.
        let ask = Ask { within, first: within, key, only_once: false };
        let service = &snapshot.settings.service;
        let to = Destination { cluster: &cluster, snapshot: &snapshot, service, proxy: &proxy, is_grpc, ask };
        let began = Instant::now();
        let Some((endpoint, choice)) = to.pick(&[], began) else { return self.leave_out(MirrorSkipped::NoEndpoints) };
        let mut sent = SentCopy { to, in_flight: InFlight::start(endpoint.clone(), choice) };
        let until = began + service.timeouts.request;
        let late = |_| Err(too_late(service.timeouts.request));
        let outcome = timeout_at(until, self.send_once(to, &endpoint, body, began)).await.unwrap_or_else(late);
        let mut answer = Answer { status: 0, grpc_status: None, latency: None };
        match outcome {
            Ok(response) => {
                answer.latency = Some(began.elapsed());
                answer.status = response.status().as_u16();
                sent.answered(&response);
                answer.grpc_status = response.headers().get(GRPC_STATUS).cloned();
                // What is late now began well, and says nothing.
                match timeout_at(until, read(response.into_body())).await {
                    Ok(Ok(Some(status))) => {
                        sent.grpc_status(&status);
                        answer.grpc_status = Some(status);
                    }
                    Ok(Err(error)) => sent.failed(&error),
                    Ok(Ok(None)) | Err(_) => {}
                }
            }
            Err(error) => {
                answer.status = error.reason.status().as_u16();
                sent.failed(&error);
                tracing::debug!(service = %self.lot.cluster.name, route = %self.lot.metrics.route,
                    to = %self.lot.metrics.to, reason = error.reason.as_str(), detail = %error.detail,
                    "a copy was not answered");
            }
        }
        self.lot.metrics.requests.inc(answer.status);
        self.lot.metrics.duration.observe(began.elapsed());
        if let Some(comparison) = &self.comparison {
            comparison.copy(answer);
        }
    }

    /// Who may get it. Not where its subset is empty: those who would get requests then have the request itself already.
    async fn target(&self) -> Option<Target> {
        let (proxy, to) = (&self.place.proxy, &self.lot.mirror.to);
        let cluster = match &to.service {
            None => self.lot.cluster.clone(),
            Some(service) => cluster_of(service, proxy).await.ok()?,
        };
        cluster.mark_used();
        let (now, patience) = (Instant::now(), proxy.discovery.first_answer());
        let (snapshot, _) = ready_snapshot(&cluster, now, patience, None).await.ok()?;
        let within = match &to.subset {
            None => Within::SERVICE,
            Some(subset) => Some(snapshot.settle(subset)).filter(|settled| !settled.fell_back)?.within,
        };
        Some(Target { cluster, snapshot, within })
    }

    /// The only try. A pooled connection that turns out to be dead is replaced; its endpoint has seen nothing of this.
    async fn send_once(
        &mut self,
        to: Destination<'_>,
        endpoint: &Arc<Endpoint>,
        body: Bytes,
        began: Instant,
    ) -> Result<Response<Body>, ProxyError> {
        let mut timer = Timer::default();
        let mut waiting = Waiting::new(&mut timer, to.service, began, None);
        let mut body = Some(if body.is_empty() { Body::Empty } else { Body::Full(body) });
        let mut fresh = false;
        loop {
            let sent = to.send(endpoint, &mut self.parts, &mut body, fresh, &mut waiting, &Nobody).await;
            match to.classify(sent, endpoint, &self.parts.method, waiting.since()) {
                Ok(sent) => return Ok(sent.response),
                Err(failed) if failed.stale && !fresh && failed.again.is_some() => (fresh, body) = (true, failed.again),
                Err(failed) => return failed.outcome,
            }
        }
    }
}

/// A copy at its endpoint, for whose health it counts like any request.
struct SentCopy<'s> {
    to: Destination<'s>,
    in_flight: InFlight,
}

impl SentCopy<'_> {
    fn tell(&mut self, outcome: Outcome) {
        self.to.cluster.tell(&mut self.in_flight, outcome);
    }

    /// The response has begun.
    fn answered(&mut self, response: &Response<Body>) {
        if self.to.is_grpc && response.status() == StatusCode::OK {
            match response.headers().get(GRPC_STATUS) {
                Some(status) => self.grpc_status(status),
                // What came of a call is known at its end; but a probe has found somebody there.
                None if self.in_flight.choice() == Choice::Probe => self.tell(Outcome::Success),
                None => {}
            }
            return;
        }
        self.tell(if is_failure(response.status()) { Outcome::Failure } else { Outcome::Success });
        spare(self.to.cluster, self.in_flight.endpoint(), response);
    }

    fn grpc_status(&mut self, status: &HeaderValue) {
        self.tell(if is_grpc_failure(status) { Outcome::Failure } else { Outcome::Success });
    }

    fn failed(&mut self, error: &ProxyError) {
        if says_something(error.reason) {
            self.tell(Outcome::Failure);
        }
    }
}

/// Reads a response, so that its connection can be used again. Gives the status of a call that has ended with one.
async fn read(mut body: Body) -> Result<Option<HeaderValue>, ProxyError> {
    let mut read = 0;
    while let Some(frame) = poll_fn(|cx| body.poll_next(cx)).await {
        let frame = frame?;
        if let Some(status) = frame.trailers_ref().and_then(|trailers| trailers.get(GRPC_STATUS)) {
            return Ok(Some(status.clone()));
        }
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MOST_READ || body.is_done() {
            break;
        }
    }
    Ok(None)
}

fn too_late(limit: Duration) -> ProxyError {
    ProxyError::new(Reason::RequestTimeout, format!("no response in {limit:?}"))
}
