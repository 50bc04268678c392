//! pillion: a sidecar proxy that learns where services live straight from the service registry.
//!
//! `ARCHITECTURE.md` is the map; a module uses only those on lower floors, and `tests/` holds that.

pub mod admin;
pub mod app;
pub mod backoff;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod dns;
pub mod drain;
pub mod durable;
pub mod error;
pub mod import;
pub mod inbound;
pub mod net;
pub mod pattern;
pub mod proxy;
pub mod registrar;
pub mod registry;
pub mod rollout;
pub mod route;
pub mod telemetry;
pub mod worker;

/// The decoders that are private, for the targets in `fuzz/`. In no other build.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::{
        discovery::snapshot::fuzzing as snapshot,
        proxy::h1::{Decoded, Decoder},
        registry::fuzzing::*,
    };
}
