//! The fixed words that metrics have as label values, each list in the order of its enum.

use super::metrics::Words;
use crate::error::Reason;

/// Why a connection to an upstream was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolClosed {
    /// It idled for `pool.idle_timeout`.
    Idle,
    /// It was older than `pool.max_age`.
    Age,
    /// More than `pool.max_idle` were idle, or `limits.connections` were open and another was needed.
    Full,
    /// The upstream closed it, or sent something unasked.
    Peer,
    /// It could not carry another exchange: an error, a response cut off, or `Connection: close`.
    Used,
    /// Its endpoint is gone.
    Removed,
}

/// Why a client's connection was closed without being served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// `limits.connections` were open.
    Limit,
    /// `accept` failed, e.g. because no file descriptor was left.
    AcceptError,
}

/// Why a datagram went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Too many wait, for an endpoint or in the kernel.
    Full,
    /// There is no endpoint for it, or no way.
    Undeliverable,
}

/// What came of a DNS question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsOutcome {
    /// With a service's address.
    Answered,
    /// The service has no address of that kind.
    NoData,
    /// There is no such service.
    NoSuchName,
    /// Another server has answered it.
    Forwarded,
    /// No registry, or no other server, has answered, or there were too many.
    Failed,
    /// It is no question, or none that can be answered.
    Malformed,
}

/// What an endpoint is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// It takes requests.
    Available,
    /// Its registry calls it unhealthy, or gives it no weight.
    Unavailable,
    /// Kept out because of what its traffic showed.
    Ejected,
    /// Kept out because its active checks fail.
    Unhealthy,
    /// It fails, and takes requests only because no more may be kept out.
    Failing,
}

/// What came of an active check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckResult {
    Passed,
    Failed,
}

/// How far a registration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationState {
    /// The application is not fit to serve yet, or not found.
    Waiting,
    /// The entry is being put, for the first time or after it was lost.
    Registering,
    Registered,
    /// The registry has it as not fit to serve, or it was taken out because of that.
    Unhealthy,
    /// The registry does not answer, or refuses.
    Failing,
    /// The entry is being taken out for good.
    Leaving,
    Gone,
}

/// What came of routes in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteUpdate {
    Accepted,
    Rejected,
}

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutPhase {
    Running,
    Paused,
    RolledBack,
    Aborted,
    Done,
}

/// What was decided about a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutVerdict {
    Start,
    /// It no longer holds.
    Wait,
    Hold,
    Promote,
    RollBack,
    Done,
    Pause,
    Resume,
    Abort,
}

impl RolloutPhase {
    pub const ALL: [Self; 5] = [Self::Running, Self::Paused, Self::RolledBack, Self::Aborted, Self::Done];
}

impl EndpointState {
    pub const COUNT: usize = 5;
}

/// A fault that was put in on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InjectedFault {
    Delay,
    Abort,
}

/// What a caller got instead of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallbackKind {
    /// The response that the config has for it.
    Response,
    /// Another service's answer.
    Service,
    /// The last good response.
    LastGood,
}

/// Why a copy of a request was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorSkipped {
    /// `max_in_flight` were in flight.
    Busy,
    /// Its body is larger than `max_body`.
    TooLarge,
    /// It asks for an upgrade, is a copy itself, or has trailers.
    Unfit,
    /// Its body did not come to its end, or nobody wanted it.
    Incomplete,
    /// Nobody is there who could take it.
    NoEndpoints,
}

impl RegistrationState {
    pub const ALL: [Self; 7] =
        [Self::Waiting, Self::Registering, Self::Registered, Self::Unhealthy, Self::Failing, Self::Leaving, Self::Gone];

    pub const fn as_str(self) -> &'static str {
        WORDS.registrations[self as usize]
    }
}

impl InjectedFault {
    pub const fn as_str(self) -> &'static str {
        WORDS.faults[self as usize]
    }
}

impl FallbackKind {
    pub const fn as_str(self) -> &'static str {
        WORDS.fallbacks[self as usize]
    }
}

const REASONS: [&str; Reason::ALL.len()] = {
    let mut words = [""; Reason::ALL.len()];
    let mut at = 0;
    while at < words.len() {
        words[at] = Reason::ALL[at].as_str();
        at += 1;
    }
    words
};

pub const WORDS: Words = Words {
    errors: &REASONS,
    retries: &REASONS,
    pool_closed: &["idle", "age", "full", "peer", "used", "removed"],
    refused: &["limit", "accept_error"],
    dropped: &["full", "undeliverable"],
    dns: &["answered", "no_data", "nxdomain", "forwarded", "failed", "malformed"],
    endpoints: &["available", "unavailable", "ejected", "unhealthy", "failing"],
    health_checks: &["passed", "failed"],
    ejections: &["consecutive_failures", "failure_percent", "outlier", "no_success"],
    fallbacks: &["response", "service", "last-good"],
    faults: &["delay", "abort"],
    mirror_skipped: &["busy", "too_large", "unfit", "incomplete", "no_endpoints"],
    registrations: &["waiting", "registering", "registered", "unhealthy", "failing", "leaving", "gone"],
    route_updates: &["accepted", "rejected"],
    rollout_phases: &["running", "paused", "rolled-back", "aborted", "done"],
    rollout_decisions: &["start", "wait", "hold", "promote", "roll-back", "done", "pause", "resume", "abort"],
};
