//! The life of one request: which service it is for, the way to an endpoint and back ([`super::journey`]), the response.

use super::{
    admission,
    auto::Speakers,
    body::Body,
    fallback::Asked,
    header_maps,
    headers::{self, Origin, past_deadline},
    journey::{Client, Destination, Journey},
    last_good::LastGood,
    listener::{Listener, Way},
    mirror::{self, Mirrors},
    pool::Pool,
    record::Record,
    respond,
    routing::{self, Destined},
    tcp,
    timer::Timer,
    transparent::{Inbound, Strangers},
    waiting::Waiting,
};
use crate::{
    cluster::{
        Cluster, Snapshot,
        balance::Ask,
        subset::Settled,
        table::{State, has_capitals},
    },
    discovery,
    error::{ProxyError, Reason},
    route,
};
use http::{HeaderMap, Method, Request, Response, request};
use std::{rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;

/// One worker's proxy: everything a request needs, none of it shared by a lock.
#[derive(Debug)]
pub struct Proxy {
    pub discovery: discovery::Handle,
    pub pool: Rc<Pool>,
    pub last_good: LastGood,
    pub mirrors: Mirrors,
    pub tcp: Rc<tcp::Connections>,
    pub speakers: Speakers,
    pub strangers: Strangers,
    pub inbound: Inbound,
}

/// Where a request came in, as its codec knows it.
pub struct Downstream<'a> {
    pub proxy: &'a Rc<Proxy>,
    pub listener: &'a Rc<Listener>,
    pub origin: &'a Rc<Origin>,
    pub timer: &'a mut Timer,
    pub interim: &'a dyn Interim,
}

/// Takes informational (1xx) responses on their way to the client.
pub trait Interim {
    fn send(&self, response: Response<()>);
}

/// Carries a request and gives its response, which is pillion's own if something went wrong, and the record of it, which
/// the codec ends when the body has been written.
///
/// The request is taken out of where it is: handed on by value, each function on the way would keep a place for it, and all
/// of them make up a connection's memory.
pub async fn handle(request: &mut Request<Body>, down: &mut Downstream<'_>) -> (Response<Body>, Record) {
    let mut record = Record::start(down, request);
    let is_grpc = route::is_grpc(request.headers());
    let mut response = match carry(request, is_grpc, down, &mut record).await {
        Ok(response) => response,
        Err(error) => {
            let response = respond::error(&error, is_grpc);
            record.failed(error);
            response
        }
    };
    record.edit(&mut response);
    record.responded(response.status());
    (response, record)
}

async fn carry(
    request: &mut Request<Body>,
    is_grpc: bool,
    down: &mut Downstream<'_>,
    record: &mut Record,
) -> Result<Response<Body>, ProxyError> {
    if request.method() == Method::CONNECT {
        return Err(ProxyError::new(Reason::Unsupported, "CONNECT is taken over HTTP/1 alone"));
    }
    let cluster = match destine(request, down, record).await? {
        Destined::For(cluster) => cluster,
        Destined::Answered(response) => return Ok(*response),
    };
    record.routed(cluster.clone());
    let found = headers::Found::new(request.headers());
    let deadline = headers::deadline(request.headers(), &found, record.started())?;
    let Ready { snapshot, start } = match enter(&cluster, request, &found, deadline, down, record).await {
        Ok(ready) => ready,
        Err(outcome) => return *outcome,
    };
    let request = send_off(request, &found, down, record);
    let Settled { within, first, .. } = record.settle(&snapshot);
    let own = record.own_settings(&snapshot.settings);
    let service = own.as_deref().unwrap_or(&snapshot.settings.service);
    let ask = Ask { within, first, ..Ask::default() };
    let to = Destination { cluster: &cluster, snapshot: &snapshot, service, proxy: down.proxy, is_grpc, ask };
    let mut journey = set_out(to, start, request, deadline, down);
    let outcome = match &service.faults {
        None => journey.try_endpoints(record).await,
        Some(faults) => Box::pin(journey.try_with_faults(faults, record)).await,
    };
    let (is_grpc, deadline) = (journey.to.is_grpc, journey.waiting.deadline());
    let (parts, body) = journey.into_request();
    let outcome = match &own.as_deref().unwrap_or(&snapshot.settings.service).fallback {
        None => {
            header_maps::give(parts.headers);
            outcome
        }
        Some(fallback) => {
            let asked = Asked { cluster: &cluster, fallback, is_grpc, deadline, parts, body };
            match asked.accept(outcome, down.proxy) {
                Ok(outcome) => outcome,
                Err(unsettled) => Box::pin(unsettled.settle(down, record)).await,
            }
        }
    };
    let mut response = outcome?;
    headers::prepare_response(&mut response);
    Ok(response)
}

