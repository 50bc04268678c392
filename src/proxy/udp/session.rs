//! One session: the datagrams of one client, and the endpoint that they go to.

use super::{Sessions, record::Record};
use crate::{
    cluster::{
        Cluster, Endpoint, Snapshot,
        balance::Ask,
        connect::ConnectError,
        endpoint::InFlight,
        health::{Choice, Outcome},
        subset::Within,
    },
    error::{ProxyError, Reason},
    proxy::{
        http::{cluster_of, ready_snapshot},
        journey::connect_error,
        listener::Way,
    },
    registry::Address,
    telemetry::labels::Dropped,
};
use rustix::net::{RecvFlags, recv};
use std::{
    cell::{Cell, RefCell},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::Interest,
    net::{UdpSocket, lookup_host},
    sync::Notify,
    task::yield_now,
    time::{Instant, timeout},
};

/// So many datagrams, of so many bytes in all, wait until there is an endpoint.
const MOST_WAITING: usize = 16;
const MOST_WAITING_BYTES: usize = 128 * 1024;
/// A larger one that an endpoint does not take is not sent to another.
const MOST_KEPT: usize = 4096;
/// What comes back because nobody is there does so earlier.
const TAKEN: Duration = Duration::from_secs(1);
/// So many answers, and it is the turn of others.
const TURN: u32 = 32;

thread_local! {
    /// Where a worker's answers are read into, one after the other.
    static SPACE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub struct Session {
    client: SocketAddr,
    to: RefCell<To>,
    /// The last datagram, while nothing has come back.
    last: RefCell<Vec<u8>>,
    /// Whether its endpoint has not been sent anything.
    fresh: Cell<bool>,
    /// Since when an answer is waited for, from an endpoint that has given none yet.
    asked: Cell<Option<Instant>>,
    cluster: RefCell<Option<Arc<Cluster>>>,
    endpoint: RefCell<Option<Arc<Endpoint>>>,
    /// Whether its endpoint is no more to be used.
    leaving: Cell<bool>,
    pub moved: Moved,
    counted: Cell<Numbers>,
    quiet: Cell<Instant>,
    word: Cell<Option<Word>>,
    bell: Notify,
}

#[derive(Debug)]
enum To {
    /// Nobody yet: these wait.
    Nobody(Vec<Box<[u8]>>),
    Endpoint(Rc<UdpSocket>),
}

/// What has moved.
#[derive(Debug, Default)]
pub struct Moved(Cell<Numbers>);

/// Datagrams and bytes, to the endpoint and to the client.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    pub sent: u64,
    pub sent_bytes: u64,
    pub received: u64,
    pub received_bytes: u64,
}

/// Why it does not go on as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// It is over.
    Over,
    /// It is over, whatever moves.
    Cut,
    /// Its endpoint has left, and there is more to send.
    Move,
    /// Nobody takes what is sent to its endpoint.
    Refused,
    /// What was sent to its endpoint has not come back. That is all that can be known of one that gives no answers.
    Taken,
}

impl Moved {
    pub fn numbers(&self) -> Numbers {
        self.0.get()
    }

    fn sent(&self, bytes: usize) {
        let now = self.0.get();
        self.0.set(Numbers { sent: now.sent + 1, sent_bytes: now.sent_bytes + bytes as u64, ..now });
    }

    fn received(&self, bytes: usize) {
        let now = self.0.get();
        self.0.set(Numbers { received: now.received + 1, received_bytes: now.received_bytes + bytes as u64, ..now });
    }
}

impl Session {
    pub fn new(client: SocketAddr) -> Self {
        Self {
            client,
            to: RefCell::new(To::Nobody(Vec::new())),
            last: RefCell::default(),
            fresh: Cell::new(true),
            asked: Cell::new(None),
            cluster: RefCell::default(),
            endpoint: RefCell::default(),
            leaving: Cell::new(false),
            moved: Moved::default(),
            counted: Cell::default(),
            quiet: Cell::new(Instant::now()),
            word: Cell::new(None),
            bell: Notify::new(),
        }
    }

