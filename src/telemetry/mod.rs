//! What pillion tells about itself: metrics, its own log, and the log of requests.

pub mod access_log;
pub mod log;
pub mod metrics;
