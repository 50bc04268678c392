//! One gRPC connection to one server, for all services: a stream on which the server pushes changes, kept by a task.
//!
//! The server knows what is subscribed and what is registered by connection, and forgets it with the connection. The task
//! hands pushes to those who follow the service, checks the server's health, unsubscribes what nobody follows any more, and
//! registers what is ours.

use super::{
    calls::{CallError, Calls},
    message::{ConfigKey, Key, Push, ServerRequest, ServiceAnswer, ServiceInfo, ServicePage},
    proto::{self, Payload},
    publish::{Publish, Published},
};
use crate::registry::{RegistryError, watch::Failure};
use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    pin, select,
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tracing::debug;

/// How often the server is asked whether it is well. It forgets connections that are silent for 20 s.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// How long a server may take to see to a new connection, and how often it is asked.
const SETUP_LIMIT: Duration = Duration::from_secs(5);
const SETUP_INTERVAL: Duration = Duration::from_millis(10);
/// Answers to pushes that wait to be sent. More than that only if the server does not read; it pushes again then.
const MAX_ANSWERS: usize = 256;
/// Changes of configs that wait for those who watch them. With more than that they ask for everything.
const MAX_CHANGES: usize = 256;
/// Services per page of a listing.
const LIST_PAGE: usize = 500;

/// A connection that the server has registered. Dropping it closes it.
pub struct Session {
    pub(super) calls: Arc<Calls>,
    pub(super) namespace: String,
    pub(super) changed_configs: broadcast::Sender<ConfigKey>,
    orders: mpsc::UnboundedSender<Order>,
    next_id: AtomicU64,
    end: Arc<OnceLock<End>>,
    task: JoinHandle<()>,
}

/// Why a session ended.
#[derive(Debug, Clone)]
enum End {
    /// The server asked for it: it goes away, or has more connections than others.
    Asked,
    Broken(RegistryError),
}

/// The task's end of a follower's pushes: the newest one.
type Pushes = watch::Sender<Option<Arc<ServiceInfo>>>;

/// What followers want of the task.
enum Order {
    Join(Join),
    Leave { key: Key, id: u64 },
    Publish(Publish),
}

struct Join {
    key: Key,
    id: u64,
    pushes: Pushes,
    joined: oneshot::Sender<()>,
}

/// The pushes of one service. Dropping it unsubscribes, unless others follow the same service.
pub struct Listener {
    pushes: watch::Receiver<Option<Arc<ServiceInfo>>>,
    key: Key,
    id: u64,
    orders: mpsc::UnboundedSender<Order>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It fails where the session is over, and the subscription with it.
        let _ = self.orders.send(Order::Leave { key: self.key.clone(), id: self.id });
    }
}

