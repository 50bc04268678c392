//! Which way a request would go now, and why not another.

mod carried;
mod question;

use super::{
    Admin, State,
    failure::Failure,
    json,
    view::{
        AskedFor, CallerRate, Candidate, Health, LimitsStep, Lot, MirrorStep, NotEligible, Outcome, RouteStep,
        ServiceStep, SplitStep, SubsetDetail, Way,
    },
};
use crate::{
    cluster::{Cluster, Endpoint, Snapshot, subset::Settled, table},
    config::{self, Config},
    discovery::RolloutStatus,
    error::ProxyError,
    route::{self, Action, Asked, KeyFrom, MOST_SERVICES, Miss, Route, Split, Target},
};
use arc_swap::Guard;
use axum::{
    extract::{self, RawQuery},
    http::{HeaderValue, Request, StatusCode, header::HOST},
    response::Response,
};
use futures_util::future::BoxFuture;
use question::Question;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

const EXPECTED: &str = "`?method=GET&url=http://SERVICE/PATH&header=NAME:VALUE&source=IP&listener=NAME&called=IP:PORT`, of which only `url` is needed";
/// A service that nobody asked for yet is asked for now. Its registry may take so long.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

pub(super) async fn explain(extract::State(admin): Admin, RawQuery(query): RawQuery) -> Result<Response, Failure> {
    let bad = |error: String| Failure::new(StatusCode::BAD_REQUEST, error, EXPECTED);
    let question = Question::read(query.as_deref().unwrap_or_default()).map_err(bad)?;
    let config = admin.config.load_full();
    let listener = question.listener(&config).map_err(bad)?;
    let explaining = Explaining {
        admin: &admin,
        config: &config,
        question: &question,
        caller: config.node.service.as_deref().and_then(route::caller_name),
        is_grpc: route::is_grpc(question.request.headers()),
        rollouts: admin.discovery.rollouts().await.services,
    };
    let explained = explaining.explain(listener).await;
    Ok(json(StatusCode::OK, &explained))
}

/// What an explanation is made from.
struct Explaining<'a> {
    admin: &'a State,
    config: &'a Config,
    question: &'a Question,
    /// The application beside this pillion.
    caller: Option<HeaderValue>,
    is_grpc: bool,
    rollouts: Vec<RolloutStatus>,
}

/// Where a request comes to its end.
struct Arrival {
    asked_for: Option<AskedFor>,
    limits: Option<LimitsStep>,
    outcome: Outcome,
    endpoints: Vec<Candidate>,
}

/// What a service's routes say.
enum Decided<'t> {
    /// No route takes it.
    Untouched,
    Go(Taken<'t>, &'t Target),
    Draw(Taken<'t>, &'t Split),
    Answer(Outcome),
}

/// A route that takes the request, and how much of its path its prefix matched.
#[derive(Clone, Copy)]
struct Taken<'t> {
    route: &'t Route,
    matched: usize,
}