    /// Its client has sent this.
    pub fn offer(&self, data: &[u8]) {
        let mut to = self.to.borrow_mut();
        match &mut *to {
            To::Nobody(waiting) => {
                let bytes: usize = waiting.iter().map(|data| data.len()).sum();
                if waiting.len() < MOST_WAITING && bytes + data.len() <= MOST_WAITING_BYTES {
                    waiting.push(data.into());
                } else {
                    self.dropped(Dropped::Full, 1);
                }
            }
            To::Endpoint(_) if self.leaving.get() => {
                *to = To::Nobody(vec![data.into()]);
                self.say(Word::Move);
            }
            To::Endpoint(socket) => {
                if !self.send(&socket.clone(), data) {
                    *to = To::Nobody(self.unanswered().into_iter().chain([data.into()]).collect());
                    self.say(Word::Refused);
                }
            }
        }
    }

    /// Sends it to the endpoint. False if what was sent before has come back: then it was not sent.
    fn send(&self, socket: &UdpSocket, data: &[u8]) -> bool {
        match socket.try_send(data) {
            Ok(_) => {
                self.moved.sent(data.len());
                if self.fresh.take() {
                    self.asked.set(Some(Instant::now()));
                }
                let mut last = self.last.borrow_mut();
                last.clear();
                if data.len() <= MOST_KEPT {
                    last.extend_from_slice(data);
                }
            }
            Err(error) if is_refused(&error) => return false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.dropped(Dropped::Full, 1),
            // Larger than the way there allows, or there is none.
            Err(_) => self.dropped(Dropped::Undeliverable, 1),
        }
        true
    }

    /// What its endpoint has not answered.
    fn unanswered(&self) -> Option<Box<[u8]>> {
        let last = std::mem::take(&mut *self.last.borrow_mut());
        (!last.is_empty()).then(|| last.into())
    }

    fn say(&self, word: Word) {
        self.word.set(Some(word));
        self.bell.notify_one();
    }

    /// Says it unless there is something to be done already.
    fn suggest(&self, word: Word) {
        if self.word.get().is_none() {
            self.say(word);
        }
    }

    fn dropped(&self, why: Dropped, count: usize) {
        if let Some(cluster) = &*self.cluster.borrow() {
            (0..count).for_each(|_| cluster.metrics.udp.dropped.inc(why as usize));
        }
    }

    /// Ends it.
    pub fn cut(&self) {
        self.say(Word::Cut);
    }

    /// Counts what has moved, and ends it if nothing has for long enough.
    pub fn look(&self, now: Instant, is_closing: bool) {
        let Some(cluster) = self.cluster.borrow().clone() else { return };
        let moving = self.count(&cluster);
        if moving {
            self.quiet.set(now);
        }
        // Else its service would be forgotten as idle, and with it which of its endpoints leave.
        cluster.mark_used();
        let is_lost = |endpoint: &Arc<Endpoint>| endpoint.live.has_left() || endpoint.live.health.is_shut();
        if self.endpoint.borrow().as_ref().is_some_and(is_lost) {
            self.leaving.set(true);
        }
        if self.asked.get().is_some_and(|asked| now.saturating_duration_since(asked) >= TAKEN) {
            self.suggest(Word::Taken);
        }
        let idle = now.saturating_duration_since(self.quiet.get());
        if !moving && (is_closing || idle >= cluster.load().settings.service.udp.idle_timeout) {
            self.suggest(Word::Over);
        }
    }

    /// Adds to its service's numbers what has moved since the last time. Whether anything has.
    pub fn count(&self, cluster: &Cluster) -> bool {
        let (before, now) = (self.counted.get(), self.moved.numbers());
        self.counted.set(now);
        let metrics = &cluster.metrics.udp;
        metrics.sent.add(now.sent - before.sent);
        metrics.sent_bytes.add(now.sent_bytes - before.sent_bytes);
        metrics.received.add(now.received - before.received);
        metrics.received_bytes.add(now.received_bytes - before.received_bytes);
        before != now
    }

