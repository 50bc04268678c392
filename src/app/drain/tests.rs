//! The order and the times of the end, in virtual time.

use super::*;
use crate::{
    config::Config,
    discovery::{Discovery, Registries},
    telemetry::{access_log::AccessLog, labels::WORDS, metrics::Metrics},
};
use futures_util::FutureExt;
use std::future::pending;

/// An end that is to come.
struct Setup {
    course: Course,
    drain: Arc<Drain>,
    telemetry: Arc<Telemetry>,
    workers: Workers,
    begun: Instant,
}

const SECOND: Duration = Duration::from_secs(1);

/// Of an application that is taken out of its registries in this time.
fn leaving_in(time: Duration, inbound: usize) -> Setup {
    setup(Some(sleep(time).boxed()), inbound)
}

fn setup(leaving: Option<BoxFuture<'static, ()>>, inbound: usize) -> Setup {
    let metrics = Metrics::new(WORDS);
    let off = config::AccessLog { mode: config::AccessLogMode::Off, ..Default::default() };
    let access_log = AccessLog::start(&off, metrics.access_log_dropped.clone()).unwrap();
    let telemetry = Arc::new(Telemetry { metrics, access_log });
    let config = Arc::new(Config::default());
    let (_, discovery) =
        Discovery::new(config, Registries::default(), None, Default::default(), telemetry.clone()).unwrap();
    let workers = Workers::start(0, &discovery, &telemetry).unwrap();
    let drain = Arc::<Drain>::default();
    let course = Course {
        settings: config::Drain::default(),
        drain: drain.clone(),
        telemetry: telemetry.clone(),
        notifier: Arc::default(),
        listed: leaving.is_some(),
        leaving,
        inbound: (0..inbound).map(|_| watch::Sender::new(false)).collect(),
        outbound: vec![watch::Sender::new(false)],
    };
    Setup { course, drain, telemetry, workers, begun: Instant::now() }
}

impl Setup {
    /// Carries it out while `meanwhile` happens. Gives the steps with the tenths of a second at which they began, and those
    /// at which inbound and outbound listeners were closed.
    async fn end(mut self, end: End, meanwhile: impl Future<Output = ()>) -> (Vec<(Step, u128)>, [Option<u128>; 2]) {
        let at = |time: Instant| (time - self.begun).as_millis() / 100;
        self.drain.ask(end, "SIGTERM", self.course.settings.timeout);
        let closed = |listeners: &[watch::Sender<bool>]| {
            let listener = listeners.first().map(watch::Sender::subscribe);
            async move {
                listener?.wait_for(|closed| *closed).await.ok()?;
                Some(at(Instant::now()))
            }
        };
        let (inbound, outbound) = (closed(&self.course.inbound), closed(&self.course.outbound));
        let (inbound, outbound, ..) = tokio::join!(inbound, outbound, self.course.run(&mut self.workers), meanwhile);
        let steps = self.drain.state().steps;
        (steps.into_iter().map(|(step, time)| (step, at(time))).collect(), [inbound, outbound])
    }
}

#[tokio::test(start_paused = true)]
async fn a_config_that_came_after_the_question_does_not_change_its_time() {
    let mut setup = setup(Some(pending().boxed()), 0);
    setup.drain.ask(End::Drain, "SIGTERM", 10 * SECOND);
    setup.course.settings = config::Drain { timeout: 600 * SECOND, wait_for_app: true, ..Default::default() };
    let (steps, _) = setup.end(End::Drain, async {}).await;
    assert_eq!(steps, [(Step::Deregister, 0), (Step::Spread, 50), (Step::Finish, 70), (Step::Close, 90)]);
}

#[tokio::test(start_paused = true)]
async fn callers_hear_of_it_before_anything_is_refused_and_outbound_stays_while_there_are_requests() {
    let setup = leaving_in(SECOND, 1);
    let telemetry = setup.telemetry.clone();
    let users = telemetry.metrics.service("users");
    let requests = async {
        users.in_flight.inc();
        sleep(10 * SECOND).await;
        users.in_flight.dec();
        users.duration.observe(SECOND);
        // Calls of the application, one after the other.
        for _ in 0..10 {
            sleep(SECOND * 2 / 5).await;
            users.duration.observe(Duration::ZERO);
        }
    };
    let (steps, closed) = setup.end(End::Drain, requests).await;
    assert_eq!(steps, [(Step::Deregister, 0), (Step::Spread, 10), (Step::Finish, 30), (Step::Close, 145)]);
    assert_eq!(closed, [Some(30), Some(145)]);
    assert_eq!(telemetry.metrics.draining.get(), 4);
}

