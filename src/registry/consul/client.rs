//! Requests to Consul's HTTP API, and those that follow services.

use super::{decode::Row, limit::RateLimit};
use crate::{
    config::{ConsulRegistry, Secret},
    registry::{
        RegistryError, SetupError,
        http::{Answer, HttpClient},
        server::Server,
    },
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use indexmap::IndexMap;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use std::{collections::BTreeMap, time::Duration};

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");
const INDEX: &str = "x-consul-index";
const KNOWN_LEADER: &str = "x-consul-knownleader";
const BACKEND: &str = "x-consul-query-backend";
const FILTERED: &str = "x-consul-results-filtered-by-acls";
const DEFAULT_POLICY: &str = "x-consul-default-acl-policy";

/// For the network and a busy agent, on top of the time that a query may take there.
pub(super) const MARGIN: Duration = Duration::from_secs(10);
pub(super) const SEGMENT: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'/').add(b'?').add(b'<').add(b'>');

/// The time after which a query that may wait for `wait` is given up: the agent adds up to a sixteenth.
pub fn answer_limit(wait: Duration) -> Duration {
    wait + wait / 16 + MARGIN
}

/// Requests to one agent.
pub struct Client {
    http: HttpClient,
    token: Option<HeaderValue>,
    limit: RateLimit,
    /// Query parameters: which of a service's instances are asked for, and the datacenter. Each begins with `&` or is empty.
    filter: String,
    dc: String,
}

/// Who answers a query, and when.
#[derive(Debug, Clone, Copy)]
pub enum Ask {
    /// Any server, at once. Consul advises this for what is asked often; an answer from a server without a leader is refused.
    Any,
    /// Any server, as soon as something changed after the index, or the time is over.
    After(u64, Duration),
    /// The leader, at once, when it has made sure that it still is the leader and has read all that was committed. (Without this
    /// a leader that was just elected answers from its log while it reads that: seen with 1.16.)
    Leader,
}

impl Ask {
    fn query(self) -> String {
        match self {
            Self::Any => "stale".into(),
            Self::After(index, wait) => format!("stale&index={index}&wait={}ms", wait.as_millis()),
            Self::Leader => "consistent".into(),
        }
    }

    /// The time after which it is given up.
    pub(super) fn limit(self) -> Duration {
        match self {
            Self::After(_, wait) => answer_limit(wait),
            _ => MARGIN,
        }
    }
}

/// The answer to a query that can wait.
pub struct Page<R> {
    pub rows: R,
    /// What to wait on next time.
    pub index: u64,
}

impl Client {
    pub fn new(config: &ConsulRegistry) -> Result<Self, SetupError> {
        let server = Server::with_base(&config.address, "`http://HOST:PORT` or `https://HOST:PORT`")?;
        let token = config.token.as_ref().map(header).transpose()?;
        // Not `passing`: what is unfit must be told from what is gone.
        let filter = filter(&config.tags, &config.meta).map(|filter| format!("&filter={}", encoded(&filter)));
        Ok(Self {
            http: HttpClient::new(server, &config.tls)?,
            token,
            limit: RateLimit::new(config.max_requests_per_second),
            filter: filter.unwrap_or_default(),
            dc: config.dc.as_deref().map(|dc| format!("&dc={}", encoded(dc))).unwrap_or_default(),
        })
    }

    /// The instances of `service`.
    pub async fn health(&self, service: &str, ask: Ask) -> Result<Page<Vec<Row>>, RegistryError> {
        let service = utf8_percent_encode(service, SEGMENT);
        let path = format!("/v1/health/service/{service}?{}{}", self.parameters(ask), self.filter);
        let answer = self.get(&path, ask.limit()).await?;
        self.check_leader(&answer)?;
        let index = self.index_of(&answer)?;
        let rows: Vec<Row> = serde_json::from_slice(&answer.body).map_err(|error| self.http.protocol(error))?;
        if rows.is_empty() && self.hides(&answer.headers).await? {
            return Err(self.no_rights());
        }
        Ok(Page { rows, index })
    }

