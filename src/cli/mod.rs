//! The commands, one file each.

mod client;
pub mod endpoints;
pub mod services;
