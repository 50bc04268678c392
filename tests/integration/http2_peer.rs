//! Ends of HTTP/2 connections: clients and servers over the `h2` crate, and servers that write frames themselves.

use crate::{
    peer::{PATIENCE, Peer},
    socket::Socket,
};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response, StatusCode, request};
use std::{future::Future, net::SocketAddr};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

/// Waits, but not for ever.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// A client with prior knowledge.
pub struct Client {
    pub send: client::SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let mut builder = client::Builder::new();
        // As hyper does it: until the server's settings are here, no more than what servers commonly take. And one stream
        // that is not read does not fill the connection.
        builder.initial_max_send_streams(100).initial_connection_window_size(4 << 20);
        Self::connect_as(address, &builder).await
    }

    pub async fn connect_as(address: SocketAddr, builder: &client::Builder) -> Self {
        let stream = Socket(TcpStream::connect(address).await.unwrap());
        stream.set_nodelay(true).unwrap();
        let (send, connection) = soon("the handshake", builder.handshake(stream)).await.unwrap();
        // Its error is seen by its streams.
        Self { send, driver: tokio::spawn(async move { drop(connection.await) }) }
    }

    /// Ends the connection without a word.
    pub fn kill(self) {}

    /// Starts a request; with `end` it has no body.
    pub async fn start(&self, request: Request<()>, end: bool) -> (client::ResponseFuture, SendStream<Bytes>) {
        let mut send = soon("room for a stream", self.send.clone().ready()).await.unwrap();
        send.send_request(request, end).unwrap()
    }

    pub async fn get(&self, path: &str) -> Result<Answer, h2::Error> {
        let (response, _) = self.start(request("GET", path), true).await;
        collect(response).await
    }

    pub async fn post(&self, path: &str, body: &str) -> Result<Answer, h2::Error> {
        let (response, mut stream) = self.start(request("POST", path), false).await;
        stream.send_data(body.to_owned().into(), true)?;
        collect(response).await
    }
}

/// A request for `user-service`.
pub fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://user-service{path}")).body(()).unwrap()
}

pub async fn collect(response: client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (parts, mut stream) = soon("a response", response).await?.into_parts();
    let (body, trailers) = read(&mut stream).await?;
    Ok(Answer { status: parts.status, headers: parts.headers, body, trailers })
}

/// Reads a body to its end.
pub async fn read(stream: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = soon("more of a body", stream.data()).await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = soon("trailers", stream.trailers()).await?;
    Ok((body, trailers))
}

/// Sends as much as the peer takes, piece by piece, until all of it is sent.
pub async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(got) => drop(got?),
                None => return Err(h2::Reason::STREAM_CLOSED.into()),
            }
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        stream.send_data(piece, end && data.is_empty())?;
    }
    Ok(())
}

/// A server that speaks HTTP/2 only, and whose every answer the test gives itself.
pub struct H2Upstream {
    listener: Socket<TcpListener>,
    address: SocketAddr,
}

impl H2Upstream {
    pub async fn bind() -> Self {
        let listener = Socket(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as an instance that speaks HTTP/2.
    pub fn instance(&self) -> String {
        format!("{{ address: {}, protocol: http2 }}", self.address)
    }

    pub async fn accept(&self) -> ServerConnection {
        self.accept_as(&server::Builder::new()).await
    }

    pub async fn accept_as(&self, builder: &server::Builder) -> ServerConnection {
        ServerConnection::start(self.accept_stream().await, builder.clone())
    }

    pub async fn accept_raw(&self) -> RawServer {
        RawServer::start(Peer::new(self.accept_stream().await)).await
    }

    async fn accept_stream(&self) -> TcpStream {
        let stream = soon("a connection", self.listener.accept()).await.unwrap().0;
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Whether nobody has connected since the last accept.
    pub fn is_left_alone(&self) -> bool {
        socket2::SockRef::from(&*self.listener).accept().is_err()
    }
}

/// One connection of an [`H2Upstream`].
pub struct ServerConnection {
    requests: mpsc::UnboundedReceiver<Exchange>,
    goaway: mpsc::UnboundedSender<()>,
    task: AbortHandle,
}

/// A request that waits for its answer.
pub struct Exchange {
    pub request: request::Parts,
    pub body: RecvStream,
    pub respond: server::SendResponse<Bytes>,
}

impl Drop for ServerConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ServerConnection {
    fn start(stream: TcpStream, builder: server::Builder) -> Self {
        let (seen, requests) = mpsc::unbounded_channel();
        let (goaway, mut asked) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let Ok(mut connection) = builder.handshake(Socket(stream)).await else { return };
            loop {
                tokio::select! {
                    accepted = connection.accept() => match accepted {
                        Some(Ok((request, respond))) => {
                            let (request, body) = request.into_parts();
                            let _ = seen.send(Exchange { request, body, respond });
                        }
                        _ => return,
                    },
                    Some(()) = asked.recv() => connection.graceful_shutdown(),
                }
            }
        });
        Self { requests, goaway, task: task.abort_handle() }
    }

    pub async fn next(&mut self) -> Exchange {
        soon("a request", self.requests.recv()).await.expect("the connection is there")
    }

    /// The next request; `None` when the connection has ended.
    pub async fn try_next(&mut self) -> Option<Exchange> {
        self.requests.recv().await
    }

    pub fn is_quiet(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }

    /// Says goodbye as servers do that are about to stop.
    pub fn goaway(&self) {
        self.goaway.send(()).unwrap();
    }
}

impl Exchange {
    pub fn ok(mut self, body: &str) {
        let mut stream = self.respond.send_response(Response::new(()), false).unwrap();
        stream.send_data(body.to_owned().into(), true).unwrap();
    }
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const END_STREAM: u8 = 1;
const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A server that writes its frames byte by byte.
pub struct RawServer {
    peer: Peer,
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl RawServer {
    async fn start(mut peer: Peer) -> Self {
        assert_eq!(peer.take(24).await, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut server = Self { peer };
        server.send(SETTINGS, 0, 0, &[]).await;
        server
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.peer.send(frame(kind, flags, stream, payload)).await;
    }

    /// 200 and a body.
    pub async fn respond(&mut self, stream: u32, body: &[u8]) {
        // 0x88: `:status 200` in HPACK's static table.
        self.send(HEADERS, END_HEADERS, stream, &[0x88]).await;
        self.send(DATA, END_STREAM, stream, body).await;
    }

    /// Says goodbye and closes, both at one moment. Streams up to `last` may have been executed.
    pub async fn goaway_and_close(mut self, last: u32, error: u32) {
        self.goaway(last, error).await;
    }

    pub async fn goaway(&mut self, last: u32, error: u32) {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), error.to_be_bytes()].concat()).await;
    }

    /// The next frame of a stream. What concerns the connection is answered here.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            let head = self.peer.take(9).await;
            let [a, b, c, kind, flags, stream @ ..] = head.as_slice() else { return None };
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let (kind, flags, stream) = (*kind, *flags, u32::from_be_bytes(stream.try_into().unwrap()));
            let payload = self.peer.take(length).await;
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await,
                PING if flags & ACK == 0 => self.send(PING, ACK, 0, &payload).await,
                _ if stream != 0 => return Some(Frame { kind, flags, stream }),
                _ => {}
            }
        }
    }

    /// Reads until a request is whole; gives its stream.
    pub async fn request(&mut self) -> u32 {
        loop {
            let frame = self.next().await.expect("a request");
            if frame.flags & END_STREAM != 0 && matches!(frame.kind, DATA | HEADERS) {
                return frame.stream;
            }
        }
    }

    pub fn reset(self) {
        self.peer.reset();
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}