impl Explaining<'_> {
    async fn at_listener(&self, rule: &route::Rule) -> Way {
        let mut services = Vec::new();
        let arrival = match route::service(&self.question.request, rule) {
            Ok(service) if route::is_host(&self.question.request, rule) => {
                match self.admin.discovery.of_host(service).await {
                    Ok(cluster) => self.on(&cluster.name, self.question.request.clone(), 0, &mut services).await,
                    Err(error) => Err(error),
                }
            }
            Ok(service) => self.on(service, self.question.request.clone(), 0, &mut services).await,
            Err(error) => Err(error),
        };
        arrival.unwrap_or_else(Arrival::refused).after(services)
    }

    /// On to a service whose routes count, as the request path does. `passed`: services that have handed it on.
    fn on<'s>(
        &'s self,
        service: &'s str,
        mut request: Request<()>,
        passed: usize,
        services: &'s mut Vec<ServiceStep>,
    ) -> BoxFuture<'s, Result<Arrival, ProxyError>> {
        Box::pin(async move {
            if passed == MOST_SERVICES {
                return Err(route::too_many(service));
            }
            let (cluster, snapshot) = self.cluster(service).await?;
            let mut step = ServiceStep::of(&cluster, &snapshot);
            let decided = self.decide(&snapshot.settings, &request, &mut step);
            let target = match decided {
                Decided::Untouched => &Target::default(),
                Decided::Go(Taken { route, matched }, target) => {
                    route.change(&mut request, matched, target);
                    step.changed(route, &request);
                    step.marked = marked(route, &request);
                    target
                }
                Decided::Draw(Taken { route, matched }, split) => {
                    route.change(&mut request, matched, &Target::default());
                    step.changed(route, &request);
                    services.push(step);
                    let mut lots = Vec::new();
                    for (target, share) in split.shares().filter(|(_, share)| *share > 0.0) {
                        lots.push(self.lot((&cluster, &snapshot), (route, target, share), &request, passed).await);
                    }
                    return Ok(Arrival::at(Outcome::Drawn { service: cluster.name.to_string(), lots }));
                }
                Decided::Answer(outcome) => {
                    services.push(step);
                    return Ok(Arrival::at(outcome));
                }
            };
            services.push(step);
            self.to(target, (&cluster, &snapshot), request, passed, services).await
        })
    }

    /// To a target of a service's routes.
    async fn to(
        &self,
        target: &Target,
        (cluster, snapshot): (&Cluster, &Snapshot),
        request: Request<()>,
        passed: usize,
        services: &mut Vec<ServiceStep>,
    ) -> Result<Arrival, ProxyError> {
        let Some(other) = &target.service else {
            return self.at(cluster, snapshot, target.subset.as_ref(), &request);
        };
        if target.subset.is_none() {
            return self.on(other, request, passed + 1, services).await;
        }
        let (cluster, snapshot) = self.cluster(other).await?;
        services.push(ServiceStep::of(&cluster, &snapshot));
        self.at(&cluster, &snapshot, target.subset.as_ref(), &request)
    }

    /// What becomes of a request if the lot falls on this target.
    async fn lot(
        &self,
        from: (&Cluster, &Snapshot),
        (route, target, share): (&Route, &Target, f64),
        request: &Request<()>,
        passed: usize,
    ) -> Lot {
        let (mut request, mut services) = (request.clone(), Vec::new());
        if let Some(mark) = &route.mark {
            mark.mark(request.headers_mut(), target.subset.as_deref());
        }
        let marked = marked(route, &request);
        let arrival = self.to(target, from, request, passed, &mut services).await;
        let way = arrival.unwrap_or_else(Arrival::refused).after(services);
        Lot { target: name(target), percent: percent(share), marked, way }
    }

    /// At a service, for the endpoints of this subset or all of them.
    fn at(
        &self,
        cluster: &Cluster,
        snapshot: &Snapshot,
        subset: Option<&Arc<str>>,
        request: &Request<()>,
    ) -> Result<Arrival, ProxyError> {
        snapshot.is_known(&cluster.name, FIRST_ANSWER)?;
        let by_itself = snapshot.asked_for(request.headers());
        let asked_for = match by_itself {
            Some((name, granted)) => Some(AskedFor { subset: name.to_string(), exists: true, granted }),
            None => {
                snapshot.settings.routes.as_ref().and_then(|routes| routes.wanted(request.headers())).map(|wanted| {
                    AskedFor { subset: String::from_utf8_lossy(&wanted).into_owned(), exists: false, granted: false }
                })
            }
        };
        let wanted = by_itself.filter(|(_, granted)| *granted).map(|(name, _)| name).or(subset);
        let settled = wanted.map_or_else(Settled::default, |wanted| snapshot.settle(wanted));
        let within = snapshot.subsets.get(settled.within.index());
        let endpoints = candidates(snapshot, self.is_grpc, settled);
        let outcome = if endpoints.iter().any(|endpoint| endpoint.eligible) {
            Outcome::Sent {
                service: cluster.name.to_string(),
                subset: wanted.map(ToString::to_string),
                instead: settled.fell_back.then(|| within.map_or("service", |subset| &subset.name).into()),
            }
        } else {
            Outcome::refused(snapshot.no_endpoints(settled.within))
        };
        let limits = LimitsStep {
            requests: u32::try_from(cluster.metrics.requests_limit.get()).ok(),
            in_flight: u32::try_from(cluster.metrics.in_flight.get()).unwrap_or(0),
            ..LimitsStep::rated(snapshot.settings.service.limits.rate.as_ref())
        };
        Ok(Arrival { asked_for, limits: Some(limits), outcome, endpoints })
    }

    /// A service, once its registry has answered.
    async fn cluster(&self, service: &str) -> Result<(Arc<Cluster>, Arc<Snapshot>), ProxyError> {
        let cluster = match self.admin.discovery.table().get(service) {
            Some(cluster) => cluster,
            None => self.admin.discovery.follow(service).await?,
        };
        let snapshot = Guard::into_inner(cluster.first_answer(FIRST_ANSWER).await);
        Ok((cluster, snapshot))
    }

    /// The release whose rollout says what the split weighs, if one does.
    fn governs(&self, service: &str, split: &Split) -> Option<String> {
        let RolloutStatus { rollout, release, percent, .. } =
            self.rollouts.iter().find(|rollout| rollout.service == service)?;
        let targets = split.shares().map(|(target, _)| (target.service.as_deref(), target.subset.as_deref()));
        (percent.is_some() && rollout.governs_split(targets)).then(|| release.clone())
    }

    /// What a service's routes say.
    fn decide<'t>(&self, settings: &'t table::Settings, request: &Request<()>, step: &mut ServiceStep) -> Decided<'t> {
        let Some(table) = &settings.routes else { return Decided::Untouched };
        let asked = Asked::new(request, self.caller.as_ref());
        let taker = table.find(&asked);
        let taken = taker.map(|(number, _)| number);
        let routes = table.routes.iter().enumerate();
        step.routes = routes.map(|(number, route)| RouteStep::of(number, route, taken, &asked, settings)).collect();
        let Some((_, route)) = taker else { return Decided::Untouched };
        let taken = Taken { route, matched: route.matched(asked.path) };
        match &route.action {
            Action::Go(target) => Decided::Go(taken, target),
            Action::Split(split) => {
                let key = split.key.as_ref();
                let chosen =
                    key.and_then(|key| key.with(request.headers(), self.question.source, |key| split.choose(key)));
                step.split = Some(SplitStep { rollout: self.governs(&step.service, split), ..shown(split, chosen) });
                chosen.map_or(Decided::Draw(taken, split), |chosen| Decided::Go(taken, chosen))
            }
            Action::Redirect(redirect) => {
                let location = Some(redirect.location(&asked, taken.matched));
                Decided::Answer(Outcome::Answered { status: redirect.status.as_u16(), location })
            }
            Action::Respond(response) => Decided::Answer(Outcome::Answered { status: response.status, location: None }),
        }
    }
}

