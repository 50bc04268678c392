//! One session on one connection, for all services: requests in a row, events to those whom they concern.
//!
//! A task of its own, the driver, has the socket. It pings, so that the session lives and a peer that vanished without a
//! word is noticed: after two thirds of the session's timeout at the latest.

use super::{
    proto::{self, Change, Code, Event, Message, Request, Session, Stat, WatchMode},
    wire::{Opened, Opener, Stream},
};
use crate::registry::{RegistryError, link, server::Server};
use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

/// Events that wait for a follower. With more than that it reads everything again.
const EVENTS: usize = 1024;
/// To tell the server that the session is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens connections, each with the session of the one before it while that lives.
pub struct Connect {
    opener: Opener,
    /// Whether its sessions are kept alive by themselves, or only by what is asked in them.
    pings: bool,
    suspended: Arc<ArcSwapOption<Suspended>>,
}

/// A session whose connection broke.
struct Suspended {
    session: Session,
    zxid: i64,
    /// When the server gives it up. It is of no use to know the newest change that was seen for longer: a server that
    /// lost its data would be refused for ever.
    until: Instant,
}

impl Connect {
    pub fn new(opener: Opener) -> Self {
        Self { opener, pings: true, suspended: Arc::default() }
    }

    /// For sessions that end when nothing was asked in them for `timeout`.
    pub fn unattended(&self, timeout: Duration) -> Self {
        Self { opener: self.opener.with_session_timeout(timeout), pings: false, suspended: Arc::default() }
    }
}

impl link::Connect for Connect {
    type Connection = Connection;

    async fn connect(&self, server: &Server) -> Result<Connection, RegistryError> {
        let suspended = self.suspended.load_full().filter(|suspended| Instant::now() < suspended.until);
        let last = suspended.map(|suspended| (suspended.session.clone(), suspended.zxid));
        let opened = self.opener.open(server, last.clone()).await?;
        let zxid = last.filter(|(last, _)| last.id == opened.session.id).map_or(0, |(_, zxid)| zxid);
        self.suspended.store(None);
        Ok(Connection::start(server.text.clone(), opened, (zxid, self.pings), self.suspended.clone()))
    }
}

/// An open session. It ends when this and all subscriptions are dropped.
pub struct Connection {
    server: String,
    /// The session's id.
    session: i64,
    /// After so long a silence the server ends the session.
    timeout: Duration,
    /// The session has nodes that are to outlive the connection.
    kept: Arc<AtomicBool>,
    calls: mpsc::UnboundedSender<Call>,
    recursive: bool,
    /// Why it ended.
    end: Arc<OnceLock<String>>,
    worked: Arc<AtomicBool>,
    subscriptions: AtomicU64,
}

impl link::Connection for Connection {
    fn is_closed(&self) -> bool {
        self.calls.is_closed()
    }

    fn has_worked(&self) -> bool {
        self.worked.load(Relaxed)
    }
}

/// What went wrong with a request.
#[derive(Debug)]
pub enum CallError {
    /// The server said so.
    Code(Code),
    /// The connection ended, or what came on it makes no sense.
    Broken(RegistryError),
}

/// Where an answer goes.
type Asker = oneshot::Sender<Result<Bytes, Code>>;

/// What the driver is asked to do.
enum Call {
    Ask { request: BytesMut, answer: Asker },
    Subscribe { path: Arc<str>, id: u64, events: mpsc::Sender<Event> },
    Unsubscribe { path: Arc<str>, id: u64 },
}

/// What happens at one node and below it. Dropping it ends the watch at the server, if it is the last of its node.
pub struct Subscription {
    path: Arc<str>,
    id: u64,
    events: mpsc::Receiver<Event>,
    calls: mpsc::UnboundedSender<Call>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _ = self.calls.send(Call::Unsubscribe { path: self.path.clone(), id: self.id });
    }
}