/// Carries a request to another service than the one that it is for.
pub async fn carry_to(
    service: &str,
    parts: request::Parts,
    body: Body,
    is_grpc: bool,
    deadline: Option<Instant>,
    down: &mut Downstream<'_>,
    record: &mut Record,
) -> Result<Response<Body>, ProxyError> {
    let cluster = cluster_of(service, down.proxy).await?;
    cluster.mark_used();
    record.handed_to(cluster.clone());
    let Ready { snapshot, start } =
        admit(&cluster, &parts.headers, Instant::now(), deadline, down.proxy, record).await?;
    let service = &snapshot.settings.service;
    let to = Destination {
        cluster: &cluster,
        snapshot: &snapshot,
        service,
        proxy: down.proxy,
        is_grpc,
        ask: Ask::default(),
    };
    let mut journey = set_out(to, start, (parts, body), deadline, down);
    let outcome = journey.try_endpoints(record).await;
    header_maps::give(journey.parts.headers);
    outcome
}

/// A request that has its place, on its way to one of the service's endpoints.
fn set_out<'j>(
    to: Destination<'j>,
    start: Start,
    (mut parts, body): (request::Parts, Body),
    deadline: Option<Instant>,
    down: &'j mut Downstream<'_>,
) -> Journey<'j> {
    if to.snapshot.settings.keeps_source {
        parts.extensions.insert(Client(down.origin.peer.ip()));
    }
    let mut journey = Journey {
        to,
        interim: down.interim,
        body: Some(body),
        parts,
        waiting: Waiting::new(&mut *down.timer, to.service, start.begun, deadline),
    };
    journey.find_ask(down.origin.peer.ip());
    if start.delayed {
        journey.waiting.delayed();
    }
    journey
}

/// Takes the request out of where it is, with the headers that the next hop gets.
fn prepare(
    request: &mut Request<Body>,
    found: &headers::Found,
    down: &Downstream<'_>,
    record: &mut Record,
) -> (request::Parts, Body) {
    let (mut parts, body) = std::mem::take(request).into_parts();
    headers::prepare_request(&mut parts, found, down.origin, &down.listener.settings().way);
    record.prepared(&parts);
    (parts, body)
}

/// As [`prepare`], for a request that has its place: with the copies that are to be made of it.
fn send_off(
    request: &mut Request<Body>,
    found: &headers::Found,
    down: &Downstream<'_>,
    record: &mut Record,
) -> (request::Parts, Body) {
    let (parts, body) = prepare(request, found, down, record);
    let body = mirror::copy(&parts, body, down, record);
    (parts, body)
}

/// Where the request goes: to the service that it asks for, unless that has routes that say otherwise.
async fn destine(
    request: &mut Request<Body>,
    down: &Downstream<'_>,
    record: &mut Record,
) -> Result<Destined, ProxyError> {
    let cluster = find_cluster(request, down, record).await?;
    cluster.mark_used();
    if cluster.load().settings.routes.is_none() {
        return Ok(Destined::For(cluster));
    }
    Box::pin(routing::follow(cluster, request, down, record)).await
}

/// The service that the request asks for; on its way in, the local application.
async fn find_cluster(
    request: &Request<Body>,
    down: &Downstream<'_>,
    record: &mut Record,
) -> Result<Arc<Cluster>, ProxyError> {
    let settings = down.listener.settings();
    match &settings.way {
        Way::Outbound { rule, .. } => match &down.origin.called {
            None => cluster_asked_for(route::service(request, rule)?, request, rule, down.proxy).await,
            Some(called) => Box::pin(called.cluster(request, rule, down.proxy, &down.listener.telemetry)).await,
        },
        Way::Inbound { app, callers, .. } => {
            record.called_by(down.listener.callers.of(request.headers(), callers, &app.metrics));
            Ok(app.cluster.clone())
        }
    }
}