#[tokio::test(start_paused = true)]
async fn where_nothing_serves_others_everything_closes_at_once() {
    let setup = setup(None, 0);
    let (steps, closed) = setup.end(End::Drain, async {}).await;
    assert_eq!((steps, closed), (vec![(Step::Close, 0)], [None, Some(0)]));
}

#[tokio::test(start_paused = true)]
async fn callers_of_an_inbound_listener_hear_of_it_elsewhere_where_nothing_is_registered() {
    let nowhere = setup(None, 1);
    let (steps, closed) = nowhere.end(End::Drain, async {}).await;
    assert_eq!(steps, [(Step::Spread, 0), (Step::Finish, 20), (Step::Close, 25)]);
    assert_eq!(closed, [Some(20), Some(25)]);

    // Or where no registry had it yet.
    let mut unlisted = leaving_in(SECOND, 1);
    unlisted.course.listed = false;
    let (steps, closed) = unlisted.end(End::Drain, async {}).await;
    assert_eq!(steps, [(Step::Deregister, 0), (Step::Spread, 10), (Step::Finish, 30), (Step::Close, 35)]);
    assert_eq!(closed, [Some(30), Some(35)]);

    let (steps, _) = setup(None, 1).end(End::Quit, async {}).await;
    assert_eq!(steps, [(Step::Finish, 0), (Step::Close, 0)], "who is done waits for nobody");
}

#[tokio::test(start_paused = true)]
async fn no_news_has_to_spread_of_what_was_never_registered() {
    let mut setup = leaving_in(Duration::ZERO, 0);
    setup.course.listed = false;
    let (steps, closed) = setup.end(End::Drain, async {}).await;
    assert_eq!(steps, [(Step::Deregister, 0), (Step::Finish, 0), (Step::Close, 5)]);
    assert_eq!(closed, [None, Some(5)], "its application may serve others all the same");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_does_not_answer_leaves_half_of_the_time() {
    let setup = setup(Some(pending().boxed()), 1);
    let (steps, _) = setup.end(End::Drain, async {}).await;
    assert_eq!(steps[..3], [(Step::Deregister, 0), (Step::Spread, 150), (Step::Finish, 170)]);
}

#[tokio::test(start_paused = true)]
async fn an_application_that_never_stops_asking_is_told_to_go_before_the_deadline() {
    let setup = leaving_in(Duration::ZERO, 0);
    let users = setup.telemetry.metrics.service("users");
    let requests = async {
        for _ in 0..1000 {
            sleep(SECOND / 10).await;
            users.duration.observe(Duration::ZERO);
        }
    };
    let (steps, closed) = setup.end(End::Drain, requests).await;
    assert_eq!((steps.last(), closed), (Some(&(Step::Close, 290)), [None, Some(290)]));
}

#[tokio::test(start_paused = true)]
async fn an_application_that_is_done_waits_for_nobody() {
    let asked = leaving_in(SECOND, 1);
    let (steps, closed) = asked.end(End::Quit, async {}).await;
    assert_eq!(steps, [(Step::Deregister, 0), (Step::Finish, 10), (Step::Close, 10)]);
    assert_eq!(closed, [Some(10), Some(10)]);

    // Or is so while callers hear of it.
    let later = leaving_in(SECOND, 1);
    let drain = later.drain.clone();
    let quit = async {
        sleep(2 * SECOND).await;
        drain.ask(End::Quit, "POST /api/quit", SECOND);
    };
    let (steps, _) = later.end(End::Drain, quit).await;
    assert_eq!(steps[1..], [(Step::Spread, 10), (Step::Finish, 20), (Step::Close, 20)]);
}

#[tokio::test(start_paused = true)]
async fn an_application_that_is_waited_for_has_outbound_connections_until_it_is_gone() {
    let waiting = || {
        let mut setup = setup(None, 0);
        setup.course.settings.wait_for_app = true;
        setup
    };
    let (steps, closed) = waiting().end(End::Drain, async {}).await;
    assert_eq!((steps, closed), (vec![(Step::Finish, 0), (Step::Close, 290)], [None, Some(290)]));

    let setup = waiting();
    let drain = setup.drain.clone();
    let gone = async {
        sleep(7 * SECOND).await;
        drain.ask(End::Quit, "POST /api/quit", SECOND);
    };
    let (_, closed) = setup.end(End::Drain, gone).await;
    assert_eq!(closed, [None, Some(70)]);
}
