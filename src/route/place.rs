//! Another path or host: as the upstream sees it, or as the caller is told.

use super::condition::Asked;
use crate::config;
use http::{
    HeaderName, HeaderValue, Request, StatusCode, Uri,
    header::HOST,
    uri::{Authority, PathAndQuery, Scheme},
};

pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Another path than the request's.
#[derive(Debug)]
enum NewPath {
    Whole(Box<str>),
    /// In the place of what the route's `prefix` matched.
    Prefix(Box<str>),
}

impl NewPath {
    fn new(path: Option<&str>, prefix: Option<&str>) -> Option<Self> {
        path.map(|path| Self::Whole(path.into())).or(prefix.map(|prefix| Self::Prefix(prefix.into())))
    }

    /// With the query of the request. `matched`: how much of its path the route's prefix matched.
    fn of(&self, path: &str, query: &str, matched: usize) -> String {
        let mut new = match self {
            Self::Whole(whole) => whole.to_string(),
            Self::Prefix(prefix) => {
                let rest = path.get(matched..).unwrap_or("");
                let start = if rest.starts_with('/') { prefix.strip_suffix('/').unwrap_or(prefix) } else { prefix };
                format!("{start}{rest}")
            }
        };
        if !query.is_empty() {
            new.push('?');
            new.push_str(query);
        }
        new
    }
}

/// What the upstream sees instead.
#[derive(Debug)]
pub struct Rewrite {
    path: Option<NewPath>,
    host: Option<(Authority, HeaderValue)>,
}

impl Rewrite {
    pub fn new(config: &config::Rewrite) -> Self {
        let config::Rewrite { path, prefix, host } = config;
        Self {
            path: NewPath::new(path.as_deref(), prefix.as_deref()),
            // The config was validated.
            host: host.as_ref().and_then(|host| Some((host.parse().ok()?, host.parse().ok()?))),
        }
    }

    /// `matched`: how much of its path the route's prefix matched.
    pub fn apply<B>(&self, request: &mut Request<B>, matched: usize) {
        // The upstream still learns which host the caller meant.
        if self.host.is_some() && !request.headers().contains_key(X_FORWARDED_HOST) {
            let host = match request.uri().authority() {
                Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
                None => request.headers().get(HOST).cloned(),
            };
            host.map(|host| request.headers_mut().insert(X_FORWARDED_HOST, host));
        }
        let mut parts = request.uri().clone().into_parts();
        if let Some(new) = &self.path {
            let new = new.of(request.uri().path(), request.uri().query().unwrap_or(""), matched);
            // Made of two paths, it is one.
            if let Ok(path) = PathAndQuery::try_from(new) {
                parts.path_and_query = Some(path);
            }
        }
        if let Some((authority, host)) = &self.host {
            if parts.authority.is_some() {
                parts.authority = Some(authority.clone());
            }
            request.headers_mut().insert(HOST, host.clone());
        }
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

/// Where the caller is sent.
#[derive(Debug)]
pub struct Redirect {
    pub status: StatusCode,
    scheme: Option<Scheme>,
    host: Option<Box<str>>,
    port: Option<u16>,
    path: Option<NewPath>,
}

impl Redirect {
    pub fn new(config: &config::Redirect) -> Self {
        let config::Redirect { status, scheme, host, port, path, prefix } = config;
        Self {
            // The config was validated.
            status: StatusCode::from_u16(*status).unwrap_or(StatusCode::FOUND),
            scheme: scheme.as_ref().and_then(|scheme| scheme.parse().ok()),
            host: host.as_deref().map(Into::into),
            port: *port,
            path: NewPath::new(path.as_deref(), prefix.as_deref()),
        }
    }

    /// The `Location`.
    pub fn location(&self, asked: &Asked<'_>, matched: usize) -> String {
        let path = match &self.path {
            Some(new) => new.of(asked.path, asked.query, matched),
            None if asked.query.is_empty() => asked.path.to_owned(),
            None => format!("{}?{}", asked.path, asked.query),
        };
        if self.scheme.is_none() && self.host.is_none() && self.port.is_none() {
            // `//evil.example` would be another host, and `/\\evil.example` is that for browsers.
            return format!("/{}", path.trim_start_matches(['/', '\\']));
        }
        let host = self.host.as_deref().unwrap_or(asked.host);
        // The request's own port is that of its scheme and host.
        let kept = self.scheme.is_none() && self.host.is_none();
        let port = self.port.or(asked.port.filter(|_| kept));
        let scheme = self.scheme.as_ref().map_or_else(|| scheme_of(asked), Scheme::as_str);
        match port.filter(|port| (scheme, *port) != ("http", 80) && (scheme, *port) != ("https", 443)) {
            Some(port) => format!("{scheme}://{host}:{port}{path}"),
            None => format!("{scheme}://{host}{path}"),
        }
    }
}

/// By which the caller came, as far as whoever stands before us says so.
fn scheme_of<'r>(asked: &Asked<'r>) -> &'r str {
    let forwarded = asked.headers.get(X_FORWARDED_PROTO).and_then(|proto| proto.to_str().ok());
    forwarded.filter(|proto| ["http", "https"].contains(proto)).unwrap_or("http")
}
