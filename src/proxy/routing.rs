//! Which service, and which of its endpoints, a request goes to by the routes that the config gives for it.

use super::{
    body::Body,
    fallback,
    headers::drop_named_by_connection,
    http::{Downstream, cluster_of},
    listener::Way,
    mirror::Lot,
    record::Record,
};
use crate::{
    cluster::{
        Cluster, Snapshot,
        limit::{Passed, Refusal},
        subset::Settled,
        table::Settings,
    },
    config,
    error::{ProxyError, Reason},
    route::{self, Action, Asked, KeyFrom, MOST_SERVICES, Route, Split, Target},
    telemetry::metrics::SubsetMetrics,
};
use arc_swap::Guard;
use http::{
    HeaderValue, Request, Response,
    header::{LOCATION, SET_COOKIE},
};
use std::{fmt::Write as _, net::IpAddr, sync::Arc};

/// Where a request goes.
pub enum Destined {
    /// To this service.
    For(Arc<Cluster>),
    /// Nowhere: a route is the answer.
    Answered(Box<Response<Body>>),
}

/// What routes have made of a request.
#[derive(Debug, Default)]
pub struct Routed {
    /// Those that it took: each handed it on to another service, but for the last.
    taken: Vec<Taken>,
    /// The subset that it is for.
    subset: Option<Arc<str>>,
    /// The subset that it went to.
    went_to: Option<Arc<SubsetMetrics>>,
    settings: Option<Arc<config::Service>>,
    /// Cookies that it is given: name, value, and the whole header.
    set_cookies: Vec<(Box<str>, String, HeaderValue)>,
    /// The copies that are to be made of it.
    lots: Vec<Lot>,
    /// Its places on routes with limits.
    _passed: Vec<Passed>,
}

/// A route, with the table that it is in.
#[derive(Debug)]
struct Taken {
    table: Arc<route::Table>,
    number: usize,
}

impl Taken {
    fn route(&self) -> Option<&Route> {
        self.table.routes.get(self.number)
    }
}

impl Routed {
    /// The last route's name, for the access log.
    pub fn name(&self) -> Option<Arc<str>> {
        self.taken.last()?.route().map(|route| route.name.clone())
    }

    /// Settles by whose settings it is carried, now that it is known to which service, with these: by them, or where the last
    /// of its routes that has settings of its own says otherwise, by those.
    pub fn resolve(&mut self, settings: &Settings) -> Option<Arc<config::Service>> {
        let has_own = |taken: &&Taken| taken.route().is_some_and(|route| route.settings.is_some());
        let taken = self.taken.iter().rev().find(has_own)?;
        let route = taken.route()?;
        let is_its_own = settings.routes.as_ref().is_some_and(|table| Arc::ptr_eq(table, &taken.table));
        // Handed on to another service, it goes by that one's settings but for what the route sets.
        self.settings = if is_its_own { route.settings.clone() } else { route.over(&settings.service).map(Arc::new) };
        self.settings.clone()
    }

    /// The settings that it is carried by, where they are not just its service's.
    pub fn settings(&self) -> Option<&Arc<config::Service>> {
        self.settings.as_ref()
    }

    /// Which endpoints it may go to, now that they are known.
    pub fn settle(&mut self, snapshot: &Snapshot) -> Settled {
        let Some(wanted) = &self.subset else { return Settled::default() };
        let settled = snapshot.settle(wanted);
        if settled.fell_back
            && let Some(subset) = snapshot.subsets.iter().find(|subset| subset.name == *wanted)
        {
            subset.metrics.fallbacks.inc();
        }
        self.went_to = snapshot.subsets.get(settled.within.index()).map(|subset| subset.metrics.clone());
        settled
    }

    /// The subset that it went to.
    pub fn went_to(&self) -> Option<&Arc<SubsetMetrics>> {
        self.went_to.as_ref()
    }

    /// The copies that are to be made of it. Afterwards there are none.
    pub fn take_lots(&mut self) -> Vec<Lot> {
        std::mem::take(&mut self.lots)
    }

    /// Changes the response as the routes say.
    pub fn edit(&self, response: &mut Response<Body>) {
        for edit in self.taken.iter().rev().filter_map(|taken| taken.route()?.response_edit.as_ref()) {
            edit.apply(response.headers_mut());
        }
        for (_, _, cookie) in &self.set_cookies {
            response.headers_mut().append(SET_COOKIE, cookie.clone());
        }
    }
}

