//! One connection to one member, and the calls that are made on it.

use super::proto::{
    self, AuthenticateRequest, AuthenticateResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseRequest, LeaseRevokeResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchRequest,
    WatchResponse,
};
use crate::{
    config::{Secret, Tls},
    net::tls,
    registry::{
        RegistryError, SetupError,
        grpc::{CALL_TIMEOUT, Channel},
        link,
        server::Server,
        watch::Failure,
    },
};
use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt as _, stream};
use prost::Message;
use std::sync::Arc;
use tokio::{sync::OnceCell, time::timeout};
use tonic::{
    Code, Status, Streaming,
    metadata::{Ascii, MetadataValue},
};

/// User and password.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub user: String,
    pub password: Secret,
}

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
    /// There is no such lease.
    Lease,
    /// The revision is gone (compacted), or not there yet (the cluster was restored): list again.
    Revision(String),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Member(error) | CallError::Call(error) => Self::Error(error),
            CallError::Revision(reason) => Self::Stale(reason),
            CallError::Lease => Self::Stale("there is no such lease".into()),
        }
    }
}

/// How members are connected to.
pub struct Connect {
    tls: Tls,
    credentials: Option<Credentials>,
}

impl Connect {
    pub fn new(servers: &[Server], tls: &Tls, credentials: Option<Credentials>) -> Result<Self, SetupError> {
        // Said now, by name of the file, rather than as a failure to connect.
        for server in servers.iter().filter(|server| server.secure) {
            tls::client_config(tls, &[])?;
            tls::server_name(tls, &server.host)?;
        }
        Ok(Self { tls: tls.clone(), credentials })
    }
}

impl link::Connect for Connect {
    type Connection = Connection;

    async fn connect(&self, server: &Server) -> Result<Connection, RegistryError> {
        let channel = Channel::open(server, &self.tls).await?;
        Ok(Connection { channel, credentials: self.credentials.clone(), token: ArcSwap::default() })
    }
}

/// One connection. Dropping it closes it.
pub struct Connection {
    channel: Channel,
    credentials: Option<Credentials>,
    token: ArcSwap<TokenCell>,
}

impl link::Connection for Connection {
    fn is_closed(&self) -> bool {
        self.channel.is_closed()
    }

    fn has_worked(&self) -> bool {
        self.channel.has_worked()
    }
}

impl Connection {
    pub fn server(&self) -> &str {
        self.channel.server()
    }

    /// One page of a range.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, CallError> {
        self.unary(proto::RANGE, request).await
    }

    /// If what was compared was as expected, and so the rest was done: the revision at which it was.
    pub async fn transaction(&self, request: TxnRequest) -> Result<Option<i64>, CallError> {
        let answer: TxnResponse = self.unary(proto::TXN, request).await?;
        Ok(answer.succeeded.then(|| answer.header.map_or(0, |header| header.revision)))
    }

    /// A new lease of so many seconds, or of as few as the server allows.
    pub async fn grant(&self, ttl: i64) -> Result<i64, CallError> {
        let answer: LeaseGrantResponse = self.unary(proto::LEASE_GRANT, LeaseGrantRequest { ttl }).await?;
        Ok(answer.id)
    }

    /// Ends a lease, and with it the keys that hang on it.
    pub async fn revoke(&self, lease: i64) -> Result<(), CallError> {
        let _: LeaseRevokeResponse = self.unary(proto::LEASE_REVOKE, LeaseRequest { id: lease }).await?;
        Ok(())
    }

    /// Starts a lease's time anew. False: it has run out.
    pub async fn keep_alive(&self, lease: i64) -> Result<bool, CallError> {
        let (_, token) = self.token().await?;
        // It stays open, as some servers send nothing before it ends and others nothing after.
        let one = stream::iter([LeaseRequest { id: lease }]).chain(stream::pending());
        let answers = self.channel.streaming(proto::LEASE_KEEP_ALIVE, with_metadata(one, token)).await;
        let mut answers: Streaming<LeaseKeepAliveResponse> = answers.map_err(|status| self.call_error(&status))?;
        let answer = timeout(CALL_TIMEOUT, answers.message()).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("a lease was not renewed in time")));
        match answer.map_err(|status| self.call_error(&status))? {
            Some(answer) => Ok(answer.ttl > 0),
            None => Err(self.canceled("the stream ended", 0)),
        }
    }

    async fn unary<Q, A>(&self, path: &'static str, request: Q) -> Result<A, CallError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut first = true;
        loop {
            let (cell, token) = self.token().await?;
            let answer = self.channel.unary(path, with_metadata(request.clone(), token)).await;
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
        let answers = self.channel.streaming(proto::WATCH, with_metadata(requests, token)).await;
        answers.map_err(|status| self.call_error(&status))
    }

    /// The error that `status` is for a caller.
    pub fn call_error(&self, status: &Status) -> CallError {
        if let Some(broken) = self.channel.broken(status) {
            return CallError::Member(broken);
        }
        let (server, cause) = (self.server().to_owned(), status.message().to_owned());
        match status.code() {
            Code::OutOfRange => CallError::Revision(cause),
            Code::NotFound => CallError::Lease,
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
        let server = self.server().to_owned();
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
        let request = with_metadata(request, None);
        match self.channel.unary::<_, AuthenticateResponse>(proto::AUTHENTICATE, request).await {
            Ok(answer) => Ok(Some(answer.token.parse().map_err(|_| {
                CallError::Call(RegistryError::Protocol {
                    server: self.server().into(),
                    cause: "its token cannot be sent in a header".into(),
                })
            })?)),
            // Credentials that are not needed yet: authentication may be switched on later.
            Err(status) if status.message().contains("authentication is not enabled") => Ok(None),
            Err(status) => Err(self.call_error(&status)),
        }
    }
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
