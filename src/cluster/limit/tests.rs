use super::*;
use crate::telemetry::{labels::WORDS, metrics::Metrics};
use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicI64, AtomicUsize},
    task::{Context, Poll, Waker},
};

fn limits(requests: u32) -> Arc<Limits> {
    configured(&config::Limits { requests, ..config::Limits::default() })
}

fn configured(config: &config::Limits) -> Arc<Limits> {
    Arc::new(Limits::new(Metrics::new(WORDS).service("s"), config))
}

/// In flight, and waiting.
fn gauges(limits: &Limits) -> (i64, i64) {
    (limits.metrics.in_flight.get(), limits.metrics.waiting.get())
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn there_are_as_many_places_as_requests_may_be_in_flight() {
    let limits = limits(3);
    assert_eq!([(); 4].map(|()| limits.try_enter()), [true, true, true, false]);
    assert_eq!(gauges(&limits), (3, 0), "a refusal leaves nothing behind");
    limits.leave();
    assert!(limits.try_enter() && !limits.try_enter());
}

#[tokio::test]
async fn those_who_wait_come_in_in_their_order_and_nobody_before_them() {
    let limits = limits(1);
    assert!(limits.try_enter());
    let (mut first, mut second, mut third) = (pin!(limits.enter(10)), pin!(limits.enter(10)), pin!(limits.enter(10)));
    assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
    assert!(poll(third.as_mut()).is_pending());
    limits.leave();
    assert!(!limits.try_enter(), "the place is for the one that has waited");
    assert!(poll(third.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
    assert_eq!(poll(first.as_mut()), Poll::Ready(Ok(())));
    assert!(poll(second.as_mut()).is_pending());
    assert_eq!(gauges(&limits), (1, 2));
    limits.leave();
    assert_eq!(poll(second.as_mut()), Poll::Ready(Ok(())));
    limits.leave();
    assert_eq!(poll(third.as_mut()), Poll::Ready(Ok(())));
    limits.leave();
    assert_eq!(gauges(&limits), (0, 0));
}

#[tokio::test]
async fn whoever_gives_up_waiting_stands_in_nobodys_way() {
    let limits = limits(1);
    assert!(limits.try_enter());
    let mut second = {
        let mut first = Box::pin(limits.enter(10));
        assert!(poll(first.as_mut()).is_pending());
        let mut second = Box::pin(limits.enter(10));
        assert!(poll(second.as_mut()).is_pending());
        // It is the first one that is called, and it is not there any more.
        limits.leave();
        second
    };
    assert_eq!(poll(second.as_mut()), Poll::Ready(Ok(())));
    limits.leave();
    assert_eq!(gauges(&limits), (0, 0));
    assert!(limits.try_enter(), "and nothing is kept back");
}

#[tokio::test]
async fn only_so_many_may_wait() {
    let limits = limits(1);
    assert!(limits.try_enter());
    let mut one = pin!(limits.enter(1));
    assert!(poll(one.as_mut()).is_pending());
    assert_eq!(limits.enter(1).await, Err(QueueFull));
    assert_eq!(gauges(&limits), (1, 1));
}

#[tokio::test]
async fn another_limit_counts_at_once() {
    let limits = limits(2);
    assert!(limits.try_enter() && limits.try_enter());
    let mut waiting = pin!(limits.enter(10));
    assert!(poll(waiting.as_mut()).is_pending());
    limits.configure(&config::Limits { requests: 3, ..config::Limits::default() });
    assert_eq!(poll(waiting.as_mut()), Poll::Ready(Ok(())));
    limits.configure(&config::Limits { requests: 1, ..config::Limits::default() });
    for in_flight in [2, 1] {
        limits.leave();
        assert_eq!((gauges(&limits).0, limits.try_enter()), (in_flight, false));
    }
    limits.leave();
    assert!(limits.try_enter());
}

#[tokio::test]
async fn a_connection_counts_until_it_is_closed() {
    let limits = limits(1);
    let (one, two) = (limits.connect(2).unwrap(), limits.connect(2).unwrap());
    assert!(limits.connect(2).is_none());
    assert_eq!(limits.connections(), 2);
    drop(one);
    assert!(limits.connect(2).is_some());
    drop(two);
    assert_eq!(limits.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_refused_takes_nothing_from_the_others() {
    let per_caller = config::CallerRate { header: "x-caller".into(), per_second: 1, burst: Some(2), max_callers: 10 };
    let rate = config::RateLimit { per_second: Some(5), burst: None, per_caller: Some(per_caller) };
    let limits = configured(&config::Limits { rate: Some(rate.clone()), ..config::Limits::default() });
    let through = |name: &str| {
        let headers = HeaderMap::from_iter([("x-caller".parse().unwrap(), name.parse().unwrap())]);
        (0..10).filter(|_| limits.take_rate(&headers, Instant::now()).is_ok()).count()
    };
    assert!(limits.is_rated());
    assert_eq!([through("a"), through("b"), through("c"), through("d")], [2, 2, 1, 0], "5 of all");
    limits.configure(&config::Limits { rate: Some(rate), requests: 7, ..config::Limits::default() });
    assert_eq!(through("e"), 0, "a reload that leaves the rate as it is gives nobody more");
    limits.configure(&config::Limits::default());
    assert_eq!((through("a"), limits.is_rated()), (10, false));
}

#[tokio::test(start_paused = true)]
async fn the_adaptive_limit_is_in_force_and_goes_with_its_config() {
    let adaptive = Some(config::AdaptiveLimit::default());
    let limits = configured(&config::Limits { adaptive: adaptive.clone(), ..config::Limits::default() });
    let limit = || limits.metrics.requests_limit.get();
    assert_eq!((limit(), limits.is_adapting()), (20, true));
    for _ in 0..20 {
        assert!(limits.try_enter());
    }
    for _ in 0..1000 {
        limits.observe(Duration::from_millis(10), Instant::now());
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    let grown = limit();
    assert!(grown > 30, "{grown}");
    limits.configure(&config::Limits { adaptive: adaptive.clone(), pending: 7, ..config::Limits::default() });
    assert_eq!(limit(), grown, "what was learnt is kept");
    limits.configure(&config::Limits { adaptive, requests: 25, ..config::Limits::default() });
    assert_eq!(limit(), 25, "never more than is allowed");
    limits.configure(&config::Limits::default());
    assert_eq!((limit(), limits.is_adapting()), (1024, false));
}

#[test]
fn many_threads_are_never_more_than_the_limit_and_all_come_in() {
    const LIMIT: i64 = 3;
    let (limits, inside) = (limits(LIMIT as u32), Arc::new(AtomicI64::new(0)));
    let (shed, given_up) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (limits, inside, shed, given_up) = (limits.clone(), inside.clone(), shed.clone(), given_up.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    let work = (0..4).map(|task| {
                        let (limits, inside, shed, given_up) = (&limits, &inside, &shed, &given_up);
                        async move {
                            for turn in 0..2000 {
                                // Some do not wait, and some give up at once; the others must all come in.
                                let entered = match (turn + task + thread) % 8 {
                                    0 => limits.try_enter(),
                                    1 => {
                                        let mut entering = pin!(limits.enter(100));
                                        tokio::task::yield_now().await;
                                        let entered = poll(entering.as_mut()).is_ready();
                                        given_up.fetch_add(usize::from(!entered), Relaxed);
                                        entered
                                    }
                                    _ => limits.enter(100).await.is_ok(),
                                };
                                if !entered {
                                    shed.fetch_add(1, Relaxed);
                                    continue;
                                }
                                let together = inside.fetch_add(1, Relaxed) + 1;
                                assert!(together <= LIMIT, "{together}");
                                tokio::task::yield_now().await;
                                inside.fetch_sub(1, Relaxed);
                                limits.leave();
                            }
                        }
                    });
                    futures_util::future::join_all(work).await;
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(given_up.load(Relaxed) > 0 && shed.load(Relaxed) > given_up.load(Relaxed), "both were put to the test");
    assert_eq!(gauges(&limits), (0, 0));
}
