//! Consul's HTTP API, as much of it as is needed to follow services.

use super::{decode::Row, limit::RateLimit};
use crate::{
    config::{ConsulRegistry, Secret},
    net::tls,
    registry::{RegistryError, SetupError},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use indexmap::IndexMap;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use std::{collections::BTreeMap, error::Error, time::Duration};
use tokio::time::timeout;

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");
const INDEX: &str = "x-consul-index";
const KNOWN_LEADER: &str = "x-consul-knownleader";
const BACKEND: &str = "x-consul-query-backend";
const FILTERED: &str = "x-consul-results-filtered-by-acls";
const DEFAULT_POLICY: &str = "x-consul-default-acl-policy";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For the network and a busy agent, on top of the time that a query may take there.
const MARGIN: Duration = Duration::from_secs(10);
/// TCP's own probes, so that an agent's machine that went away is noticed before the query's time is over.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// An answer of 10,000 instances with their checks is about 15 MiB.
const LARGEST_ANSWER: usize = 64 << 20;
/// As much of an error's text as fits in a line of a log.
const LONGEST_CAUSE: usize = 300;

const SEGMENT: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'/').add(b'?').add(b'<').add(b'>');

/// The time after which a query that may wait for `wait` is given up: the agent adds up to a sixteenth.
pub fn answer_limit(wait: Duration) -> Duration {
    wait + wait / 16 + MARGIN
}

/// Requests to one agent.
pub struct Client {
    /// As the operator wrote it: what errors name.
    server: String,
    http: HttpClient<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    token: Option<HeaderValue>,
    limit: RateLimit,
    /// Query parameters of every health query, and of every listing.
    health_query: String,
    list_query: String,
}

/// The answer to a health query.
pub struct Health {
    pub rows: Vec<Row>,
    /// What to wait on next time.
    pub index: u64,
}

