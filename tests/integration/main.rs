//! The integration tests, in one binary. Modules `real_*` talk to real servers and need the feature `real-servers`.

mod auto;
mod balancing;
mod bounds;
mod canaries;
mod cli;
mod connect;
#[cfg(feature = "real-servers")]
mod consumers;
mod cut_anywhere;
mod demo;
mod dns;
#[cfg(feature = "real-servers")]
mod dns_relay;
mod drain;
mod e2e;
mod ejection;
mod emptied;
mod explain;
mod explain_listeners;
mod failures;
mod fallback;
mod faults;
mod faulty_connections;
#[cfg(feature = "real-servers")]
mod following;
mod from_disk;
mod health_checks;
mod hedging;
mod host_case;
mod http1;
mod http1_bodies;
mod http1_dead_connections;
mod http1_headers;
mod http1_strict;
mod http2_downstream;
mod http2_goaway;
mod http2_peer;
mod http2_upstream;
mod import;
mod inbound;
mod instance;
mod last_good;
mod leaving;
mod limits;
mod marking;
mod memory;
mod mirroring;
#[cfg(feature = "real-servers")]
mod netns;
mod peer;
mod pillion;
#[cfg(feature = "real-servers")]
mod programs;
mod readme;
#[cfg(feature = "real-servers")]
mod real_canaries;
#[cfg(feature = "real-servers")]
mod real_canaries_prometheus;
#[cfg(feature = "real-servers")]
mod real_chain;
#[cfg(feature = "real-servers")]
mod real_churn;
#[cfg(feature = "real-servers")]
mod real_consul;
#[cfg(feature = "real-servers")]
mod real_curl;
#[cfg(feature = "real-servers")]
mod real_deploy;
#[cfg(feature = "real-servers")]
mod real_deploy_kubernetes;
#[cfg(feature = "real-servers")]
mod real_dns;
#[cfg(feature = "real-servers")]
mod real_dns_capture;
#[cfg(feature = "real-servers")]
mod real_dns_trouble;
#[cfg(feature = "real-servers")]
mod real_etcd;
#[cfg(feature = "real-servers")]
mod real_eureka;
#[cfg(feature = "real-servers")]
mod real_failover;
#[cfg(feature = "real-servers")]
mod real_first_bytes;
#[cfg(feature = "real-servers")]
mod real_first_request;
#[cfg(feature = "real-servers")]
mod real_fleet;
#[cfg(feature = "real-servers")]
mod real_frameworks;
#[cfg(feature = "real-servers")]
mod real_grpc;
#[cfg(feature = "real-servers")]
mod real_kept_sources;
#[cfg(feature = "real-servers")]
mod real_kubernetes;
#[cfg(feature = "real-servers")]
mod real_load;
#[cfg(feature = "real-servers")]
mod real_nacos;
#[cfg(feature = "real-servers")]
mod real_net;
#[cfg(feature = "real-servers")]
mod real_outage;
#[cfg(feature = "real-servers")]
mod real_politeness;
#[cfg(feature = "real-servers")]
mod real_protocols;
#[cfg(feature = "real-servers")]
mod real_proxy;
#[cfg(feature = "real-servers")]
mod real_redirected_failures;
#[cfg(feature = "real-servers")]
mod real_redis;
#[cfg(feature = "real-servers")]
mod real_redis_failures;
#[cfg(feature = "real-servers")]
mod real_register_consul;
#[cfg(feature = "real-servers")]
mod real_register_etcd;
#[cfg(feature = "real-servers")]
mod real_register_eureka;
#[cfg(feature = "real-servers")]
mod real_register_nacos;
#[cfg(feature = "real-servers")]
mod real_register_redis;
#[cfg(feature = "real-servers")]
mod real_register_zookeeper;
#[cfg(feature = "real-servers")]
mod real_rolling;
#[cfg(feature = "real-servers")]
mod real_routes;
#[cfg(feature = "real-servers")]
mod real_scale;
#[cfg(feature = "real-servers")]
mod real_shares;
#[cfg(feature = "real-servers")]
mod real_soak;
#[cfg(feature = "real-servers")]
mod real_store;
#[cfg(feature = "real-servers")]
mod real_store_nacos;
#[cfg(feature = "real-servers")]
mod real_store_zookeeper;
#[cfg(feature = "real-servers")]
mod real_transparent;
#[cfg(feature = "real-servers")]
mod real_udp;
#[cfg(feature = "real-servers")]
mod real_unmodified_curl;
#[cfg(feature = "real-servers")]
mod real_websocket;
#[cfg(feature = "real-servers")]
mod real_xds;
#[cfg(feature = "real-servers")]
mod real_zookeeper;
mod register_command;
#[cfg(feature = "real-servers")]
mod registering;
mod relay;
mod reload;
mod retries;
mod rollout;
mod route_settings;
mod routing;
#[cfg(feature = "real-servers")]
mod scene;
#[cfg(feature = "real-servers")]
mod servers;
mod several_registries;
mod slow_instance;
mod socket;
mod steering;
mod sticking;
mod store_routes;
mod stores;
mod storms;
mod structure;
mod tcp;
mod tcp_endings;
mod tcp_names;
mod timeouts;
#[cfg(feature = "real-servers")]
mod tools;
mod udp;
mod upgrade;
mod upgrade_refused;
