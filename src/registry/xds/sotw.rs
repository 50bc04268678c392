//! The state-of-the-world variant: each request names all that is wanted, and each response has one version.

use super::{
    proto::{self, DiscoveryRequest, DiscoveryResponse, Node},
    variant::{Introduction, Kind, Part, Receipt, Refused, Update, Variant, Wanted, error_detail},
};
use std::collections::BTreeSet;

pub struct StateOfTheWorld {
    introduction: Introduction,
    clusters: Subscription,
    endpoints: Subscription,
}

#[derive(Default)]
struct Subscription {
    /// On this stream something was asked for.
    asked: bool,
    /// As last told, on this stream.
    names: BTreeSet<String>,
    /// Of the last response on this stream.
    nonce: String,
    /// Of the last response that is in use, and the names that it was for.
    version: String,
    held: BTreeSet<String>,
}

impl StateOfTheWorld {
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

    fn request(&mut self, kind: Kind) -> DiscoveryRequest {
        let node = self.introduction.take();
        let subscription = self.subscription(kind);
        DiscoveryRequest {
            version_info: subscription.version.clone(),
            node,
            resource_names: subscription.names.iter().cloned().collect(),
            type_url: kind.url().into(),
            response_nonce: subscription.nonce.clone(),
            error_detail: None,
        }
    }
}