    /// That it is not a `stale` answer of a server that may have been cut off long ago. Answers from the agent's own stream of
    /// events always say that there is no leader, and mean nothing by it (seen with 1.16).
    pub(super) fn check_leader(&self, answer: &Answer) -> Result<(), RegistryError> {
        let headers = &answer.headers;
        if header_is(headers, KNOWN_LEADER, "false") && !header_is(headers, BACKEND, "streaming") {
            return Err(RegistryError::Busy { server: self.http.server().into(), cause: "No cluster leader".into() });
        }
        Ok(())
    }

    pub(super) fn index_of(&self, answer: &Answer) -> Result<u64, RegistryError> {
        let index = answer.headers.get(INDEX).and_then(|index| index.to_str().ok()?.parse().ok());
        index.ok_or_else(|| self.http.protocol("there is no X-Consul-Index; is it a Consul agent?"))
    }

    /// Whether something was left out for want of rights.
    pub(super) fn is_filtered(&self, answer: &Answer) -> bool {
        header_is(&answer.headers, FILTERED, "true")
    }

    /// Whether we are nobody to it, to whom it does not admit that it left something out.
    pub(super) fn sees_nothing(&self, answer: &Answer) -> bool {
        self.token.is_none() && header_is(&answer.headers, DEFAULT_POLICY, "deny")
    }

    /// The names of all services.
    pub async fn services(&self) -> Result<Vec<String>, RegistryError> {
        let services = self.catalog().await?;
        // Consul itself is always among them.
        if services.is_empty() { Err(self.no_rights()) } else { Ok(services) }
    }

    async fn catalog(&self) -> Result<Vec<String>, RegistryError> {
        let answer = self.get(&format!("/v1/catalog/services?{}", self.parameters(Ask::Any)), MARGIN).await?;
        let services: BTreeMap<String, serde::de::IgnoredAny> =
            serde_json::from_slice(&answer.body).map_err(|error| self.http.protocol(error))?;
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
        RegistryError::Refused { server: self.http.server().into(), cause }
    }

    async fn get(&self, path: &str, limit: Duration) -> Result<Answer, RegistryError> {
        let answer = self.send(Method::GET, path, Bytes::new(), limit).await?;
        if answer.status == StatusCode::OK { Ok(answer) } else { Err(self.refusal(&answer)) }
    }

    /// Sends a request when it is its turn. The answer may have any status.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, RegistryError> {
        self.limit.turn().await;
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = &self.token {
            request = request.header(TOKEN, token);
        }
        self.http.send(request.body(Full::new(body)), limit).await
    }

    /// Query parameters of what reads.
    pub(super) fn parameters(&self, ask: Ask) -> String {
        format!("{}{}", ask.query(), self.dc)
    }

    /// Query parameters of what writes, after others.
    pub(super) fn dc(&self) -> &str {
        &self.dc
    }

    /// The agent, as errors name it.
    pub(super) fn server(&self) -> &str {
        self.http.server()
    }

    pub(super) fn protocol(&self, cause: impl ToString) -> RegistryError {
        self.http.protocol(cause)
    }

    /// What a status other than 200 means.
    pub(super) fn refusal(&self, answer: &Answer) -> RegistryError {
        let text = String::from_utf8_lossy(&answer.body);
        // Some come as 500, from a server that the agent asked.
        match self.http.refusal(answer.status, &answer.body) {
            RegistryError::Busy { server, cause }
                if text.contains("Permission denied") || text.contains("ACL not found") =>
            {
                RegistryError::Refused { server, cause }
            }
            other => other,
        }
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

pub(super) fn encoded(text: &str) -> impl std::fmt::Display {
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
        for address in ["", "127.0.0.1:8500", "consul://a:1", "http://a:1?token=x", "http://u:p@a:1"] {
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
            let status = StatusCode::from_u16(status).unwrap();
            let answer = Answer { status, headers: HeaderMap::new(), body: body.into() };
            let error = client.refusal(&answer).to_string();
            assert!(error.contains(expected), "{status} {body}: {error}");
        }
    }
}
