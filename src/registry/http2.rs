//! One HTTP/2 connection to a registry's server.

use super::{RegistryError, server::Server};
use crate::{error::root_cause, net::tls};
use hyper::{
    body::Body,
    client::conn::http2::{self, SendRequest},
    rt::{Read, Write},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    error::Error,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_rustls::TlsConnector;

/// To open a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// One connection, for requests with bodies of type `B`. Dropping it closes it.
pub struct Http2<B> {
    sender: SendRequest<B>,
    driver: JoinHandle<()>,
    /// Why it ended. The exchanges on it are only told that it did.
    end: Arc<OnceLock<String>>,
    most_streams: Arc<AtomicUsize>,
}

impl<B> Drop for Http2<B> {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl<B> Http2<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Connects to `server`, with TLS if it wants that. Does not yet prove that it is what it should be.
    ///
    /// While there is an exchange, a server that has been silent for `ping_interval` is asked for a sign of life, and given
    /// up without one within `ping_timeout`; `None`: it is never asked.
    pub async fn open(
        server: &Server,
        tls: &tls::Client,
        ping_interval: Option<Duration>,
        ping_timeout: Duration,
    ) -> Result<Self, RegistryError> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(ping_interval)
            .keep_alive_timeout(ping_timeout)
            .keep_alive_while_idle(false);
        let opened = timeout(CONNECT_TIMEOUT, async {
            let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(|e| e.to_string())?;
            tcp.set_nodelay(true).map_err(|e| e.to_string())?;
            if !server.secure {
                return Self::handshake(&builder, TokioIo::new(tcp)).await;
            }
            let config = tls.config(&["h2"]).map_err(|e| e.to_string())?;
            let name = tls.server_name(&server.host).map_err(|e| e.to_string())?;
            let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| e.to_string())?;
            Self::handshake(&builder, TokioIo::new(tls)).await
        });
        let unreachable = |cause: String| RegistryError::Unreachable { server: server.text.clone(), cause };
        match opened.await {
            Ok(opened) => opened.map_err(unreachable),
            Err(_) => Err(unreachable(format!("no connection within {CONNECT_TIMEOUT:?}"))),
        }
    }

    async fn handshake<I>(builder: &http2::Builder<TokioExecutor>, io: I) -> Result<Self, String>
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let (sender, mut connection) = builder.handshake(io).await.map_err(|e| root_cause(&e))?;
        let end = Arc::new(OnceLock::new());
        let most_streams = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
        let driver = tokio::spawn({
            let (end, most_streams) = (end.clone(), most_streams.clone());
            async move {
                let driven = poll_fn(|cx| {
                    let polled = Pin::new(&mut connection).poll(cx);
                    most_streams.store(connection.current_max_send_streams(), Ordering::Relaxed);
                    polled
                });
                if let Err(error) = driven.await {
                    let _ = end.set(root_cause(&error));
                }
            }
        });
        Ok(Self { sender, driver, end, most_streams })
    }

    /// A sending half of it.
    pub fn sender(&self) -> SendRequest<B> {
        self.sender.clone()
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// How many exchanges the server allows at one time. A guess until it has said so, which it does first of all.
    pub fn most_streams(&self) -> usize {
        self.most_streams.load(Ordering::Relaxed)
    }

    /// Why an exchange on it failed with `error`, which may only say that the connection ended.
    pub fn cause(&self, error: &dyn Error) -> String {
        self.end.get().cloned().unwrap_or_else(|| root_cause(error))
    }
}
