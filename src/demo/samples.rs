//! The sample services: real HTTP servers on ports of their own, registered and renewed as an application would do it.

use crate::{
    config::Policy,
    registry::{
        embedded::{Embedded, Refusal, Registration},
        layout::plain::Entry,
    },
};
use anyhow::Context;
use http::{HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// The response header that says which instance answered.
pub const ANSWERED_BY: HeaderName = HeaderName::from_static("x-answered-by");

const TTL: Duration = Duration::from_secs(4);
const RENEW: Duration = Duration::from_secs(1);

/// How long an instance that left goes on serving, so that the news can spread first.
const SPREAD: Duration = Duration::from_millis(300);
/// How long it then has to finish what it has.
const FINISH: Duration = Duration::from_secs(2);
/// When it is tried again where the machine has no descriptor left.
const AGAIN: Duration = Duration::from_millis(100);

/// A sample service.
#[derive(Debug)]
pub struct Service {
    pub name: &'static str,
    /// What a spectator should know of it.
    pub about: &'static str,
    /// Each has another, so that there is something to compare.
    pub policy: Policy,
    instances: &'static [Nature],
}

/// How an instance behaves.
#[derive(Debug, Clone, Copy)]
struct Nature {
    takes: Duration,
    /// The share of requests that it answers with 503.
    fails: f64,
    version: &'static str,
}

const SOUND: Nature = Nature { takes: Duration::from_millis(3), fails: 0.0, version: "v1" };
const SLOW: Nature = Nature { takes: Duration::from_millis(30), ..SOUND };
const FLAKY: Nature = Nature { fails: 0.1, ..SOUND };
const CANARY: Nature = Nature { version: "canary", ..SOUND };

pub const SERVICES: [Service; 3] = [
    Service {
        name: "user-service",
        about: "4 instances, balanced by peak-ewma; user-service-4 is slow (30 ms, the others 3 ms)",
        policy: Policy::PeakEwma,
        instances: &[SOUND, SOUND, SOUND, SLOW],
    },
    Service {
        name: "orders",
        about: "3 instances, balanced by least-request; orders-3 is flaky (a tenth of its answers are 503)",
        policy: Policy::LeastRequest,
        instances: &[SOUND, SOUND, FLAKY],
    },
    Service {
        name: "web",
        about: "3 instances, balanced by round-robin; web-3 is a canary, which a tenth of the requests go to",
        policy: Policy::RoundRobin,
        instances: &[SOUND, SOUND, CANARY],
    },
];

/// One instance, by the places of its service and of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Which {
    pub service: usize,
    pub instance: usize,
}

/// The one that comes and goes.
pub const LEAVING: Which = Which { service: 0, instance: 1 };

impl Which {
    pub fn name(self) -> String {
        format!("{}-{}", SERVICES[self.service].name, self.instance + 1)
    }

    /// From a name as [`Self::name`] gives it.
    pub fn find(service: usize, name: &str) -> Option<Self> {
        (0..SERVICES[service].len()).map(|instance| Self { service, instance }).find(|which| which.name() == name)
    }

    fn nature(self) -> Nature {
        SERVICES[self.service].instances[self.instance]
    }
}

impl Service {
    /// Its versions, if it has several.
    pub fn versions(&self) -> Vec<&'static str> {
        let mut versions: Vec<_> = self.instances.iter().map(|instance| instance.version).collect();
        versions.dedup();
        if versions.len() > 1 { versions } else { Vec::new() }
    }

    /// The number of instances when all are there.
    pub fn len(&self) -> usize {
        self.instances.len()
    }
}

/// An instance that is up and registered.
#[derive(Debug)]
pub struct Sample {
    which: Which,
    address: SocketAddr,
    stop: watch::Sender<()>,
    serving: JoinHandle<()>,
    renewing: JoinSet<()>,
}

/// Starts every instance there is.
pub async fn start_all(registry: &Arc<Embedded>) -> anyhow::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for (service, of) in SERVICES.iter().enumerate() {
        for instance in 0..of.len() {
            samples.push(Sample::start(registry, Which { service, instance }).await?);
        }
    }
    Ok(samples)
}

impl Sample {
    pub async fn start(registry: &Arc<Embedded>, which: Which) -> anyhow::Result<Self> {
        let socket =
            TcpListener::bind("127.0.0.1:0").await.with_context(|| format!("cannot start {}", which.name()))?;
        let address = socket.local_addr()?;
        let (stop, stopped) = watch::channel(());
        let serving = tokio::spawn(serve(socket, which, stopped));
        let registration = registration(which, address);
        registry.register(registration.clone()).await?;
        let mut renewing = JoinSet::new();
        renewing.spawn(renew(registry.clone(), which.name(), registration));
        Ok(Self { which, address, stop, serving, renewing })
    }

    pub fn which(&self) -> Which {
        self.which
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leaves as an application should: first out of the registry, then, when everybody knows, out of service.
    pub async fn leave(mut self, registry: &Embedded) {
        self.renewing.shutdown().await;
        // It may have expired, on a machine that was suspended: out is out.
        let _ = registry.deregister(SERVICES[self.which.service].name, &self.which.name()).await;
        sleep(SPREAD).await;
        drop(self.stop);
        let _ = timeout(FINISH, self.serving).await;
    }

    /// Dies as a process does that is killed: it stays in the registry, and its connections break off.
    pub async fn die(mut self) {
        self.renewing.shutdown().await;
        self.serving.abort();
        let _ = self.serving.await;
    }
}

/// Serves until `stopped` ends, and then finishes what has begun. Where it is dropped, all its connections are.
async fn serve(socket: TcpListener, which: Which, mut stopped: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            Some(_) = connections.join_next() => {}
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => _ = connections.spawn(connection(stream, which, stopped.clone())),
                Err(error) => {
                    tracing::warn!(instance = which.name(), %error, "a sample service cannot take a connection");
                    sleep(AGAIN).await;
                }
            },
        }
    }
    drop(socket);
    connections.join_all().await;
}

async fn connection(stream: TcpStream, which: Which, mut stopped: watch::Receiver<()>) {
    let service = service_fn(|_| async { Ok::<_, Infallible>(answer(which).await) });
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    // How it ends is the proxy's affair, which is what is shown.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn registration(which: Which, address: SocketAddr) -> Registration {
    let nature = which.nature();
    let entry = Entry {
        id: Some(which.name()),
        labels: [("version".to_owned(), nature.version.to_owned())].into(),
        ..Entry::new(address.to_string())
    };
    Registration { name: SERVICES[which.service].name.into(), entry, ttl: Some(TTL) }
}

/// Keeps the instance registered.
async fn renew(registry: Arc<Embedded>, id: String, registration: Registration) {
    loop {
        sleep(RENEW).await;
        let renewed = match registry.renew(&registration.name, &id).await {
            Err(Refusal::Unknown { .. }) => registry.register(registration.clone()).await,
            other => other,
        };
        if let Err(refusal) = renewed {
            tracing::debug!(%refusal, id, "no longer renewed");
            return;
        }
    }
}

async fn answer(which: Which) -> Response<String> {
    let nature = which.nature();
    // A third up or down: equal times would look made up, and be.
    sleep(nature.takes.mul_f64(2.0 / 3.0 + fastrand::f64() * 2.0 / 3.0)).await;
    let name = which.name();
    let (status, text) = if fastrand::f64() < nature.fails {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{name} is flaky, and this was one of its failures\n"))
    } else {
        (StatusCode::OK, format!("hello from {name}, version {}\n", nature.version))
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    if let Ok(name) = name.try_into() {
        response.headers_mut().insert(ANSWERED_BY, name);
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
