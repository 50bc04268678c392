//! Connections to upstreams, kept per worker and endpoint.
//!
//! To an application that is to see its clients' addresses, each client address has connections of its own.
//!
//! HTTP/1.1: the one used last is taken first, so that surplus ones grow idle and are closed. HTTP/2: one connection per
//! endpoint, opened once however many requests wait for it; a further one only when all its streams are in use.

use super::{h2, journey::Client};
use crate::{
    cluster::{
        Cluster, Endpoint, Live,
        connect::{ConnectError, connect},
        limit::{Connected, Limits},
        table::Settings,
    },
    net::io::{Io, Stream},
    registry::Protocol,
    telemetry::{labels::PoolClosed, metrics::PoolMetrics, metrics::ServiceMetrics},
};
use futures_util::future::{FutureExt, LocalBoxFuture, Shared};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::Instant;

/// How often idle connections are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// All connections of one worker.
#[derive(Debug, Default)]
pub struct Pool {
    slots: RefCell<HashMap<u64, Rc<Slot>, foldhash::fast::FixedState>>,
    /// Those of connections from other addresses than pillion's own.
    borrowed: RefCell<HashMap<(u64, IpAddr), Rc<Slot>>>,
}

/// A connection for one request.
#[derive(Debug)]
pub enum Lease {
    H1(H1Lease),
    H2(H2Lease),
}

/// The connections to one endpoint.
#[derive(Debug)]
pub struct Slot {
    /// From whose address; `None`: pillion's own.
    source: Option<IpAddr>,
    /// Gone when the endpoint is.
    live: Weak<Live>,
    settings: RefCell<Arc<Settings>>,
    metrics: Arc<ServiceMetrics>,
    limits: Arc<Limits>,
    idle: RefCell<Vec<H1Connection>>,
    multiplexed: RefCell<Vec<Rc<h2::Connection>>>,
    connecting: RefCell<Option<Connecting>>,
    /// What ALPN settled, where neither config nor registry said it.
    settled: Cell<Option<Protocol>>,
}

/// A connection attempt that several requests wait for.
type Connecting = Shared<LocalBoxFuture<'static, Result<(), ConnectError>>>;

impl Pool {
    /// A connection to `endpoint`: a pooled one if there is one and `fresh` is not asked for. With `source`, as from there, and
    /// shared with nobody from elsewhere.
    pub async fn checkout(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        settings: &Arc<Settings>,
        wanted: Option<Protocol>,
        fresh: bool,
        source: Option<Client>,
    ) -> Result<Lease, ConnectError> {
        let slot = match source {
            // Never pillion's own address instead.
            None if settings.keeps_source => {
                return Err(ConnectError::As(IpAddr::V4(Ipv4Addr::UNSPECIFIED), unknown_client()));
            }
            None => self.slot(cluster, endpoint, settings),
            Some(Client(source)) => self.borrowed_slot(cluster, endpoint, settings, source.to_canonical()),
        };
        let mut made_room = false;
        loop {
            let lease = match wanted.or(slot.settled.get()) {
                Some(Protocol::Http1) => slot.http1(endpoint, settings, fresh).await.map(Lease::H1),
                Some(Protocol::Http2) => slot.http2(endpoint, settings).await.map(Lease::H2),
                // The first connection tells what it is; those who come meanwhile wait for it.
                None => match slot.connecting(endpoint, settings, None).await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
            };
            if matches!(lease, Err(ConnectError::Limit(_))) && !made_room && self.make_room(&slot) {
                made_room = true;
                continue;
            }
            if lease.is_err() {
                // Perhaps it speaks something else by now.
                slot.settled.set(None);
            }
            return lease;
        }
    }

    fn slot(&self, cluster: &Cluster, endpoint: &Arc<Endpoint>, settings: &Arc<Settings>) -> Rc<Slot> {
        if let Some(slot) = self.slots.borrow().get(&endpoint.live.key) {
            slot.configure(settings);
            return slot.clone();
        }
        let slot = Slot::new(cluster, endpoint, settings, None);
        self.slots.borrow_mut().insert(endpoint.live.key, slot.clone());
        slot
    }

