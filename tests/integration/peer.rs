//! One end of an HTTP/1 connection that sends exactly the bytes it is told to, and upstreams made of such ends.

use crate::socket::Socket;
use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Far more than anything should take, on a machine that is busy with other things too; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A connection, seen from either end.
pub struct Peer {
    pub stream: Socket<TcpStream>,
    /// What was read and not yet taken.
    pub buf: Vec<u8>,
}

/// A message as it was read.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// The first line.
    pub start: String,
    /// Names as they were written.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Message {
    /// The value of the only field of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} is there more than once: {self:?}");
        all.first().copied()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        let fits = |(there, _): &&(String, String)| there.eq_ignore_ascii_case(name);
        self.fields.iter().filter(fits).map(|(_, value)| value.as_str()).collect()
    }

    pub fn status(&self) -> u16 {
        let rest = self.start.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("no status line: {self:?}"));
        rest[..3].parse().unwrap()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A response's status and the reason that pillion gives.
    pub fn error(&self) -> (u16, Option<&str>) {
        (self.status(), self.get("x-pillion-error"))
    }
}

impl Peer {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    /// One that takes little at a time, as a slow reader's kernel does.
    pub async fn connect_with_small_buffer(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        Self::new(socket.connect(address).await.unwrap())
    }

    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream: Socket(stream), buf: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await;
        sent.expect("the other end reads").expect("the other end is there");
    }

    /// Reads more. False at the end, and when the connection was reset.
    pub async fn fill(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buf)).await;
        matches!(read.unwrap_or_else(|_| panic!("nothing comes after {self:?}")), Ok(1..))
    }

    /// The next head. `None` when the connection ended before a byte of it.
    pub async fn next_head(&mut self) -> Option<Message> {
        let end = loop {
            if let Some(end) = find(&self.buf, b"\r\n\r\n") {
                break end + 4;
            }
            if !self.fill().await {
                assert!(self.buf.is_empty(), "the connection ended within a head: {self:?}");
                return None;
            }
        };
        let head: Vec<u8> = self.buf.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let (start, fields) = head.split_once("\r\n").unwrap();
        Some(Message { start: start.into(), fields: parse(fields), ..Message::default() })
    }

    pub async fn head(&mut self) -> Message {
        self.next_head().await.expect("another message")
    }

    /// Takes that many bytes; fewer if the connection ends before.
    pub async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.buf.len() < length && self.fill().await {}
        let length = length.min(self.buf.len());
        self.buf.drain(..length).collect()
    }

    /// Takes what is there at the end of the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.buf)
    }

    /// A whole request.
    pub async fn request(&mut self) -> Message {
        self.next_request().await.expect("another request")
    }

    pub async fn next_request(&mut self) -> Option<Message> {
        let mut message = self.next_head().await?;
        self.body(&mut message, false).await.expect("a whole body");
        Some(message)
    }

    /// A whole response to a request that is not HEAD. Informational ones are passed over.
    pub async fn response(&mut self) -> Message {
        self.try_response().await.unwrap_or_else(|message| panic!("cut off: {message:?}"))
    }

    /// As [`Self::response`]; what came of it when its body was cut off.
    pub async fn try_response(&mut self) -> Result<Message, Message> {
        let mut message = self.head().await;
        while message.status() < 200 {
            message = self.head().await;
        }
        match self.body(&mut message, true).await {
            Ok(()) => Ok(message),
            Err(()) => Err(message),
        }
    }

    async fn body(&mut self, message: &mut Message, response: bool) -> Result<(), ()> {
        if response && matches!(message.status(), 204 | 304) {
            return Ok(());
        }
        if let Some(coding) = message.get("transfer-encoding") {
            assert_eq!(coding, "chunked");
            return self.chunks(message).await;
        }
        if let Some(length) = message.get("content-length") {
            let length = length.parse().unwrap();
            message.body = self.take(length).await;
            return if message.body.len() == length { Ok(()) } else { Err(()) };
        }
        if response {
            // Only an orderly end is an end.
            loop {
                match timeout(PATIENCE, self.stream.read_buf(&mut self.buf)).await.expect("an end") {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(_) => return Err(()),
                }
            }
            message.body = std::mem::take(&mut self.buf);
        }
        Ok(())
    }

    async fn chunks(&mut self, message: &mut Message) -> Result<(), ()> {
        loop {
            let line = self.line().await.ok_or(())?;
            let size = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("a chunk size: {line:?}"));
            if size == 0 {
                break;
            }
            let data = self.take(size + 2).await;
            message.body.extend_from_slice(&data[..data.len().min(size)]);
            if data.len() < size + 2 {
                return Err(());
            }
        }
        let mut fields = String::new();
        loop {
            match self.line().await.ok_or(())? {
                line if line.is_empty() => break,
                line => fields += &(line + "\r\n"),
            }
        }
        message.trailers = parse(&fields);
        Ok(())
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.buf, b"\r\n") {
                let line: Vec<u8> = self.buf.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Waits for the end of the connection, before which nothing more may come.
    pub async fn closed(&mut self) {
        while self.fill().await {}
        assert!(self.buf.is_empty(), "more came before the end: {self:?}");
    }

    /// Closes so that the other end sees a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Ends the sending side in order.
    pub async fn shutdown(&mut self) {
        self.stream.shutdown().await.unwrap();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.buf[..self.buf.len().min(2000)]))
    }
}

