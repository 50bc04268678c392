//! What pillion tells about itself: metrics, its own log, and the log of requests.

pub mod access_log;
pub mod flags;
pub mod labels;
pub mod log;
pub mod metrics;

/// What the request path counts and logs into.
#[derive(Debug)]
pub struct Telemetry {
    pub metrics: metrics::Metrics,
    pub access_log: access_log::AccessLog,
}
