mod bounds;

use super::*;
use crate::registry::Instance;
use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::mpsc as channel,
    time::{Duration, UNIX_EPOCH},
};
use tempfile::TempDir;
use tokio::time::sleep;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Rig {
    dir: TempDir,
    config: config::Snapshot,
    metrics: Arc<SnapshotMetrics>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config::Snapshot::new(dir.path().join("snapshot"));
        Self { dir, config, metrics: Arc::default() }
    }

    fn open(&self) -> Arc<Store> {
        Store::open(&self.config, self.metrics.clone()).unwrap()
    }

    /// What a pillion started now would find.
    async fn found(&self, service: &str) -> Option<Saved> {
        self.open().load(service).await
    }

    async fn weight(&self, service: &str) -> Option<u32> {
        self.found(service).await.map(|saved| saved.instances[0].weight)
    }

    fn path(&self, service: &str) -> PathBuf {
        self.config.dir.join(format!("{service}.pillion-snapshot"))
    }

    fn names(&self) -> BTreeSet<String> {
        names(&self.config.dir)
    }

    /// Writes, put aside, failures to write, to read.
    fn counts(&self) -> [u64; 4] {
        let SnapshotMetrics { writes, corrupt, write_failures, read_failures } = &*self.metrics;
        [writes, corrupt, write_failures, read_failures].map(|counter| counter.get())
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// One instance, told from others by its weight.
fn set(weight: u32) -> Arc<[Instance]> {
    [Instance { weight, ..Instance::new("a", "10.0.0.1:80".parse().unwrap()) }].into()
}

/// What is logged on this thread from now on.
fn logged() -> (tracing::subscriber::DefaultGuard, channel::Receiver<String>) {
    #[derive(Clone)]
    struct Lines(channel::Sender<String>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).into_owned()).unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (lines, receiver) = channel::channel();
    let lines = Lines(lines);
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone()).finish();
    (tracing::subscriber::set_default(subscriber), receiver)
}

#[tokio::test]
async fn what_is_saved_is_there_after_a_restart() {
    let rig = Rig::new();
    let store = rig.open();
    let instances: Arc<[Instance]> = content::tests::instances().into();
    store.save("users", "main", &instances, Instant::now());
    store.save("orders", "other", &set(7), Instant::now());
    store.flush().await;
    let before = SystemTime::now();
    let found = rig.found("users").await.unwrap();
    assert_eq!((&found.instances, found.source.as_str()), (&instances, "main"));
    assert!(found.saved <= before && found.saved + Duration::from_secs(60) > before);
    assert_eq!(rig.found("orders").await.unwrap().source, "other");
    assert_eq!(rig.found("users-admin").await, None);
    assert_eq!(rig.names(), ["orders.pillion-snapshot".into(), "users.pillion-snapshot".into()].into());
    assert_eq!(rig.counts(), [2, 0, 0, 0]);
    for (path, mode) in [(rig.path("users"), 0o600), (rig.config.dir.clone(), 0o700)] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
    }
}

#[tokio::test]
async fn a_crash_at_any_byte_leaves_the_old_or_the_new_one() {
    let rig = Rig::new();
    let store = rig.open();
    store.save("users", "main", &set(1), Instant::now());
    store.flush().await;
    let new = content::encode("users", "main", &set(2), SystemTime::now()).unwrap();
    // While it was written beside the old one, …
    for cut in 0..=new.len() {
        fs::write(durable_tmp(&rig.path("users")), &new[..cut]).unwrap();
        assert_eq!(rig.weight("users").await, Some(1), "cut at {cut}");
    }
    // … and after the rename.
    fs::rename(durable_tmp(&rig.path("users")), rig.path("users")).unwrap();
    assert_eq!(rig.weight("users").await, Some(2));
    assert_eq!(rig.counts()[1], 0, "none was put aside");
    // A disk that lost part of it all the same.
    for cut in 0..new.len() {
        fs::write(rig.path("users"), &new[..cut]).unwrap();
        assert_eq!(rig.found("users").await, None, "cut at {cut}");
        assert!(!rig.path("users").exists());
    }
    assert_eq!(rig.counts()[1], new.len() as u64);
    let store = rig.open();
    store.save("users", "main", &set(3), Instant::now());
    store.flush().await;
    assert_eq!(rig.weight("users").await, Some(3));
}

fn durable_tmp(path: &Path) -> PathBuf {
    crate::durable::beside(path, "0123456789abcdef.tmp")
}

