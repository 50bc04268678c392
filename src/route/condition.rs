//! What a request must be for a route to take it.

use super::name::authority;
use crate::{
    config::{PathMatch, RouteMatch, ValueMatch},
    pattern::Pattern,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header::CONTENT_TYPE};
use percent_encoding::percent_decode;

/// A request as far as routes look at it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'r> {
    pub host: &'r str,
    pub port: Option<u16>,
    pub path: &'r str,
    pub query: &'r str,
    pub method: &'r Method,
    pub headers: &'r HeaderMap,
    /// Which application calls, if that is known.
    pub caller: Option<&'r [u8]>,
}

/// Whom a request comes from: the name of the application beside the pillion that sent it.
pub const X_PILLION_CALLER: HeaderName = HeaderName::from_static("x-pillion-caller");

/// What an application is called, as its calls say it.
pub fn caller_name(service: &str) -> Option<HeaderValue> {
    HeaderValue::from_bytes(service.as_bytes()).ok()
}

/// Whether it is a gRPC call.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest, [] | [b'+' | b';' | b' ', ..]))
    })
}

impl<'r> Asked<'r> {
    /// `own`: the application that calls, where it is the one beside this pillion. Any other the request has to name.
    pub fn new<B>(request: &'r Request<B>, own: Option<&'r HeaderValue>) -> Self {
        let caller = own.or_else(|| request.headers().get(X_PILLION_CALLER));
        let uri = request.uri();
        let (host, port) = host_and_port(authority(uri, request.headers()));
        Self {
            host,
            port,
            path: uri.path(),
            query: uri.query().unwrap_or(""),
            method: request.method(),
            headers: request.headers(),
            caller: caller.map(HeaderValue::as_bytes),
        }
    }
}

/// Of an authority, without user and a final dot.
pub fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            (name, port.parse().ok())
        }
        _ => (host, None),
    };
    (host.strip_suffix('.').unwrap_or(host), port)
}

/// A route's `match`, compiled.
#[derive(Debug, Default)]
pub struct Conditions {
    pub hosts: Box<[Host]>,
    path: Option<Path>,
    methods: Box<[Method]>,
    headers: Box<[(HeaderName, Value)]>,
    query: Box<[(Box<str>, Value)]>,
    callers: Box<[Box<str>]>,
}

/// The first condition that does not hold, for those who ask why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    Host,
    Path,
    Method,
    /// The header condition of that number.
    Header(usize),
    /// The query condition of that number.
    Query(usize),
    Caller,
}

/// Hosts are compared in any case.
#[derive(Debug, PartialEq, Eq)]
pub enum Host {
    Exact(Box<str>),
    /// `*.example.com`: what ends with `.example.com`.
    Under(Box<str>),
}

#[derive(Debug)]
enum Path {
    Exact(Box<str>),
    /// Without a slash at its end.
    Prefix(Box<str>),
    Regex(Pattern),
    /// What the config was checked not to have.
    Never,
}

#[derive(Debug)]
enum Value {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Regex(Pattern),
    Present(bool),
    /// What the config was checked not to have.
    Never,
}

impl Conditions {
    pub fn new(config: &RouteMatch) -> Self {
        let RouteMatch { host, path, method, headers, query, caller } = config;
        // The config was validated: what is no name of a header here is none that a request could have.
        let named = |(name, value): (&String, &ValueMatch)| Some((name.parse().ok()?, Value::new(value)));
        Self {
            hosts: host.iter().map(|host| Host::new(host)).collect(),
            path: path.as_ref().map(Path::new),
            methods: method.iter().filter_map(|method| method.parse().ok()).collect(),
            headers: headers.iter().filter_map(named).collect(),
            query: query.iter().map(|(name, value)| (name.as_str().into(), Value::new(value))).collect(),
            callers: caller.iter().map(|caller| caller.as_str().into()).collect(),
        }
    }

