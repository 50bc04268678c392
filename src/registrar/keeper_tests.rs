use super::{
    keeper::{Keeper, Kept, Wanted},
    *,
};
use crate::{
    cluster::check,
    registry::{Entry, Instance, Registration, RegistryError, Renewal},
    telemetry::{labels::RegistrationState as State, labels::WORDS, metrics::Metrics},
};
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// What the registry of a test is to do next, and what it was asked.
#[derive(Clone)]
struct Script {
    calls: mpsc::UnboundedSender<(Instant, String)>,
    answers: watch::Receiver<Answer>,
    shows_health: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Well,
    Down,
    Hangs,
    Lost,
    Slow,
}

const SLOW: Duration = Duration::from_millis(700);

impl Script {
    async fn answer(&mut self, call: String) -> Result<Answer, RegistryError> {
        let _ = self.calls.send((Instant::now(), call));
        let answer = *self.answers.borrow();
        match answer {
            Answer::Down => Err(RegistryError::Unreachable { server: "r".into(), cause: "refused".into() }),
            Answer::Hangs => std::future::pending().await,
            Answer::Slow => {
                sleep(SLOW).await;
                Ok(answer)
            }
            Answer::Well | Answer::Lost => Ok(answer),
        }
    }
}

impl Entry for Script {
    fn put(&mut self, healthy: bool) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move { self.answer(format!("put {healthy}")).await.map(drop) })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>> {
        Box::pin(async move {
            match self.answer("renew".into()).await? {
                Answer::Lost => Ok(Renewal::Lost("gone".into())),
                _ => Ok(Renewal::Kept),
            }
        })
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move { self.answer("remove".into()).await.map(drop) })
    }

    fn shows_health(&self) -> bool {
        self.shows_health
    }
}

struct Kit {
    wanted: watch::Sender<Wanted>,
    answers: watch::Sender<Answer>,
    calls: mpsc::UnboundedReceiver<(Instant, String)>,
    kept: watch::Receiver<Kept>,
    task: tokio::task::JoinHandle<()>,
}

const TTL: Duration = Duration::from_secs(15);

fn keeper(shows_health: bool) -> Kit {
    let (wanted, for_keeper) = watch::channel(Wanted::Absent);
    let (answers, given) = watch::channel(Answer::Well);
    let (said, calls) = mpsc::unbounded_channel();
    let (kept, seen) = watch::channel(Kept::default());
    let instance = Instance::new("web-1", "10.0.0.7:80".parse().unwrap());
    let asked = config::Register::default();
    let registration = Arc::new(Registration { service: "web".into(), instance, ttl: TTL, asked });
    let metrics = Metrics::new(WORDS).registration("web", "main", "web-1", || None);
    let entry = Box::new(Script { calls: said, answers: given, shows_health });
    let (_, health) = watch::channel(Health::UNKNOWN);
    let keeper = Keeper { registration, registry: "main".into(), entry, wanted: for_keeper, health, kept, metrics };
    Kit { wanted, answers, calls, kept: seen, task: tokio::spawn(keeper.run()) }
}

impl Kit {
    async fn call(&mut self) -> (Instant, String) {
        timeout(Duration::from_secs(600), self.calls.recv()).await.expect("a call").unwrap()
    }

    async fn expect(&mut self, call: &str) {
        assert_eq!(self.call().await.1, call);
    }

