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
pub mod error;
pub mod net;
pub mod proxy;
pub mod registry;
pub mod route;
pub mod telemetry;
pub mod worker;
