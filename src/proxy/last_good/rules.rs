//! What a shared cache may store and give again (RFC 9111).

use crate::proxy::body::Body;
use http::{
    HeaderMap, Method, Response, StatusCode,
    header::{AGE, AUTHORIZATION, CACHE_CONTROL, COOKIE, RANGE, SET_COOKIE, VARY},
    request,
};
use std::time::Duration;

/// What holds for a response that may be kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Rules {
    /// It says itself that it is for everybody, whoever asked for it.
    pub shared: bool,
    /// How old it is already.
    pub age: Duration,
    /// It must not be given after this time, not even when its server cannot be reached.
    pub valid: Option<Duration>,
}

/// Directives of `Cache-Control`, those that count here.
#[derive(Debug, Default)]
struct Directives {
    no_store: bool,
    no_cache: bool,
    private: bool,
    public: bool,
    must_revalidate: bool,
    proxy_revalidate: bool,
    max_age: Option<Duration>,
    s_maxage: Option<Duration>,
}

impl Directives {
    fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            let Ok(text) = value.to_str() else {
                found.no_store = true;
                continue;
            };
            // A comma within quotes only cuts the argument of a directive that is known by its name already.
            for directive in text.split(',') {
                let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
                // What is no number is stale at once (section 4.2.1).
                let seconds = || Some(Duration::from_secs(argument.trim().trim_matches('"').parse().unwrap_or(0)));
                match name.trim().to_ascii_lowercase().as_str() {
                    "no-store" => found.no_store = true,
                    "no-cache" => found.no_cache = true,
                    "private" => found.private = true,
                    "public" => found.public = true,
                    "must-revalidate" => found.must_revalidate = true,
                    "proxy-revalidate" => found.proxy_revalidate = true,
                    "max-age" => found.max_age = seconds(),
                    "s-maxage" => found.s_maxage = seconds(),
                    _ => {}
                }
            }
        }
        found
    }
}

/// `None`: it must not be kept.
pub fn may_be_kept(request: &request::Parts, response: &Response<Body>) -> Option<Rules> {
    let headers = response.headers();
    let asked = matches!(request.method, Method::GET | Method::HEAD) && !request.headers.contains_key(RANGE);
    if !asked || response.status() != StatusCode::OK || Directives::of(&request.headers).no_store {
        return None;
    }
    let said = Directives::of(headers);
    if said.no_store || said.no_cache || said.private || headers.contains_key(SET_COOKIE) || varies(headers) {
        return None;
    }
    // Section 3.5. What it says of `Authorization` is held to for cookies as well: they say who asks, too.
    let shared = said.public || said.must_revalidate || said.s_maxage.is_some();
    if is_personal(&request.headers) && !shared {
        return None;
    }
    // Stricter than section 3: behind a gateway, who asks often stands in a header of its own, which neither this nor the
    // server's author may have thought of. So it has to be said that the response may be kept.
    if !shared && said.max_age.is_none() {
        return None;
    }
    let age =
        headers.get(AGE).and_then(|age| age.to_str().ok()?.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
    // These forbid to give it once it is stale, whatever may have happened to its server (section 4.2.4).
    let strict = said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some();
    let valid = match strict {
        false => None,
        true => Some(said.s_maxage.or(said.max_age)?.checked_sub(age).filter(|left| !left.is_zero())?),
    };
    Some(Rules { shared, age, valid })
}

/// Whether a kept response of that age may be given to who sent a request with these headers.
pub fn may_be_given(request: &HeaderMap, shared: bool, age: Duration) -> bool {
    let wanted = Directives::of(request);
    let fresh_only = wanted.no_store || wanted.no_cache || wanted.max_age.is_some_and(|most| age > most);
    !fresh_only && (shared || !is_personal(request))
}

/// Whether after this answer nothing that was kept of the resource is true any more: it was changed (section 4.4), or is gone.
pub fn makes_untrue(method: &Method, status: StatusCode) -> bool {
    let changed = !method.is_safe() && (status.is_success() || status.is_redirection());
    changed || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

fn is_personal(request: &HeaderMap) -> bool {
    request.contains_key(AUTHORIZATION) || request.contains_key(COOKIE)
}

/// Whether it depends on something that is not part of the key.
fn varies(headers: &HeaderMap) -> bool {
    headers.get_all(VARY).iter().any(|value| match value.to_str() {
        Ok(names) => names.split(',').any(|name| !name.trim().eq_ignore_ascii_case("accept-encoding")),
        Err(_) => true,
    })
}
