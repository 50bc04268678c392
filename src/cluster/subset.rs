//! Parts of a service's endpoints, by their labels, and where requests for an empty one go.

use super::{balance::Selector, endpoint::Endpoint};
use crate::{
    config::{Balance, Labels, Service, WhenEmpty},
    telemetry::metrics::{ServiceMetrics, SubsetMetrics},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use tokio::time::Instant;

/// Who is chosen among the same endpoints for what.
#[derive(Debug)]
pub struct Selectors {
    all: Selector,
    /// Where one process has an address for gRPC and another for plain HTTP, as with Kratos: those for gRPC.
    grpc: Option<Selector>,
}

/// What counting anew who is available shows.
#[derive(Debug, Clone, Copy)]
pub struct Count {
    pub available: usize,
    /// So few are available that all are used.
    pub panicking: bool,
}

/// A part of a service's endpoints.
#[derive(Debug)]
pub struct Subset {
    pub name: Arc<str>,
    labels: Labels,
    pub selectors: Selectors,
    pub metrics: Arc<SubsetMetrics>,
    available: AtomicUsize,
    when_empty: Instead,
}

/// Where a request for an empty subset goes.
#[derive(Debug, Clone, Copy)]
enum Instead {
    Nowhere,
    Service,
    /// To the subset of that number.
    Subset(usize),
}

/// Which of a service's endpoints a request may go to: those of the subset of that number, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within(u16);

/// Where a request for a subset goes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    pub within: Within,
    /// Who is asked first: the same, or the empty subset, where an ejected endpoint waits for the request that finds out how it
    /// is. No other would ever come to it.
    pub first: Within,
    /// Whether that is not where it was to go.
    pub fell_back: bool,
}

impl Selectors {
    /// Chooses among those `endpoints` that are `wanted`.
    pub fn new(
        balance: &Balance,
        zone: Option<&str>,
        endpoints: &[Arc<Endpoint>],
        wanted: impl Fn(&Endpoint) -> bool,
    ) -> Self {
        let (mut for_grpc, mut all) = (0, 0);
        for endpoint in endpoints.iter().filter(|endpoint| wanted(endpoint)) {
            all += 1;
            for_grpc += usize::from(endpoint.is_for_grpc());
        }
        if for_grpc == 0 || for_grpc == all {
            return Self { all: Selector::new(balance, zone, endpoints, wanted), grpc: None };
        }
        let of_kind = |grpc| {
            Selector::new(balance, zone, endpoints, |endpoint| wanted(endpoint) && endpoint.is_for_grpc() == grpc)
        };
        Self { all: of_kind(false), grpc: Some(of_kind(true)) }
    }

    /// That for a gRPC call, or for any other request.
    pub fn of(&self, is_grpc: bool) -> &Selector {
        self.grpc.as_ref().filter(|_| is_grpc).unwrap_or(&self.all)
    }

    fn each(&self) -> impl Iterator<Item = &Selector> {
        [Some(&self.all), self.grpc.as_ref()].into_iter().flatten()
    }

    /// An endpoint is penalised until then.
    pub fn penalised(&self, until: u64) {
        self.each().for_each(|selector| selector.penalised(until));
    }

    /// Whether they have parts, which have to be counted anew from time to time.
    pub fn is_split(&self) -> bool {
        self.each().any(Selector::is_split)
    }

    /// The number of endpoints that can be chosen.
    pub fn usable(&self) -> usize {
        self.each().map(Selector::usable).sum()
    }

    /// Counts anew who is available.
    pub fn recount(&self, endpoints: &[Arc<Endpoint>], threshold_percent: u32, now: Instant) -> Count {
        self.each().fold(Count { available: 0, panicking: false }, |count, selector| {
            let available = count.available + selector.recount(endpoints, threshold_percent, now);
            Count { available, panicking: count.panicking || selector.is_panicking() }
        })
    }
}