    /// Carries datagrams until it is over. From then on it takes none.
    pub async fn live(self: &Rc<Self>, sessions: &Sessions) {
        let mut record = Record::start(sessions.listener.clone(), self.clone(), self.client);
        let outcome = self.carry(sessions, &mut record).await;
        if let To::Nobody(waiting) = &*self.to.borrow() {
            self.dropped(Dropped::Undeliverable, waiting.len());
        }
        record.ended(outcome);
    }

    async fn carry(&self, sessions: &Sessions, record: &mut Record) -> Result<(), ProxyError> {
        let (settings, proxy) = (sessions.listener.settings(), &sessions.proxy);
        let cluster = match &settings.way {
            Way::Outbound { rule, .. } => cluster_of(rule.fixed()?, proxy).await?,
            Way::Inbound { app, .. } => app.cluster.clone(),
        };
        cluster.mark_used();
        record.routed(cluster.clone());
        self.cluster.replace(Some(cluster.clone()));
        ready_snapshot(&cluster, record.started(), proxy.discovery.first_answer(), None).await?;
        let limit = cluster.load().settings.service.limits.connections;
        let Some(_place) = cluster.limits.connect(limit) else {
            return Err(ProxyError::new(Reason::ConnectionLimit, ConnectError::Limit(limit).to_string()));
        };
        let (mut tried, mut failed) = (Vec::new(), None);
        loop {
            let snapshot = cluster.load().clone();
            if tried.len() > snapshot.settings.service.retry.attempts as usize {
                return Err(failed.unwrap_or_else(|| snapshot.no_endpoints(Within::default())));
            }
            let key = snapshot.key_of_source(self.client.ip(), cluster.metrics.udp.lives.open.get());
            let picked = snapshot.pick(false, Ask { key, ..Ask::default() }, &tried, Instant::now());
            let Some((endpoint, choice)) = picked else {
                return Err(failed.unwrap_or_else(|| snapshot.no_endpoints(Within::default())));
            };
            let endpoint = endpoint.clone();
            match self.with(&endpoint, choice, &cluster, &snapshot, sessions, record).await {
                Ok(Word::Over | Word::Cut) => return Ok(()),
                Ok(Word::Move | Word::Taken) => {
                    tried.clear();
                    continue;
                }
                Ok(Word::Refused) => {
                    let detail = format!("{}: nobody takes datagrams there", endpoint.instance.address);
                    failed = Some(ProxyError::new(Reason::ConnectFailed, detail));
                }
                // No other endpoint could be asked either, and this one is not to blame.
                Err(error) if error.is_own() => return Err(connect_error(&endpoint, &error)),
                Err(error) => failed = Some(connect_error(&endpoint, &error)),
            }
            record.tell(Outcome::Failure);
            if record.has_answered() {
                tried.clear();
            }
            record.not_reached(failed.as_ref().map_or(Reason::ConnectFailed, |error| error.reason));
            tried.push(endpoint);
        }
    }

    /// Carries datagrams to and from this endpoint until that is over.
    async fn with(
        &self,
        endpoint: &Arc<Endpoint>,
        choice: Choice,
        cluster: &Arc<Cluster>,
        snapshot: &Snapshot,
        sessions: &Sessions,
        record: &mut Record,
    ) -> Result<Word, ConnectError> {
        if snapshot.leaves_zone(endpoint) {
            cluster.metrics.zone_left.inc();
        }
        record.attempt(InFlight::start(endpoint.clone(), choice));
        self.endpoint.replace(Some(endpoint.clone()));
        self.leaving.set(false);
        self.fresh.set(true);
        self.asked.set(None);
        // What was said of the one before is settled.
        self.word.set(None);
        let limit = snapshot.settings.service.timeouts.connect;
        let opened = timeout(limit, open(&endpoint.instance.address)).await;
        let socket = opened.map_err(|_| ConnectError::Timeout(limit))?;
        let socket = Rc::new(socket.map_err(|error| ConnectError::Tcp(Arc::new(error)))?);
        let before = self.moved.numbers();
        // Those that waited go first.
        if let To::Nobody(waiting) = self.to.replace(To::Endpoint(socket.clone())) {
            waiting.iter().for_each(|data| self.offer(data));
        }
        let word = self.answers(&socket, before, snapshot, sessions, record).await;
        let mut to = self.to.borrow_mut();
        if let To::Endpoint(_) = &*to {
            *to = To::Nobody(if word == Word::Refused { self.unanswered().into_iter().collect() } else { Vec::new() });
        }
        Ok(word)
    }

