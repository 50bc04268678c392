//! HTTP to a registry's server: time and size are limited, errors name the server and their innermost cause.

use super::{RegistryError, SetupError, server::Server};
use crate::{config::Tls, error::root_cause, net::tls};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use std::{future::Future, time::Duration};
use tokio::time::timeout;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// TCP's own probes, so that a server's machine that went away is noticed before a request's time is over.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// Consul's answer of 10,000 instances with their checks is about 15 MiB.
const LARGEST_ANSWER: usize = 64 << 20;
/// As much of an error's text as fits in a line of a log.
const LONGEST_CAUSE: usize = 300;

/// Requests to one server, over connections that are kept.
pub struct HttpClient {
    server: Server,
    /// What paths are appended to.
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// A whole answer, whatever its status.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl HttpClient {
    /// Does not connect yet. Fails if TLS is asked for and its files cannot be used.
    pub fn new(server: Server, settings: &Tls) -> Result<Self, SetupError> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        let builder = HttpsConnectorBuilder::new();
        let connector = if server.secure {
            builder
                .with_tls_config(tls::client_config(settings, &[])?)
                .https_only()
                .with_server_name_resolver(FixedServerNameResolver::new(tls::server_name(settings, &server.host)?))
                .enable_http1()
                .wrap_connector(connector)
        } else {
            builder.with_tls_config(tls::trusting_nobody()?).https_or_http().enable_http1().wrap_connector(connector)
        };
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let base = format!("{}{}", server.origin.to_string().trim_end_matches('/'), server.base);
        Ok(Self { server, base, client })
    }

    /// The server, as errors name it.
    pub fn server(&self) -> &str {
        &self.server.text
    }

    /// Sends a request, whose URI is only a path with its query, and reads the whole answer, all within `limit`.
    pub async fn send(
        &self,
        request: http::Result<Request<Full<Bytes>>>,
        limit: Duration,
    ) -> Result<Answer, RegistryError> {
        self.within(limit, async {
            let (head, body) = self.exchange(request).await?.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await;
            let body = body.map_err(|error| self.unreachable(error.to_string()))?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        })
        .await
    }

    /// Sends such a request, and reads no more than the head of the answer.
    pub async fn exchange(
        &self,
        request: http::Result<Request<Full<Bytes>>>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut request = request.map_err(|error| self.protocol(error))?;
        let uri = format!("{}{}", self.base, request.uri());
        *request.uri_mut() = uri.parse().map_err(|error: http::uri::InvalidUri| self.protocol(error))?;
        self.client.request(request).await.map_err(|error| self.unreachable(root_cause(&error)))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let late = |_| self.unreachable(format!("no answer within {limit:?}"));
        timeout(limit, call).await.map_err(late)?
    }

    pub fn unreachable(&self, cause: String) -> RegistryError {
        RegistryError::Unreachable { server: self.server.text.clone(), cause }
    }

    pub fn protocol(&self, cause: impl ToString) -> RegistryError {
        RegistryError::Protocol { server: self.server.text.clone(), cause: cause.to_string() }
    }

    /// What a status that is not the one hoped for means in general: 401, 403 and 400 are refusals, 429 and 5xx mean that
    /// the server is not able to now, all others are unexpected.
    pub fn refusal(&self, status: StatusCode, body: &[u8]) -> RegistryError {
        let text = String::from_utf8_lossy(body);
        let cause = format!("{status}: {}", text.trim().chars().take(LONGEST_CAUSE).collect::<String>());
        let server = self.server.text.clone();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                RegistryError::Refused { server, cause }
            }
            StatusCode::TOO_MANY_REQUESTS => RegistryError::Busy { server, cause },
            _ if status.is_server_error() => RegistryError::Busy { server, cause },
            _ => RegistryError::Protocol { server, cause },
        }
    }
}