struct Answer {
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    pub fn new(config: &ConsulRegistry) -> Result<Self, SetupError> {
        let server = config.address.trim_end_matches('/').to_owned();
        let bad =
            || SetupError::Address { text: server.clone(), expected: "`http://HOST:PORT` or `https://HOST:PORT`" };
        let uri: Uri = server.parse().map_err(|_| bad())?;
        let (Some(scheme), Some(host), Some(_)) = (uri.scheme_str(), uri.host(), uri.port()) else { return Err(bad()) };
        if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(bad());
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        let builder = HttpsConnectorBuilder::new();
        let connector = match scheme {
            "https" => builder
                .with_tls_config(tls::client_config(&config.tls, &[])?)
                .https_only()
                .with_server_name_resolver(FixedServerNameResolver::new(tls::server_name(&config.tls, host)?))
                .enable_http1()
                .wrap_connector(connector),
            "http" => builder
                .with_tls_config(tls::trusting_nobody()?)
                .https_or_http()
                .enable_http1()
                .wrap_connector(connector),
            _ => return Err(bad()),
        };
        let token = config.token.as_ref().map(header).transpose()?;
        let common = common_query(config);
        Ok(Self {
            server,
            http: HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector),
            token,
            limit: RateLimit::new(config.max_requests_per_second),
            health_query: format!("{common}{}", health_query(config)),
            list_query: common,
        })
    }

    /// The instances of `service`, at once if `index` is 0, else as soon as something changed after it or `wait` is over.
    pub async fn health(&self, service: &str, index: u64, wait: Duration) -> Result<Health, RegistryError> {
        let service = utf8_percent_encode(service, SEGMENT);
        let mut path = format!("/v1/health/service/{service}?{}", self.health_query);
        let mut limit = MARGIN;
        if index > 0 {
            path.push_str(&format!("&index={index}&wait={}ms", wait.as_millis()));
            limit = answer_limit(wait);
        }
        let answer = self.get(&path, limit).await?;
        // A `stale` answer of a server that may have been cut off long ago. Answers from the agent's own stream of events
        // always say `false`, and mean nothing by it (seen with 1.16).
        if header_is(&answer.headers, KNOWN_LEADER, "false") && !header_is(&answer.headers, BACKEND, "streaming") {
            return Err(RegistryError::Busy { server: self.server.clone(), cause: "No cluster leader".into() });
        }
        let index = answer.headers.get(INDEX).and_then(|index| index.to_str().ok()?.parse().ok());
        let index = index.ok_or_else(|| self.protocol("there is no X-Consul-Index; is it a Consul agent?"))?;
        let rows: Vec<Row> = serde_json::from_slice(&answer.body).map_err(|error| self.protocol(error))?;
        if rows.is_empty() && self.hides(&answer.headers).await? {
            return Err(self.no_rights());
        }
        Ok(Health { rows, index })
    }

    /// The names of all services.
    pub async fn services(&self) -> Result<Vec<String>, RegistryError> {
        let services = self.catalog().await?;
        // Consul itself is always among them.
        if services.is_empty() { Err(self.no_rights()) } else { Ok(services) }
    }

    async fn catalog(&self) -> Result<Vec<String>, RegistryError> {
        let answer = self.get(&format!("/v1/catalog/services?{}", self.list_query), MARGIN).await?;
        let services: BTreeMap<String, serde::de::IgnoredAny> =
            serde_json::from_slice(&answer.body).map_err(|error| self.protocol(error))?;
        Ok(services.into_keys().collect())
    }

    /// Whether an empty answer with these headers may be empty only because of missing rights. To those without a token
    /// Consul does not admit that it hid something; but who may see no service at all, not even Consul, has no rights.
    async fn hides(&self, headers: &HeaderMap) -> Result<bool, RegistryError> {
        if self.token.is_none() && header_is(headers, DEFAULT_POLICY, "deny") {
            return Ok(self.catalog().await?.is_empty());
        }
        Ok(header_is(headers, FILTERED, "true"))
    }

    fn no_rights(&self) -> RegistryError {
        let who = if self.token.is_some() { "the token has" } else { "there is no token, and without one there are" };
        let cause = format!("{who} no rights to see it; needed are service:read and node:read");
        RegistryError::Refused { server: self.server.clone(), cause }
    }

    async fn get(&self, path: &str, limit: Duration) -> Result<Answer, RegistryError> {
        self.limit.turn().await;
        let mut request = Request::get(format!("{}{path}", self.server));
        if let Some(token) = &self.token {
            request = request.header(TOKEN, token);
        }
        let request = request.body(Empty::new()).map_err(|error| self.protocol(error))?;
        let call = async {
            let answer = self.http.request(request).await.map_err(|error| root_cause(&error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await.map_err(|error| error.to_string())?;
            Ok((head, body.to_bytes()))
        };
        let unreachable = |cause| RegistryError::Unreachable { server: self.server.clone(), cause };
        let (head, body) = match timeout(limit, call).await {
            Ok(answer) => answer.map_err(unreachable)?,
            Err(_) => return Err(unreachable(format!("no answer within {limit:?}"))),
        };
        if head.status == StatusCode::OK {
            return Ok(Answer { headers: head.headers, body });
        }
        Err(self.refusal(head.status, &body))
    }

    /// What a status other than 200 means.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> RegistryError {
        let text = String::from_utf8_lossy(body);
        let cause = format!("{status}: {}", text.trim().chars().take(LONGEST_CAUSE).collect::<String>());
        let server = self.server.clone();
        match status {
            StatusCode::TOO_MANY_REQUESTS => RegistryError::Busy { server, cause },
            _ if status.is_server_error() && text.contains("Permission denied") || text.contains("ACL not found") => {
                RegistryError::Refused { server, cause }
            }
            _ if status.is_server_error() => RegistryError::Busy { server, cause },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                RegistryError::Refused { server, cause }
            }
            _ => RegistryError::Protocol { server, cause },
        }
    }

    fn protocol(&self, cause: impl ToString) -> RegistryError {
        RegistryError::Protocol { server: self.server.clone(), cause: cause.to_string() }
    }
}