impl Subscription {
    /// `None` when the connection ended, or when there were too many events to keep.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// One that is here already.
    pub fn another(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

impl Connection {
    /// From what was opened at `server`, after the change `zxid` was seen. When the connection breaks, its session goes to
    /// `suspended`.
    fn start(
        server: String,
        opened: Opened,
        (zxid, pings): (i64, bool),
        suspended: Arc<ArcSwapOption<Suspended>>,
    ) -> Self {
        let Opened { stream, session, recursive } = opened;
        let (calls, taken) = mpsc::unbounded_channel();
        let (end, worked) = (Arc::<OnceLock<String>>::default(), Arc::<AtomicBool>::default());
        let (id, kept) = (session.id, Arc::<AtomicBool>::default());
        let timeout = Duration::from_millis(u64::try_from(session.timeout_ms).unwrap_or(0));
        let (read, write) = tokio::io::split(stream);
        let driver = Driver {
            read,
            write,
            input: BytesMut::new(),
            output: BytesMut::new(),
            flushed: true,
            calls: taken,
            pending: VecDeque::new(),
            subscribers: HashMap::new(),
            xid: 0,
            zxid,
            timeout,
            pings,
            recursive,
            worked: worked.clone(),
            kept: kept.clone(),
        };
        tokio::spawn({
            let end = end.clone();
            async move { driver.run(session, &suspended, &end).await }
        });
        Self { server, session: id, timeout, kept, calls, recursive, end, worked, subscriptions: AtomicU64::new(0) }
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    /// The session's id.
    pub fn session(&self) -> i64 {
        self.session
    }

    /// What the server has granted the session.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Leaves the session to its timeout when nobody wants the connection any more, and with it the nodes that go with it.
    pub fn keep_session(&self) {
        self.kept.store(true, Relaxed);
    }

    /// Whether [`Self::subscribe`] watches by itself. If not, events come only of what is read with `watch`, once.
    pub fn is_recursive(&self) -> bool {
        self.recursive
    }

    /// Hears of what happens at `path` from now on.
    pub async fn subscribe(&self, path: &str) -> Result<Subscription, CallError> {
        let id = self.subscriptions.fetch_add(1, Relaxed);
        let (sender, events) = mpsc::channel(EVENTS);
        let subscription = Subscription { path: path.into(), id, events, calls: self.calls.clone() };
        let _ = self.calls.send(Call::Subscribe { path: subscription.path.clone(), id, events: sender });
        if self.recursive {
            self.ask(Request::AddWatch { path, mode: WatchMode::Recursive }).await?;
        }
        Ok(subscription)
    }

    pub async fn exists(&self, path: &str, watch: bool) -> Result<(), CallError> {
        self.ask(Request::Exists { path, watch }).await.map(drop)
    }

    pub async fn data(&self, path: &str, watch: bool) -> Result<proto::Data, CallError> {
        let answer = self.ask(Request::Data { path, watch }).await?;
        proto::data(answer).map_err(|error| self.malformed(error))
    }

    pub async fn children(&self, path: &str, watch: bool) -> Result<Vec<String>, CallError> {
        let answer = self.ask(Request::Children { path, watch }).await?;
        proto::children(answer).map_err(|error| self.malformed(error))
    }

    /// Writes all of it, or nothing. Of the last node whose value it wrote it gives what that is now.
    pub async fn change(&self, changes: &[Change<'_>]) -> Result<Option<Stat>, CallError> {
        let answer = self.ask(Request::Multi(changes)).await?;
        proto::multi(answer).map_err(|error| self.malformed(error))?.map_err(CallError::Code)
    }

    /// Why the connection ended.
    pub fn broken(&self) -> RegistryError {
        let cause = self.end.get().cloned().unwrap_or_else(|| "the connection ended".into());
        RegistryError::Unreachable { server: self.server.clone(), cause }
    }

    async fn ask(&self, request: Request<'_>) -> Result<Bytes, CallError> {
        let mut frame = BytesMut::new();
        // The driver numbers it.
        proto::put_request(&mut frame, 0, request);
        let (answer, answered) = oneshot::channel();
        let _ = self.calls.send(Call::Ask { request: frame, answer });
        match answered.await {
            Ok(answer) => answer.map_err(CallError::Code),
            Err(_) => Err(CallError::Broken(self.broken())),
        }
    }

    fn malformed(&self, error: proto::Malformed) -> CallError {
        CallError::Broken(RegistryError::Protocol { server: self.server.clone(), cause: error.to_string() })
    }
}

/// What runs a connection.
struct Driver {
    read: ReadHalf<Box<dyn Stream>>,
    write: WriteHalf<Box<dyn Stream>>,
    input: BytesMut,
    output: BytesMut,
    flushed: bool,
    calls: mpsc::UnboundedReceiver<Call>,
    /// Requests that are not answered yet, in the order in which the server answers them.
    pending: VecDeque<(i32, Option<Asker>)>,
    /// By path.
    subscribers: HashMap<Arc<str>, Vec<(u64, mpsc::Sender<Event>)>>,
    xid: i32,
    zxid: i64,
    timeout: Duration,
    pings: bool,
    recursive: bool,
    worked: Arc<AtomicBool>,
    kept: Arc<AtomicBool>,
}

impl Driver {
    async fn run(mut self, session: Session, suspended: &ArcSwapOption<Suspended>, end: &OnceLock<String>) {
        let mut heard = Instant::now();
        if let Err(cause) = self.converse(&mut heard).await {
            let _ = end.set(cause);
            let until = heard + self.timeout;
            // Before anybody can notice the end, which they do when `self` goes.
            suspended.store(Some(Arc::new(Suspended { session, zxid: self.zxid, until })));
        }
    }

    /// Until nobody wants the connection any more, or until it breaks, with the reason.
    async fn converse(&mut self, heard: &mut Instant) -> Result<(), String> {
        let mut sent = Instant::now();
        loop {
            tokio::select! {
                call = self.calls.recv() => match call {
                    Some(call) => self.take(call),
                    None if self.kept.load(Relaxed) => return Ok(()),
                    None => {
                        self.close().await;
                        return Ok(());
                    }
                },
                read = self.read.read_buf(&mut self.input) => match read {
                    Ok(0) => return Err("it hung up".into()),
                    Ok(_) => {
                        *heard = Instant::now();
                        self.hear()?;
                    }
                    Err(error) => return Err(error.to_string()),
                },
                written = write_some(&mut self.write, &mut self.output), if !self.flushed || !self.output.is_empty() => {
                    // Nothing was left to write: it was all flushed.
                    self.flushed = written.map_err(|error| error.to_string())? == 0;
                    if !self.flushed {
                        sent = Instant::now();
                    }
                }
                () = sleep_until(sent + self.timeout / 3), if self.pings => {
                    sent = Instant::now();
                    proto::put_request(&mut self.output, 0, Request::Ping);
                }
                () = sleep_until(*heard + self.timeout * 2 / 3) => {
                    return Err(format!("nothing was heard for {:?}", self.timeout * 2 / 3));
                }
            }
        }
    }

    fn take(&mut self, call: Call) {
        match call {
            Call::Ask { mut request, answer } => {
                self.xid = self.xid.wrapping_add(1).max(1);
                // After the length.
                request[4..8].copy_from_slice(&self.xid.to_be_bytes());
                self.output.unsplit(request);
                self.pending.push_back((self.xid, Some(answer)));
            }
            Call::Subscribe { path, id, events } => self.subscribers.entry(path).or_default().push((id, events)),
            Call::Unsubscribe { path, id } => {
                let Some(of_path) = self.subscribers.get_mut(&path) else { return };
                of_path.retain(|(of, _)| *of != id);
                if !of_path.is_empty() {
                    return;
                }
                self.subscribers.remove(&path);
                // What fires once and is not there any more is harmless, and old servers cannot remove it.
                if self.recursive {
                    self.xid = self.xid.wrapping_add(1).max(1);
                    proto::put_request(&mut self.output, self.xid, Request::RemoveWatches { path: &path });
                    self.pending.push_back((self.xid, None));
                }
            }
        }
    }

    /// All that has come in whole.
    fn hear(&mut self) -> Result<(), String> {
        let malformed = |error: proto::Malformed| error.to_string();
        while let Some(frame) = proto::take_frame(&mut self.input).map_err(malformed)? {
            match proto::message(frame).map_err(malformed)? {
                Message::Event(event) => self.tell(&event),
                Message::Reply { xid: proto::PING | proto::AUTH, .. } => {}
                Message::Reply { xid, zxid, answer } => {
                    self.zxid = self.zxid.max(zxid);
                    let asked = self.pending.pop_front().filter(|(of, _)| *of == xid);
                    let (_, asker) = asked.ok_or("an answer to a question that was not next")?;
                    self.worked.store(true, Relaxed);
                    if let Some(asker) = asker {
                        // Who asked may be gone.
                        let _ = asker.send(answer);
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells all who subscribed to the event's node or to one above it.
    fn tell(&mut self, event: &Event) {
        let mut above = Some(event.path.as_str());
        while let Some(path) = above {
            if let Some(of_path) = self.subscribers.get_mut(path) {
                // Who is too slow hears the end instead, and reads everything again.
                of_path.retain(|(_, events)| events.try_send(event.clone()).is_ok());
            }
            above = path.rsplit_once('/').map(|(above, _)| above).filter(|above| !above.is_empty());
        }
    }

    async fn close(&mut self) {
        proto::put_request(&mut self.output, 0, Request::Close);
        // A server that does not listen gives the session up by itself.
        let said = async {
            self.write.write_all_buf(&mut self.output).await?;
            self.write.shutdown().await
        };
        let _ = timeout(CLOSE_TIMEOUT, said).await;
    }
}

/// Writes what it can, or flushes if there is nothing. Nothing is lost when it is dropped midway.
async fn write_some(write: &mut WriteHalf<Box<dyn Stream>>, output: &mut BytesMut) -> std::io::Result<usize> {
    if output.is_empty() {
        write.flush().await?;
        return Ok(0);
    }
    write.write_buf(output).await
}

#[cfg(test)]
mod tests;
