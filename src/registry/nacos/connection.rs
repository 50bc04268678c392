//! How a server is talked to: over gRPC, or over HTTP where that cannot be had.

use super::{
    calls::Calls,
    login::{Credentials, Login},
    poll::Api,
    session::Session,
};
use crate::{
    config::{NacosRegistry, NacosTransport, Tls},
    net::tls,
    registry::{RegistryError, SetupError, grpc::Channel, http::HttpClient, link, server::Server},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tracing::warn;

/// The gRPC port of a Nacos server is its own and this.
const GRPC_OFFSET: u16 = 1000;
/// After which HTTP is left for another attempt at gRPC.
const FALLBACK_LIFETIME: Duration = Duration::from_secs(60);

/// How servers are connected to.
pub struct Connect {
    transport: NacosTransport,
    grpc_port: Option<u16>,
    grpc_tls: Option<bool>,
    namespace: String,
    clusters: Vec<String>,
    tls: Tls,
    credentials: Option<Credentials>,
}

/// The way to one server.
pub enum Connection {
    Grpc(Session),
    Http {
        api: Api,
        /// When it is over, if it is only a fallback.
        until: Option<Instant>,
    },
}

impl link::Connection for Connection {
    fn is_closed(&self) -> bool {
        match self {
            Self::Grpc(session) => session.is_over(),
            Self::Http { until, .. } => until.is_some_and(|until| until <= Instant::now()),
        }
    }

    fn has_worked(&self) -> bool {
        match self {
            Self::Grpc(session) => session.has_worked(),
            Self::Http { api, .. } => api.has_worked(),
        }
    }
}

impl Connect {
    /// And the servers of `config`.
    pub fn new(config: &NacosRegistry) -> Result<(Self, Vec<Server>), SetupError> {
        let connect = Self {
            transport: config.transport,
            grpc_port: config.grpc_port,
            grpc_tls: config.grpc_tls,
            namespace: config.namespace.clone(),
            clusters: config.clusters.clone(),
            tls: config.tls.clone(),
            credentials: config.user.as_ref().map(|user| Credentials {
                user: user.clone(),
                password: config.password.clone().unwrap_or_else(|| crate::config::Secret::new("")),
            }),
        };
        let mut servers = Server::parse_all(&config.servers)?;
        for server in &mut servers {
            server.base = config.context.trim_end_matches('/').to_owned();
            let secure = match config.transport {
                NacosTransport::Http => server.secure,
                NacosTransport::Auto | NacosTransport::Grpc => connect.grpc_server(server)?.secure || server.secure,
            };
            // Said now, by name of the file, rather than as a failure to connect.
            if secure {
                tls::client_config(&config.tls, &[])?;
                tls::server_name(&config.tls, &server.host)?;
            }
        }
        Ok((connect, servers))
    }

    fn grpc_server(&self, server: &Server) -> Result<Server, SetupError> {
        let expected = "a port of at most 64535, for gRPC is at the port 1000 above it, or `grpc_port`";
        let port = self.grpc_port.or_else(|| server.port.checked_add(GRPC_OFFSET));
        let port = port.ok_or_else(|| SetupError::Address { text: server.text.clone(), expected })?;
        let secure = self.grpc_tls.unwrap_or(server.secure);
        let (scheme, authority) = (if secure { "https" } else { "http" }, server.origin.host().unwrap_or(&server.host));
        Server::parse(&format!("{scheme}://{authority}:{port}"))
    }

    async fn grpc(&self, server: &Server) -> Result<Session, RegistryError> {
        let grpc = self.grpc_server(server).map_err(|error| misconfigured(server, &error))?;
        let channel = Channel::open(&grpc, &self.tls).await?;
        Session::open(Calls::new(channel, self.login(self.http_client(server)?)), &self.namespace).await
    }

    async fn http(&self, server: &Server) -> Result<Api, RegistryError> {
        let http = self.http_client(server)?;
        Api::open(http.clone(), self.login(http), &self.namespace, &self.clusters).await
    }

    fn http_client(&self, server: &Server) -> Result<Arc<HttpClient>, RegistryError> {
        let client = HttpClient::new(server.clone(), &self.tls).map_err(|error| misconfigured(server, &error))?;
        Ok(Arc::new(client))
    }

    fn login(&self, http: Arc<HttpClient>) -> Login {
        Login::new(http, self.credentials.clone())
    }
}

impl link::Connect for Connect {
    type Connection = Connection;

    async fn connect(&self, server: &Server) -> Result<Connection, RegistryError> {
        if self.transport == NacosTransport::Http {
            return Ok(Connection::Http { api: self.http(server).await?, until: None });
        }
        match self.grpc(server).await {
            Ok(session) => Ok(Connection::Grpc(session)),
            // What was heard on the way to gRPC is better answered by another server, or later.
            Err(error @ RegistryError::Unreachable { .. }) if self.transport == NacosTransport::Auto => {
                // Of two failures the first is told: where gRPC cannot be had either, it is what should be seen to.
                let Ok(api) = self.http(server).await else { return Err(error) };
                warn!(server = server.text, %error, "no gRPC, so services are polled over HTTP for now");
                Ok(Connection::Http { api, until: Some(Instant::now() + FALLBACK_LIFETIME) })
            }
            Err(error) => Err(error),
        }
    }
}

/// What could be told before already, unless a file changed since.
fn misconfigured(server: &Server, error: &SetupError) -> RegistryError {
    RegistryError::Unreachable { server: server.text.clone(), cause: error.to_string() }
}
