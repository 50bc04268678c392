//! Following one service: a subscription and its pushes, or over HTTP one query after the other.

use super::{
    Nacos,
    calls::CallError,
    connection::Connection,
    decode,
    message::{Key, ServiceInfo},
    session::{Listener, Session},
};
use crate::registry::{
    link::Connection as _,
    watch::{Failure, Found, News, Watch},
};
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

/// How often a subscribed service is asked for all the same: pushes may be lost, and nothing else proves that what is known
/// is still true.
const QUERY_INTERVAL: Duration = Duration::from_secs(60);

/// What is known of one service.
pub struct Subscription {
    nacos: Arc<Nacos>,
    key: Key,
    connection: Option<Arc<Connection>>,
    listener: Option<Listener>,
    /// The hosts as the server last told them, and when it made that, by its clock.
    hosts: Vec<Value>,
    made: i64,
    next_query: Instant,
}

impl Watch for Subscription {
    async fn list(&mut self) -> Result<Found, Failure> {
        // Its subscription ends, on a connection that may be over.
        self.listener = None;
        let connection = self.nacos.link.connection().await.map_err(Failure::NoConnection)?;
        self.connection = Some(connection.clone());
        match &*connection {
            Connection::Grpc(session) => self.subscribe(session).await,
            Connection::Http { api, .. } => match api.instances(&self.key).await {
                Ok(info) => Ok(self.take(info)),
                Err(error) => Err(self.failed(error)),
            },
        }
    }

    async fn next(&mut self) -> Result<News, Failure> {
        let Some(connection) = self.connection.clone() else {
            return Err(Failure::Stale("there is no connection".into()));
        };
        match &*connection {
            Connection::Grpc(session) => self.hear(session).await,
            Connection::Http { api, .. } => {
                sleep(spread(self.nacos.poll)).await;
                if connection.is_closed() {
                    return Err(Failure::Stale("another attempt at gRPC".into()));
                }
                match api.instances(&self.key).await {
                    Ok(info) => Ok(News::Set(self.take(info))),
                    Err(error) => Err(self.failed(error)),
                }
            }
        }
    }
}

impl Subscription {
    pub fn new(nacos: Arc<Nacos>, service: &str) -> Self {
        Self {
            key: Key::parse(service, &nacos.group),
            connection: None,
            listener: None,
            hosts: Vec::new(),
            made: 0,
            next_query: Instant::now(),
            nacos,
        }
    }

    async fn subscribe(&mut self, session: &Session) -> Result<Found, Failure> {
        // First, so that no push is missed.
        self.listener = Some(session.listen(&self.key).await?);
        let info = session.subscribe(&self.key).await.map_err(|error| self.failed(error))?;
        Ok(self.take(info))
    }

    async fn hear(&mut self, session: &Session) -> Result<News, Failure> {
        loop {
            let Some(listener) = &mut self.listener else {
                return Err(Failure::Stale("there is no subscription".into()));
            };
            tokio::select! {
                push = listener.next() => match push {
                    // Made before what is known already.
                    Some(info) if info.last_ref_time < self.made => {}
                    Some(info) => return Ok(News::Set(self.take((*info).clone()))),
                    None => return Err(session.failure()),
                },
                () = sleep_until(self.next_query) => {
                    let info = session.query(&self.key).await.map_err(|error| self.failed(error))?;
                    if same(&info.hosts, &self.hosts) {
                        self.next_query = Instant::now() + spread(QUERY_INTERVAL);
                        return Ok(News::Alive);
                    }
                    // A push was lost, or is on its way, or the server's clock went back, so that pushes seem old: it may
                    // have lost the subscription, too.
                    return Ok(News::Set(self.subscribe(session).await?));
                }
            }
        }
    }

    fn take(&mut self, info: ServiceInfo) -> Found {
        self.hosts.clone_from(&info.hosts);
        self.made = info.last_ref_time;
        self.next_query = Instant::now() + spread(QUERY_INTERVAL);
        decode::found(info, &self.nacos.clusters)
    }

    fn failed(&self, error: CallError) -> Failure {
        match &self.connection {
            Some(connection) => self.nacos.failed(connection, error).into(),
            None => error.into(),
        }
    }
}

/// Whether these are the same hosts in some order.
fn same(a: &[Value], b: &[Value]) -> bool {
    a == b || (a.len() == b.len() && a.iter().all(|host| b.contains(host)))
}

/// That time more or less, so that not all services of a fleet are asked for at one moment.
fn spread(time: Duration) -> Duration {
    time.mul_f64(0.8 + 0.4 * fastrand::f64())
}
