//! One HTTP/2 connection to one member, and the calls that are made on it.

use super::{
    link::Member,
    proto::{
        self, AuthenticateRequest, AuthenticateResponse, RangeRequest, RangeResponse, WatchRequest, WatchResponse,
    },
};
use crate::{
    config::{Secret, Tls},
    error::root_cause,
    net::tls,
    registry::RegistryError,
};
use arc_swap::ArcSwap;
use futures_util::{Stream, future::BoxFuture};
use http::{Request, Response, uri::PathAndQuery};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    rt::{Read, Write},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    error::Error as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{net::TcpStream, sync::OnceCell, task::JoinHandle, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Status, Streaming,
    body::Body,
    client::Grpc,
    metadata::{Ascii, MetadataValue},
};
use tonic_prost::ProstCodec;

/// To open a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For one answer. etcd itself gives up on a request without quorum after 5 s and more, with a better reason than ours.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// A peer that vanished without a word is noticed within the sum of these two. etcd closes a connection that is pinged
/// more often than every 5 s, and one that is pinged without a call in progress; so do we neither.
const PING_INTERVAL: Duration = Duration::from_secs(8);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// etcd's own limit on a request is 1.5 MiB, but an answer holds many values.
const LARGEST_ANSWER: usize = 64 << 20;

/// User and password.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub user: String,
    pub password: Secret,
}

/// What there is to a new connection: its sending half, the task that drives it, and why that ended.
type Opened = (SendRequest<Body>, JoinHandle<()>, Arc<OnceLock<String>>);

type Token = MetadataValue<Ascii>;
/// `None` inside: the cluster has authentication off.
type TokenCell = OnceCell<Option<Token>>;

/// What went wrong with a call.
#[derive(Debug)]
pub enum CallError {
    /// The connection broke, or its member cannot serve: worth trying another member.
    Member(RegistryError),
    /// This call was refused; another member would say the same.
    Call(RegistryError),
    /// The revision is gone (compacted), or not there yet (the cluster was restored): list again.
    Revision(String),
}

