use super::{super::proto, *};
use prost::Message;
use tokio::time::advance;

/// A cluster whose endpoints are an assignment of that name.
fn eds(name: &str, assignment: &str) -> Part {
    let config = proto::EdsClusterConfig { service_name: assignment.into() };
    let kind = proto::DiscoveryType::Eds as i32;
    let message =
        proto::Cluster { name: name.into(), r#type: kind, eds_cluster_config: Some(config), ..Default::default() };
    Part { name: String::new(), bytes: message.encode_to_vec() }
}

fn assignment_message(name: &str, host: &str) -> proto::ClusterLoadAssignment {
    let socket = proto::SocketAddress { address: host.into(), port_value: 80, ..Default::default() };
    let address = proto::Address { address: Some(proto::AddressKind::Socket(socket)) };
    let endpoint = proto::Endpoint { address: Some(address) };
    let endpoints = proto::LocalityLbEndpoints {
        lb_endpoints: vec![proto::LbEndpoint { endpoint: Some(endpoint), ..Default::default() }],
        ..Default::default()
    };
    proto::ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![endpoints], ..Default::default() }
}

fn assignment(name: &str, host: &str) -> Part {
    Part { name: String::new(), bytes: assignment_message(name, host).encode_to_vec() }
}

fn clusters(resources: Vec<Part>, complete: bool) -> Update {
    Update { kind: Kind::Clusters, resources, removed: Vec::new(), complete }
}

fn endpoints(resources: Vec<Part>) -> Update {
    Update { kind: Kind::Endpoints, resources, removed: Vec::new(), complete: false }
}

/// One follower of one service, and the state.
struct Scene {
    state: State,
    said: watch::Receiver<Said>,
}

impl Scene {
    fn new(discover: XdsDiscover) -> Self {
        let (follower, said) = watch::channel(Said::default());
        let mut state = State::new(discover);
        state.follow("users".into(), follower, Instant::now());
        state.connected("http://a:1", Instant::now());
        state.settle(Instant::now());
        Self { state, said }
    }

    fn apply(&mut self, update: Update) -> Refused {
        let refused = self.state.apply(update, Instant::now());
        self.state.settle(Instant::now());
        refused
    }

    fn wanted(&self) -> Vec<String> {
        match self.state.wanted(Kind::Endpoints) {
            Wanted::All => panic!("never all endpoints"),
            Wanted::Names(names) => names.iter().cloned().collect(),
        }
    }