    fn borrowed_slot(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<Endpoint>,
        settings: &Arc<Settings>,
        source: IpAddr,
    ) -> Rc<Slot> {
        let mut borrowed = self.borrowed.borrow_mut();
        let slot = borrowed
            .entry((endpoint.live.key, source))
            .or_insert_with(|| Slot::new(cluster, endpoint, settings, Some(source)));
        slot.configure(settings);
        slot.clone()
    }

    /// Closes the connection to another endpoint of the service that has been idle the longest. False: there is none here.
    fn make_room(&self, slot: &Rc<Slot>) -> bool {
        let (slots, borrowed) = (self.slots.borrow(), self.borrowed.borrow());
        let same_service =
            slots.values().chain(borrowed.values()).filter(|other| Arc::ptr_eq(&other.limits, &slot.limits));
        let idle = |other: &&Rc<Slot>| other.idle.borrow().first().map(|connection| connection.idle);
        let Some(other) = same_service.filter(|other| idle(other).is_some()).max_by_key(idle) else { return false };
        other.idle.borrow_mut().remove(0);
        other.count_closed(PoolClosed::Full);
        true
    }

    /// Closes what is idle for too long, too old, closed by its peer, or belongs to an endpoint that is gone. Never ends.
    pub async fn sweep(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = Instant::now();
            self.slots.borrow_mut().retain(|_, slot| {
                slot.sweep(now);
                slot.live.strong_count() > 0
            });
            // Nobody knows whether a client will come again.
            self.borrowed.borrow_mut().retain(|_, slot| {
                slot.sweep(now);
                slot.live.strong_count() > 0 && (Rc::strong_count(slot) > 1 || !slot.is_empty())
            });
        }
    }
}

fn unknown_client() -> Arc<std::io::Error> {
    Arc::new(std::io::Error::other("it is not known who the client is"))
}

impl Slot {
    fn new(cluster: &Cluster, endpoint: &Arc<Endpoint>, settings: &Arc<Settings>, source: Option<IpAddr>) -> Rc<Self> {
        Rc::new(Self {
            source,
            live: Arc::downgrade(&endpoint.live),
            settings: RefCell::new(settings.clone()),
            metrics: cluster.metrics.clone(),
            limits: cluster.limits.clone(),
            idle: RefCell::default(),
            multiplexed: RefCell::default(),
            connecting: RefCell::default(),
            settled: Cell::new(None),
        })
    }

    fn configure(&self, settings: &Arc<Settings>) {
        if !Arc::ptr_eq(&self.settings.borrow(), settings) {
            *self.settings.borrow_mut() = settings.clone();
        }
    }

    fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.multiplexed.borrow().is_empty()
    }

    fn pool(&self) -> &PoolMetrics {
        &self.metrics.pool
    }

    async fn http1(
        self: &Rc<Self>,
        endpoint: &Endpoint,
        settings: &Settings,
        fresh: bool,
    ) -> Result<H1Lease, ConnectError> {
        if !fresh && let Some(connection) = self.take_idle() {
            return Ok(H1Lease::new(connection, self.clone()));
        }
        let (stream, _, place) = self.open(endpoint, settings, Some(Protocol::Http1)).await?;
        Ok(H1Lease::new(H1Connection::new(stream, place), self.clone()))
    }

    /// The idle connection used last that its peer has not closed.
    fn take_idle(&self) -> Option<H1Connection> {
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            if !connection.io.is_stale() {
                self.pool().idle.dec();
                return Some(connection);
            }
            self.count_closed(PoolClosed::Peer);
        }
    }

    async fn http2(
        self: &Rc<Self>,
        endpoint: &Arc<Endpoint>,
        settings: &Arc<Settings>,
    ) -> Result<H2Lease, ConnectError> {
        loop {
            let free = self.multiplexed.borrow().iter().find(|connection| connection.has_room()).cloned();
            if let Some(connection) = free {
                return Ok(H2Lease::new(connection));
            }
            self.connecting(endpoint, settings, Some(Protocol::Http2)).await?;
        }
    }

    /// Opens a connection that others may be waiting for as well, and puts it where it belongs.
    fn connecting(
        self: &Rc<Self>,
        endpoint: &Arc<Endpoint>,
        settings: &Arc<Settings>,
        wanted: Option<Protocol>,
    ) -> Connecting {
        let (slot, endpoint, settings) = (self.clone(), endpoint.clone(), settings.clone());
        self.connecting
            .borrow_mut()
            .get_or_insert_with(|| {
                let attempt = async move {
                    let opened = slot.clone().open_shared(&endpoint, &settings, wanted).await;
                    slot.connecting.borrow_mut().take();
                    opened
                };
                let attempt = attempt.boxed_local().shared();
                // It goes on by itself, in case that all who wait for it give up.
                tokio::task::spawn_local(attempt.clone());
                attempt
            })
            .clone()
    }

    async fn open_shared(
        self: Rc<Self>,
        endpoint: &Endpoint,
        settings: &Settings,
        wanted: Option<Protocol>,
    ) -> Result<(), ConnectError> {
        let (stream, protocol, place) = self.open(endpoint, settings, wanted).await?;
        match protocol {
            Protocol::Http1 => self.keep(H1Connection::new(stream, place)),
            Protocol::Http2 => {
                let limit = settings.service.timeouts.connect;
                let connection = h2::Connection::open(stream, place, self.metrics.clone(), limit).await?;
                self.multiplexed.borrow_mut().push(connection);
            }
        }
        if wanted.is_none() {
            self.settled.set(Some(protocol));
        }
        Ok(())
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        settings: &Settings,
        wanted: Option<Protocol>,
    ) -> Result<(Stream, Protocol, Connected), ConnectError> {
        let limit = settings.service.limits.connections;
        let mut place = self.limits.connect(limit).ok_or(ConnectError::Limit(limit))?;
        // Boxed: it is large and rare, and would make every connection's future as large.
        let opened = Box::pin(connect(endpoint, settings, wanted, self.source)).await;
        match &opened {
            Ok(_) => self.pool().opened.inc(),
            Err(_) => self.pool().connect_failures.inc(),
        }
        let (stream, protocol) = opened?;
        place.has(&stream);
        Ok((stream, protocol, place))
    }

    /// An idle connection was closed.
    fn count_closed(&self, why: PoolClosed) {
        self.pool().idle.dec();
        self.pool().closed.inc(why as usize);
    }

    /// Puts an idle connection back.
    fn keep(&self, connection: H1Connection) {
        let mut idle = self.idle.borrow_mut();
        let settings = self.settings.borrow();
        let why = if self.live.strong_count() == 0 {
            Some(PoolClosed::Removed)
        } else if connection.is_aged(&settings) {
            Some(PoolClosed::Age)
        } else if idle.len() >= settings.service.pool.max_idle {
            Some(PoolClosed::Full)
        } else {
            None
        };
        match why {
            Some(why) => self.pool().closed.inc(why as usize),
            None => {
                self.pool().idle.inc();
                idle.push(connection);
            }
        }
    }

    fn sweep(&self, now: Instant) {
        let settings = self.settings.borrow().clone();
        let gone = self.live.strong_count() == 0;
        let pool = &settings.service.pool;
        // Another worker may need the places of connections that nobody uses here.
        let crowded = self.limits.connections() >= settings.service.limits.connections;
        self.idle.borrow_mut().retain_mut(|connection| {
            connection.idle += PERIOD;
            let why = if gone {
                Some(PoolClosed::Removed)
            } else if connection.io.is_stale() {
                Some(PoolClosed::Peer)
            } else if connection.idle >= pool.idle_timeout {
                Some(PoolClosed::Idle)
            } else if now.saturating_duration_since(connection.opened) >= pool.max_age {
                Some(PoolClosed::Age)
            } else if crowded && connection.idle > PERIOD {
                Some(PoolClosed::Full)
            } else {
                None
            };
            why.inspect(|why| self.count_closed(*why)).is_none()
        });
        // Dropping the last handle lets requests in progress end, then closes the connection.
        self.multiplexed.borrow_mut().retain(|connection| {
            let why = if gone { Some(PoolClosed::Removed) } else { connection.poor(pool, now, PERIOD) };
            let why = why.or((crowded && connection.idle.get() > PERIOD).then_some(PoolClosed::Full));
            why.inspect(|why| connection.leave(*why)).is_none()
        });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        for _ in std::mem::take(self.idle.get_mut()) {
            self.count_closed(PoolClosed::Removed);
        }
        self.multiplexed.get_mut().iter().for_each(|connection| connection.leave(PoolClosed::Removed));
    }
}

