//! One connection to a Redis or a Sentinel, used by one task: open it, log in, ask, listen.

use super::resp::{Decoder, Malformed, Pipeline, Value};
use crate::{
    config::{Secret, Tls},
    net::{io::Stream, tls},
    registry::RegistryError,
};
use bytes::BytesMut;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// To open a connection, TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// For one answer. Redis is busy for seconds only with commands that it warns of.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const READ_SIZE: usize = 16 << 10;

/// What it takes to get in, at a Redis or at a Sentinel.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub tls: Option<Tls>,
}

/// An open connection.
pub struct Wire {
    stream: Stream,
    buf: BytesMut,
    decoder: Decoder,
    server: Arc<str>,
    /// Why the server may hang up before it has answered at all, which it often does without a word. (With TLS 1.3 also
    /// the lack of a client certificate is told only after the handshake.)
    suspicion: &'static str,
}

impl Wire {
    /// Connects to `host`, with TLS where `access` has it, and logs in.
    pub async fn open(host: &str, port: u16, access: &Access) -> Result<Self, RegistryError> {
        let server: Arc<str> =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }.into();
        let unreachable = |cause: String| RegistryError::Unreachable { server: server.to_string(), cause };
        let connect = async {
            let tcp = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
            tcp.set_nodelay(true).map_err(|error| error.to_string())?;
            let Some(settings) = &access.tls else { return Ok(Stream::Tcp(tcp)) };
            let config = tls::client_config(settings, &[]).map_err(|error| error.to_string())?;
            let name = tls::server_name(settings, host).map_err(|error| error.to_string())?;
            let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
            Ok(Stream::Tls(Box::new(tls.map_err(|error| match error.to_string() {
                // What a server says or does to whom it is not talking TLS with.
                text if text.contains("eof") || text.contains("corrupt message") => {
                    format!("{text} (does it expect TLS at this port?)")
                }
                text => text,
            })?)))
        };
        let stream = match timeout(CONNECT_LIMIT, connect).await {
            Ok(stream) => stream.map_err(unreachable)?,
            Err(_) if access.tls.is_some() => {
                // A Redis without TLS waits for the rest of what it takes for a command.
                return Err(unreachable(format!("no TLS within {CONNECT_LIMIT:?} (does it expect TLS at this port?)")));
            }
            Err(_) => return Err(unreachable(format!("no connection within {CONNECT_LIMIT:?}"))),
        };
        let suspicion = match &access.tls {
            None => " (does it expect TLS?)",
            Some(Tls { cert: None, .. }) => " (does it want a client certificate? none is set)",
            Some(_) => "",
        };
        let mut wire = Self { stream, buf: BytesMut::new(), decoder: Decoder::default(), server, suspicion };
        wire.log_in(access).await?;
        wire.suspicion = "";
        Ok(wire)
    }

    /// As errors name it.
    pub fn server(&self) -> &Arc<str> {
        &self.server
    }

    async fn log_in(&mut self, access: &Access) -> Result<(), RegistryError> {
        let mut login = Pipeline::new();
        match (&access.user, &access.password) {
            (_, None) => {}
            (None, Some(password)) => login.add(&["AUTH", password.expose()]),
            (Some(user), Some(password)) => login.add(&["AUTH", user, password.expose()]),
        }
        // So that a server which does not want us has said so, and because it is needed later.
        login.add(&["PING"]);
        let answers = self.ask(&login).await?;
        match answers.iter().find_map(|answer| if let Value::Error(text) = answer { Some(text) } else { None }) {
            Some(text) => Err(refusal(&self.server, text)),
            None => Ok(()),
        }
    }

    /// Sends the commands and waits for their answers, errors of the server's among them.
    pub async fn ask(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, RegistryError> {
        self.send(pipeline).await?;
        let mut answers = Vec::with_capacity(pipeline.commands());
        let all = async {
            while answers.len() < pipeline.commands() {
                answers.push(self.next().await?);
            }
            Ok(())
        };
        let done = timeout(ANSWER_LIMIT, all).await;
        done.unwrap_or_else(|_| Err(no_answer(&self.server)))?;
        Ok(answers)
    }

    pub async fn send(&mut self, pipeline: &Pipeline) -> Result<(), RegistryError> {
        let write = async {
            self.stream.write_all(pipeline.bytes()).await?;
            self.stream.flush().await
        };
        match timeout(ANSWER_LIMIT, write).await {
            Ok(written) => written.map_err(|error| self.broken(&error)),
            Err(_) => Err(no_answer(&self.server)),
        }
    }

    /// The next value, however long it takes. May be dropped at any time without losing one.
    pub async fn next(&mut self) -> Result<Value, RegistryError> {
        loop {
            if let Some(value) = self.decoder.next(&mut self.buf).map_err(|error| malformed(&self.server, &error))? {
                return Ok(value);
            }
            self.buf.reserve(READ_SIZE);
            match self.stream.read_buf(&mut self.buf).await {
                Ok(0) => return Err(self.broken(&io::Error::other("the server closed the connection"))),
                Ok(_) => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    fn broken(&self, error: &io::Error) -> RegistryError {
        RegistryError::Unreachable { server: self.server.to_string(), cause: format!("{error}{}", self.suspicion) }
    }
}

pub fn no_answer(server: &str) -> RegistryError {
    RegistryError::Unreachable { server: server.into(), cause: format!("no answer within {ANSWER_LIMIT:?}") }
}

fn malformed(server: &str, error: &Malformed) -> RegistryError {
    RegistryError::Protocol { server: server.into(), cause: error.to_string() }
}

/// What an error of the server's means.
pub fn refusal(server: &str, text: &str) -> RegistryError {
    let server = server.to_owned();
    let cause = match text.split(' ').next().unwrap_or_default() {
        "LOADING" | "MASTERDOWN" | "READONLY" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" => {
            return RegistryError::Busy { server, cause: text.into() };
        }
        "NOAUTH" => format!("{text} (set `password`, and `user` unless it is the default user)"),
        "WRONGPASS" => format!("{text} (check `user` and `password`)"),
        "MOVED" | "ASK" | "CROSSSLOT" => format!("{text} (it is a Redis Cluster; expected a single Redis or Sentinel)"),
        _ => text.into(),
    };
    RegistryError::Refused { server, cause }
}
