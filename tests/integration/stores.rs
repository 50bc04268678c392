//! What every registry's own key-value store has to do; the file registry's, and the embedded one's.

use pillion::{
    config,
    registry::{
        Registry,
        embedded::Embedded,
        file::FileRegistry,
        store::{Put, Seen, Store, sink},
    },
};
use std::{fs, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Far more than anything should take; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The least that all of them take.
pub const TTL: Duration = Duration::from_secs(10);

/// A watch that runs until this is dropped.
pub struct Watching {
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watching {
    pub fn start(store: &Arc<dyn Store>, path: &str) -> Self {
        let (sink, seen) = sink();
        Self { seen, task: tokio::spawn(store.clone().watch(path.into(), sink)) }
    }

    pub async fn until(&mut self, wanted: &str, fits: impl Fn(&Seen) -> bool) -> Seen {
        if let Ok(seen) = timeout(PATIENCE, self.seen.wait_for(|seen| fits(seen))).await {
            return seen.expect("the watch never ends").clone();
        }
        panic!("waited in vain for {wanted}; last seen: {:#?}", *self.seen.borrow())
    }

    /// Waits for exactly these keys and values.
    pub async fn until_set(&mut self, wanted: &[(&str, &str)]) -> Seen {
        let is_it = |seen: &Seen| {
            let items = seen.items.as_deref();
            let shown = items.map(|items| items.iter().map(|item| (item.key.as_str(), &item.value[..])));
            seen.failure.is_none()
                && shown.is_some_and(|shown| shown.eq(wanted.iter().map(|(k, v)| (*k, v.as_bytes()))))
        };
        self.until(&format!("{wanted:?}"), is_it).await
    }

    /// Waits for a failure, which must have left what was there.
    pub async fn until_failure(&mut self, kept: usize) -> String {
        let seen = self.until("a failure", |seen| seen.failure.is_some()).await;
        assert_eq!(seen.items.as_deref().map(<[_]>::len), Some(kept), "a failure keeps what was said last");
        seen.failure.unwrap().to_string()
    }
}

/// What every store has to do, whatever else is in it.
pub async fn keeps_its_word(store: Arc<dyn Store>) {
    keeps_its_word_with(store, "").await;
}

/// The same with the smallest value that it takes.
pub async fn keeps_its_word_with(store: Arc<dyn Store>, least: &str) {
    let mut watch = Watching::start(&store, "pillion/test");
    watch.until_set(&[]).await;
    let key = |name: &str| format!("pillion/test/{name}");
    let put = |name: &str, expected, value: &str| store.clone().put_if(key(name), expected, value.to_owned().into());

    // Only if it is not there.
    assert_eq!(store.clone().get(key("a")).await.unwrap(), None);
    let Put::Done(first) = put("a", None, "1").await.unwrap() else { panic!("it was not there") };
    assert_eq!(put("a", None, "other").await.unwrap(), Put::Conflict);
    let there = store.clone().get(key("a")).await.unwrap().unwrap();
    assert_eq!((&there.value[..], &there.version), (&b"1"[..], &first));
    let seen = watch.until_set(&[("a", "1")]).await;
    assert_eq!(seen.items.unwrap()[0].version, first, "a watch tells the same version");

    // Only if it is as expected.
    let Put::Done(second) = put("a", Some(first.clone()), "2").await.unwrap() else { panic!("it was as expected") };
    assert_ne!(first, second);
    assert_eq!(put("a", Some(first.clone()), "3").await.unwrap(), Put::Conflict, "an old version");
    assert_eq!(put("b", Some(first), "1").await.unwrap(), Put::Conflict, "one that was never there");
    // Beside it, and in another place that begins alike.
    assert!(matches!(put("b", None, least).await.unwrap(), Put::Done(_)));
    let elsewhere = store.clone().put_if("pillion/test2/c".into(), None, "x".into());
    assert!(matches!(elsewhere.await.unwrap(), Put::Done(_)));
    watch.until_set(&[("a", "2"), ("b", least)]).await;
    // Who comes later sees the same.
    Watching::start(&store, "pillion/test").until_set(&[("a", "2"), ("b", least)]).await;

    // Of many at once each counts. Who wrote is in the value: some stores take the same value for the same version.
    let counts = (0..5).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..4 {
                loop {
                    let there = store.clone().get("pillion/test/count".into()).await.unwrap();
                    let (version, count) = there.map_or((None, 0), |item| (Some(item.version), count(&item.value)));
                    let next = format!("{} by {task}", count + 1);
                    if let Put::Done(_) =
                        store.clone().put_if("pillion/test/count".into(), version, next.into()).await.unwrap()
                    {
                        break;
                    }
                }
            }
        })
    });
    for counting in counts.collect::<Vec<_>>() {
        counting.await.unwrap();
    }
    let last = store.clone().get("pillion/test/count".into()).await.unwrap().unwrap();
    assert_eq!(count(&last.value), 20);
    watch.until_set(&[("a", "2"), ("b", least), ("count", std::str::from_utf8(&last.value).unwrap())]).await;
    assert!(matches!(put("count", Some(last.version), "20").await.unwrap(), Put::Done(_)));
    watch.until_set(&[("a", "2"), ("b", least), ("count", "20")]).await;
}

