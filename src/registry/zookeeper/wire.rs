//! A connection to one server up to the moment that its session is open: TCP, TLS, the session's handshake, who we are.

use super::proto::{self, Code, Message, Request, Session, WatchMode};
use crate::{
    config::{Secret, Tls},
    net::tls,
    registry::{RegistryError, SetupError, server::Server},
};
use bytes::{Bytes, BytesMut};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// To open a connection and its session, TLS included. A new session has to be agreed upon by most servers.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// A TCP connection, with TLS or without.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// User and password for the scheme `digest`.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub user: String,
    pub password: Secret,
}

/// How servers are connected to.
pub struct Opener {
    tls: Tls,
    credentials: Option<Credentials>,
    session_timeout_ms: i32,
    /// The servers are older than 3.6, and have no watches but those that fire once.
    old: AtomicBool,
}

/// An open session.
pub struct Opened {
    pub stream: Box<dyn Stream>,
    pub session: Session,
    /// Whether there are watches over a node and all below it.
    pub recursive: bool,
}

impl Opener {
    pub fn new(
        servers: &[Server],
        tls: &Tls,
        credentials: Option<Credentials>,
        session_timeout: Duration,
    ) -> Result<Self, SetupError> {
        // Said now, by name of the file, rather than as a failure to connect.
        for server in servers.iter().filter(|server| server.secure) {
            tls::client_config(tls, &[])?;
            tls::server_name(tls, &server.host)?;
        }
        let session_timeout_ms = millis(session_timeout);
        Ok(Self { tls: tls.clone(), credentials, session_timeout_ms, old: AtomicBool::new(false) })
    }

    pub fn with_session_timeout(&self, timeout: Duration) -> Self {
        Self {
            tls: self.tls.clone(),
            credentials: self.credentials.clone(),
            session_timeout_ms: millis(timeout),
            old: AtomicBool::new(self.old.load(Relaxed)),
        }
    }

    /// Opens a session at `server`: `last`, with the newest change that was seen in it, if it still lives, or a new one.
    pub async fn open(&self, server: &Server, last: Option<(Session, i64)>) -> Result<Opened, RegistryError> {
        let all = async {
            let mut wanted = last;
            loop {
                match self.attempt(server, wanted.as_ref()).await? {
                    Attempt::Opened(opened) => return Ok(opened),
                    // The server hangs up on both; the next attempt can fail in neither way.
                    Attempt::Expired => wanted = None,
                    Attempt::Old(session) => {
                        self.old.store(true, Relaxed);
                        wanted = Some((session, 0));
                    }
                }
            }
        };
        timeout(OPEN_TIMEOUT, all)
            .await
            .unwrap_or_else(|_| Err(unreachable(server, format!("no session within {OPEN_TIMEOUT:?}"))))
    }

    async fn attempt(&self, server: &Server, last: Option<&(Session, i64)>) -> Result<Attempt, RegistryError> {
        let mut wire = Wire { server, stream: self.stream(server).await?, input: BytesMut::new(), opened: false };
        let new = Session { timeout_ms: self.session_timeout_ms, ..Session::default() };
        let (wanted, zxid) = last.map_or((&new, 0), |(session, zxid)| (session, *zxid));
        let mut output = BytesMut::new();
        proto::put_connect(&mut output, wanted, zxid);
        wire.send(&output).await?;
        let Some(session) = proto::connected(wire.frame().await?).map_err(|_| wire.malformed())? else {
            return if last.is_some() { Ok(Attempt::Expired) } else { Err(wire.malformed()) };
        };
        wire.opened = true;
        if let Some(Credentials { user, password }) = &self.credentials {
            let refused = wire.ask(&[Request::Digest { user, password: password.expose() }]).await?;
            if let Some(code) = refused {
                return Err(refusal(&server.text, code, "the user and password"));
            }
        }
        let recursive = !self.old.load(Relaxed);
        if recursive {
            // Only to hear whether it can. Nothing is watched after this, whatever the answer.
            let probe =
                [Request::AddWatch { path: "/", mode: WatchMode::Persistent }, Request::RemoveWatches { path: "/" }];
            match wire.ask(&probe).await? {
                Some(Code::UNIMPLEMENTED) => return Ok(Attempt::Old(session)),
                Some(code) => return Err(refusal(&server.text, code, "a watch")),
                None => {}
            }
        }
        Ok(Attempt::Opened(Opened { stream: wire.stream, session, recursive }))
    }

