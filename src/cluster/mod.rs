//! One set of endpoints with one balancer per service, and the table of all of them.

pub mod addresses;
pub mod balance;
mod bucket;
pub mod budget;
pub mod check;
pub mod connect;
pub mod endpoint;
pub mod health;
pub mod latencies;
pub mod limit;
pub mod outlier;
pub mod snapshot;
pub mod subset;
pub mod table;
mod virtuals;

/// What threads share. `tests/interleavings.rs` puts a model checker's in their place.
use std::sync::atomic;

pub use endpoint::{Endpoint, Live};
pub use snapshot::Snapshot;
pub use table::{Cluster, Table};
