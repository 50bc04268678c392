//! The record of one request. It counts itself when it is dropped, so that every request that began is also counted as
//! ended, however it ended.

mod ended;

use super::{
    body::Body,
    callers::Caller,
    headers::{GRPC_STATUS, Origin, X_REQUEST_ID, without_user},
    http::Downstream,
    listener::Listener,
    mirror::{Comparison, Lot},
    retry::retry_after,
    routing::Routed,
    timer::Patience,
};
use crate::{
    cluster::{
        Cluster, Endpoint, Snapshot,
        endpoint::InFlight,
        health::{Choice, Outcome},
        subset::Settled,
        table::Settings,
    },
    config,
    error::{ProxyError, Reason},
    registry::Address,
    telemetry::{
        access_log::Text,
        flags::{Flag, Flags},
        labels::{FallbackKind, InjectedFault},
    },
};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header::HOST, request, uri::PathAndQuery,
};
use std::{rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;

#[derive(Debug)]
pub struct Record {
    listener: Rc<Listener>,
    started: Instant,
    /// The service that it is for.
    cluster: Option<Arc<Cluster>>,
    /// On its way to the local application: who asks.
    caller: Option<Rc<Caller>>,
    /// Since when it has a place among the service's requests in flight, which it must leave.
    entered: Option<Instant>,
    in_flight: Option<InFlight>,
    attempts: u32,
    flags: Flags,
    status: u16,
    /// Whether it is a gRPC call that has ended with a status that says so.
    grpc_failed: bool,
    failure: Option<Box<ProxyError>>,
    rare: Option<Box<Rare>>,
    line: Line,
    /// When the response had been written to its end.
    ended: Option<Instant>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
}

/// What hardly any request has, and a connection need not have room for.
#[derive(Debug, Default)]
struct Rare {
    /// What the caller gets instead of an error, and what that was.
    fallback: Option<(FallbackKind, Reason)>,
    /// The service that its fallback is, once it is tried.
    carrier: Option<Arc<Cluster>>,
    /// What was put in on purpose, the last of it.
    fault: Option<InjectedFault>,
    /// What its routes have made of it.
    routed: Option<Routed>,
    /// Its copies that it is compared with.
    comparisons: Vec<Rc<Comparison>>,
    /// When its response began, where that is to be known.
    answered: Option<Instant>,
    grpc_status: Option<HeaderValue>,
}

/// The request as the access log shows it. All of it is shared with the request, not copied.
#[derive(Debug)]
struct Line {
    origin: Rc<Origin>,
    method: Method,
    path: Option<PathAndQuery>,
    host: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    version: Version,
}

impl Record {
    pub fn start(down: &Downstream<'_>, request: &Request<Body>) -> Self {
        Self {
            listener: down.listener.clone(),
            started: Instant::now(),
            cluster: None,
            caller: None,
            entered: None,
            in_flight: None,
            attempts: 0,
            flags: Flags::default(),
            status: 0,
            grpc_failed: false,
            failure: None,
            rare: None,
            line: Line {
                origin: down.origin.clone(),
                method: request.method().clone(),
                path: request.uri().path_and_query().cloned(),
                host: match request.uri().authority() {
                    Some(authority) => HeaderValue::from_str(without_user(authority)).ok(),
                    None => request.headers().get(HOST).cloned(),
                },
                request_id: None,
                version: request.version(),
            },
            ended: None,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    /// Tries so far, the current one included.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The request is for this service.
    pub fn routed(&mut self, cluster: Arc<Cluster>) {
        self.cluster = Some(cluster);
    }

    /// Its routes have made this of it.
    pub fn took(&mut self, routed: Routed) {
        self.rare().routed = Some(routed);
    }

    /// The settings of its route, where that has its own.
    pub fn own_settings(&mut self, settings: &Settings) -> Option<Arc<config::Service>> {
        self.rare.as_mut()?.routed.as_mut()?.resolve(settings)
    }

    /// The copies that its routes ask for. Afterwards there are none.
    pub fn take_lots(&mut self) -> Vec<Lot> {
        let routed = self.rare.as_mut().and_then(|rare| rare.routed.as_mut());
        routed.map_or_else(Vec::new, Routed::take_lots)
    }

    /// What comes of it is to be known there.
    pub fn compared_in(&mut self, comparison: Rc<Comparison>) {
        self.rare().comparisons.push(comparison);
    }

    /// What it is compared by, if it is.
    fn compared(&mut self) -> Option<&mut Rare> {
        self.rare.as_deref_mut().filter(|rare| !rare.comparisons.is_empty())
    }

    /// Which endpoints it may go to, now that they are known.
    pub fn settle(&mut self, snapshot: &Snapshot) -> Settled {
        let Some(routed) = self.rare.as_mut().and_then(|rare| rare.routed.as_mut()) else { return Settled::default() };
        let settled = routed.settle(snapshot);
        if settled.fell_back {
            self.flags.set(Flag::SubsetFallback);
        }
        settled
    }

    /// Changes the response as its routes say.
    pub fn edit(&self, response: &mut Response<Body>) {
        if let Some(routed) = self.its_routes() {
            routed.edit(response);
        }
    }

    /// The request is for the local application, and this is who sends it.
    pub fn called_by(&mut self, caller: Rc<Caller>) {
        self.caller = Some(caller);
    }

    /// The service's limits have given it a place, which it keeps until it has ended.
    pub fn entered(&mut self, since: Instant) {
        self.entered = Some(since);
    }

    /// The headers are as the upstream gets them.
    pub fn prepared(&mut self, parts: &request::Parts) {
        self.line.request_id = parts.headers.get(X_REQUEST_ID).cloned();
    }

    /// This happened to it.
    pub fn flag(&mut self, flag: Flag) {
        self.flags.set(flag);
    }

    /// A try begins.
    pub fn attempt(&mut self, in_flight: InFlight) {
        self.attempts += 1;
        flag_choice(&mut self.flags, in_flight.choice());
        self.in_flight = Some(in_flight);
    }

    /// The current try begins once more, on a fresh connection.
    pub fn tried_afresh(&mut self) {
        self.attempts += 1;
    }

    /// A try was made beside the current one.
    pub fn hedged(&mut self) {
        self.attempts += 1;
        self.flags.set(Flag::Hedged);
    }

    /// From now on it is that one that counts.
    pub fn attempt_instead(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    /// Another try will be made because of `reason`.
    pub fn retried(&mut self, reason: Reason) {
        self.flags.retried(reason);
        if let Some(cluster) = carrier(&self.rare, &self.cluster) {
            cluster.metrics.retries.inc(reason as usize);
        }
    }

    /// What came of the current try, as far as it says something about its endpoint.
    pub fn tell(&mut self, outcome: Outcome) {
        let carrier = carrier(&self.rare, &self.cluster);
        if let (Some(cluster), Some(in_flight)) = (carrier, &mut self.in_flight) {
            cluster.tell(in_flight, outcome);
        }
    }

    /// The upstream's answer has begun.
    pub fn answered<B>(&mut self, response: &Response<B>, is_grpc: bool) {
        if is_grpc {
            match response.headers().get(GRPC_STATUS) {
                Some(status) => return self.grpc_status(status),
                // What came of a call is known at its end; but a probe has found somebody there.
                None if response.status() == StatusCode::OK => {
                    if self.in_flight.as_ref().is_some_and(|in_flight| in_flight.choice() == Choice::Probe) {
                        self.tell(Outcome::Success);
                    }
                    return;
                }
                None => {}
            }
        }
        self.tell(if is_failure(response.status()) { Outcome::Failure } else { Outcome::Success });
        if let (Some(cluster), Some(in_flight)) = (carrier(&self.rare, &self.cluster), &self.in_flight) {
            spare(cluster, in_flight.endpoint(), response);
        }
    }

    /// The response's head, ours or the upstream's, is known.
    pub fn responded(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        if let Some(rare) = self.compared() {
            rare.answered = Some(Instant::now());
        }
        let carrier = carrier(&self.rare, &self.cluster);
        if let (Some(cluster), Some(entered)) = (carrier, self.entered)
            && cluster.limits.is_adapting()
            && self.tells_latency(status)
        {
            let now = Instant::now();
            cluster.limits.observe(now - entered, now);
        }
    }

    /// Whether the time it took says how busy the service is. What fails at once does not.
    fn tells_latency(&self, status: StatusCode) -> bool {
        match &self.failure {
            _ if matches!(self.fallback(), Some((FallbackKind::Response | FallbackKind::LastGood, _))) => false,
            None => !status.is_server_error(),
            Some(failure) => {
                matches!(failure.reason, Reason::RequestTimeout | Reason::DeadlineExceeded | Reason::TryTimeout)
            }
        }
    }

    /// A fault is put in.
    pub fn injected(&mut self, fault: InjectedFault) {
        self.rare().fault = Some(fault);
        if let Some(cluster) = &self.cluster {
            cluster.metrics.faults.inc(fault as usize);
        }
    }

    /// The caller gets something else than what came of its request, because of `reason`.
    pub fn fell_back(&mut self, kind: FallbackKind, reason: Reason) {
        self.rare().fallback = Some((kind, reason));
        if let Some(cluster) = &self.cluster {
            cluster.metrics.fallbacks.inc(kind as usize);
            if self.failure.is_none() {
                cluster.metrics.errors.inc(reason as usize);
            }
        }
    }

    /// Its tries are now on endpoints of another service than the one that it is for. It gives its place there back, and
    /// needs one here.
    pub fn handed_to(&mut self, cluster: Arc<Cluster>) {
        self.leave();
        self.rare().carrier = Some(cluster);
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn fallback(&self) -> Option<(FallbackKind, Reason)> {
        self.rare.as_ref()?.fallback
    }

    fn its_routes(&self) -> Option<&Routed> {
        self.rare.as_ref()?.routed.as_ref()
    }

    fn leave(&mut self) {
        if self.entered.take().is_some()
            && let Some(cluster) = carrier(&self.rare, &self.cluster)
        {
            cluster.limits.leave();
        }
    }

    /// Something went wrong. The first error is the one that counts.
    pub fn failed(&mut self, error: ProxyError) {
        if matches!(error.reason, Reason::UpstreamTruncated | Reason::UpstreamProtocol) {
            self.tell(Outcome::Failure);
        }
        if self.failure.is_none() {
            self.failure = Some(Box::new(error));
        }
    }

    /// How long the response may take, now that it has begun.
    pub fn patience(&self) -> Patience {
        let carrier = carrier(&self.rare, &self.cluster);
        let Some(cluster) = carrier else { return Patience { idle: Duration::from_secs(60), until: None } };
        let (snapshot, own) = (cluster.load(), self.its_routes().and_then(|routed| routed.settings()));
        let timeouts = own.map_or(&snapshot.settings.service.timeouts, |own| &own.timeouts);
        Patience { idle: timeouts.idle, until: timeouts.stream.map(|stream| self.started + stream) }
    }

    /// The trailers of the response have come.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(status) = trailers.get(GRPC_STATUS) {
            self.grpc_status(status);
        }
    }

    /// How a gRPC call ended.
    pub fn grpc_status(&mut self, status: &HeaderValue) {
        let failed = is_grpc_failure(status);
        self.grpc_failed = failed;
        if let Some(rare) = self.compared() {
            rare.grpc_status = Some(status.clone());
        }
        self.tell(if failed { Outcome::Failure } else { Outcome::Success });
    }

    /// The response was written to its end. Gives the time, which the codec needs as well.
    pub fn finish(mut self) -> Instant {
        let now = Instant::now();
        self.ended = Some(now);
        now
    }
}

/// The service whose endpoints are tried.
fn carrier<'r>(rare: &'r Option<Box<Rare>>, cluster: &'r Option<Arc<Cluster>>) -> Option<&'r Arc<Cluster>> {
    rare.as_ref().and_then(|rare| rare.carrier.as_ref()).or(cluster.as_ref())
}

/// Whether this status says that the endpoint is in trouble. 501 says something about the request only.
pub fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
}

/// The same of a gRPC call's.
pub fn is_grpc_failure(status: &HeaderValue) -> bool {
    // UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS. The others are said to the caller about its call.
    [&b"2"[..], b"13", b"14", b"15"].contains(&status.as_bytes())
}

/// An endpoint that has too much to do says so, and perhaps for how long; others are to be preferred until then.
pub fn spare<B>(cluster: &Cluster, endpoint: &Endpoint, response: &Response<B>) {
    if !matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return;
    }
    let after = retry_after(response.headers());
    if after.is_some() || response.status() == StatusCode::TOO_MANY_REQUESTS {
        cluster.load().penalise(&endpoint.live, after, Instant::now());
    }
}

/// Tells of an endpoint that is not one of those in use why it was chosen all the same.
pub fn flag_choice(flags: &mut Flags, choice: Choice) {
    match choice {
        Choice::Available => {}
        Choice::Probe => flags.set(Flag::Probe),
        Choice::LastResort => flags.set(Flag::LastResort),
    }
}

/// An endpoint's address as the access log takes it.
pub fn address(address: &Address) -> Text {
    match address {
        Address::Ip(address) => Text::from(*address),
        name @ Address::Name { .. } => Text::Shared(name.to_string().into()),
    }
}
