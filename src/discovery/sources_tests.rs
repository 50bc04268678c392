use super::*;
use crate::registry::RegistryError;
use tokio::time::advance;

const SECOND: Duration = Duration::from_secs(1);

/// Sources named `a`, `b`, … that the test speaks for.
struct Setup {
    sources: Sources,
    observed: Vec<Observation>,
}

fn start(steps: &[Source]) -> Setup {
    let asked = |name: &str| Asked { registry: name.into(), name: "s".into(), scope: Scope::default() };
    let plan = Plan::new(steps, &Failover::default(), asked);
    let observed = plan.asked.iter().map(|_| Observation::default()).collect();
    Setup { sources: Sources::new(plan, Instant::now()), observed }
}

fn priority() -> Setup {
    start(&["a".into(), "b".into()])
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn instance(id: &str, port: u16) -> Instance {
    Instance::new(id, Address::new("10.0.0.1", port).unwrap())
}

impl Setup {
    fn hear(&mut self, place: usize) {
        self.sources.hear(place, &self.observed[place], Instant::now());
    }

    fn set(&mut self, place: usize, ports: &[u16]) {
        let instances = ports.iter().map(|port| instance(&port.to_string(), *port)).collect();
        self.observed[place] = Observation { instances: Some(instances), ..Observation::default() };
        self.hear(place);
    }

    fn fail(&mut self, place: usize) {
        self.observed[place].failure = Some(RegistryError::Unreachable { server: "x".into(), cause: "gone".into() });
        self.hear(place);
    }

    fn measure(&mut self, place: usize, milliseconds: Option<u64>) {
        self.sources.measured(place, milliseconds.map(Duration::from_millis), Instant::now());
    }

    /// The ports in force, and whose they are.
    fn decide(&mut self) -> (Vec<u16>, Vec<usize>) {
        let said = self.sources.decide(Instant::now());
        (said.instances.iter().map(|instance| instance.address.port()).collect(), said.from)
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_for_long_gives_way_and_comes_back_only_when_it_has_been_well_for_a_while() {
    let mut setup = priority();
    setup.set(0, &[1]);
    setup.set(1, &[2]);
    assert_eq!(setup.decide(), (vec![1], vec![0]));
    setup.fail(0);
    advance(9 * SECOND).await;
    assert_eq!(setup.decide().0, [1], "a short failure is no reason");
    assert_eq!(setup.sources.next(), Some(Instant::now() + SECOND));
    advance(SECOND).await;
    assert_eq!(setup.decide().0, [2]);
    // It is well again, then not, then well for good.
    setup.set(0, &[1]);
    advance(20 * SECOND).await;
    assert_eq!(setup.decide().0, [2]);
    setup.fail(0);
    setup.set(0, &[1]);
    advance(29 * SECOND).await;
    assert_eq!(setup.decide().0, [2], "the time begins anew");
    assert_eq!(setup.sources.next(), Some(Instant::now() + SECOND));
    advance(SECOND).await;
    assert_eq!(setup.decide().0, [1]);
    assert_eq!(setup.sources.next(), None);
}

#[tokio::test(start_paused = true)]
async fn where_all_fail_what_is_in_use_stays() {
    let mut setup = priority();
    setup.set(0, &[1]);
    setup.set(1, &[2]);
    setup.fail(1);
    assert_eq!(setup.decide().0, [1]);
    setup.fail(0);
    advance(60 * SECOND).await;
    assert_eq!(setup.decide().0, [1]);
    // The second is back first, and stays when it fails again: the first is no better.
    setup.set(1, &[2]);
    advance(30 * SECOND).await;
    assert_eq!(setup.decide().0, [2]);
    setup.fail(1);
    advance(60 * SECOND).await;
    assert_eq!(setup.decide().0, [2]);
    // One that was never given up needs no hold.
    let mut late = priority();
    late.set(1, &[2]);
    advance(SECOND).await;
    assert_eq!(late.decide().0, [2]);
    late.set(0, &[1]);
    assert_eq!(late.decide().0, [1]);
}

#[tokio::test(start_paused = true)]
async fn one_that_began_to_fail_a_moment_later_is_no_refuge() {
    let mut setup = start(&["a".into(), "b".into(), "c".into()]);
    for (place, port) in [(0, 1), (1, 2), (2, 3)] {
        setup.set(place, &[port]);
    }
    assert_eq!(setup.decide().0, [1]);
    setup.fail(0);
    advance(SECOND).await;
    setup.fail(1);
    advance(9 * SECOND).await;
    assert_eq!(setup.decide().0, [1], "the second is about to be given up, too");
    assert_eq!(setup.sources.next(), Some(Instant::now() + SECOND));
    advance(SECOND).await;
    assert_eq!(setup.decide().0, [3]);
    // Had it been a short failure, the second would have been the one.
    let mut short = priority();
    short.set(0, &[1]);
    short.set(1, &[2]);
    short.decide();
    short.fail(0);
    short.fail(1);
    advance(9 * SECOND).await;
    short.set(1, &[2]);
    advance(SECOND).await;
    assert_eq!(short.decide().0, [2]);
}

#[tokio::test(start_paused = true)]
async fn the_only_one_is_never_given_up() {
    let mut only = start(&["a".into()]);
    only.set(0, &[1]);
    only.fail(0);
    advance(60 * SECOND).await;
    assert_eq!(only.decide().0, [1]);
    assert!(!only.sources.is_given_up(0), "it fails, and that is all");
    only.set(0, &[2]);
    assert_eq!(only.decide().0, [2]);
    // Nothing would look again once the hold is over.
    assert!(!only.sources.is_given_up(0) && only.sources.next().is_none());
    let mut first = priority();
    first.fail(0);
    advance(10 * SECOND).await;
    first.decide();
    assert!(first.sources.is_given_up(0));
}

#[tokio::test(start_paused = true)]
async fn at_the_start_the_second_waits_a_moment_for_the_first() {
    let mut setup = priority();
    setup.set(1, &[2]);
    assert!(setup.decide().0.is_empty());
    assert_eq!(setup.sources.next(), Some(Instant::now() + PATIENCE));
    advance(PATIENCE).await;
    assert_eq!(setup.decide().0, [2]);
    let mut failing = priority();
    failing.set(1, &[2]);
    failing.fail(0);
    assert_eq!(failing.decide().0, [2], "it has said what it has to say");
}

#[tokio::test(start_paused = true)]
async fn one_that_lists_nothing_leaves_it_to_the_next() {
    let mut setup = priority();
    setup.set(0, &[]);
    assert_eq!(setup.decide(), (Vec::new(), Vec::new()));
    setup.set(1, &[2]);
    assert_eq!(setup.decide(), (vec![2], vec![1]));
    setup.set(0, &[1]);
    assert_eq!(setup.decide(), (vec![1], vec![0]));
}

#[tokio::test(start_paused = true)]
async fn merged_sources_add_up_and_an_address_counts_once() {
    let mut setup = start(&[Source::Merge(names(&["a", "b"])), "c".into()]);
    setup.set(0, &[1, 2]);
    assert_eq!(setup.decide(), (vec![1, 2], vec![0]));
    setup.set(2, &[9]);
    let weighty = Instance { weight: 7, ..instance("2", 2) };
    let same_id = instance("1", 3);
    setup.observed[1].instances = Some([weighty, same_id].into());
    setup.hear(1);
    let said = setup.sources.decide(Instant::now());
    let shown: Vec<_> = said.instances.iter().map(|one| (one.id.as_str(), one.address.port(), one.weight)).collect();
    assert_eq!(
        shown,
        [("1", 1, 100), ("2", 2, 100), ("b/1", 3, 187)],
        "the first is believed, ids are unique, 100 is the mean"
    );
    assert_eq!(said.from, [0, 1]);
    // One of them fails for long: what it said last still counts, for the other one does not know it.
    setup.fail(1);
    advance(60 * SECOND).await;
    assert_eq!(setup.decide().0, [1, 2, 3]);
    setup.fail(0);
    advance(60 * SECOND).await;
    assert_eq!(setup.decide().0, [9], "both fail, the next one does not");
}

#[tokio::test(start_paused = true)]
async fn the_nearest_is_used_and_left_when_nothing_there_can_be_reached() {
    let mut setup = start(&[Source::Nearest(names(&["a", "b", "c"]))]);
    setup.set(0, &[1]);
    setup.set(1, &[2]);
    assert_eq!(setup.decide().0, [1], "not measured yet: the order counts");
    setup.measure(0, Some(40));
    setup.measure(1, Some(5));
    assert_eq!(setup.decide().0, [2]);
    setup.set(2, &[3]);
    setup.measure(2, Some(4));
    assert_eq!(setup.decide().0, [2], "a little nearer is not worth a change");
    setup.measure(0, Some(4));
    assert_eq!(setup.decide().0, [1], "as near as that one, and before it in order");
    setup.measure(0, Some(40));
    assert_eq!(setup.decide().0, [3], "no longer near enough: then the nearest");
    setup.measure(1, Some(3));
    assert_eq!(setup.decide().0, [2]);
    setup.measure(1, None);
    assert_eq!(setup.decide().0, [3]);
    setup.measure(2, None);
    assert_eq!(setup.decide().0, [1]);
    // Back within reach, it must stay so for a while.
    setup.measure(1, Some(5));
    advance(29 * SECOND).await;
    assert_eq!(setup.decide().0, [1]);
    advance(SECOND).await;
    assert_eq!(setup.decide().0, [2]);
    // A registry that fails is left too; and its instances, when nobody else has any.
    setup.fail(1);
    advance(10 * SECOND).await;
    assert_eq!(setup.decide().0, [1]);
    setup.set(0, &[]);
    advance(SECOND).await;
    assert_eq!(setup.decide().0, [2], "the third is out of reach as well, and this one was in use last");
}

#[tokio::test(start_paused = true)]
async fn only_what_is_in_scope_counts() {
    let yaml = "node: { env: prod }\nregistries: { a: { kind: file, path: x, scope: { env_label: env } } }\n";
    let config = crate::config::load(crate::config::Origin::text("f", yaml), &|_| None).unwrap().config;
    let asked = |name: &str| Asked { registry: name.into(), name: "s".into(), scope: Scope::of(&config, name) };
    let plan = Plan::new(&["a".into(), "b".into()], &Failover::default(), asked);
    let mut setup = Setup { sources: Sources::new(plan, Instant::now()), observed: vec![Observation::default(); 2] };
    setup.set(0, &[1]);
    setup.set(1, &[2]);
    assert_eq!(setup.decide().0, [2], "the instance of no environment is as good as none");
    assert_eq!(setup.sources.set(0).map(|set| set.len()), Some(0));
}
