//! The integration tests, in one binary. Modules `real_*` talk to real servers and need the feature `real-servers`.

mod bounds;
mod cli;
mod demo;
mod e2e;
#[cfg(feature = "real-servers")]
mod following;
mod leaving;
mod readme;
#[cfg(feature = "real-servers")]
mod real_churn;
#[cfg(feature = "real-servers")]
mod real_consul;
#[cfg(feature = "real-servers")]
mod real_etcd;
#[cfg(feature = "real-servers")]
mod real_frameworks;
#[cfg(feature = "real-servers")]
mod real_outage;
#[cfg(feature = "real-servers")]
mod real_scale;
#[cfg(feature = "real-servers")]
mod relay;
mod reload;
#[cfg(feature = "real-servers")]
mod servers;
mod structure;
#[cfg(feature = "real-servers")]
mod tools;