fn count(value: &[u8]) -> u32 {
    std::str::from_utf8(value).unwrap().split_once(' ').unwrap().0.parse().unwrap()
}

/// The lock goes from one to the other: given back, and left by one that died. `other` is another client of the same store.
pub async fn hands_its_lock_over(store: Arc<dyn Store>, other: Arc<dyn Store>, least: Duration) {
    let lock = |store: &Arc<dyn Store>, owner: &str| store.clone().lock("pillion/lock".into(), owner.into(), TTL);
    let mut first = timeout(PATIENCE, lock(&store, "first")).await.unwrap().unwrap();
    let second = tokio::spawn(lock(&other, "second"));
    // Longer than it would live without being renewed.
    let lost = timeout(2 * least, first.lost()).await;
    assert!(lost.is_err() && !second.is_finished(), "{lost:?}");
    let start = Instant::now();
    first.release().await;
    let second = timeout(PATIENCE, second).await.unwrap().unwrap().unwrap();
    println!("given back and taken within {:.1?}", start.elapsed());
    assert!(second.is_held());
    second.release().await;

    // One that dies: it is not renewed any more.
    let mut dead = store.clone().claim("pillion/lock".into(), "dead".into(), TTL);
    let died = Instant::now();
    assert!(dead.take().await.unwrap());
    let mut heir = timeout(PATIENCE, lock(&other, "heir")).await.unwrap().unwrap();
    println!("taken from the dead after {:.1?}", died.elapsed());
    assert!(died.elapsed() >= least, "no sooner than its time was over: {:?}", died.elapsed());
    assert!(!dead.renew().await.unwrap(), "it is told when it comes back");
    dead.release().await.unwrap();
    assert!(timeout(Duration::from_secs(4), heir.lost()).await.is_err(), "whose release takes nothing from the heir");
    heir.release().await;

    // Of many at once one has it.
    let claims = (0..6).map(|n| {
        let store = if n % 2 == 0 { store.clone() } else { other.clone() };
        let mut claim = store.claim("pillion/lock".into(), format!("owner-{n}"), TTL);
        tokio::spawn(async move { (claim.take().await.unwrap(), claim) })
    });
    let mut taken = 0;
    let mut all = Vec::new();
    for claiming in claims.collect::<Vec<_>>() {
        let (is_ours, claim) = claiming.await.unwrap();
        taken += usize::from(is_ours);
        all.push(claim);
    }
    assert!(taken <= 1, "{taken} have it");
    // Where the store took longer over it than they had, it is the next one's who asks.
    if taken == 0 {
        crate::e2e::until("one to have it", async || all[0].take().await.unwrap()).await;
    }
    for mut claim in all {
        claim.release().await.unwrap();
    }
}