    async fn stream(&self, server: &Server) -> Result<Box<dyn Stream>, RegistryError> {
        let failed = |cause: String| unreachable(server, cause);
        let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(|e| failed(e.to_string()))?;
        tcp.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
        if !server.secure {
            return Ok(Box::new(tcp));
        }
        let config = tls::client_config(&self.tls, &[]).map_err(|e| failed(e.to_string()))?;
        let name = tls::server_name(&self.tls, &server.host).map_err(|e| failed(e.to_string()))?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| failed(e.to_string()))?;
        Ok(Box::new(tls))
    }
}

enum Attempt {
    Opened(Opened),
    /// The session that was to be taken up is no more.
    Expired,
    /// The server has never heard of watches that stay.
    Old(Session),
}

/// A connection on which one thing is said after the other.
struct Wire<'a> {
    server: &'a Server,
    stream: Box<dyn Stream>,
    input: BytesMut,
    /// Whether the server has said anything yet.
    opened: bool,
}

impl Wire<'_> {
    /// Sends `requests` at once, and waits for the answers: the first code that is an error.
    async fn ask(&mut self, requests: &[Request<'_>]) -> Result<Option<Code>, RegistryError> {
        let mut output = BytesMut::new();
        for request in requests {
            // Nobody counts here: the answers come in order.
            proto::put_request(&mut output, 0, *request);
        }
        self.send(&output).await?;
        for _ in requests {
            match proto::message(self.frame().await?).map_err(|_| self.malformed())? {
                Message::Reply { answer: Err(code), .. } => return Ok(Some(code)),
                Message::Reply { .. } => {}
                // There is no watch yet that it could be of.
                Message::Event(_) => return Err(self.malformed()),
            }
        }
        Ok(None)
    }

    async fn send(&mut self, output: &[u8]) -> Result<(), RegistryError> {
        self.stream.write_all(output).await.map_err(|error| self.broken(&error))?;
        self.stream.flush().await.map_err(|error| self.broken(&error))
    }

    async fn frame(&mut self) -> Result<Bytes, RegistryError> {
        loop {
            if let Some(frame) = proto::take_frame(&mut self.input).map_err(|_| self.malformed())? {
                return Ok(frame);
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) if self.opened => return Err(unreachable(self.server, "it hung up".into())),
                Ok(0) => return Err(unreachable(self.server, self.hung_up())),
                Ok(_) => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    /// A server says nothing before it hangs up; these are its reasons.
    fn hung_up(&self) -> String {
        let tls = if self.server.secure { "" } else { ", wants TLS (`tls://HOST:PORT`)" };
        format!(
            "it hung up: it is not part of a quorum, is behind the server before it{tls}, or has too many connections"
        )
    }

    fn broken(&self, error: &std::io::Error) -> RegistryError {
        unreachable(self.server, error.to_string())
    }

    fn malformed(&self) -> RegistryError {
        RegistryError::Protocol { server: self.server.text.clone(), cause: proto::Malformed.to_string() }
    }
}

fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

pub fn unreachable(server: &Server, cause: String) -> RegistryError {
    RegistryError::Unreachable { server: server.text.clone(), cause }
}

/// What `code` means for whoever wrote to `path`.
pub fn write_refusal(server: &str, code: Code, path: &str) -> RegistryError {
    match code {
        Code::NO_AUTH => RegistryError::Refused {
            server: server.into(),
            cause: format!(
                "no right to write {path} (NoAuth); expected `user` and `password` that the ACLs let create and delete"
            ),
        },
        _ => refusal(server, code, path),
    }
}

/// What `code` means for whoever asked for `what`.
pub fn refusal(server: &str, code: Code, what: &str) -> RegistryError {
    let server = server.to_owned();
    match code {
        Code::NO_AUTH => RegistryError::Refused {
            server,
            cause: format!("no right to read {what} (NoAuth); expected `user` and `password` that its ACL lets read"),
        },
        Code::AUTH_FAILED | Code::AUTH_REQUIRED => {
            RegistryError::Refused { server, cause: format!("{what}: {} ({})", code.name(), code.0) }
        }
        _ => RegistryError::Protocol { server, cause: format!("{what}: {} ({})", code.name(), code.0) },
    }
}