    async fn until(&mut self, state: State) {
        let reached = timeout(Duration::from_secs(600), self.kept.wait_for(|kept| kept.state == state)).await;
        reached.unwrap_or_else(|_| panic!("it never was {state:?}")).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_put_when_it_is_fit_and_renewed_three_times_per_ttl() {
    let mut kit = keeper(false);
    sleep(Duration::from_secs(60)).await;
    assert!(kit.calls.try_recv().is_err(), "not before");
    kit.wanted.send(Wanted::Unfit).unwrap();
    // What an earlier run may have left.
    kit.expect("remove").await;
    kit.until(State::Unhealthy).await;
    sleep(Duration::from_secs(60)).await;
    assert!(kit.calls.try_recv().is_err(), "nor while it is not");
    kit.wanted.send(Wanted::Fit).unwrap();
    let (mut before, first) = kit.call().await;
    assert_eq!(first, "put true");
    kit.until(State::Registered).await;
    for _ in 0..50 {
        let (at, call) = kit.call().await;
        let after = at - before;
        assert!(call == "renew" && after <= TTL / 3 && after >= (TTL / 3).mul_f64(0.89), "{call} {after:?}");
        before = at;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_fit_is_shown_as_such_or_taken_out() {
    for (shows, expected) in [(true, "put false"), (false, "remove")] {
        let mut kit = keeper(shows);
        kit.wanted.send(Wanted::Fit).unwrap();
        kit.expect("put true").await;
        kit.wanted.send(Wanted::Unfit).unwrap();
        let told = Instant::now();
        let (at, call) = kit.call().await;
        assert_eq!((call.as_str(), at), (expected, told), "at once");
        kit.until(State::Unhealthy).await;
        kit.wanted.send(Wanted::Fit).unwrap();
        loop {
            match kit.call().await.1.as_str() {
                "put true" => break,
                "renew" if shows => {}
                other => panic!("{other}"),
            }
        }
        kit.until(State::Registered).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_entry_is_put_again_at_once() {
    let mut kit = keeper(false);
    kit.wanted.send(Wanted::Fit).unwrap();
    kit.expect("put true").await;
    kit.answers.send(Answer::Lost).unwrap();
    let (noticed, call) = kit.call().await;
    assert_eq!(call, "renew");
    let (at, call) = kit.call().await;
    assert_eq!((call.as_str(), at), ("put true", noticed));
}

#[tokio::test(start_paused = true)]
async fn while_the_registry_fails_attempts_become_rarer_and_never_stop() {
    let mut kit = keeper(false);
    kit.answers.send(Answer::Down).unwrap();
    kit.wanted.send(Wanted::Fit).unwrap();
    let start = kit.call().await.0;
    kit.until(State::Failing).await;
    let mut waits = Vec::new();
    let mut before = start;
    for _ in 0..40 {
        let (at, call) = kit.call().await;
        assert_eq!(call, "put true");
        waits.push(at - before);
        before = at;
    }
    assert!(waits[0] <= Duration::from_millis(200), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= TTL / 3), "a third of the TTL at the most: {waits:?}");
    assert!(waits[30..].iter().sum::<Duration>() >= TTL, "{waits:?}");
    kit.answers.send(Answer::Well).unwrap();
    kit.until(State::Registered).await;
    assert!(kit.kept.borrow().failure.is_none());
}

#[tokio::test(start_paused = true)]
async fn leaving_does_not_wait_for_what_hangs_and_goes_on_until_it_is_out() {
    let mut kit = keeper(false);
    kit.answers.send(Answer::Hangs).unwrap();
    kit.wanted.send(Wanted::Fit).unwrap();
    kit.expect("put true").await;
    kit.answers.send(Answer::Down).unwrap();
    let told = Instant::now();
    kit.wanted.send(Wanted::Gone).unwrap();
    // It may have been put.
    let (at, call) = kit.call().await;
    assert_eq!((call.as_str(), at - told), ("remove", Duration::from_secs(1)));
    kit.until(State::Leaving).await;
    for _ in 0..5 {
        kit.expect("remove").await;
        assert!(!kit.task.is_finished());
    }
    kit.answers.send(Answer::Well).unwrap();
    timeout(Duration::from_secs(60), &mut kit.task).await.expect("it ends").unwrap();
    assert_eq!(kit.kept.borrow().state, State::Gone);
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_run_left_is_taken_out_and_a_registry_that_is_down_not_waited_for() {
    for answer in [Answer::Well, Answer::Down] {
        let mut kit = keeper(false);
        kit.answers.send(answer).unwrap();
        kit.wanted.send(Wanted::Gone).unwrap();
        kit.expect("remove").await;
        timeout(Duration::from_secs(1), &mut kit.task).await.expect("it ends").unwrap();
        assert!(kit.calls.try_recv().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_cannot_be_taken_out_is_left_to_expire() {
    let mut kit = keeper(false);
    kit.wanted.send(Wanted::Fit).unwrap();
    kit.until(State::Registered).await;
    kit.answers.send(Answer::Down).unwrap();
    let told = Instant::now();
    kit.wanted.send(Wanted::Gone).unwrap();
    timeout(4 * TTL, &mut kit.task).await.expect("it ends").unwrap();
    assert!(told.elapsed() >= TTL - Duration::from_secs(1) && told.elapsed() < 2 * TTL, "{:?}", told.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_a_call_is_under_way_is_acted_upon_right_after_it() {
    let mut kit = keeper(false);
    kit.answers.send(Answer::Slow).unwrap();
    kit.wanted.send(Wanted::Fit).unwrap();
    let put = kit.call().await.0;
    kit.wanted.send(Wanted::Unfit).unwrap();
    let (at, call) = kit.call().await;
    assert_eq!((call.as_str(), at - put), ("remove", SLOW));
}

#[tokio::test]
async fn what_keeps_callers_from_hearing_of_it_is_said() {
    let kept = |state, renewed, failure: Option<&str>| {
        let failure = failure.map(|cause| RegistryError::Unreachable { server: "r".into(), cause: cause.into() });
        watch::channel(Kept { state, failure, renewed }).1
    };
    let now = Some(Instant::now());
    let fit = Health { state: check::State::Healthy, failure: None };
    let view = |entries: &[(&str, &watch::Receiver<Kept>)]| View {
        name: "users".into(),
        health: fit.clone(),
        entries: entries.iter().map(|(name, kept)| ((*name).to_owned(), (*kept).clone())).collect(),
        ..View::default()
    };
    let (there, coming) = (kept(State::Registered, now, None), kept(State::Registering, None, None));
    // It was put in, and the registry, which is away for a moment, still has it when it is back.
    let away = kept(State::Failing, now, Some("refused"));
    let refused = kept(State::Failing, None, Some("refused"));
    assert_eq!(view(&[("a", &there), ("b", &away)]).unlisted(), [""; 0]);
    assert_eq!(
        view(&[("a", &there), ("b", &coming), ("c", &refused)]).unlisted(),
        ["`users` is not registered in b (registering)", "`users` is not registered in c (cannot reach r: refused)"]
    );
    let unfit = Health { state: check::State::Unhealthy { passes: 0 }, failure: Some("HTTP: 500".into()) };
    let unfit = View { health: unfit, ..view(&[("a", &there)]) };
    assert_eq!(unfit.unlisted(), ["`users` does not pass its checks (HTTP: 500)"]);
    let nowhere = View { name: "users".into(), waiting_for: Some("no port".into()), ..View::default() };
    assert_eq!(nowhere.unlisted(), ["`users` is not registered (no port)"]);
    let new = View { name: "users".into(), ..View::default() };
    assert_eq!(new.unlisted(), ["`users` does not pass its checks (it was not checked yet)"]);
}