fn file(path: &Path) -> Arc<dyn Store> {
    FileRegistry::new("main", &config::FileRegistry { path: path.into(), scope: config::Scope::default() })
        .store()
        .unwrap()
}

#[tokio::test]
async fn a_folder_beside_a_file_is_a_store() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("instances.yaml");
    keeps_its_word(file(&path)).await;
    // As people see it, and write it.
    let place = folder.path().join("instances.yaml.store/pillion/test");
    assert_eq!(fs::read_to_string(place.join("a")).unwrap(), "2");
    let mut watch = Watching::start(&file(&path), "pillion/test");
    watch.until_set(&[("a", "2"), ("b", ""), ("count", "20")]).await;
    fs::remove_file(place.join("a")).unwrap();
    fs::write(place.join(".b.swp"), "an editor's").unwrap();
    fs::write(place.join("new"), "half").unwrap();
    fs::write(place.join("new"), "whole").unwrap();
    watch.until_set(&[("b", ""), ("count", "20"), ("new", "whole")]).await;
    // What is no folder is a mistake, and no empty one.
    let aside = folder.path().join("aside");
    fs::rename(&place, &aside).unwrap();
    fs::write(&place, "no folder").unwrap();
    let failure = watch.until_failure(3).await;
    assert!(failure.contains("instances.yaml.store"), "{failure}");
    fs::remove_file(&place).unwrap();
    fs::rename(&aside, &place).unwrap();
    fs::write(place.join("new"), "").unwrap();
    watch.until_set(&[("b", ""), ("count", "20"), ("new", "")]).await;
    fs::remove_dir_all(&place).unwrap();
    watch.until_set(&[]).await;
}

#[tokio::test]
async fn the_lock_in_a_folder_is_handed_over() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("instances.yaml");
    hands_its_lock_over(file(&path), file(&path), TTL).await;
}

async fn embedded(persist: Option<&Path>) -> (Arc<Embedded>, JoinHandle<()>) {
    let config = config::EmbeddedRegistry { persist: persist.map(Into::into), ..Default::default() };
    let (registry, task) = Embedded::open("main", &config).unwrap();
    (registry, tokio::spawn(task))
}

#[tokio::test]
async fn the_embedded_registry_is_a_store_that_outlives_the_process() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state");
    let (registry, task) = embedded(Some(&path)).await;
    keeps_its_word(registry.clone().store().unwrap()).await;
    let binary = registry.clone().store().unwrap().put_if("pillion/x".into(), None, (&b"\xff"[..]).into()).await;
    assert!(binary.unwrap_err().to_string().contains("UTF-8"));
    let version = registry.value("pillion/test/a").await.unwrap().unwrap().version;
    registry.flush().await.unwrap();
    drop(registry);
    timeout(PATIENCE, task).await.unwrap().unwrap();
    let (registry, _task) = embedded(Some(&path)).await;
    let value = registry.value("pillion/test/a").await.unwrap().unwrap();
    assert_eq!((value.text.as_str(), value.version), ("2", version));
}

#[tokio::test]
async fn an_embedded_registry_that_has_stopped_takes_nothing_away() {
    let (registry, task) = embedded(None).await;
    let store = registry.clone().store().unwrap();
    assert!(matches!(store.clone().put_if("pillion/test/a".into(), None, "1".into()).await, Ok(Put::Done(_))));
    let mut watch = Watching::start(&store, "pillion/test");
    watch.until_set(&[("a", "1")]).await;
    task.abort();
    let failure = watch.until_failure(1).await;
    assert!(failure.contains("`main`") && failure.contains("has stopped"), "{failure}");
}

#[tokio::test]
async fn the_lock_in_the_embedded_registry_is_handed_over() {
    let (registry, _task) = embedded(None).await;
    hands_its_lock_over(registry.clone().store().unwrap(), registry.store().unwrap(), TTL).await;
}