impl Listener {
    /// The next push. `None` when the session is over.
    pub async fn next(&mut self) -> Option<Arc<ServiceInfo>> {
        loop {
            self.pushes.changed().await.ok()?;
            if let Some(info) = &*self.pushes.borrow_and_update() {
                return Some(info.clone());
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    /// Greets the server that `calls` is connected to, and waits until it has registered the connection.
    pub async fn open(calls: Calls, namespace: &str) -> Result<Self, RegistryError> {
        calls.check("ServerCheckRequest").await.map_err(CallError::into_error)?;
        let calls = Arc::new(calls);
        let (orders, queue) = mpsc::unbounded_channel();
        let end = Arc::<OnceLock<End>>::default();
        let (changed_configs, _) = broadcast::channel(MAX_CHANGES);
        let task = tokio::spawn({
            let (end, task) = (end.clone(), Task::new(calls.clone(), namespace, changed_configs.clone()));
            async move {
                let why = task.run(queue).await;
                debug!(?why, "the session ended");
                let _ = end.set(why);
            }
        });
        let (namespace, next_id) = (namespace.into(), AtomicU64::new(0));
        let session = Self { calls, namespace, changed_configs, orders, next_id, end, task };
        session.registered().await?;
        Ok(session)
    }

    /// Older servers do not say when they have registered a connection; all refuse requests before that.
    async fn registered(&self) -> Result<(), RegistryError> {
        let start = Instant::now();
        loop {
            match self.calls.check("HealthCheckRequest").await {
                Ok(()) => return Ok(()),
                Err(_) if self.is_over() => {
                    return Err(match self.end.get() {
                        Some(End::Broken(error)) => error.clone(),
                        _ => self.busy("it wants no more connections"),
                    });
                }
                Err(CallError::Unregistered(_)) if start.elapsed() < SETUP_LIMIT => sleep(SETUP_INTERVAL).await,
                Err(error) => return Err(error.into_error()),
            }
        }
    }

    pub fn is_over(&self) -> bool {
        self.orders.is_closed() || self.calls.channel.is_closed()
    }

    pub fn has_worked(&self) -> bool {
        self.calls.channel.has_worked()
    }

    /// Why it is over.
    pub fn failure(&self) -> Failure {
        match self.end.get() {
            Some(End::Asked) => Failure::Stale("the server asked for a new connection".into()),
            Some(End::Broken(error)) => Failure::Error(error.clone()),
            None => {
                let cause = "the connection ended".into();
                Failure::Error(RegistryError::Unreachable { server: self.calls.server(), cause })
            }
        }
    }

    /// Hears the pushes of a service from now on. They begin with [`Self::subscribe`].
    pub async fn listen(&self, key: &Key) -> Result<Listener, Failure> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, pushes) = watch::channel(None);
        let (joined, done) = oneshot::channel();
        // Before the order, so that whoever is dropped while it waits leaves again.
        let listener = Listener { pushes, key: key.clone(), id, orders: self.orders.clone() };
        let _ = self.orders.send(Order::Join(Join { key: key.clone(), id, pushes: sender, joined }));
        done.await.map_err(|_| self.failure())?;
        Ok(listener)
    }

    /// Subscribes to a service: what it is now.
    pub async fn subscribe(&self, key: &Key) -> Result<ServiceInfo, CallError> {
        let request = key.request(&self.namespace, json!({ "subscribe": true, "clusters": "" }));
        self.calls.call::<ServiceAnswer>("SubscribeServiceRequest", &request).await.map(|answer| answer.service_info)
    }

    /// What a service is now, apart from any subscription.
    pub async fn query(&self, key: &Key) -> Result<ServiceInfo, CallError> {
        let request = key.request(&self.namespace, json!({ "cluster": "", "healthyOnly": false, "udpPort": 0 }));
        self.calls.call::<ServiceAnswer>("ServiceQueryRequest", &request).await.map(|answer| answer.service_info)
    }

    /// The names of all services of a group.
    pub async fn services(&self, group: &str) -> Result<Vec<String>, CallError> {
        let of_group = Key { group: group.into(), name: String::new() };
        let mut services = Vec::new();
        for page in 1.. {
            let request = of_group.request(&self.namespace, json!({ "pageNo": page, "pageSize": LIST_PAGE }));
            let mut found: ServicePage = self.calls.call("ServiceListRequest", &request).await?;
            if found.service_names.is_empty() {
                break;
            }
            services.append(&mut found.service_names);
            if services.len() >= found.count {
                break;
            }
        }
        Ok(services)
    }

    /// Registers a host, for as long as the connection lives, or takes it out. Whoever is dropped while it waits cannot know
    /// whether that was done, but it is done before what comes later.
    pub async fn publish(&self, key: &Key, id: String, host: Option<Value>) -> Result<(), CallError> {
        let (done, published) = oneshot::channel();
        let _ = self.orders.send(Order::Publish(Publish { key: key.clone(), id, host, done }));
        published.await.unwrap_or_else(|_| Err(CallError::Server(self.error())))
    }

    /// Waits until it is over.
    pub async fn ended(&self) {
        self.orders.closed().await;
    }

    fn error(&self) -> RegistryError {
        match self.failure() {
            Failure::Error(error) | Failure::NoConnection(error) => error,
            Failure::Stale(why) => self.busy(&why),
        }
    }

    fn busy(&self, cause: &str) -> RegistryError {
        RegistryError::Busy { server: self.calls.server(), cause: cause.into() }
    }
}

/// What the task knows.
struct Task {
    calls: Arc<Calls>,
    namespace: String,
    /// Who follows what.
    services: HashMap<Key, Vec<(u64, Pushes)>>,
    /// What is being unsubscribed, and who wants to follow it again once that is done.
    leaving: HashMap<Key, Vec<Join>>,
    left: FuturesUnordered<BoxFuture<'static, Key>>,
    published: Published,
    changed_configs: broadcast::Sender<ConfigKey>,
}

impl Task {
    fn new(calls: Arc<Calls>, namespace: &str, changed_configs: broadcast::Sender<ConfigKey>) -> Self {
        let (services, leaving, left) = Default::default();
        let published = Published::new(calls.clone(), namespace);
        Self { calls, namespace: namespace.into(), services, leaving, left, published, changed_configs }
    }

    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) -> End {
        let (answers, mut queue) = mpsc::channel(MAX_ANSWERS);
        let setup = json!({
            "clientVersion": concat!("pillion:v", env!("CARGO_PKG_VERSION")),
            "tenant": self.namespace,
            "labels": { "source": "sdk", "module": "naming", "AppName": "pillion" },
        });
        // There is room for it.
        let _ = answers.try_send(Payload::new("ConnectionSetupRequest", &setup));
        let calls = self.calls.clone();
        let requests = stream::poll_fn(move |cx| queue.poll_recv(cx));
        // The server's head comes with its first message, which may be long after the connection is registered.
        let open = calls.channel.quiet_streaming::<_, Payload>(proto::STREAM, tonic::Request::new(requests));
        let messages = stream::once(open).try_flatten();
        pin!(messages);
        let health = check_health(&calls);
        pin!(health);
        loop {
            select! {
                message = messages.next() => match message {
                    Some(Ok(message)) => {
                        calls.channel.answered();
                        if let Some(end) = self.hear(&message, &answers) {
                            return end;
                        }
                    }
                    Some(Err(status)) => return End::Broken(calls.broken(&status)),
                    None => {
                        let cause = "it ended the stream of pushes".into();
                        return End::Broken(RegistryError::Unreachable { server: calls.server(), cause });
                    }
                },
                order = orders.recv() => match order {
                    Some(Order::Join(join)) => self.join(join),
                    Some(Order::Leave { key, id }) => self.leave(&key, id),
                    Some(Order::Publish(publish)) => self.published.add(publish),
                    None => return End::Asked,
                },
                Some(key) = self.left.next() => {
                    for join in self.leaving.remove(&key).unwrap_or_default() {
                        self.join(join);
                    }
                }
                Some(()) = self.published.next() => {}
                error = &mut health => return End::Broken(error),
            }
        }
    }