    /// Whether all hold; if not, the first that does not.
    pub fn check(&self, asked: &Asked<'_>) -> Result<(), Miss> {
        let holds = |holds: bool, miss: Miss| if holds { Ok(()) } else { Err(miss) };
        holds(self.hosts.is_empty() || self.hosts.iter().any(|host| host.fits(asked.host)), Miss::Host)?;
        holds(self.path.as_ref().is_none_or(|path| path.fits(asked.path)), Miss::Path)?;
        holds(self.methods.is_empty() || self.methods.contains(asked.method), Miss::Method)?;
        for (number, (name, value)) in self.headers.iter().enumerate() {
            let values = asked.headers.get_all(name).into_iter().map(|value| Given::AsIs(value.as_bytes()));
            holds(value.fits_one_of(values), Miss::Header(number))?;
        }
        for (number, (name, value)) in self.query.iter().enumerate() {
            holds(value.fits_one_of(parameters(asked.query, name)), Miss::Query(number))?;
        }
        let is_one_of = |caller: &[u8]| self.callers.iter().any(|name| name.as_bytes() == caller);
        holds(self.callers.is_empty() || asked.caller.is_some_and(is_one_of), Miss::Caller)
    }

    /// How much of `path` a `prefix` has matched.
    pub fn prefix_of(&self, path: &str) -> Option<usize> {
        match &self.path {
            Some(Path::Prefix(prefix)) if path.len() >= prefix.len() => Some(prefix.len()),
            _ => None,
        }
    }
}

/// A value that a request has.
#[derive(Clone, Copy)]
enum Given<'r> {
    AsIs(&'r [u8]),
    /// With `%XX` in it, which is decoded as it is compared: that needs no memory.
    Encoded(&'r [u8]),
}

/// The values of a query's parameter.
fn parameters<'q>(query: &'q str, name: &'q str) -> impl Iterator<Item = Given<'q>> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let given = if value.contains('%') { Given::Encoded } else { Given::AsIs };
        (key == name).then(|| given(value.as_bytes()))
    })
}

impl Given<'_> {
    fn is(self, text: &[u8]) -> bool {
        match self {
            Self::AsIs(value) => value == text,
            Self::Encoded(value) => percent_decode(value).eq(text.iter().copied()),
        }
    }

    fn starts_with(self, text: &[u8]) -> bool {
        match self {
            Self::AsIs(value) => value.starts_with(text),
            Self::Encoded(value) => {
                let mut decoded = percent_decode(value);
                text.iter().all(|byte| decoded.next() == Some(*byte))
            }
        }
    }

    fn fits(self, regex: &Pattern) -> bool {
        match self {
            Self::AsIs(value) => regex.fits(value),
            Self::Encoded(value) => regex.fits_each(percent_decode(value)),
        }
    }
}

impl Host {
    fn new(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        match text.strip_prefix('*') {
            Some(end) => Self::Under(end.into()),
            None => Self::Exact(text.into()),
        }
    }

    fn fits(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
            Self::Under(end) => {
                let start = host.len().checked_sub(end.len()).filter(|start| *start > 0);
                start.is_some_and(|start| host.as_bytes()[start..].eq_ignore_ascii_case(end.as_bytes()))
            }
        }
    }
}

impl Path {
    fn new(config: &PathMatch) -> Self {
        match config {
            PathMatch { exact: Some(exact), .. } => Self::Exact(exact.as_str().into()),
            PathMatch { prefix: Some(prefix), .. } => Self::Prefix(prefix.strip_suffix('/').unwrap_or(prefix).into()),
            PathMatch { regex: Some(regex), .. } => Pattern::new(regex).map_or(Self::Never, Self::Regex),
            _ => Self::Never,
        }
    }

    fn fits(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.fits(path.as_bytes()),
            Self::Never => false,
        }
    }
}

impl Value {
    fn new(config: &ValueMatch) -> Self {
        match config {
            ValueMatch::Exact(text) => Self::Exact(text.as_bytes().into()),
            ValueMatch::Prefix(text) => Self::Prefix(text.as_bytes().into()),
            ValueMatch::Regex(text) => Pattern::new(text).map_or(Self::Never, Self::Regex),
            ValueMatch::Present(present) => Self::Present(*present),
        }
    }

    fn fits_one_of<'v>(&self, mut values: impl Iterator<Item = Given<'v>>) -> bool {
        match self {
            Self::Exact(text) => values.any(|value| value.is(text)),
            Self::Prefix(text) => values.any(|value| value.starts_with(text)),
            Self::Regex(regex) => values.any(|value| value.fits(regex)),
            Self::Present(present) => values.next().is_some() == *present,
            Self::Never => false,
        }
    }
}
