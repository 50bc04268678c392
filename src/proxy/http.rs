//! The life of one request: which service it is for, the way to an endpoint and back ([`super::journey`]), the response.

use super::{
    admission,
    body::Body,
    header_maps,
    headers::{self, Origin},
    journey::{Destination, Journey},
    listener::Listener,
    pool::Pool,
    record::Record,
    respond,
    timer::Timer,
    waiting::{Waiting, past_deadline},
};
use crate::{
    cluster::{Cluster, Snapshot, table::State},
    discovery,
    error::{ProxyError, Reason},
    route,
    telemetry::Telemetry,
};
use http::{Method, Request, Response};
use std::{rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;

/// One worker's proxy: everything a request needs, none of it shared by a lock.
#[derive(Debug)]
pub struct Proxy {
    pub discovery: discovery::Handle,
    pub pool: Rc<Pool>,
    pub telemetry: Arc<Telemetry>,
}

/// Where a request came in, as its codec knows it.
pub struct Downstream<'a> {
    pub proxy: &'a Proxy,
    pub listener: &'a Rc<Listener>,
    pub origin: &'a Origin,
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
    let is_grpc = headers::is_grpc(request.headers());
    let response = match carry(request, is_grpc, down, &mut record).await {
        Ok(response) => response,
        Err(error) => {
            let response = respond::error(&error, is_grpc);
            record.failed(error);
            response
        }
    };
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
        return Err(ProxyError::new(Reason::Unsupported, "CONNECT"));
    }
    let cluster = find_cluster(request, down).await?;
    cluster.mark_used();
    record.routed(cluster.clone());
    let found = headers::Found::new(request.headers());
    let deadline = headers::deadline(request.headers(), &found, record.started())?;
    let delayed = admission::admit(&cluster, request, deadline, record).await?;
    let (snapshot, begun) =
        ready_snapshot(&cluster, record.started(), down.proxy.discovery.first_answer(), deadline).await?;
    let mut journey = Journey {
        to: Destination { cluster: &cluster, snapshot: &snapshot, proxy: down.proxy, is_grpc },
        interim: down.interim,
        body: Some(std::mem::take(request.body_mut())),
        parts: std::mem::take(request).into_parts().0,
        waiting: Waiting::new(&mut *down.timer, &snapshot.settings.service, begun, deadline),
    };
    headers::prepare_request(&mut journey.parts, &found, down.origin);
    record.prepared(&journey.parts);
    if delayed {
        journey.waiting.delayed();
    }
    let response = journey.try_endpoints(record).await;
    header_maps::give(journey.parts.headers);
    let mut response = response?;
    headers::prepare_response(&mut response);
    Ok(response)
}

/// The service that the request asks for.
async fn find_cluster(request: &Request<Body>, down: &Downstream<'_>) -> Result<Arc<Cluster>, ProxyError> {
    let settings = down.listener.settings();
    let service = route::service(request, &settings.rule)?;
    match down.proxy.discovery.table().get(service) {
        Some(cluster) => Ok(cluster),
        // Boxed, like all that is large and rare here: a connection's memory is that of its whole future.
        None => Box::pin(down.proxy.discovery.follow(service)).await,
    }
}

/// The service's endpoints; on the first request for it, once its registry has answered. And since when the request's own
/// time counts: `started`, if it did not have to wait.
async fn ready_snapshot(
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
    match snapshot.state {
        State::Known => Ok((arc_swap::Guard::into_inner(snapshot), begun)),
        State::Unknown => {
            let detail = format!("no registry knows a service `{}`", cluster.name);
            Err(ProxyError::new(Reason::UnknownService, detail))
        }
        State::Pending => {
            let detail = format!("no registry has answered about `{}` yet; {first_answer:?} are allowed", cluster.name);
            Err(ProxyError::new(Reason::DiscoveryTimeout, detail))
        }
    }
}