impl Subset {
    /// Those that the config has.
    pub fn all(
        service: &Service,
        zone: Option<&str>,
        endpoints: &[Arc<Endpoint>],
        metrics: &ServiceMetrics,
    ) -> Box<[Self]> {
        let one = |(name, labels): (&String, &Labels)| {
            let has = |endpoint: &Endpoint| has_labels(endpoint, labels);
            let subset = Self {
                name: name.as_str().into(),
                labels: labels.clone(),
                selectors: Selectors::new(&service.balance, zone, endpoints, has),
                metrics: metrics.subset(name),
                available: AtomicUsize::new(0),
                when_empty: match service.when_empty.get(name) {
                    None | Some(WhenEmpty::Service) => Instead::Service,
                    Some(WhenEmpty::Fail) => Instead::Nowhere,
                    // The config was validated.
                    Some(WhenEmpty::Subset(other)) => {
                        service.subsets.get_index_of(other).map_or(Instead::Service, Instead::Subset)
                    }
                },
            };
            subset.recount(endpoints, service.panic_threshold, Instant::now());
            subset
        };
        service.subsets.iter().map(one).collect()
    }

    /// The labels that its endpoints have.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Whether an endpoint belongs to it.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        has_labels(endpoint, &self.labels)
    }

    /// Its endpoints that can take requests.
    pub fn available(&self) -> usize {
        self.available.load(Relaxed)
    }

    /// Whether an ejected endpoint waits for the request that finds out how it is.
    pub fn is_probe_due(&self) -> bool {
        self.selectors.each().any(Selector::is_probe_due)
    }

    /// Counts anew who is available.
    pub fn recount(&self, endpoints: &[Arc<Endpoint>], threshold_percent: u32, now: Instant) {
        let mut count = self.selectors.recount(endpoints, threshold_percent, now);
        // Its requests go elsewhere; one that comes here all the same is a probe and no last resort.
        if count.available == 0 && !matches!(self.when_empty, Instead::Nowhere) {
            count = self.selectors.recount(endpoints, 0, now);
        }
        self.available.store(count.available, Relaxed);
    }

    /// What becomes of requests while it is empty, in the config's words.
    pub fn when_empty<'s>(&self, all: &'s [Self]) -> &'s str {
        match self.when_empty {
            Instead::Nowhere => "fail",
            Instead::Service => "service",
            Instead::Subset(other) => all.get(other).map_or("service", |other| &other.name),
        }
    }
}

fn has_labels(endpoint: &Endpoint, labels: &Labels) -> bool {
    labels.iter().all(|(label, value)| endpoint.instance.labels.get(label) == Some(value))
}

impl Within {
    /// Any of the service's endpoints.
    pub const SERVICE: Self = Self(u16::MAX);

    fn subset(index: usize) -> Self {
        u16::try_from(index).map_or(Self::SERVICE, Self)
    }

    /// The number of the subset; more than there are for all endpoints.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl Default for Within {
    fn default() -> Self {
        Self::SERVICE
    }
}

/// Where requests for the subset `wanted` go now.
pub fn settle(subsets: &[Subset], wanted: &str) -> Settled {
    let Some(number) = subsets.iter().position(|subset| *subset.name == *wanted) else {
        return Settled { fell_back: true, ..Settled::default() };
    };
    let (own, within) = (Within::subset(number), instead_of(subsets, number));
    let probes = within != own && subsets[number].is_probe_due();
    Settled { within, first: if probes { own } else { within }, fell_back: within != own }
}

/// Where requests for the subset of that number go: to itself, if that is not empty.
fn instead_of(subsets: &[Subset], mut number: usize) -> Within {
    // The config was checked to have no circles; more steps than there are subsets would be one.
    for _ in subsets {
        if subsets[number].available() > 0 {
            break;
        }
        match subsets[number].when_empty {
            Instead::Nowhere => break,
            Instead::Service => return Within::SERVICE,
            Instead::Subset(other) => number = other,
        }
    }
    Within::subset(number)
}
