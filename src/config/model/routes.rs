//! Which of a service's endpoints a request goes to, or what else becomes of it.

use super::{
    super::{human, routes::one_or_many},
    Fallback, FaultInjection, FixedResponse, Hedge, Percent, RateLimit, Retry, Timeouts,
};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Which instances belong to a subset: those that have all of these labels in their registry.
pub type Labels = IndexMap<String, String>;

/// What becomes of the requests that match. A service's routes are tried in their order, and the first one that matches
/// counts; without one, a request goes to any of the service's endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// What it is called in the access log and by `pillion explain`. By default its number, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which requests. All of what is given must hold; without anything, all requests.
    #[serde(rename = "match", skip_serializing_if = "RouteMatch::is_default")]
    pub matches: RouteMatch,
    /// The only target. One of `to`, `split`, `redirect` and `respond`, or none of them: the whole service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Target>,
    /// Several targets with their weights, which need not add up to 100.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub split: IndexMap<Target, u32>,
    /// What keeps a user at the same target of the `split`. Without it each request is drawn anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// Marks requests with the subset that they go to, as the member of W3C `baggage` that `version_override` names. An
    /// application that passes baggage on then asks for the same subset wherever it calls. Those that ask for one by
    /// themselves are marked with that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mark: bool,
    /// Answers with a redirect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Answers with this response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub respond: Option<FixedResponse>,
    /// Another path or host for the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    #[serde(skip_serializing_if = "HeaderEdits::is_default")]
    pub headers: HeaderEdits,
    /// Sends a copy of some requests elsewhere. Nobody waits for its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// What is given here goes before the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// What is given here goes before the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// What is given here goes before the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    /// Besides the service's: how many of this route's requests there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<RouteLimits>,
    /// Instead of the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Instead of the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<FaultInjection>,
}

/// Conditions, which must all hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RouteMatch {
    /// The host that the request is for, without its port, in any case: `api.example.com`, or `*.example.com` for whatever
    /// ends so. One or a list.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany<String>")]
    pub host: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// `GET`, `POST` and so on. One or a list.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany<String>")]
    pub method: Vec<String>,
    /// By header name. Of a header that comes several times, any value counts.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub headers: IndexMap<String, ValueMatch>,
    /// By the parameter's name, as it is written in the query. Of one that comes several times, any value counts.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub query: IndexMap<String, ValueMatch>,
    /// Which application calls: `node.service` of this pillion, or what `x-pillion-caller` says where that is not set. One
    /// or a list.
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany<String>")]
    pub caller: Vec<String>,
}

/// A value, or a list of them.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

/// The request's path, without its query and as it is written: nothing is decoded. One of `exact`, `prefix` and `regex`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct PathMatch {
    /// The whole path, without the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// By whole segments: `/users` is the start of `/users` and `/users/1`, and not of `/users2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// For the whole path, from its start to its end. Without look-around and back-references.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// What a value must be: the text itself, or a map with one of `exact`, `prefix`, `regex` and `present`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(String),
    Prefix(String),
    /// For the whole value.
    Regex(String),
    /// Whether it is there, with any value.
    Present(bool),
}

/// A part of this service's endpoints, by its name in `subsets`; another service, `NAME/`; or a subset of that, `NAME/SUBSET`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// `None`: the service whose route it is.
    pub service: Option<String>,
    /// `None`: the whole service.
    pub subset: Option<String>,
}

/// The key that a split goes by: one of `header`, `cookie`, `source` and `baggage`. It is hashed together with `name`, so
/// that every pillion decides alike; when weights change, only those keys move that must. Requests without the key are
/// drawn at random.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Sticky {
    /// A header's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// A cookie's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// The address that the request comes from.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub source: bool,
    /// A member of the W3C `baggage` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baggage: Option<String>,
    /// Give the cookie, with a random value, to those who come without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_cookie: Option<SetCookie>,
    /// What the split is called. Splits of the same name put a key into the same place. By default the service's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// How the cookie of a split is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SetCookie {
    /// How long browsers keep it. Without it: until they are closed.
    #[serde(with = "human::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<human::Text>")]
    pub max_age: Option<Duration>,
    /// The cookie's `Path`.
    pub path: String,
    /// The cookie's `Domain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Browsers send it over TLS only.
    pub secure: bool,
}

/// At most one of `path` and `prefix`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Rewrite {
    /// The whole path. The query stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Takes the place of what `match.path.prefix` matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The `Host` that the upstream sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// Where to: what is not given stays as the request has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Another port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The whole path. The query stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Takes the place of what `match.path.prefix` matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// Changes of headers, on the way there and back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderEdits {
    #[serde(skip_serializing_if = "HeaderEdit::is_default")]
    pub request: HeaderEdit,
    #[serde(skip_serializing_if = "HeaderEdit::is_default")]
    pub response: HeaderEdit,
}

/// Changes of one message's headers: first `remove`, then `set`, then `add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderEdit {
    /// In place of what is there.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub set: IndexMap<String, String>,
    /// Besides what is there.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub add: IndexMap<String, String>,
    /// Headers that are taken away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// Copies of requests. They carry `x-pillion-mirror`, count in metrics of their own, and are neither retried nor waited for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mirror {
    pub to: Target,
    pub percent: Percent,
    /// Copies that may be in flight at one time, per worker; further ones are left out and counted.
    pub max_in_flight: u32,
    /// Requests whose body is larger, in bytes, are not copied.
    pub max_body: usize,
    /// Compare each copy's status and latency with the request's own.
    pub compare: bool,
}

/// How many of a route's requests there may be. Further ones are refused at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RouteLimits {
    /// At one time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateLimit>,
}

/// What a request does where its subset is empty: where no endpoint of it can take requests now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhenEmpty {
    /// It gets an error, 503 `no_endpoints`.
    Fail,
    /// It goes to any of the service's endpoints.
    Service,
    /// It goes to this subset.
    Subset(String),
}

/// How a request can ask for a subset by itself, of every service that has one with that name. Where a service has none,
/// or nobody is in it, its routes count as always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VersionOverride {
    /// Whether requests can.
    pub enabled: bool,
    /// The header whose value is the subset's name.
    pub header: String,
    /// The member of the W3C `baggage` header whose value is the subset's name. The header goes before it.
    pub baggage: String,
}

impl RouteMatch {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl HeaderEdits {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl HeaderEdit {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl VersionOverride {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for VersionOverride {
    fn default() -> Self {
        Self { enabled: true, header: "x-version".into(), baggage: "pillion.version".into() }
    }
}

impl Default for SetCookie {
    fn default() -> Self {
        Self { max_age: Some(Duration::from_secs(30 * 24 * 60 * 60)), path: "/".into(), domain: None, secure: false }
    }
}

impl Default for Redirect {
    fn default() -> Self {
        Self { status: 302, scheme: None, host: None, port: None, path: None, prefix: None }
    }
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            to: Target { service: None, subset: None },
            percent: Percent(100.0),
            max_in_flight: 64,
            max_body: 64 * 1024,
            compare: false,
        }
    }
}