    /// Answers what the server says. The end, if it wants one.
    fn hear(&mut self, message: &Payload, answers: &mpsc::Sender<Payload>) -> Option<End> {
        let kind = message.kind().strip_suffix("Request")?;
        let mut end = None;
        match kind {
            "NotifySubscriber" => match serde_json::from_slice::<Push>(message.json()) {
                Ok(push) => self.push(push.service_info),
                // The next query of this service will say the same to its follower.
                Err(error) => debug!(%error, "a push cannot be read"),
            },
            "ConfigChangeNotify" => match serde_json::from_slice::<ConfigKey>(message.json()) {
                // Nobody may want to know any more.
                Ok(key) => drop(self.changed_configs.send(key)),
                // It will be seen when the server is asked the next time.
                Err(error) => debug!(%error, "a push cannot be read"),
            },
            "ConnectReset" => end = Some(End::Asked),
            "ClientDetection" | "SetupAck" => {}
            _ => {
                debug!(kind, "the server asks for something unknown");
                return None;
            }
        }
        let id = serde_json::from_slice(message.json()).map_or(Value::Null, |r: ServerRequest| r.request_id);
        let answer = json!({ "resultCode": 200, "errorCode": 0, "success": true, "requestId": id });
        let _ = answers.try_send(Payload::new(&format!("{kind}Response"), &answer));
        end
    }

    fn push(&mut self, info: ServiceInfo) {
        let key = info.key();
        let Some(listeners) = self.services.get(&key) else {
            // Its follower went away while it was subscribing.
            return self.unsubscribe(key);
        };
        let info = Arc::new(info);
        for (_, pushes) in listeners {
            // Pushes may overtake each other.
            pushes.send_if_modified(|last| {
                let newer = last.as_ref().is_none_or(|last| last.last_ref_time <= info.last_ref_time);
                if newer {
                    *last = Some(info.clone());
                }
                newer
            });
        }
    }

    fn join(&mut self, join: Join) {
        if let Some(waiting) = self.leaving.get_mut(&join.key) {
            return waiting.push(join);
        }
        self.services.entry(join.key).or_default().push((join.id, join.pushes));
        // Nobody waits for it if the follower went away, whose order to leave comes next.
        let _ = join.joined.send(());
    }

    fn leave(&mut self, key: &Key, id: u64) {
        if let Some(waiting) = self.leaving.get_mut(key) {
            waiting.retain(|join| join.id != id);
        }
        let Some(listeners) = self.services.get_mut(key) else { return };
        listeners.retain(|(listener, _)| *listener != id);
        if listeners.is_empty() {
            self.services.remove(key);
            self.unsubscribe(key.clone());
        }
    }

    fn unsubscribe(&mut self, key: Key) {
        if self.leaving.contains_key(&key) {
            return;
        }
        self.leaving.insert(key.clone(), Vec::new());
        let calls = self.calls.clone();
        let request = key.request(&self.namespace, json!({ "subscribe": false, "clusters": "" }));
        self.left.push(
            async move {
                // Should it fail, the next push of the service leads here again.
                if let Err(error) = calls.call::<IgnoredAny>("SubscribeServiceRequest", &request).await {
                    debug!(?error, %key, "could not be unsubscribed");
                }
                key
            }
            .boxed(),
        );
    }
}

/// Asks the server again and again whether it is well; why it is not.
async fn check_health(calls: &Calls) -> RegistryError {
    loop {
        sleep(HEALTH_INTERVAL.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        if let Err(error) = calls.check("HealthCheckRequest").await {
            return error.into_error();
        }
    }
}