fn header(token: &Secret) -> Result<HeaderValue, SetupError> {
    let mut value = HeaderValue::from_str(token.expose()).map_err(|_| SetupError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

fn header_is(headers: &HeaderMap, name: &str, value: &str) -> bool {
    headers.get(name).is_some_and(|found| found.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
}

/// The innermost error: "Connection refused" rather than "client error (Connect)".
fn root_cause(error: &dyn Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// `stale` lets every server answer and not only the leader, as Consul advises for watching; an answer from a server
/// without a leader is refused instead.
fn common_query(config: &ConsulRegistry) -> String {
    let dc = config.dc.as_ref().map(|dc| format!("&dc={}", encoded(dc)));
    format!("stale{}", dc.unwrap_or_default())
}

fn health_query(config: &ConsulRegistry) -> String {
    // Without `passing` those in warning come too, and so do the critical ones, which the decoder drops.
    let passing = if config.only_passing { "&passing=1" } else { "" };
    match filter(&config.tags, &config.meta) {
        Some(filter) => format!("{passing}&filter={}", encoded(&filter)),
        None => passing.into(),
    }
}

fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

/// Tags and metadata as an expression of Consul's filter language. (The parameters `tag` and `node-meta` are deprecated.)
fn filter(tags: &[String], meta: &IndexMap<String, String>) -> Option<String> {
    let tags = tags.iter().map(|tag| format!("{} in Service.Tags", quoted(tag)));
    let meta = meta.iter().map(|(key, value)| format!("Service.Meta[{}] == {}", quoted(key), quoted(value)));
    let terms: Vec<_> = tags.chain(meta).collect();
    (!terms.is_empty()).then(|| terms.join(" and "))
}

/// As a string of Go, which is what the language's strings are; but its grammar ends one at any quotation mark, escaped
/// or not.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\x22"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_quoted() {
        assert_eq!(filter(&[], &IndexMap::new()), None);
        let meta = IndexMap::from([("ver sion".to_owned(), r#"a"b\c"#.to_owned())]);
        let expected = r#""x" in Service.Tags and "y" in Service.Tags and Service.Meta["ver sion"] == "a\x22b\\c""#;
        assert_eq!(filter(&["x".into(), "y".into()], &meta).as_deref(), Some(expected));
    }

    #[test]
    fn addresses_are_urls() {
        let client = |address: &str| Client::new(&ConsulRegistry { address: address.into(), ..Default::default() });
        for address in ["http://127.0.0.1:8500", "http://consul.internal:80/behind/a/proxy/", "http://[::1]:8500"] {
            assert!(client(address).is_ok(), "{address}");
        }
        for address in ["", "127.0.0.1:8500", "http://a", "consul://a:1", "http://a:1?token=x", "http://u:p@a:1"] {
            let error = client(address).err().unwrap().to_string();
            assert!(error.contains("expected `http://HOST:PORT`"), "{address}: {error}");
        }
    }

    #[tokio::test]
    async fn statuses_are_told_apart() {
        let client = Client::new(&ConsulRegistry::default()).unwrap();
        for (status, body, expected) in [
            (403, "Permission denied: token with AccessorID '0' lacks permission", "refused"),
            (403, "ACL not found", "refused"),
            (400, "Failed to create boolean expression evaluator", "refused"),
            (500, "No cluster leader", "is not able to answer"),
            (500, "rpc error making call: Permission denied", "refused"),
            (429, "Your IP is issuing too many concurrent connections", "is not able to answer"),
            (503, "", "is not able to answer"),
            (404, "", "something unexpected"),
            (302, "", "something unexpected"),
        ] {
            let error = client.refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes()).to_string();
            assert!(error.contains(expected), "{status} {body}: {error}");
        }
    }
}
