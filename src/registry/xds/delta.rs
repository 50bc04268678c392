//! The incremental variant: names are added and dropped, each resource has a version of its own, and removals are said.

use super::{
    proto::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node},
    variant::{Introduction, Kind, Part, Receipt, Refused, Update, Variant, Wanted, error_detail},
};
use std::collections::{BTreeMap, BTreeSet};

pub struct Delta {
    introduction: Introduction,
    clusters: Subscription,
    endpoints: Subscription,
}

#[derive(Default)]
struct Subscription {
    /// On this stream something was asked for.
    asked: bool,
    /// By name, on this stream.
    names: BTreeSet<String>,
    /// Of what is held.
    versions: BTreeMap<String, String>,
}

impl Delta {
    pub fn new(node: Node) -> Self {
        let introduction = Introduction::new(node);
        Self { introduction, clusters: Subscription::default(), endpoints: Subscription::default() }
    }

    fn subscription(&mut self, kind: Kind) -> &mut Subscription {
        match kind {
            Kind::Clusters => &mut self.clusters,
            Kind::Endpoints => &mut self.endpoints,
        }
    }
}

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    const PATH: &'static str = proto::DELTA;

    fn restart(&mut self, same_server: bool, holds: impl Fn(Kind, &str) -> bool) {
        self.introduction.again();
        for kind in Kind::ALL {
            let subscription = self.subscription(kind);
            subscription.asked = false;
            subscription.names.clear();
            subscription.versions.retain(|name, _| holds(kind, name));
            if !same_server {
                // The names all the same, so that the server says which of them it does not have.
                subscription.versions.values_mut().for_each(String::clear);
            }
        }
    }

    fn ask(&mut self, kind: Kind, wanted: Wanted<'_>) -> Option<DeltaDiscoveryRequest> {
        let subscription = self.subscription(kind);
        let mut request = DeltaDiscoveryRequest { type_url: kind.url().into(), ..DeltaDiscoveryRequest::default() };
        match wanted {
            Wanted::All if subscription.asked => return None,
            // A first request without names asks for all: in this form servers of every age understand it.
            Wanted::All => {}
            Wanted::Names(names) => {
                if *names == subscription.names {
                    return None;
                }
                request.resource_names_subscribe = names.difference(&subscription.names).cloned().collect();
                request.resource_names_unsubscribe = subscription.names.difference(names).cloned().collect();
                subscription.versions.retain(|name, _| names.contains(name));
                subscription.names.clone_from(names);
            }
        }
        if !subscription.asked {
            subscription.asked = true;
            request.initial_resource_versions = subscription.versions.clone();
        }
        request.node = self.introduction.take();
        Some(request)
    }

    fn read(&mut self, response: DeltaDiscoveryResponse) -> Option<(Update, Receipt)> {
        let kind = Kind::of(&response.type_url).filter(|kind| self.subscription(*kind).asked)?;
        let mut versions = Vec::with_capacity(response.resources.len());
        let mut resources = Vec::with_capacity(response.resources.len());
        for resource in response.resources {
            versions.push((resource.name.clone(), resource.version));
            resources.push(Part::new(kind, resource.name, resource.resource.unwrap_or_default()));
        }
        let removed = response.removed_resources;
        let receipt =
            Receipt { kind, nonce: response.nonce, version: String::new(), versions, removed: removed.clone() };
        Some((Update { kind, resources, removed, complete: false }, receipt))
    }

    fn answer(&mut self, receipt: Receipt, refused: &Refused) -> DeltaDiscoveryRequest {
        let subscription = self.subscription(receipt.kind);
        for (name, version) in receipt.versions {
            // Of what is refused, the version before is what we have; and what nobody wants is not kept.
            let wanted = receipt.kind == Kind::Clusters || subscription.names.contains(&name);
            if wanted && !refused.contains_key(&name) {
                subscription.versions.insert(name, version);
            }
        }
        for name in &receipt.removed {
            subscription.versions.remove(name);
        }
        DeltaDiscoveryRequest {
            node: self.introduction.take(),
            type_url: receipt.kind.url().into(),
            response_nonce: receipt.nonce,
            error_detail: error_detail(refused),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::proto::{Any, Resource},
        *,
    };

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn delta() -> Delta {
        Delta::new(Node { id: "n".into(), ..Node::default() })
    }

    fn response(kind: Kind, nonce: &str, resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
        let any = Any { type_url: kind.url().into(), value: vec![1] };
        let resource = |(name, version): &(&str, &str)| Resource {
            name: (*name).into(),
            version: (*version).into(),
            resource: Some(any.clone()),
        };
        DeltaDiscoveryResponse {
            resources: resources.iter().map(resource).collect(),
            type_url: kind.url().into(),
            nonce: nonce.into(),
            removed_resources: removed.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn names_are_told_once_and_the_node_first() {
        let mut delta = delta();
        assert_eq!(delta.ask(Kind::Endpoints, Wanted::Names(&names(&[]))), None, "no names would mean all");
        let first = delta.ask(Kind::Endpoints, Wanted::Names(&names(&["a", "b"]))).unwrap();
        assert_eq!(
            (first.resource_names_subscribe, first.node.unwrap().id),
            (vec!["a".into(), "b".into()], "n".into())
        );
        assert_eq!(delta.ask(Kind::Endpoints, Wanted::Names(&names(&["a", "b"]))), None);
        let next = delta.ask(Kind::Endpoints, Wanted::Names(&names(&["b", "c"]))).unwrap();
        assert_eq!(next.resource_names_subscribe, ["c"]);
        assert_eq!((next.resource_names_unsubscribe, next.node), (vec!["a".into()], None));
        let all = delta.ask(Kind::Clusters, Wanted::All).unwrap();
        assert!(all.resource_names_subscribe.is_empty() && all.type_url.ends_with(".Cluster"));
        assert_eq!(delta.ask(Kind::Clusters, Wanted::All), None);
    }

    #[test]
    fn a_new_stream_says_what_is_held() {
        let mut delta = delta();
        let wanted = names(&["a", "b", "c"]);
        delta.ask(Kind::Endpoints, Wanted::Names(&wanted));
        let (update, receipt) =
            delta.read(response(Kind::Endpoints, "1", &[("a", "1"), ("b", "1"), ("c", "1"), ("x", "1")], &[])).unwrap();
        assert!(update.resources.len() == 4 && !update.complete);
        let answer = delta.answer(receipt, &Refused::new());
        assert_eq!((answer.response_nonce.as_str(), answer.error_detail), ("1", None));
        let (update, receipt) = delta.read(response(Kind::Endpoints, "2", &[("a", "2"), ("b", "2")], &["c"])).unwrap();
        assert_eq!(update.removed, ["c"]);
        let answer = delta.answer(receipt, &Refused::from([("b".into(), "weight 0".into())]));
        assert_eq!(
            (answer.response_nonce.as_str(), answer.error_detail.unwrap().message.as_str()),
            ("2", "b: weight 0")
        );

        delta.restart(true, |_, _| true);
        let again = delta.ask(Kind::Endpoints, Wanted::Names(&wanted)).unwrap();
        assert_eq!((again.resource_names_subscribe.len(), again.node.is_some()), (3, true));
        let held = |a: &str, b: &str| BTreeMap::from([("a".to_owned(), a.to_owned()), ("b".to_owned(), b.to_owned())]);
        assert_eq!(again.initial_resource_versions, held("2", "1"), "b's second version is not in use");
        delta.restart(false, |_, _| true);
        let other = delta.ask(Kind::Endpoints, Wanted::Names(&wanted)).unwrap();
        assert_eq!(other.initial_resource_versions, held("", ""), "another server's versions mean nothing");
    }

    #[test]
    fn what_nobody_asked_for_is_left_alone() {
        let mut delta = delta();
        assert_eq!(delta.read(response(Kind::Endpoints, "1", &[], &[])), None);
        delta.ask(Kind::Clusters, Wanted::All);
        let mut odd = response(Kind::Clusters, "1", &[("a", "1")], &[]);
        odd.resources[0].resource = Some(Any { type_url: "type.googleapis.com/other".into(), value: vec![1] });
        let (update, _) = delta.read(odd).unwrap();
        assert_eq!(update.resources, [Part { name: "a".into(), bytes: Vec::new() }]);
        let odd = DeltaDiscoveryResponse { type_url: "other".into(), ..DeltaDiscoveryResponse::default() };
        assert_eq!(delta.read(odd), None);
    }
}
