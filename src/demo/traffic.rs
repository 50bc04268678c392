//! Steady traffic through the proxy, as an application would cause it.

use super::samples::{ANSWERED_BY, SERVICES, Which};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, interval},
};

pub const PER_SECOND: u32 = 200;

/// Which service a request is for, over and over: half of them for the first.
const TURNS: [usize; 10] = [0, 1, 0, 2, 0, 1, 0, 2, 0, 1];

/// Requests at one time. A proxy that hangs must not fill the memory; normally there are two or three.
const MOST: usize = 500;

/// How one request ended.
#[derive(Debug)]
pub struct Outcome {
    pub took: Duration,
    pub end: End,
}

#[derive(Debug)]
pub enum End {
    /// An instance answered, whatever it answered.
    Answered { by: Which, status: StatusCode },
    /// No instance's answer came through, for this reason.
    Failed(String),
}

/// The traffic. Requests in flight go on when it stops, and are cut off when it is dropped.
#[derive(Debug)]
pub struct Traffic {
    room: Arc<Semaphore>,
    _sending: JoinSet<()>,
}

type Http = Client<HttpConnector, Empty<Bytes>>;

/// Sends until it is stopped. `outcomes` closes after the last request has ended.
pub fn start(proxy: SocketAddr, outcomes: mpsc::UnboundedSender<Outcome>) -> Traffic {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    // Or the client would hide some failures by its own retries.
    let client: Http = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
    let room = Arc::new(Semaphore::new(MOST));
    let mut sending = JoinSet::new();
    sending.spawn(send_all(client, proxy, outcomes, room.clone()));
    Traffic { room, _sending: sending }
}

impl Traffic {
    /// No further requests.
    pub fn stop(&self) {
        self.room.close();
    }
}

async fn send_all(client: Http, proxy: SocketAddr, outcomes: mpsc::UnboundedSender<Outcome>, room: Arc<Semaphore>) {
    let mut clock = interval(Duration::from_secs(1) / PER_SECOND);
    let mut requests = JoinSet::new();
    for service in TURNS.into_iter().cycle() {
        clock.tick().await;
        while requests.try_join_next().is_some() {}
        let Ok(place) = room.clone().acquire_owned().await else { break };
        let (client, outcomes) = (client.clone(), outcomes.clone());
        requests.spawn(async move {
            let started = Instant::now();
            let end = send(&client, proxy, service).await.unwrap_or_else(End::Failed);
            let _ = outcomes.send(Outcome { took: started.elapsed(), end });
            drop(place);
        });
    }
    drop(outcomes);
    while requests.join_next().await.is_some() {}
}

async fn send(client: &Http, proxy: SocketAddr, service: usize) -> Result<End, String> {
    let request = Request::get(format!("http://{proxy}/")).header(HOST, SERVICES[service].name);
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let response = client.request(request).await.map_err(|error| told(&error))?;
    let (status, end) = (response.status(), answered(service, response.status(), response.headers()));
    // Only a whole answer is one.
    response.into_body().collect().await.map_err(|error| format!("the body of a {status} was cut off: {error}"))?;
    Ok(end)
}

/// Whose answer it is: pillion's own have `x-pillion-error`, the instances' have their name.
fn answered(service: usize, status: StatusCode, headers: &HeaderMap) -> End {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(reason) = text("x-pillion-error") {
        return End::Failed(reason.to_owned());
    }
    match text(ANSWERED_BY.as_str()).and_then(|name| Which::find(service, name)) {
        Some(by) => End::Answered { by, status },
        None => End::Failed(format!("a {status} from nobody knows whom")),
    }
}

/// With the causes, which hyper's errors leave out.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_instances_own_failure_is_not_pillions() {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let own = answered(1, status, &headers(&[("x-answered-by", "orders-3")]));
        assert!(matches!(own, End::Answered { by: Which { service: 1, instance: 2 }, .. }), "{own:?}");
        let pillions = answered(1, status, &headers(&[("x-pillion-error", "no_endpoints")]));
        assert!(matches!(&pillions, End::Failed(reason) if reason == "no_endpoints"), "{pillions:?}");
        for stranger in [headers(&[]), headers(&[("x-answered-by", "web-1")])] {
            assert!(matches!(answered(1, StatusCode::OK, &stranger), End::Failed(_)));
        }
    }
}