fn parse(fields: &str) -> Vec<(String, String)> {
    let lines = fields.split("\r\n").filter(|line| !line.is_empty());
    lines.map(|line| line.split_once(": ").expect("`name: value`")).map(|(n, v)| (n.into(), v.into())).collect()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// A server whose every answer the test writes itself.
pub struct Upstream {
    listener: Socket<TcpListener>,
    pub address: SocketAddr,
}

impl Upstream {
    pub async fn bind() -> Self {
        Self::bind_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Where one was before that is gone.
    pub async fn bind_at(address: SocketAddr) -> Self {
        let listener = Socket(TcpListener::bind(address).await.unwrap());
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// The next connection.
    pub async fn accept(&self) -> Peer {
        let accepted = timeout(PATIENCE, self.listener.accept()).await;
        Peer::new(accepted.expect("a connection").unwrap().0)
    }

    /// Whether nobody has connected since the last [`Self::accept`].
    pub fn is_left_alone(&self) -> bool {
        // Asks the kernel itself, which has a connection as soon as its client has.
        socket2::SockRef::from(&*self.listener).accept().is_err()
    }

    /// Answers every request with `respond`, as a server with keep-alive does, and tells the test what came.
    pub fn answering(self, respond: impl Fn(&Message) -> String + Send + Sync + 'static) -> Answering {
        let (address, respond) = (self.address, Arc::new(respond));
        let (seen, requests) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let mut peer = Peer::new(self.listener.accept().await.unwrap().0);
                let (respond, seen) = (respond.clone(), seen.clone());
                connections.spawn(async move {
                    while let Some(request) = peer.next_request_or_idle().await {
                        let response = respond(&request);
                        let _ = seen.send(request);
                        if peer.stream.write_all(response.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Answering { address, requests, task }
    }
}

impl Peer {
    /// As [`Self::next_request`], without a limit on the wait for its first byte.
    pub async fn next_request_or_idle(&mut self) -> Option<Message> {
        if self.buf.is_empty() && self.stream.readable().await.is_err() {
            return None;
        }
        self.next_request().await
    }
}

/// An upstream that answers by itself.
pub struct Answering {
    pub address: SocketAddr,
    requests: mpsc::UnboundedReceiver<Message>,
    task: JoinHandle<()>,
}

impl Answering {
    /// The usual one: 200 and a small body.
    pub async fn ok() -> Self {
        Upstream::bind().await.answering(|_| ok("ok"))
    }

    /// The next request that came.
    pub async fn seen(&mut self) -> Message {
        timeout(PATIENCE, self.requests.recv()).await.expect("a request").unwrap()
    }

    /// Those requests that came and were not yet looked at.
    pub fn unseen(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A response with this body.
pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A request without a body for `user-service`.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: user-service\r\n\r\n")
}

pub fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: user-service\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Asks until it is refused for a rate of one request per second after `burst` at once: a busy machine takes its time, and each
/// second lets one more through. Gives the refusal.
pub async fn until_rated(client: &mut Peer, request: impl AsRef<[u8]>, burst: u64) -> Message {
    let (start, mut through) = (Instant::now(), 0);
    loop {
        client.send(&request).await;
        let answer = client.response().await;
        if answer.status() == 429 {
            return answer;
        }
        through += 1;
        let most = burst + start.elapsed().as_secs() + 1;
        assert!(through <= most, "{through} got through, {most} may: {answer:?}");
    }
}

/// The status of the answer to `request`, pillion's reason, and how long it took.
pub async fn timed(client: &mut Peer, request: String) -> (u16, Option<String>, Duration) {
    let start = Instant::now();
    client.send(request).await;
    let response = client.response().await;
    (response.status(), response.get("x-pillion-error").map(str::to_owned), start.elapsed())
}