impl Arrival {
    fn at(outcome: Outcome) -> Self {
        Self { asked_for: None, limits: None, outcome, endpoints: Vec::new() }
    }

    fn refused(error: ProxyError) -> Self {
        Self::at(Outcome::refused(error))
    }

    fn after(self, services: Vec<ServiceStep>) -> Way {
        let Self { asked_for, limits, outcome, endpoints } = self;
        Way { services, asked_for, limits, outcome, endpoints }
    }
}

impl Outcome {
    fn refused(error: ProxyError) -> Self {
        Self::Refused { reason: error.reason.as_str().into(), detail: error.detail.into_owned() }
    }
}

impl ServiceStep {
    fn of(cluster: &Cluster, snapshot: &Snapshot) -> Self {
        Self {
            service: cluster.name.to_string(),
            state: snapshot.state.into(),
            subsets: SubsetDetail::all(snapshot),
            routes: Vec::new(),
            split: None,
            rewritten: None,
            marked: None,
            mirrored: None,
        }
    }

    /// Of what is no request.
    fn without_routes(cluster: &Cluster, snapshot: &Snapshot) -> Self {
        Self { subsets: Vec::new(), ..Self::of(cluster, snapshot) }
    }

    /// What the route that takes the request has made of it.
    fn changed(&mut self, route: &Route, request: &Request<()>) {
        if route.rewrite.is_some() {
            let host = request.headers().get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            self.rewritten = Some(format!("{}{path}", host.unwrap_or_default()));
        }
        self.mirrored =
            route.mirror.as_ref().map(|mirror| MirrorStep { to: name(&mirror.to), percent: mirror.config.percent.0 });
    }
}