    /// Gives the client what its endpoint sends. `before`: what had moved to and from others.
    async fn answers(
        &self,
        socket: &UdpSocket,
        before: Numbers,
        snapshot: &Snapshot,
        sessions: &Sessions,
        record: &mut Record,
    ) -> Word {
        let responses = snapshot.settings.service.udp.responses.map(u64::from);
        let mut turn = 0;
        loop {
            let received = tokio::select! {
                () = self.bell.notified() => match self.word.take() {
                    // It was said a moment too soon.
                    Some(Word::Over) if self.counted.get() != self.moved.numbers() => continue,
                    Some(Word::Taken) => {
                        self.asked.take();
                        record.tell(Outcome::Success);
                        continue;
                    }
                    Some(word) => return word,
                    None => continue,
                },
                // What has come back is an error of the socket, and nothing to read.
                ready = socket.ready(Interest::READABLE | Interest::ERROR) => {
                    let is_error = ready.is_ok_and(|ready| ready.is_error());
                    self.pass_on(socket, is_error, sessions)
                }
            };
            match received {
                Ok(()) => {
                    if let Some(asked) = self.asked.take() {
                        record.answered(asked.elapsed());
                    }
                    let now = self.moved.numbers();
                    let (sent, received) = (now.sent - before.sent, now.received - before.received);
                    if responses.is_some_and(|responses| received >= sent * responses) {
                        return Word::Over;
                    }
                    turn += 1;
                    if turn % TURN == 0 {
                        yield_now().await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if is_refused(&error) => return Word::Refused,
                // It was larger than the way there allows, which the kernel knows from here on, and cuts it into pieces.
                Err(_) => {
                    if let Some(data) = self.unanswered()
                        && !self.send(socket, &data)
                    {
                        return Word::Refused;
                    }
                    yield_now().await;
                }
            }
        }
    }

    /// One datagram from its endpoint, to its client. `is_error`: there may be an error to be read.
    fn pass_on(&self, socket: &UdpSocket, is_error: bool, sessions: &Sessions) -> io::Result<()> {
        SPACE.with_borrow_mut(|space| {
            space.resize(super::LARGEST, 0);
            let receive = || Ok(recv(socket, &mut space[..], RecvFlags::DONTWAIT)?.0);
            let length = socket.try_io(if is_error { Interest::ERROR } else { Interest::READABLE }, receive)?;
            self.last.borrow_mut().clear();
            match sessions.socket.try_send_to(&space[..length], self.client) {
                Ok(_) => self.moved.received(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.dropped(Dropped::Full, 1),
                Err(_) => self.dropped(Dropped::Undeliverable, 1),
            }
            Ok(())
        })
    }
}

/// A socket for one session, which hears of its endpoint alone, and of what does not arrive there.
async fn open(address: &Address) -> io::Result<UdpSocket> {
    let address = match address {
        Address::Ip(address) => *address,
        Address::Name { host, port } => {
            let found = lookup_host((host.as_str(), *port)).await?.next();
            found.ok_or_else(|| io::Error::other("the name has no address"))?
        }
    };
    let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(address).await?;
    // Until the event loop has looked at it, nothing could be sent by it.
    socket.writable().await?;
    Ok(socket)
}

/// Whether what was sent has come back, because nobody is there.
fn is_refused(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}
