//! One HTTP/2 connection to a registry's server, and gRPC calls on it.

use super::{RegistryError, http2::Http2, server::Server};
use crate::config::Tls;
use futures_util::{Stream, future::BoxFuture};
use http::{Request, Response, uri::PathAndQuery};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use prost::Message;
use std::{
    error::Error as _,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;
use tonic::{Status, Streaming, body::Body, client::Grpc};
use tonic_prost::ProstCodec;

/// For one answer. etcd itself gives up on a request without quorum after 5 s and more, with a better reason than ours.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// A peer that vanished without a word is noticed within the sum of these two. etcd closes a connection that is pinged
/// more often than every 5 s, and one that is pinged without a call in progress; so do we neither.
const PING_INTERVAL: Duration = Duration::from_secs(8);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// For many instances in one answer; what servers send by default is at most 4 MiB.
const LARGEST_ANSWER: usize = 64 << 20;

/// One connection. Dropping it closes it.
pub struct Channel {
    server: String,
    grpc: Grpc<Sender>,
    connection: Http2<Body>,
    worked: AtomicBool,
    /// Whether the server may have hung up because it wants a client certificate. With TLS 1.3 that comes after the
    /// handshake, and often as nothing but a broken pipe.
    anonymous: bool,
}

impl Channel {
    /// Connects to `server`. Does not yet prove that it is what it should be.
    pub async fn open(server: &Server, settings: &Tls) -> Result<Self, RegistryError> {
        Self::open_with(server, settings, Some(PING_INTERVAL)).await
    }

    /// The same without pings, for servers that may close a connection which is pinged at all: those made with grpc-go do
    /// so below 5 minutes unless told otherwise.
    pub async fn open_unpinged(server: &Server, settings: &Tls) -> Result<Self, RegistryError> {
        Self::open_with(server, settings, None).await
    }

    async fn open_with(server: &Server, settings: &Tls, pings: Option<Duration>) -> Result<Self, RegistryError> {
        let connection = Http2::open(server, &settings.into(), pings, PING_TIMEOUT).await?;
        let sender = Sender(connection.sender());
        let grpc = Grpc::with_origin(sender, server.origin.clone()).max_decoding_message_size(LARGEST_ANSWER);
        Ok(Self {
            server: server.text.clone(),
            grpc,
            connection,
            worked: AtomicBool::new(false),
            anonymous: server.secure && settings.cert.is_none(),
        })
    }

    /// The server, as errors name it.
    pub fn server(&self) -> &str {
        &self.server
    }

    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Whether anything was answered on it.
    pub fn has_worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }

    /// A message came on a stream. (Calls with one answer see to this themselves.)
    pub fn answered(&self) {
        self.worked.store(true, Ordering::Relaxed);
    }

    /// One request, one answer.
    pub async fn unary<Q, A>(&self, path: &'static str, request: tonic::Request<Q>) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        let call = async {
            grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
            grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::<Q, A>::default()).await
        };
        let answer = timeout(CALL_TIMEOUT, call).await.map_err(|_| too_late())??;
        self.answered();
        Ok(answer.into_inner())
    }

    /// A stream of requests, and what the server says to them. Dropping the latter ends it at the server.
    ///
    /// Some servers send no head before their first message: who has to tell them something first has it in `requests`.
    pub async fn streaming<Q, A>(
        &self,
        path: &'static str,
        requests: tonic::Request<impl Stream<Item = Q> + Send + 'static>,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        timeout(CALL_TIMEOUT, self.quiet_streaming(path, requests)).await.map_err(|_| too_late())?
    }

    /// The same where the server may have nothing to say for as long as it likes, not even a head.
    pub async fn quiet_streaming<Q, A>(
        &self,
        path: &'static str,
        requests: tonic::Request<impl Stream<Item = Q> + Send + 'static>,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
        let answer = grpc.streaming(requests, PathAndQuery::from_static(path), ProstCodec::<Q, A>::default()).await?;
        Ok(answer.into_inner())
    }

    /// If `status` was made on this side because the transport broke: how it broke.
    pub fn broken(&self, status: &Status) -> Option<RegistryError> {
        // What the server said has no source.
        status.source()?;
        let mut cause = self.connection.cause(status);
        if self.anonymous && !self.has_worked() {
            cause.push_str(" (does it want a client certificate? none is set)");
        }
        Some(RegistryError::Unreachable { server: self.server.clone(), cause })
    }
}

fn too_late() -> Status {
    Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}"))
}

/// A connection's sending half as tonic wants to see it.
#[derive(Clone)]
struct Sender(SendRequest<Body>);

impl tower::Service<Request<Body>> for Sender {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, hyper::Result<Response<Incoming>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