#[tokio::test]
async fn a_corrupt_one_is_put_aside_and_told_once() {
    let rig = Rig::new();
    let store = rig.open();
    let (_guard, log) = logged();
    for (number, text) in ["# damaged\n", "", "{}"].into_iter().enumerate() {
        fs::write(rig.path("users"), text).unwrap();
        assert_eq!(store.load("users").await, None);
        assert_eq!(store.load("users").await, None);
        assert_eq!(rig.counts(), [0, number as u64 + 1, 0, 0]);
        assert_eq!(rig.names(), ["users.pillion-snapshot.corrupt".into()].into(), "one per service");
        assert_eq!(fs::read_to_string(rig.config.dir.join("users.pillion-snapshot.corrupt")).unwrap(), text);
        let lines: Vec<String> = log.try_iter().collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in ["WARN", "service=\"users\"", "users.pillion-snapshot.corrupt", "cause=\"it"] {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
    }
    // A file that has another service's content is of no use, either.
    store.save("orders", "main", &set(1), Instant::now());
    store.flush().await;
    fs::copy(rig.path("orders"), rig.path("users")).unwrap();
    assert_eq!(store.load("users").await, None);
    assert!(log.try_iter().any(|line| line.contains("it is of another service, `orders`")));
    assert_eq!(rig.weight("orders").await, Some(1));
}

#[tokio::test]
async fn what_cannot_be_read_is_counted_and_stays() {
    let rig = Rig::new();
    let store = rig.open();
    fs::create_dir(rig.path("users")).unwrap();
    assert_eq!(store.load("users").await, None);
    assert_eq!(rig.counts(), [0, 0, 0, 1]);
    store.save("orders", "main", &set(1), Instant::now());
    store.flush().await;
    assert_eq!(rig.counts(), [1, 0, 0, 1], "a sweep passes over what is no file");
    assert!(rig.path("users").is_dir());
}

#[tokio::test(start_paused = true)]
async fn the_first_set_is_written_at_once_and_then_the_newest_of_each_second() {
    let rig = Rig::new();
    let store = rig.open();
    let sets: Vec<_> = (0..=100).map(set).collect();
    store.save("users", "main", &sets[0], Instant::now());
    sleep(Duration::from_millis(1)).await;
    assert_eq!((rig.counts()[0], rig.weight("users").await), (1, Some(0)));
    // A hundred changes in ten seconds.
    for set in &sets[1..] {
        sleep(Duration::from_millis(100)).await;
        store.save("users", "main", set, Instant::now());
    }
    sleep(Duration::from_secs(2)).await;
    let writes = rig.counts()[0];
    assert!((10..=12).contains(&writes), "{writes}");
    assert_eq!(rig.weight("users").await, Some(100));
    // Another service does not wait for this one.
    store.save("users", "main", &sets[1], Instant::now());
    store.save("orders", "main", &sets[2], Instant::now());
    sleep(Duration::from_millis(1)).await;
    assert_eq!((rig.counts()[0], rig.weight("orders").await), (writes + 2, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_stays_is_written_again_when_the_file_says_too_little_of_its_age() {
    let rig = Rig::new();
    let store = rig.open();
    let start = Instant::now();
    store.save("users", "main", &set(1), start);
    for _ in 0..4 {
        sleep(Duration::from_secs(60)).await;
        store.save("users", "main", &set(1), Instant::now());
    }
    store.flush().await;
    assert_eq!(rig.counts()[0], 1, "confirmed within five minutes");
    sleep(Duration::from_secs(60)).await;
    store.save("users", "main", &set(1), Instant::now());
    store.flush().await;
    assert_eq!(rig.counts()[0], 2);
    // The source fails: the set stays in force, and nothing says that it is newer than it is.
    let confirmed = Instant::now();
    for _ in 0..60 {
        sleep(Duration::from_secs(60)).await;
        store.save("users", "main", &set(1), confirmed);
    }
    store.flush().await;
    assert_eq!(rig.counts()[0], 2);
    // Another source has the same set.
    store.save("users", "other", &set(1), confirmed);
    store.flush().await;
    assert_eq!(rig.counts()[0], 3);
    let found = rig.found("users").await.unwrap();
    let age = SystemTime::now().duration_since(found.saved).unwrap().as_secs();
    assert!((3600..3700).contains(&age), "{age}");
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_nothing_but_the_disk() {
    let rig = Rig::new();
    let store = rig.open();
    let start = Instant::now();
    for weight in 1..=3 {
        for service in 0..50 {
            store.save(&format!("s{service}"), "main", &set(weight), Instant::now());
        }
        store.flush().await;
        assert_eq!(rig.weight("s49").await, Some(weight));
    }
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!(rig.counts()[0], 150);
    // Back to what is in the file already, with another in between that was not written yet.
    let (here, there) = (set(4), set(5));
    store.save("s0", "main", &here, Instant::now());
    store.flush().await;
    store.save("s0", "main", &there, Instant::now());
    store.save("s0", "main", &here, Instant::now());
    store.flush().await;
    assert_eq!((rig.counts()[0], rig.weight("s0").await), (151, Some(4)));
    // The same while somebody waits.
    store.save("s0", "main", &there, Instant::now());
    tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(store.flush(), async { store.save("s0", "main", &here, Instant::now()) })
    })
    .await
    .unwrap();
    assert_eq!((rig.counts()[0], rig.weight("s0").await), (151, Some(4)));
}

#[tokio::test(start_paused = true)]
async fn what_was_noted_is_written_when_the_last_user_is_gone() {
    let rig = Rig::new();
    let store = rig.open();
    let noted = set(2);
    store.save("users", "main", &set(1), Instant::now());
    store.flush().await;
    store.save("users", "main", &noted, Instant::now());
    drop(store);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(rig.weight("users").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_is_told_once_and_tried_again() {
    let rig = Rig::new();
    let store = rig.open();
    let held: Vec<_> = (1..=5).map(set).collect();
    let save = |weight: usize| {
        for service in 0..20 {
            store.save(&format!("s{service}"), "main", &held[weight - 1], Instant::now());
        }
    };
    save(1);
    store.flush().await;
    let (_guard, log) = logged();
    let away = rig.dir.path().join("away");
    for round in 1..=2 {
        fs::rename(&rig.config.dir, &away).unwrap();
        save(2 * round);
        let start = Instant::now();
        store.flush().await;
        assert!(start.elapsed() < Duration::from_secs(1), "a flush ends although nothing can be written");
        sleep(Duration::from_secs(60)).await;
        let [_, _, failures, _] = rig.counts();
        let expected = 20 * 6 * round as u64;
        assert!((expected..expected + 60).contains(&failures), "{failures}");
        let lines: Vec<String> = log.try_iter().collect();
        assert!(lines.len() == 1 && lines[0].contains("cannot be saved") && lines[0].contains("WARN"), "{lines:?}");

        fs::rename(&away, &rig.config.dir).unwrap();
        sleep(Duration::from_secs(11)).await;
        let lines: Vec<String> = log.try_iter().collect();
        assert!(lines.len() == 1 && lines[0].contains("saved again"), "{lines:?}");
        assert_eq!(rig.weight("s19").await, Some(2 * round as u32), "without another call");
        save(2 * round + 1);
        store.flush().await;
    }
}

#[tokio::test]
async fn every_name_has_a_file_of_its_own() {
    let rig = Rig::new();
    let store = rig.open();
    let long = |last: &str| format!("{}{last}", "ä".repeat(120));
    let names =
        [".", "..", "../x", "a/b", "a%2Fb", "a b", "", "~", "a.pillion-snapshot", "ä\n\0", &long("a"), &long("b")];
    let held: Vec<_> = (0..).map(set).take(names.len()).collect();
    for (name, set) in names.iter().zip(&held) {
        store.save(name, "main", set, Instant::now());
    }
    store.flush().await;
    for (name, set) in names.iter().zip(&held) {
        assert_eq!(rig.found(name).await.unwrap().instances, *set, "{name:?}");
    }
    assert_eq!(rig.names().len(), names.len());
    assert!(rig.names().iter().all(|name| name.len() < 120), "room for a longer ending on any file system");
    assert_eq!(self::names(rig.dir.path()).len(), 1, "nothing outside of the folder");
}

#[tokio::test]
async fn pillions_that_share_a_folder_leave_whole_files() {
    let rig = Rig::new();
    let stores = [rig.open(), rig.open(), rig.open()];
    for weight in 0..40 {
        for store in &stores {
            for service in ["users", "orders"] {
                store.save(service, "main", &set(weight), Instant::now());
            }
        }
        let [a, b, c] = &stores;
        let found = async {
            if let Some(saved) = rig.found("users").await {
                assert!(saved.instances[0].weight <= weight);
            }
        };
        tokio::join!(a.flush(), b.flush(), c.flush(), found);
    }
    assert_eq!((rig.weight("users").await, rig.weight("orders").await), (Some(39), Some(39)));
    assert_eq!(rig.counts(), [240, 0, 0, 0]);
    assert_eq!(rig.names().len(), 2, "nothing is left beside them");
}

#[tokio::test]
async fn a_folder_that_cannot_be_one_is_an_error_at_the_start() {
    let rig = Rig::new();
    let file = rig.dir.path().join("file");
    fs::File::create(&file).unwrap().write_all(b"x").unwrap();
    for dir in [file.clone(), file.join("below")] {
        let error = Store::open(&config::Snapshot::new(&dir), Arc::default()).unwrap_err().to_string();
        let expected =
            format!("discovery.snapshot.dir: `{}` cannot be used as a folder for snapshots: ", dir.display());
        assert!(error.starts_with(&expected) && error.len() > expected.len(), "{error}");
    }
}

/// As exact as a snapshot is.
fn millis(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap();
    UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).unwrap())
}

struct File(PathBuf);

impl File {
    fn modified(&self, time: SystemTime) {
        fs::File::open(&self.0).unwrap().set_modified(time).unwrap();
    }
}

#[tokio::test]
async fn a_flush_waits_for_the_newest_though_an_older_one_is_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config::Snapshot::new(folder.path()), Arc::default()).unwrap();
    for round in 0..200 {
        store.save_routes("a", format!("{round}, older").into());
        // The task takes it up.
        tokio::task::yield_now().await;
        store.save_routes("a", format!("{round}, newest").into());
        store.flush().await;
        let kept = store.load_routes("a").unwrap();
        assert_eq!(String::from_utf8(kept).unwrap(), format!("{round}, newest"));
    }
}