/// Follows the routes of the service that a request is for, until it is known whose endpoints may get it.
pub async fn follow(
    mut cluster: Arc<Cluster>,
    request: &mut Request<Body>,
    down: &Downstream<'_>,
    record: &mut Record,
) -> Result<Destined, ProxyError> {
    let mut routed = Routed::default();
    for _ in 0..MOST_SERVICES {
        let snapshot = Guard::into_inner(cluster.load());
        let settings = &snapshot.settings;
        let Some(table) = &settings.routes else { return Ok(arrived(cluster, routed, record)) };
        let listener = down.listener.settings();
        let asked = Asked::new(request, own_name(&listener.way));
        let found = table.find(&asked).map(|(number, route)| (number, route, route.matched(asked.path)));
        let mut target = Target::default();
        if let Some((number, route, matched)) = found {
            if let Some(gate) = settings.gates.get(number).and_then(Option::as_ref) {
                match gate.pass(request.headers(), record.started()) {
                    Ok(passed) => routed._passed.push(passed),
                    Err(refusal) => {
                        record.routed(cluster);
                        return Err(refused(&route.name, refusal));
                    }
                }
            }
            match &route.action {
                Action::Go(to) => target = to.clone(),
                Action::Split(split) => target = routed.divide(split, request, down.origin.peer.ip()),
                Action::Redirect(redirect) => {
                    let response = redirected(redirect, &asked, matched);
                    return Ok(answered(response, cluster, table, number, routed, record));
                }
                Action::Respond(response) => {
                    let response = fallback::fixed(response);
                    return Ok(answered(response, cluster, table, number, routed, record));
                }
            }
            routed.taken.push(Taken { table: table.clone(), number });
            routed.lots.extend(Lot::draw(&cluster, &snapshot, number, route));
            if route.request_edit.is_some() || route.mark.is_some() {
                // What the caller says is for this connection alone must not take along what is put in here.
                drop_named_by_connection(request.headers_mut());
            }
            route.change(request, matched, &target);
        }
        match target.service {
            None => {
                routed.subset = wanted(&snapshot, request).or(target.subset);
                return Ok(arrived(cluster, routed, record));
            }
            Some(other) => {
                cluster = cluster_of(&other, down.proxy).await?;
                cluster.mark_used();
                if target.subset.is_some() {
                    routed.subset = wanted(&cluster.load(), request).or(target.subset);
                    return Ok(arrived(cluster, routed, record));
                }
            }
        }
    }
    let error = route::too_many(&cluster.name);
    record.routed(cluster);
    Err(error)
}

fn arrived(cluster: Arc<Cluster>, routed: Routed, record: &mut Record) -> Destined {
    record.took(routed);
    Destined::For(cluster)
}

/// One that pillion answers itself counts as the service's.
fn answered(
    response: Response<Body>,
    cluster: Arc<Cluster>,
    table: &Arc<route::Table>,
    number: usize,
    mut routed: Routed,
    record: &mut Record,
) -> Destined {
    routed.taken.push(Taken { table: table.clone(), number });
    record.took(routed);
    record.routed(cluster);
    Destined::Answered(Box::new(response))
}

/// The application beside this pillion, where it is what calls.
fn own_name(way: &Way) -> Option<&HeaderValue> {
    match way {
        Way::Outbound { caller, .. } => caller.as_ref(),
        Way::Inbound { .. } => None,
    }
}

/// The subset that the request asks for by itself, if it can have it.
fn wanted(snapshot: &Snapshot, request: &Request<Body>) -> Option<Arc<str>> {
    snapshot.asked_for(request.headers()).filter(|(_, granted)| *granted).map(|(name, _)| name.clone())
}

impl Routed {
    /// Which of a split's targets the request goes to.
    fn divide(&mut self, split: &Split, request: &Request<Body>, source: IpAddr) -> Target {
        let Some(key) = &split.key else { return split.draw().clone() };
        let by_key = key.with(request.headers(), source, |key| split.choose(key).clone());
        by_key.unwrap_or_else(|| match (&split.set_cookie, key) {
            (Some(attributes), KeyFrom::Cookie(name)) => {
                // A split of another service may have given it already.
                if let Some((_, value, _)) = self.set_cookies.iter().find(|(given, ..)| given == name) {
                    return split.choose(value.as_bytes()).clone();
                }
                let value = random();
                let target = split.choose(value.as_bytes()).clone();
                if let Ok(cookie) = HeaderValue::from_str(&format!("{name}={value}{attributes}")) {
                    self.set_cookies.push((name.clone(), value, cookie));
                }
                target
            }
            _ => split.draw().clone(),
        })
    }
}

/// 128 bits. They say nothing, and need not be a secret.
fn random() -> String {
    let mut text = String::with_capacity(32);
    // Writing to a String cannot fail.
    let _ = write!(text, "{:032x}", fastrand::u128(..));
    text
}

fn redirected(redirect: &route::Redirect, asked: &Asked<'_>, matched: usize) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = redirect.status;
    // Of what a request had in it and what the config was checked for.
    if let Ok(location) = HeaderValue::from_str(&redirect.location(asked, matched)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn refused(route: &str, refusal: Refusal) -> ProxyError {
    match refusal {
        Refusal::Full(limit) => {
            let detail = format!("{limit} requests may be on route `{route}`, and are");
            ProxyError::new(Reason::Overloaded, detail)
        }
        Refusal::TooFast(too_fast) => {
            let detail = format!("more requests per second than route `{route}` takes");
            ProxyError::new(Reason::RateLimited, detail).retry_after(too_fast.wait())
        }
    }
}