impl RouteStep {
    /// `taken`: the number of the route that takes the request.
    fn of(number: usize, route: &Route, taken: Option<usize>, asked: &Asked<'_>, settings: &table::Settings) -> Self {
        let not = match route.check(asked) {
            Err(miss) => Some(why(miss, &settings.service, number)),
            Ok(()) => taken.filter(|taken| *taken != number).map(|taken| format!("route {taken} takes it before")),
        };
        let gate = settings.gates.get(number).and_then(Option::as_ref);
        let limits = route.limits.as_ref().zip(gate).map(|(limits, gate)| LimitsStep {
            requests: limits.requests,
            in_flight: gate.requests(),
            ..LimitsStep::rated(limits.rate.as_ref())
        });
        Self { number, name: route.name.to_string(), not, limits }
    }
}

impl LimitsStep {
    fn rated(rate: Option<&config::RateLimit>) -> Self {
        let per_caller = rate.and_then(|rate| rate.per_caller.as_ref());
        Self {
            requests: None,
            in_flight: 0,
            per_second: rate.and_then(|rate| rate.per_second),
            per_caller: per_caller
                .map(|caller| CallerRate { header: caller.header.clone(), per_second: caller.per_second }),
        }
    }
}

/// What a request is marked with, where the route does that.
fn marked(route: &Route, request: &Request<()>) -> Option<String> {
    let marked = route.mark.as_ref()?.find(request.headers())?;
    Some(String::from_utf8_lossy(&marked).into_owned())
}

/// In the config's words.
fn why(miss: Miss, service: &config::Service, number: usize) -> String {
    let matches = service.routes.get(number).map(|route| &route.matches);
    let named = |names: Option<String>, what: &str| match names {
        Some(name) => format!("{what} `{name}`"),
        None => what.into(),
    };
    match miss {
        Miss::Host => "host".into(),
        Miss::Path => "path".into(),
        Miss::Method => "method".into(),
        Miss::Header(index) => {
            named(matches.and_then(|matches| matches.headers.get_index(index)).map(|(name, _)| name.clone()), "header")
        }
        Miss::Query(index) => {
            named(matches.and_then(|matches| matches.query.get_index(index)).map(|(name, _)| name.clone()), "query")
        }
        Miss::Caller => "caller".into(),
    }
}

/// A target, as the config has it; `service` for all of the service itself.
fn name(target: &Target) -> String {
    match (&target.service, &target.subset) {
        (None, None) => "service".into(),
        _ => target.to_string(),
    }
}

fn percent(share: f64) -> f64 {
    (share * 1e5).round() / 1e3
}

fn shown(split: &Split, chosen: Option<&Target>) -> SplitStep {
    SplitStep {
        name: split.name.to_string(),
        shares: split.shares().map(|(target, share)| (name(target), percent(share))).collect(),
        key: split.key.as_ref().map(|key| match key {
            KeyFrom::Header(name) => format!("header {name}"),
            KeyFrom::Cookie(name) => format!("cookie {name}"),
            KeyFrom::Source => "source".into(),
            KeyFrom::Baggage(baggage) => format!("baggage {}", baggage.name()),
        }),
        chosen: chosen.map(name),
        rollout: None,
    }
}

fn candidates(snapshot: &Snapshot, is_grpc: bool, settled: Settled) -> Vec<Candidate> {
    let (now, within) = (Instant::now(), snapshot.subsets.get(settled.within.index()));
    let one = |(endpoint, eligible): (&Arc<Endpoint>, bool)| {
        let instance = &endpoint.instance;
        let is_of_subset = within.is_none_or(|subset| subset.has(endpoint));
        let can_take = endpoint.is_usable() && endpoint.live.health.is_available();
        let not = match (eligible, is_of_subset, can_take) {
            (true, ..) => None,
            (_, false, _) => Some(NotEligible::Subset),
            (_, _, false) => Some(NotEligible::Health),
            _ if is_grpc => Some(NotEligible::OnlyWithoutGrpc),
            _ => Some(NotEligible::OnlyGrpc),
        };
        Candidate {
            address: instance.address.to_string(),
            weight: instance.weight,
            labels: instance.labels.clone(),
            eligible,
            not,
            health: Health::new(instance, &endpoint.live.health, now),
        }
    };
    snapshot.endpoints.iter().zip(snapshot.eligible(is_grpc, settled)).map(one).collect()
}