pub async fn cluster_of(service: &str, proxy: &Proxy) -> Result<Arc<Cluster>, ProxyError> {
    match proxy.discovery.table().get(service) {
        Some(cluster) => Ok(cluster),
        // Boxed, like all that is large and rare here: a connection's memory is that of its whole future.
        None => Box::pin(proxy.discovery.follow(service)).await,
    }
}

/// The cluster of the service whose name a request gave: as a host it means the same in any case.
pub async fn cluster_asked_for<B>(
    service: &str,
    request: &Request<B>,
    rule: &route::Rule,
    proxy: &Proxy,
) -> Result<Arc<Cluster>, ProxyError> {
    if has_capitals(service) && route::is_host(request, rule) {
        return match proxy.discovery.table().of_host(service) {
            Some(cluster) => Ok(cluster),
            None => Box::pin(proxy.discovery.of_host(service)).await,
        };
    }
    cluster_of(service, proxy).await
}

/// Lets the request in as [`admit`] does; where that fails, gives what the caller gets.
async fn enter(
    cluster: &Arc<Cluster>,
    request: &mut Request<Body>,
    found: &headers::Found,
    deadline: Option<Instant>,
    down: &mut Downstream<'_>,
    record: &mut Record,
) -> Result<Ready, Box<Result<Response<Body>, ProxyError>>> {
    let error = match admit(cluster, request.headers(), record.started(), deadline, down.proxy, record).await {
        Ok(ready) => return Ok(ready),
        Err(error) => error,
    };
    let settings = cluster.load().settings.clone();
    let own = record.own_settings(&settings);
    let service = own.as_deref().unwrap_or(&settings.service);
    let Some(fallback) = &service.fallback else { return Err(Box::new(Err(error))) };
    let is_grpc = route::is_grpc(request.headers());
    let (parts, body) = prepare(request, found, down, record);
    let asked = Asked { cluster, fallback, is_grpc, deadline, parts, body: Some(body) };
    Err(Box::new(match asked.accept(Err(error), down.proxy) {
        Ok(outcome) => outcome,
        Err(unsettled) => Box::pin(unsettled.settle(down, record)).await,
    }))
}

/// What a request needs of its service to be sent.
struct Ready {
    snapshot: Arc<Snapshot>,
    start: Start,
}

/// When a request could be sent.
#[derive(Clone, Copy)]
struct Start {
    /// Since when the request's own time counts.
    begun: Instant,
    /// Whether it had to wait for its place.
    delayed: bool,
}

/// Gives a request its place among the service's, and the service's endpoints.
async fn admit(
    cluster: &Cluster,
    headers: &HeaderMap,
    started: Instant,
    deadline: Option<Instant>,
    proxy: &Proxy,
    record: &mut Record,
) -> Result<Ready, ProxyError> {
    let delayed = admission::admit(cluster, headers, started, deadline, record).await?;
    let (snapshot, begun) = ready_snapshot(cluster, started, proxy.discovery.first_answer(), deadline).await?;
    Ok(Ready { snapshot, start: Start { begun, delayed } })
}

/// The service's endpoints; on the first request for it, once its registry has answered. And since when the request's own
/// time counts: `started`, if it did not have to wait.
pub async fn ready_snapshot(
    cluster: &Cluster,
    started: Instant,
    first_answer: Duration,
    deadline: Option<Instant>,
) -> Result<(Arc<Snapshot>, Instant), ProxyError> {
    let (mut snapshot, mut begun) = (cluster.load(), started);
    if snapshot.state == State::Pending {
        snapshot = Box::pin(async {
            let answered = cluster.first_answer(first_answer);
            match deadline {
                None => Ok(answered.await),
                Some(deadline) => tokio::time::timeout_at(deadline, answered).await.map_err(|_| past_deadline()),
            }
        })
        .await?;
        begun = Instant::now();
    }
    snapshot.is_known(&cluster.name, first_answer)?;
    Ok((arc_swap::Guard::into_inner(snapshot), begun))
}
