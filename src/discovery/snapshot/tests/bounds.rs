//! How old, how many and how large they may be.

use super::*;

#[tokio::test]
async fn what_was_not_confirmed_for_too_long_is_not_used_and_goes() {
    let rig = Rig::new();
    let folder = Folder::open(&rig.config).unwrap();
    let now = millis(SystemTime::now());
    let read = |after: Duration| folder.read("users", now + after).unwrap();
    folder.write("users", "main", &set(1), now).unwrap();
    assert!(matches!(read(DAY), Found::Saved(Saved { saved, .. }) if saved == now));
    assert!(matches!(read(DAY + Duration::from_secs(1)), Found::TooOld(_)));
    assert!(matches!(read(Duration::ZERO), Found::Nothing), "removed");

    // Those that nobody asks for, too.
    for service in ["users", "orders"] {
        folder.write(service, "main", &set(1), now).unwrap();
    }
    assert_eq!(folder.sweep(now + DAY).unwrap(), 2);
    folder.write("orders", "main", &set(1), now).unwrap();
    File(rig.path("orders")).modified(now + Duration::from_secs(60));
    assert_eq!(folder.sweep(now + DAY + Duration::from_secs(30)).unwrap(), 1);
    assert_eq!(rig.names(), ["orders.pillion-snapshot".into()].into());
}

#[tokio::test]
async fn a_clock_that_jumped_neither_refuses_a_snapshot_nor_keeps_it_for_ever() {
    let rig = Rig::new();
    let folder = Folder::open(&rig.config).unwrap();
    let now = millis(SystemTime::now());
    let read = |now: SystemTime| match folder.read("users", now).unwrap() {
        Found::Saved(saved) => Some(saved.saved),
        _ => None,
    };
    // It was wrong when the file was written.
    let later = now + 1000 * DAY;
    folder.write("users", "main", &set(1), later).unwrap();
    File(rig.path("users")).modified(later);
    assert_eq!(read(now), Some(now), "as new as can be");
    assert_eq!(read(now + DAY), Some(now), "it ages from then on");
    assert_eq!(folder.sweep(now + DAY).unwrap(), 1);
    assert_eq!(read(now + DAY + Duration::from_secs(1)), None);

    // It is wrong when the file is read: a machine that has no time yet.
    let early = UNIX_EPOCH + Duration::from_secs(60);
    folder.write("users", "main", &set(1), now).unwrap();
    assert_eq!(read(early), Some(early));
    assert_eq!((folder.sweep(early).unwrap(), folder.sweep(now + Duration::from_secs(30)).unwrap()), (1, 1));
    assert_eq!(read(now + Duration::from_secs(60)), Some(now), "when it has, the file says its age");
}

#[tokio::test]
async fn the_oldest_go_when_there_are_too_many_and_other_files_stay() {
    let mut rig = Rig::new();
    rig.config.max_services = 3;
    let store = rig.open();
    for name in ["instances.json", "instances.json.tmp", "notes.pillion-snapshot.txt"] {
        fs::write(rig.config.dir.join(name), "").unwrap();
    }
    let now = SystemTime::now();
    let held = set(1);
    for (service, age) in [("a", 5), ("b", 7), ("c", 6)] {
        store.save(service, "main", &held, Instant::now());
        store.flush().await;
        File(rig.path(service)).modified(now - Duration::from_secs(age));
    }
    // What pillions that crashed left, one of them just now; and those put aside.
    for (name, age) in [("a", 2 * 3600), ("b", 60)] {
        let left = durable_tmp(&rig.path(name));
        fs::write(&left, "").unwrap();
        File(left).modified(now - Duration::from_secs(age));
    }
    for (number, age) in [10, 40, 20, 30].into_iter().enumerate() {
        let aside = rig.config.dir.join(format!("x{number}.pillion-snapshot.corrupt"));
        fs::write(&aside, "").unwrap();
        File(aside).modified(now - 100 * DAY - Duration::from_secs(age));
    }
    store.save("d", "main", &held, Instant::now());
    store.flush().await;
    let expected = [
        "a.pillion-snapshot",
        "b.pillion-snapshot.0123456789abcdef.tmp",
        "c.pillion-snapshot",
        "d.pillion-snapshot",
        "instances.json",
        "instances.json.tmp",
        "notes.pillion-snapshot.txt",
        "x0.pillion-snapshot.corrupt",
        "x2.pillion-snapshot.corrupt",
        "x3.pillion-snapshot.corrupt",
    ];
    // The sweep goes on after the write.
    for _ in 0..5000 {
        if rig.names().len() > expected.len() {
            sleep(Duration::from_millis(1)).await;
        }
    }
    assert_eq!(rig.names(), expected.map(str::to_owned).into());
}

#[tokio::test]
async fn a_service_that_never_had_an_instance_leaves_no_file() {
    let rig = Rig::new();
    let store = rig.open();
    let none: Arc<[Instance]> = Arc::new([]);
    store.save("made-up", "main", &none, Instant::now());
    store.flush().await;
    assert_eq!((rig.names().len(), rig.counts()), (0, [0; 4]));
    store.save("users", "main", &set(1), Instant::now());
    store.flush().await;
    store.save("users", "main", &none, Instant::now());
    store.flush().await;
    assert_eq!(rig.found("users").await.unwrap().instances, none, "one that had some is known to have none");
}

#[tokio::test]
async fn a_set_that_is_too_large_leaves_what_there_was() {
    let rig = Rig::new();
    let store = rig.open();
    store.save("users", "main", &set(1), Instant::now());
    store.flush().await;
    let (_guard, log) = logged();
    for size in [17, 18] {
        let long = "x".repeat(size * 1024 * 1024);
        let large: Arc<[Instance]> = [Instance::new(long, "10.0.0.1:80".parse().unwrap())].into();
        store.save("users", "main", &large, Instant::now());
        store.flush().await;
    }
    assert_eq!((rig.counts(), rig.weight("users").await), ([1, 0, 2, 0], Some(1)));
    let lines: Vec<String> = log.try_iter().collect();
    assert!(lines.len() == 1 && lines[0].contains("too many for a snapshot"), "{lines:?}");
    // Nor is one read that somebody else put there.
    fs::write(rig.path("orders"), vec![b'x'; 17 * 1024 * 1024]).unwrap();
    assert_eq!(store.load("orders").await, None);
    assert!(log.try_iter().any(|line| line.contains("it is too large")));
}
