//! What becomes of a request, and why.

use super::{Health, State, SubsetDetail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /api/explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// Where the request is taken to come in.
    pub listener: String,
    #[serde(default)]
    pub carries: Carries,
    /// Of a listener to which the kernel redirects connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called: Option<CalledStep>,
    /// The listener by which a redirected connection goes on, for the application whose port was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goes_on: Option<String>,
    #[serde(flatten)]
    pub way: Way,
    /// What becomes of a connection there that says nothing of where it is to go: neither HTTP nor TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Way>,
}

/// What a listener carries. All but requests go by byte: no method, path or header is seen, so routes and subsets do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carries {
    #[default]
    Requests,
    Tcp,
    /// To the service that the TLS client names.
    Tls,
    Datagrams,
    /// Requests or bytes, as is found out of each connection.
    Either,
}

/// The address that an application called, before the kernel redirected its connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalledStep {
    /// `None`: it was not said which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Of inbound connections only this counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub whose: Whose,
    /// The service that has it; the first by name, if several have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// Whose a called address is, of the services that are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    Nobodys,
    /// One of a service's endpoints.
    Endpoint,
    /// A service's, as `addresses` says.
    Service,
    /// A service's, as DNS answers say.
    Name,
    /// One of those that DNS answers give, but nobody's that is known.
    NoName,
    /// Several services', so the address does not say which is meant.
    Several,
}

/// Which way it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// The services whose routes it meets, in order; the last one's endpoints get it.
    pub services: Vec<ServiceStep>,
    /// The subset of the last service that the request asks for by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_for: Option<AskedFor>,
    /// Those of the last service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsStep>,
    pub outcome: Outcome,
    /// Those of the last service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Candidate>,
}

/// What one service's routes make of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStep {
    pub service: String,
    pub state: State,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<SubsetDetail>,
    /// In order, those included that come after the one that takes the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteStep>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitStep>,
    /// The request's path and host behind this service's routes, where they change them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewritten: Option<String>,
    /// What the request is marked with for the services behind: the subset that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marked: Option<String>,
    /// Where copies of such requests go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrored: Option<MirrorStep>,
}

/// Copies of a share of the requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorStep {
    pub to: String,
    pub percent: f64,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteStep {
    pub number: usize,
    pub name: String,
    /// Why it does not take the request: the first condition that does not hold, or which route takes it before. `None`: it
    /// takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<String>,
    /// Its own, besides the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsStep>,
}

/// How much is let in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LimitsStep {
    /// At one time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// Those that there are now.
    pub in_flight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_caller: Option<CallerRate>,
}

/// Requests per second of each caller, by the header that names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallerRate {
    pub header: String,
    pub per_second: u32,
}

/// How a split decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitStep {
    pub name: String,
    /// In percent, by target.
    pub shares: BTreeMap<String, f64>,
    /// What the key is taken from; `None`: each request is drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The target for the request's key; `None` if it has none, so that it is drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// The release whose rollout says what the split weighs. Without it that is as it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<String>,
}

/// One of the targets among which it is drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lot {
    pub target: String,
    /// How many of the requests it gets.
    pub percent: f64,
    /// What those are marked with for the services behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marked: Option<String>,
    /// From there on.
    #[serde(flatten)]
    pub way: Way,
}

/// A subset that a request asks for by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AskedFor {
    pub subset: String,
    /// Whether the service has a subset of that name.
    pub exists: bool,
    /// Whether it gets it: whether anybody in it can take requests, or waits for one as a probe.
    pub granted: bool,
}

/// What becomes of the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It goes to one of these endpoints.
    Sent {
        service: String,
        /// The subset that it is for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subset: Option<String>,
        /// Where it goes because that is empty: another subset's name, or `service`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instead: Option<String>,
    },
    /// By lot, to one of these.
    Drawn { service: String, lots: Vec<Lot> },
    /// It goes to the endpoint whose own address was called.
    Itself { service: String, address: String },
    /// It goes where it was to go without pillion, untouched.
    Passed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
    },
    /// It goes to the local application.
    Local { address: String },
    /// pillion answers itself.
    Answered {
        status: u16,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        location: Option<String>,
    },
    /// pillion answers with an error.
    Refused { reason: String, detail: String },
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub address: String,
    pub weight: u32,
    pub labels: BTreeMap<String, String>,
    /// Whether the request may go to it.
    pub eligible: bool,
    /// Why it may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<NotEligible>,
    pub health: Health,
}

/// Why a request may not go to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotEligible {
    /// It is not in the subset.
    Subset,
    /// Its health says so.
    Health,
    /// It is for gRPC calls, and other endpoints are for the rest.
    OnlyGrpc,
    OnlyWithoutGrpc,
    /// Another one's own address was called.
    NotCalled,
}