    /// What was said since the last time: `-` for nothing, the addresses with `!` if unhealthy and the notes, or the error.
    fn said(&mut self) -> String {
        if !self.said.has_changed().unwrap() {
            return "-".into();
        }
        match &*self.said.borrow_and_update() {
            Said::Nothing => "-".into(),
            Said::Set(set) => {
                let shown = |one: &Instance| format!("{}{}", one.id, if one.healthy { "" } else { "!" });
                set.instances.iter().map(shown).chain(set.notes.iter().cloned()).collect::<Vec<_>>().join(" ")
            }
            Said::Failing(error) => format!("error: {error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_leads_to_its_assignment() {
    let mut scene = Scene::new(XdsDiscover::Cds);
    assert_eq!(scene.state.wanted(Kind::Clusters), Wanted::All);
    assert!(scene.wanted().is_empty(), "not before the cluster is known");
    assert!(scene.apply(clusters(vec![eds("users", "users-v1"), eds("other", "")], true)).is_empty());
    assert_eq!((scene.wanted(), scene.said().as_str()), (vec!["users-v1".to_owned()], "-"));
    scene.apply(endpoints(vec![assignment("users-v1", "10.0.0.1"), assignment("other", "10.0.0.9")]));
    assert_eq!(scene.said(), "10.0.0.1:80");
    // It moves to another assignment; until that is there, what was said holds.
    scene.apply(clusters(vec![eds("users", "users-v2")], false));
    assert_eq!((scene.wanted(), scene.said().as_str()), (vec!["users-v2".to_owned()], "-"));
    scene.apply(endpoints(vec![assignment("users-v2", "10.0.0.2")]));
    assert_eq!(scene.said(), "10.0.0.2:80");
    // Its assignment is gone, then the cluster.
    scene.apply(Update { removed: vec!["users-v2".into()], ..endpoints(vec![]) });
    assert_eq!(scene.said(), "");
    scene.apply(endpoints(vec![assignment("users-v2", "10.0.0.2")]));
    assert_eq!(scene.said(), "10.0.0.2:80");
    scene.apply(Update { removed: vec!["users".into()], ..clusters(vec![], false) });
    assert_eq!((scene.said(), scene.wanted().len()), (String::new(), 0));
    // It comes back long after: its endpoints are owed from then on.
    advance(10 * PATIENCE).await;
    scene.apply(clusters(vec![eds("users", "")], false));
    assert_eq!(scene.state.next_tick(), Some(Instant::now() + PATIENCE));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_not_among_all_has_no_endpoints() {
    let mut scene = Scene::new(XdsDiscover::Cds);
    scene.apply(clusters(vec![eds("other", "")], true));
    assert_eq!(scene.said(), "", "an answer");
    scene.apply(clusters(vec![eds("users", "")], true));
    scene.apply(endpoints(vec![assignment("users", "10.0.0.1")]));
    assert_eq!(scene.said(), "10.0.0.1:80");
    // One that cannot be read might be the one that is missing.
    let broken = Part { name: String::new(), bytes: vec![0xff] };
    assert_eq!(scene.apply(clusters(vec![eds("other", ""), broken], true)).len(), 1);
    assert_eq!(scene.said(), "-", "nothing new");
    scene.apply(clusters(vec![eds("other", "")], true));
    assert_eq!(scene.said(), "");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_is_refused_and_the_last_good_one_stays() {
    let mut scene = Scene::new(XdsDiscover::Eds);
    assert_eq!(
        (scene.state.wanted(Kind::Clusters), scene.wanted()),
        (Wanted::Names(&BTreeSet::new()), vec!["users".to_owned()])
    );
    let refused = scene.apply(endpoints(vec![assignment("users", "not a host")]));
    assert!(refused["users"].contains("not a host"), "{refused:?}");
    assert!(scene.said().starts_with("error: http://a:1 answered something unexpected: `users` cannot be used: "));
    scene.apply(endpoints(vec![assignment("users", "10.0.0.1")]));
    assert_eq!(scene.said(), "10.0.0.1:80");
    assert_eq!(scene.apply(endpoints(vec![assignment("users", "not a host")])).len(), 1);
    let said = scene.said();
    assert!(said.starts_with("10.0.0.1:80 its newest version is not in use: "), "{said}");
}

#[tokio::test(start_paused = true)]
async fn silence_is_an_error_at_last_and_a_new_stream_has_time_again() {
    let mut scene = Scene::new(XdsDiscover::Cds);
    assert_eq!(scene.state.next_tick(), Some(Instant::now() + PATIENCE));
    advance(PATIENCE).await;
    scene.state.tick(Instant::now());
    assert_eq!(
        scene.said(),
        "error: http://a:1 is not able to answer: nothing about `users` within 15s; does it have that service?"
    );
    assert_eq!(scene.state.next_tick(), Some(Instant::now() + PATIENCE), "and again");
    scene.state.failed(&RegistryError::Unreachable { server: "http://a:1".into(), cause: "gone".into() });
    assert_eq!((scene.said().as_str(), scene.state.next_tick()), ("error: cannot reach http://a:1: gone", None));
    advance(PATIENCE).await;
    scene.state.connected("http://b:1", Instant::now());
    scene.state.tick(Instant::now());
    assert_eq!(scene.said(), "-");
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_confirmed_after_a_failure() {
    let mut scene = Scene::new(XdsDiscover::Eds);
    scene.apply(endpoints(vec![assignment("users", "10.0.0.1")]));
    scene.said();
    scene.state.failed(&RegistryError::Unreachable { server: "http://a:1".into(), cause: "gone".into() });
    assert!(scene.said().starts_with("error: "));
    scene.state.connected("http://a:1", Instant::now());
    assert_eq!(scene.said(), "-");
    assert!(scene.state.holds(Kind::Endpoints, "users") && !scene.state.holds(Kind::Endpoints, "other"));
    scene.state.confirm();
    assert_eq!(scene.said(), "10.0.0.1:80");
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_are_not_renewed_in_time_are_unhealthy_also_without_a_stream() {
    let stale_after = Some(proto::Duration { seconds: 90, nanos: 0 });
    let policy = proto::Policy { endpoint_stale_after: stale_after, ..Default::default() };
    let message = proto::ClusterLoadAssignment { policy: Some(policy), ..assignment_message("users", "10.0.0.1") };
    let fresh = || endpoints(vec![Part { name: "users".into(), bytes: message.encode_to_vec() }]);
    let mut scene = Scene::new(XdsDiscover::Eds);
    scene.apply(fresh());
    assert_eq!(scene.said(), "10.0.0.1:80");
    advance(Duration::from_secs(60)).await;
    scene.apply(fresh());
    assert_eq!(scene.state.next_tick(), Some(Instant::now() + Duration::from_secs(90)));
    scene.state.failed(&RegistryError::Unreachable { server: "http://a:1".into(), cause: "gone".into() });
    scene.said();
    advance(Duration::from_secs(90)).await;
    scene.state.tick(Instant::now());
    assert_eq!(scene.said(), "10.0.0.1:80! not renewed within 90s");
    scene.state.connected("http://a:1", Instant::now());
    scene.apply(fresh());
    assert_eq!(scene.said(), "10.0.0.1:80");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_and_comes_back_at_once_keeps_what_is_known() {
    let mut scene = Scene::new(XdsDiscover::Eds);
    scene.apply(endpoints(vec![assignment("users", "10.0.0.1")]));
    let (follower, said) = watch::channel(Said::default());
    drop(std::mem::replace(&mut scene.said, said));
    scene.state.left("users");
    assert!(scene.state.is_idle());
    scene.state.follow("users".into(), follower, Instant::now());
    scene.state.settle(Instant::now());
    assert_eq!(scene.said(), "10.0.0.1:80");
    // Otherwise it is forgotten.
    scene.said = watch::channel(Said::default()).1;
    scene.state.left("users");
    scene.state.settle(Instant::now());
    assert!(scene.wanted().is_empty() && !scene.state.holds(Kind::Endpoints, "users"));
}

#[tokio::test(start_paused = true)]
async fn a_list_is_answered_by_what_this_stream_says() {
    let mut state = State::new(XdsDiscover::Cds);
    let (asker, mut answer) = oneshot::channel();
    state.list(asker);
    assert!(!state.is_idle());
    state.connected("http://a:1", Instant::now());
    assert!(answer.try_recv().is_err());
    state.apply(clusters(vec![eds("b", ""), eds("a", "")], true), Instant::now());
    assert_eq!(answer.try_recv().unwrap().unwrap(), ["a", "b"]);
    assert!(state.is_idle());
    state.failed(&RegistryError::Unreachable { server: "s".into(), cause: "gone".into() });
    let (asker, mut answer) = oneshot::channel();
    state.list(asker);
    assert!(answer.try_recv().is_err(), "that may be old");
    state.failed(&RegistryError::Unreachable { server: "s".into(), cause: "gone".into() });
    assert!(answer.try_recv().unwrap().is_err());
}
