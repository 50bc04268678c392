//! For the target `kubernetes` of `fuzz/`.

use super::{
    Kubernetes,
    api::Status,
    objects::{List, Objects},
    slices::{self, Choice, Slice},
};
use crate::{
    config::{IpFamily, KubernetesPort},
    registry::Instance,
};
use std::sync::Arc;

/// What a page of a list gives; `None` if it is none.
pub fn listed(page: &[u8]) -> Option<Vec<Instance>> {
    let list: List<Slice> = serde_json::from_slice(page).ok()?;
    let all = Choice { port: None, family: IpFamily::Ipv4, zone: Some("a".into()) };
    let by_name = Choice { port: KubernetesPort::parse("http"), family: IpFamily::Ipv6, zone: None };
    slices::instances(list.items.iter(), &by_name);
    Some(slices::instances(list.items.iter(), &all).0)
}

/// What the lines of a watch give, up to one that ends it.
pub fn watched<'l>(kubernetes: &Arc<Kubernetes>, lines: impl Iterator<Item = &'l [u8]>) -> Vec<Instance> {
    let mut slices = Objects::<Slice>::new(kubernetes.clone(), String::new());
    for line in lines {
        if slices.apply(line, "server").is_err() {
            break;
        }
    }
    let choice = Choice { port: None, family: IpFamily::Ipv4, zone: None };
    slices::instances(slices.all.values(), &choice).0
}

/// Reads what comes instead of a list.
pub fn refused(body: &[u8]) {
    if let Ok(status) = serde_json::from_slice::<Status>(body) {
        let _ = status.into_error("server");
    }
}