/// One connection. Dropping it closes it.
pub struct Connection {
    server: String,
    grpc: Grpc<Sender>,
    sender: SendRequest<Body>,
    driver: JoinHandle<()>,
    /// Why the connection ended. The calls on it are only told that it did.
    end: Arc<OnceLock<String>>,
    worked: AtomicBool,
    /// Whether the server may have hung up because it wants a client certificate. With TLS 1.3 that comes after the
    /// handshake, and often as nothing but a broken pipe.
    anonymous: bool,
    credentials: Option<Credentials>,
    token: ArcSwap<TokenCell>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects to `member`. Does not yet prove that it is an etcd.
    pub async fn open(
        member: &Member,
        settings: &Tls,
        credentials: Option<Credentials>,
    ) -> Result<Self, RegistryError> {
        let unreachable = |cause: String| RegistryError::Unreachable { server: member.text.clone(), cause };
        let opened = timeout(CONNECT_TIMEOUT, async {
            let tcp = TcpStream::connect((member.host.as_str(), member.port)).await.map_err(|e| e.to_string())?;
            tcp.set_nodelay(true).map_err(|e| e.to_string())?;
            if !member.secure {
                return handshake(TokioIo::new(tcp)).await;
            }
            let config = tls::client_config(settings, &["h2"]).map_err(|e| e.to_string())?;
            let name = tls::server_name(settings, &member.host).map_err(|e| e.to_string())?;
            let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| e.to_string())?;
            handshake(TokioIo::new(tls)).await
        });
        let (sender, driver, end) = match opened.await {
            Ok(opened) => opened.map_err(unreachable)?,
            Err(_) => return Err(unreachable(format!("no connection within {CONNECT_TIMEOUT:?}"))),
        };
        let grpc =
            Grpc::with_origin(Sender(sender.clone()), member.origin.clone()).max_decoding_message_size(LARGEST_ANSWER);
        Ok(Self {
            server: member.text.clone(),
            grpc,
            sender,
            driver,
            end,
            worked: AtomicBool::new(false),
            anonymous: member.secure && settings.cert.is_none(),
            credentials,
            token: ArcSwap::default(),
        })
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether a call has succeeded on it.
    pub fn has_worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    /// One page of a range.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, CallError> {
        let mut first = true;
        loop {
            let (cell, token) = self.token().await?;
            let answer = self.unary(proto::RANGE, with_metadata(request.clone(), token)).await;
            match answer {
                Err(status) if first && token_is_stale(&status) => {
                    self.forget(&cell);
                    first = false;
                }
                other => return other.map_err(|status| self.call_error(&status)),
            }
        }
    }

    /// A stream of watch requests, and what the server says to them. Dropping the latter ends the watch at the server.
    pub async fn watch(
        &self,
        requests: impl Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<Streaming<WatchResponse>, CallError> {
        let (_, token) = self.token().await?;
        let mut grpc = self.grpc.clone();
        let call = async {
            grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            grpc.streaming(with_metadata(requests, token), PathAndQuery::from_static(proto::WATCH), codec).await
        };
        match timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.call_error(&status)),
            Err(_) => Err(self.call_error(&too_late())),
        }
    }

    /// The error that `status` is for a caller.
    pub fn call_error(&self, status: &Status) -> CallError {
        let server = self.server.clone();
        let cause = status.message().to_owned();
        // A status with a source was made on this side: the transport broke.
        if status.source().is_some() {
            let mut cause = self.end.get().cloned().unwrap_or_else(|| root_cause(status));
            if self.anonymous && !self.has_worked() {
                cause.push_str(" (does it want a client certificate? none is set)");
            }
            return CallError::Member(RegistryError::Unreachable { server, cause });
        }
        match status.code() {
            Code::OutOfRange => CallError::Revision(cause),
            Code::Unavailable => CallError::Member(RegistryError::Busy { server, cause }),
            Code::DeadlineExceeded | Code::Cancelled => CallError::Member(RegistryError::Unreachable { server, cause }),
            Code::ResourceExhausted => CallError::Call(RegistryError::Busy { server, cause }),
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
                CallError::Call(RegistryError::Refused { server, cause })
            }
            code => CallError::Member(RegistryError::Protocol { server, cause: format!("{code:?}: {cause}") }),
        }
    }

    /// The error that a watch's cancellation is for the follower.
    pub fn canceled(&self, reason: &str, compact_revision: i64) -> CallError {
        let server = self.server.clone();
        if compact_revision != 0 || reason.contains("compacted") || reason.contains("future revision") {
            CallError::Revision(if reason.is_empty() {
                format!("compacted at {compact_revision}")
            } else {
                reason.into()
            })
        } else if reason.contains("no leader") {
            CallError::Member(RegistryError::Busy { server, cause: reason.into() })
        } else if reason.contains("permission denied") || reason.contains("auth") {
            // The range before it had a good token, but who knows what happened in between.
            self.forget(&self.token.load_full());
            CallError::Call(RegistryError::Refused { server, cause: reason.into() })
        } else {
            CallError::Call(RegistryError::Busy { server, cause: format!("the watch was cancelled: {reason}") })
        }
    }

    async fn unary<Q, A>(&self, path: &'static str, request: tonic::Request<Q>) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        let call = async {
            grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
            grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::<Q, A>::default()).await
        };
        let answer = timeout(CALL_TIMEOUT, call).await.map_err(|_| too_late())??;
        self.worked.store(true, Ordering::Relaxed);
        Ok(answer.into_inner())
    }

    /// The token, fetched by whoever needs it first, and the cell that it is in.
    async fn token(&self) -> Result<(Arc<TokenCell>, Option<Token>), CallError> {
        let cell = self.token.load_full();
        let Some(credentials) = &self.credentials else { return Ok((cell, None)) };
        let token = cell.get_or_try_init(|| self.authenticate(credentials)).await?.clone();
        Ok((cell, token))
    }

    fn forget(&self, stale: &Arc<TokenCell>) {
        self.token.compare_and_swap(stale, Arc::default());
    }

    async fn authenticate(&self, credentials: &Credentials) -> Result<Option<Token>, CallError> {
        let request =
            AuthenticateRequest { name: credentials.user.clone(), password: credentials.password.expose().to_owned() };
        match self.unary::<_, AuthenticateResponse>(proto::AUTHENTICATE, with_metadata(request, None)).await {
            Ok(answer) => Ok(Some(answer.token.parse().map_err(|_| {
                CallError::Call(RegistryError::Protocol {
                    server: self.server.clone(),
                    cause: "its token cannot be sent in a header".into(),
                })
            })?)),
            // Credentials that are not needed yet: authentication may be switched on later.
            Err(status) if status.message().contains("authentication is not enabled") => Ok(None),
            Err(status) => Err(self.call_error(&status)),
        }
    }
}

fn too_late() -> Status {
    Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}"))
}

/// What etcd says when a token ran out, was issued before rights changed, or was never asked for because
/// authentication was off.
fn token_is_stale(status: &Status) -> bool {
    ["invalid auth token", "revision of auth store is old", "user name is empty"]
        .iter()
        .any(|text| status.message().contains(text))
}

fn with_metadata<T>(message: T, token: Option<Token>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    // A member that lost its leader says so instead of waiting in silence.
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}

async fn handshake<I>(io: I) -> Result<Opened, String>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false)
        .handshake(io)
        .await
        .map_err(|e| root_cause(&e))?;
    let end = Arc::new(OnceLock::new());
    let driver = tokio::spawn({
        let end = end.clone();
        async move {
            if let Err(error) = connection.await {
                let _ = end.set(root_cause(&error));
            }
        }
    });
    Ok((sender, driver, end))
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
