//! For the target `xds` of `fuzz/`.

use super::{
    decode::{self, Source},
    delta::Delta,
    proto::{DeltaDiscoveryResponse, DiscoveryResponse, Node},
    sotw::StateOfTheWorld,
    state::{Said, State},
    variant::{Kind, Variant},
};
use crate::{config::XdsDiscover, registry::Instance};
use prost::Message;
use tokio::{sync::watch, time::Instant};

/// What a resource of either type gives.
pub fn instances(resource: &[u8]) -> Vec<Instance> {
    decode::name(resource);
    let mut instances = decode::assignment(resource).map(|endpoints| endpoints.instances).unwrap_or_default();
    if let Ok(Source::Inline(endpoints)) = decode::cluster(resource).map(|cluster| cluster.source) {
        instances.extend_from_slice(&endpoints.instances);
    }
    instances
}

/// What is known of `users` after these responses, which are of either variant.
pub fn answered<'r>(responses: impl Iterator<Item = &'r [u8]>) -> Vec<Instance> {
    let (mut delta, mut whole) = (Delta::new(Node::default()), StateOfTheWorld::new(Node::default()));
    let mut state = State::new(XdsDiscover::Cds);
    let (follower, said) = watch::channel(Said::default());
    let now = Instant::now();
    state.follow("users".into(), follower, now);
    state.connected("server", now);
    for response in responses {
        for kind in Kind::ALL {
            delta.ask(kind, state.wanted(kind));
            whole.ask(kind, state.wanted(kind));
        }
        take(&mut delta, DeltaDiscoveryResponse::decode(response).ok(), &mut state, now);
        take(&mut whole, DiscoveryResponse::decode(response).ok(), &mut state, now);
        state.settle(now);
    }
    if let Some(next) = state.next_tick() {
        state.tick(next);
    }
    match &*said.borrow() {
        Said::Set(endpoints) => endpoints.instances.clone(),
        Said::Nothing | Said::Failing(_) => Vec::new(),
    }
}

fn take<V: Variant>(variant: &mut V, response: Option<V::Response>, state: &mut State, now: Instant) {
    if let Some((update, receipt)) = response.and_then(|response| variant.read(response)) {
        let refused = state.apply(update, now);
        variant.answer(receipt, &refused);
    }
}
