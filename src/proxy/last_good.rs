//! The last good responses of services that fall back to them. One store per worker and service, so that nothing is locked.
//!
//! The rules are those of a shared cache (RFC 9111), and where they leave a choice, the strict side of it. Nothing is ever
//! answered from here while the service answers by itself.

mod rules;
mod store;

use super::{body::Body, header_maps};
use crate::{cluster::Cluster, config, error::ProxyError, route};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Response,
    header::{ACCEPT_ENCODING, AGE, CONTENT_LENGTH, WARNING},
    request,
};
use http_body::Frame;
use rules::Rules;
use std::{
    cell::RefCell,
    collections::HashMap,
    fmt::Write,
    rc::Rc,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};
use store::{Entry, Store};
use tokio::time::Instant;

/// Of RFC 7234, section 5.5.1. RFC 9111 dropped the field, since hardly anybody sent it; there is no other that says so.
const STALE: HeaderValue = HeaderValue::from_static("110 - \"Response is Stale\"");

/// One worker's stores, by service.
#[derive(Debug, Default)]
pub struct LastGood {
    stores: RefCell<Stores>,
}

type Stores = HashMap<Arc<str>, (Weak<Cluster>, SharedStore)>;
type SharedStore = Rc<RefCell<Store>>;

impl LastGood {
    /// The last good response to this request, if there is one that may be given.
    pub fn find(
        &self,
        cluster: &Arc<Cluster>,
        limits: &config::LastGood,
        request: &request::Parts,
    ) -> Option<Response<Body>> {
        let store = self.existing(cluster)?;
        let now = Instant::now();
        // A response to GET has all that one to HEAD has.
        let methods: &[Method] = match request.method {
            Method::GET => &[Method::GET],
            Method::HEAD => &[Method::HEAD, Method::GET],
            _ => return None,
        };
        let (method, entry) = methods.iter().find_map(|m| Some((m, store.borrow_mut().get(&key(request, m), now)?)))?;
        let age = entry.age(now);
        if now - entry.stored > limits.max_age || !rules::may_be_given(&request.headers, entry.shared, age) {
            return None;
        }
        let body = if request.method == *method { entry.body.clone() } else { Bytes::new() };
        let mut response = Response::new(if body.is_empty() { Body::Empty } else { Body::Full(body) });
        let headers = response.headers_mut();
        *headers = header_maps::take(entry.fields.len() + 3);
        for (name, value) in &entry.fields {
            headers.append(name, value.clone());
        }
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
        headers.insert(WARNING, STALE);
        Some(response)
    }

    /// Keeps a response, once all of it has passed, if it may be kept. What it replaces or makes untrue goes.
    pub fn keep(
        &self,
        cluster: &Arc<Cluster>,
        limits: &config::LastGood,
        request: &request::Parts,
        response: Response<Body>,
    ) -> Response<Body> {
        if rules::makes_untrue(&request.method, response.status())
            && let Some(store) = self.existing(cluster)
        {
            store.borrow_mut().remove_all(&target(request));
        }
        let Some(Rules { shared, age, valid }) = rules::may_be_kept(request, &response) else { return response };
        let (parts, body) = response.into_parts();
        let length = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let is_head = request.method == Method::HEAD;
        let too_long = !is_head && length.is_some_and(|length| length > limits.max_body);
        if too_long || !body.tells_its_end() {
            return Response::from_parts(parts, body);
        }
        // Copies: what was read shares the memory that it was read into, which is larger.
        let copied = |(name, value): (&HeaderName, &HeaderValue)| {
            let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
            Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
        };
        let fields = parts.headers.iter().filter(|(name, _)| **name != AGE && **name != WARNING);
        let copy = Copy {
            store: self.store(cluster),
            key: key(request, &request.method),
            entry: Entry {
                fields: fields.filter_map(copied).collect(),
                body: Bytes::new(),
                stored: Instant::now(),
                age,
                valid,
                shared,
            },
            data: Vec::with_capacity(if is_head { 0 } else { length.unwrap_or(0) }),
            length: length.filter(|_| !is_head),
            max_body: limits.max_body,
            max_bytes: limits.max_bytes,
        };
        if body.is_done() {
            copy.finish();
            return Response::from_parts(parts, body);
        }
        Response::from_parts(parts, Body::Kept(Box::new(Keeping { body, copy: Some(copy) })))
    }

    fn existing(&self, cluster: &Arc<Cluster>) -> Option<SharedStore> {
        let stores = self.stores.borrow();
        let (of, store) = stores.get(&cluster.name)?;
        std::ptr::eq(of.as_ptr(), Arc::as_ptr(cluster)).then(|| store.clone())
    }

    fn store(&self, cluster: &Arc<Cluster>) -> SharedStore {
        self.existing(cluster).unwrap_or_else(|| {
            let (mut stores, store) = (self.stores.borrow_mut(), SharedStore::default());
            // A service that is no longer followed needs none.
            stores.retain(|_, (of, _)| of.strong_count() > 0);
            stores.insert(cluster.name.clone(), (Arc::downgrade(cluster), store.clone()));
            store
        })
    }
}

/// What the responses to a request and to others for the same resource have in common: the start of their keys.
fn target(request: &request::Parts) -> String {
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    // Neither can have a line break in it.
    format!("{}\n{path}\n", route::authority(&request.uri, &request.headers).to_ascii_lowercase())
}

/// What a request must have in common with another to get the same response. The coding is part of it even where the
/// response does not say that it varies by it.
fn key(request: &request::Parts, method: &Method) -> String {
    let mut key = target(request);
    key.push_str(method.as_str());
    for value in request.headers.get_all(ACCEPT_ENCODING) {
        let _ = write!(key, "\n{}", value.as_bytes().escape_ascii());
    }
    key
}

/// The body of a response that is kept. It passes as it comes.
#[derive(Debug)]
pub struct Keeping {
    body: Body,
    /// `None` once it is clear that it cannot be kept, or it is.
    copy: Option<Copy>,
}

/// A response of which not everything is there yet.
#[derive(Debug)]
struct Copy {
    store: SharedStore,
    key: String,
    entry: Entry,
    data: Vec<u8>,
    /// The length that its head promises.
    length: Option<usize>,
    max_body: usize,
    max_bytes: usize,
}

impl Keeping {
    pub fn body(&self) -> &Body {
        &self.body
    }

    pub fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        let next = ready!(self.body.poll_next(cx));
        let Some(copy) = &mut self.copy else { return Poll::Ready(next) };
        let is_good = match &next {
            None => true,
            Some(Ok(frame)) => frame.data_ref().is_some_and(|data| copy.take(data)),
            Some(Err(_)) => false,
        };
        if !is_good {
            self.copy = None;
        } else if (next.is_none() || self.body.is_done())
            && let Some(copy) = self.copy.take()
        {
            copy.finish();
        }
        Poll::Ready(next)
    }
}

impl Copy {
    /// Takes one more piece; false if that is too much.
    fn take(&mut self, data: &Bytes) -> bool {
        let fits = self.data.len() + data.len() <= self.max_body;
        if fits {
            self.data.extend_from_slice(data);
        }
        fits
    }

    /// Nothing more comes: the response is whole.
    fn finish(self) {
        if self.length.is_none_or(|length| length == self.data.len()) {
            let entry = Entry { body: self.data.into(), ..self.entry };
            self.store.borrow_mut().put(self.key, entry, self.max_bytes);
        }
    }
}

impl Entry {
    /// How old the response is.
    fn age(&self, now: Instant) -> Duration {
        self.age.saturating_add(now - self.stored)
    }
}

#[cfg(test)]
mod tests;