/// An HTTP/1.1 connection to an upstream.
#[derive(Debug)]
pub struct H1Connection {
    io: Rc<Io>,
    opened: Instant,
    /// Counted by the sweep, so that giving a connection back needs no clock.
    idle: Duration,
    exchanges: u32,
    /// Its place among the service's connections.
    _place: Connected,
}

impl H1Connection {
    fn new(stream: Stream, place: Connected) -> Self {
        let (io, opened) = (Rc::new(Io::new(stream)), Instant::now());
        Self { io, opened, idle: Duration::ZERO, exchanges: 0, _place: place }
    }

    /// Whether it is too old for another request. The clock is looked at now and then only.
    fn is_aged(&self, settings: &Settings) -> bool {
        const NOW_AND_THEN: u32 = 64;
        self.exchanges.is_multiple_of(NOW_AND_THEN) && self.opened.elapsed() >= settings.service.pool.max_age
    }
}

/// An HTTP/1.1 connection for one exchange. Dropped without being given back, it is closed.
#[derive(Debug)]
pub struct H1Lease {
    connection: Option<H1Connection>,
    slot: Rc<Slot>,
}

impl H1Lease {
    fn new(connection: H1Connection, slot: Rc<Slot>) -> Self {
        slot.pool().active.inc();
        Self { connection: Some(connection), slot }
    }

    pub fn io(&self) -> Rc<Io> {
        // There until `give_back`, which takes `self`.
        self.connection.as_ref().map(|connection| connection.io.clone()).unwrap_or_else(|| unreachable!("given back"))
    }

    /// Whether it has carried a request before, so that its peer may have closed it meanwhile.
    pub fn is_reused(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.exchanges > 0)
    }

    /// The exchange is over and the connection is fit for another.
    pub fn give_back(mut self) {
        if let Some(mut connection) = self.connection.take() {
            self.slot.pool().active.dec();
            connection.exchanges = connection.exchanges.wrapping_add(1);
            connection.idle = Duration::ZERO;
            self.slot.keep(connection);
        }
    }
}

impl Drop for H1Lease {
    fn drop(&mut self) {
        if self.connection.take().is_some() {
            self.slot.pool().active.dec();
            self.slot.pool().closed.inc(PoolClosed::Used as usize);
        }
    }
}

/// One stream's place on an HTTP/2 connection.
#[derive(Debug)]
pub struct H2Lease {
    pub connection: Rc<h2::Connection>,
    /// Whether it has carried a request before, so that its peer may have closed it meanwhile.
    pub reused: bool,
}

impl H2Lease {
    fn new(connection: Rc<h2::Connection>) -> Self {
        connection.begin();
        connection.idle.set(Duration::ZERO);
        let reused = connection.used.replace(true);
        Self { connection, reused }
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        self.connection.end();
    }
}