impl Variant for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    const PATH: &'static str = proto::STATE_OF_THE_WORLD;

    fn restart(&mut self, same_server: bool, holds: impl Fn(Kind, &str) -> bool) {
        self.introduction.again();
        for kind in Kind::ALL {
            let subscription = self.subscription(kind);
            subscription.asked = false;
            subscription.names.clear();
            subscription.nonce.clear();
            if !same_server || !subscription.held.iter().all(|name| holds(kind, name)) {
                subscription.version.clear();
            }
        }
    }

    fn ask(&mut self, kind: Kind, wanted: Wanted<'_>) -> Option<DiscoveryRequest> {
        let subscription = self.subscription(kind);
        match wanted {
            Wanted::All if subscription.asked => return None,
            Wanted::All => {}
            // Also if none ever were: a first request without names would ask for all.
            Wanted::Names(names) if *names == subscription.names => return None,
            Wanted::Names(names) => {
                subscription.names.clone_from(names);
                // To a server of that version there would be nothing to say, though there is about other names.
                if !subscription.asked && subscription.held != *names {
                    subscription.version.clear();
                }
            }
        }
        subscription.asked = true;
        Some(self.request(kind))
    }

    fn read(&mut self, response: DiscoveryResponse) -> Option<(Update, Receipt)> {
        let kind = Kind::of(&response.type_url).filter(|kind| self.subscription(*kind).asked)?;
        let resources = response.resources.into_iter().map(|any| Part::new(kind, String::new(), any)).collect();
        let receipt = Receipt {
            kind,
            nonce: response.nonce,
            version: response.version_info,
            versions: Vec::new(),
            removed: Vec::new(),
        };
        // A response about endpoints may have only those that changed.
        Some((Update { kind, resources, removed: Vec::new(), complete: kind == Kind::Clusters }, receipt))
    }

    fn answer(&mut self, receipt: Receipt, refused: &Refused) -> DiscoveryRequest {
        let subscription = self.subscription(receipt.kind);
        subscription.nonce = receipt.nonce;
        if refused.is_empty() {
            subscription.version = receipt.version;
            subscription.held.clone_from(&subscription.names);
        }
        DiscoveryRequest { error_detail: error_detail(refused), ..self.request(receipt.kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::proto::Any, *};

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn sotw() -> StateOfTheWorld {
        StateOfTheWorld::new(Node { id: "n".into(), ..Node::default() })
    }

    fn response(kind: Kind, version: &str, nonce: &str) -> DiscoveryResponse {
        let any = Any { type_url: kind.url().into(), value: vec![1] };
        DiscoveryResponse {
            version_info: version.into(),
            resources: vec![any],
            type_url: kind.url().into(),
            nonce: nonce.into(),
        }
    }

    /// The version, the names and the nonce.
    fn shown(request: &DiscoveryRequest) -> (&str, String, &str) {
        (&request.version_info, request.resource_names.join(" "), &request.response_nonce)
    }

    #[test]
    fn requests_name_all_and_the_newest_response() {
        let mut sotw = sotw();
        assert_eq!(sotw.ask(Kind::Endpoints, Wanted::Names(&names(&[]))), None);
        let first = sotw.ask(Kind::Endpoints, Wanted::Names(&names(&["a"]))).unwrap();
        assert_eq!((shown(&first), first.node.as_ref().unwrap().id.as_str()), (("", "a".into(), ""), "n"));
        let (update, receipt) = sotw.read(response(Kind::Endpoints, "v1", "1")).unwrap();
        assert!(update.resources.len() == 1 && !update.complete);
        let accepted = sotw.answer(receipt, &Refused::new());
        assert_eq!((shown(&accepted), &accepted.error_detail, &accepted.node), (("v1", "a".into(), "1"), &None, &None));
        let more = sotw.ask(Kind::Endpoints, Wanted::Names(&names(&["a", "b"]))).unwrap();
        assert_eq!(shown(&more), ("v1", "a b".into(), "1"));
        let (_, receipt) = sotw.read(response(Kind::Endpoints, "v2", "2")).unwrap();
        let refused = sotw.answer(receipt, &Refused::from([("a".into(), "weight 0".into())]));
        assert_eq!(shown(&refused), ("v1", "a b".into(), "2"));
        assert_eq!(refused.error_detail.unwrap().message, "a: weight 0");
        let none = sotw.ask(Kind::Endpoints, Wanted::Names(&names(&[]))).unwrap();
        assert_eq!(shown(&none), ("v1", String::new(), "2"));
    }

    #[test]
    fn a_new_stream_has_the_version_only_if_it_is_about_the_same_names() {
        let mut sotw = sotw();
        sotw.ask(Kind::Clusters, Wanted::All);
        let (update, receipt) = sotw.read(response(Kind::Clusters, "c1", "1")).unwrap();
        assert!(update.complete, "what is not there is gone");
        sotw.answer(receipt, &Refused::new());
        sotw.ask(Kind::Endpoints, Wanted::Names(&names(&["a"])));
        let (_, receipt) = sotw.read(response(Kind::Endpoints, "e1", "2")).unwrap();
        sotw.answer(receipt, &Refused::new());

        sotw.restart(true, |_, _| true);
        assert_eq!(shown(&sotw.ask(Kind::Clusters, Wanted::All).unwrap()), ("c1", String::new(), ""));
        assert_eq!(sotw.ask(Kind::Clusters, Wanted::All), None);
        assert_eq!(shown(&sotw.ask(Kind::Endpoints, Wanted::Names(&names(&["a"]))).unwrap()), ("e1", "a".into(), ""));
        sotw.restart(true, |_, _| true);
        assert_eq!(shown(&sotw.ask(Kind::Endpoints, Wanted::Names(&names(&["b"]))).unwrap()), ("", "b".into(), ""));
        sotw.restart(false, |_, _| true);
        let other = sotw.ask(Kind::Clusters, Wanted::All).unwrap();
        assert_eq!((shown(&other), other.node.is_some()), (("", String::new(), ""), true));
    }

    #[test]
    fn what_nobody_asked_for_is_left_alone() {
        let mut sotw = sotw();
        assert_eq!(sotw.read(response(Kind::Endpoints, "v", "1")), None);
        sotw.ask(Kind::Clusters, Wanted::All);
        let mut odd = response(Kind::Clusters, "v", "1");
        odd.resources[0].type_url = "type.googleapis.com/other".into();
        assert_eq!(sotw.read(odd).unwrap().0.resources, [Part { name: String::new(), bytes: Vec::new() }]);
    }
}
