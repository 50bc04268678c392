use super::{
    document::{Cell, Holder},
    lock::{Claim, Lock, lock},
    memory::Memory,
    *,
};
use crate::registry::RegistryError;
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(15);

async fn take(store: &Arc<Memory>, owner: &str) -> Lock {
    store.clone().lock("lock".into(), owner.into(), TTL).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_has_the_lock_for_as_long_as_it_wants() {
    let store = Arc::<Memory>::default();
    let mut first = take(&store, "first").await;
    let other = tokio::spawn({
        let store = store.clone();
        async move { take(&store, "second").await }
    });
    assert!(timeout(Duration::from_secs(3600), first.lost()).await.is_err());
    assert!(first.is_held() && !other.is_finished());
    first.release().await;
    let given_back = Instant::now();
    let second = other.await.unwrap();
    assert!(second.is_held() && given_back.elapsed() <= TTL / 2, "{:?}", given_back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn dropping_it_gives_it_back() {
    let store = Arc::<Memory>::default();
    drop(take(&store, "first").await);
    sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    let _second = take(&store, "second").await;
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn of_a_holder_that_died_it_is_taken_after_its_ttl_and_no_sooner() {
    let store = Arc::<Memory>::default();
    let mut dead = store.clone().claim("lock".into(), "first".into(), TTL);
    assert!(dead.take().await.unwrap());
    let died = Instant::now();
    let _second = take(&store, "second").await;
    let took = died.elapsed();
    assert!(took >= TTL && took <= 2 * TTL + TTL / 2, "{took:?}");
    assert!(!dead.renew().await.unwrap(), "whoever comes back is told");
}

#[tokio::test(start_paused = true)]
async fn the_holder_knows_that_it_is_lost_before_another_can_have_it() {
    let store = Arc::<Memory>::default();
    let mut first = take(&store, "first").await;
    let second = tokio::spawn({
        let store = store.clone();
        async move {
            take(&store, "second").await;
            Instant::now()
        }
    });
    sleep(Duration::from_secs(100)).await;
    assert!(!second.is_finished());
    // Only the holder: its renewals fail, and others see an unchanged document.
    let renewals = |store: &Memory| String::from_utf8(store.value("lock").unwrap().to_vec()).unwrap();
    let before = renewals(&store);
    store.fails.store(true, Relaxed);
    let failing = Instant::now();
    let why = first.lost().await;
    let known = Instant::now();
    assert!(why.contains("in time") && why.contains("told to fail"), "{why}");
    assert!(known - failing <= TTL && !first.is_held(), "{:?}", known - failing);
    assert_eq!(renewals(&store), before);
    store.fails.store(false, Relaxed);
    // The other one's own attempt failed meanwhile, which it was told.
    assert!(second.await.is_err_and(|error| error.is_panic()));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_somebody_takes_away_is_lost() {
    let store = Arc::<Memory>::default();
    let mut first = take(&store, "first").await;
    store.remove("lock");
    let why = timeout(TTL, first.lost()).await.unwrap();
    assert!(why.contains("somebody else"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_lock_is_left_alone() {
    let store = Arc::<Memory>::default();
    store.set("lock", "precious");
    let error = store.clone().lock("lock".into(), "first".into(), TTL).await.unwrap_err().to_string();
    assert!(error.contains("the key `lock`") && error.contains("no lock of pillion's"), "{error}");
    assert_eq!(store.value("lock").unwrap(), "precious");
}

/// A document where a renewal that was given up arrives late: just before it is written that nobody has the lock.
struct Late {
    cell: InStore<Memory>,
    renewal: Option<Holder>,
}

impl Cell for Late {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<(Holder, Version)>, RegistryError>> {
        self.cell.read()
    }

    fn write<'a>(
        &'a mut self,
        holder: &'a Holder,
        expected: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Put, RegistryError>> {
        if let Some(late) = self.renewal.take_if(|_| holder.holder.is_empty()) {
            self.cell.store.set(&self.cell.key, serde_json::to_vec(&late).unwrap());
        }
        self.cell.write(holder, expected)
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_given_back_though_a_renewal_arrives_late() {
    let store = Arc::<Memory>::default();
    let late = Holder { holder: "first".into(), ttl_ms: 15_000, renewals: 2 };
    let cell = Late { cell: InStore { store: store.clone(), key: "lock".into() }, renewal: Some(late) };
    let first = lock(Box::new(InDocument::new(cell, "first".into(), TTL)), TTL).await.unwrap();
    first.release().await;
    let mut second = store.clone().claim("lock".into(), "second".into(), TTL);
    assert!(second.take().await.unwrap(), "nobody has it");
}

/// One whose renewal hangs.
struct Hanging;

impl Claim for Hanging {
    fn take(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(async { Ok(true) })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(std::future::pending())
    }

    fn release(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_keeps_nobody_in_the_belief_that_it_holds_the_lock() {
    let taken = Instant::now();
    let mut lock = lock(Box::new(Hanging), TTL).await.unwrap();
    let why = lock.lost().await;
    assert!(why.contains("does not answer"), "{why}");
    assert!(taken.elapsed() < TTL, "{:?}", taken.elapsed());
    timeout(TTL, lock.release()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_waits_asks_politely() {
    let store = Arc::<Memory>::default();
    let _first = take(&store, "first").await;
    let waiting: Vec<_> = (0..100)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { take(&store, &n.to_string()).await })
        })
        .collect();
    let before = store.asked.load(Relaxed);
    sleep(10 * TTL).await;
    let per_ttl = (store.asked.load(Relaxed) - before) / 10 / waiting.len();
    assert!((2..=4).contains(&per_ttl), "{per_ttl}");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[test]
fn only_a_change_wakes_the_reader_of_a_watch() {
    let item = |key: &str, value: &'static str| Item {
        key: key.into(),
        value: value.into(),
        version: Version::of_content(value.as_bytes()),
    };
    let (sink, mut seen) = sink();
    sink.set(vec![item("b", "1"), item("a", "1")]);
    assert_eq!(seen.borrow_and_update().items.as_ref().unwrap()[0].key, "a");
    sink.set(vec![item("a", "1"), item("b", "1")]);
    sink.alive();
    assert!(!seen.has_changed().unwrap());
    sink.failed(RegistryError::Busy { server: "s".into(), cause: "no leader".into() });
    let now = seen.borrow_and_update().clone();
    assert!(now.failure.is_some() && now.items.is_some_and(|items| items.len() == 2), "what was said stays");
    sink.set(vec![item("a", "1"), item("b", "1")]);
    assert!(seen.borrow_and_update().failure.is_none());
    sink.set(Vec::new());
    assert!(seen.borrow_and_update().items.as_ref().unwrap().is_empty(), "nothing is an answer, too");
}

#[test]
fn versions_are_compared_and_numbers_where_they_must_be() {
    assert_eq!(Version::new(7).number::<u64>().unwrap(), 7);
    let error = Version::new("x").number::<u64>().unwrap_err().to_string();
    assert!(error.contains("`x` is no version of this store; expected a number"), "{error}");
    assert_ne!(Version::of_content(b"x"), Version::of_content(b"y"));
}
