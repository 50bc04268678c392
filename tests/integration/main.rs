//! The integration tests, in one binary. Modules `real_*` talk to real servers and need the feature `real-servers`.

mod balancing;
mod bounds;
mod cli;
mod cut_anywhere;
mod demo;
mod e2e;
mod ejection;
mod fallback;
mod faults;
mod faulty_connections;
#[cfg(feature = "real-servers")]
mod following;
mod health_checks;
mod hedging;
mod http1;
mod http1_bodies;
mod http1_dead_connections;
mod http1_headers;
mod http1_strict;
mod http2_downstream;
mod http2_goaway;
mod http2_peer;
mod http2_upstream;
mod instance;
mod leaving;
mod limits;
mod memory;
mod peer;
mod pillion;
#[cfg(feature = "real-servers")]
mod programs;
mod readme;
#[cfg(feature = "real-servers")]
mod real_churn;
#[cfg(feature = "real-servers")]
mod real_consul;
#[cfg(feature = "real-servers")]
mod real_curl;
#[cfg(feature = "real-servers")]
mod real_etcd;
#[cfg(feature = "real-servers")]
mod real_frameworks;
#[cfg(feature = "real-servers")]
mod real_grpc;
#[cfg(feature = "real-servers")]
mod real_load;
#[cfg(feature = "real-servers")]
mod real_outage;
#[cfg(feature = "real-servers")]
mod real_scale;
#[cfg(feature = "real-servers")]
mod real_websocket;
mod relay;
mod reload;
mod retries;
mod rollout;
mod routing;
#[cfg(feature = "real-servers")]
mod servers;
mod slow_instance;
mod storms;
mod structure;
mod timeouts;
#[cfg(feature = "real-servers")]
mod tools;
