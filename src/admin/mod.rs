//! stub
use crate::{
    config::Config,
    discovery,
    telemetry::{Telemetry, log::LogHandle},
};
use arc_swap::ArcSwap;
use std::sync::{Arc, atomic::AtomicBool};
#[derive(Debug, Default)]
pub struct Health {
    pub listening: AtomicBool,
    pub draining: AtomicBool,
}
pub struct State {
    pub config: Arc<ArcSwap<Config>>,
    pub discovery: discovery::Handle,
    pub telemetry: Arc<Telemetry>,
    pub log: LogHandle,
    pub registries: Arc<ArcSwap<discovery::Registries>>,
    pub health: Arc<Health>,
}
pub fn router(state: State) -> axum::Router {
    let state = Arc::new(state);
    axum::Router::new().route(
        "/metrics",
        axum::routing::get(move || {
            let s = state.clone();
            async move { s.telemetry.metrics.render(None).1 }
        }),
    )
}
