//! How connections end of which pillion knows nothing but the bytes.

use crate::{
    peer::{PATIENCE, Peer},
    tcp::{Backend, db, is_reset, through},
};
use socket2::SockRef;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

/// What breaks on one side breaks on the other, and looks like no orderly end.
#[tokio::test]
async fn resets_are_passed_on() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    let (mut client, server) = through(&pillion, &mut backend).await;
    SockRef::from(&*server.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    assert!(is_reset(&mut client).await);
    let (client, mut server) = through(&pillion, &mut backend).await;
    SockRef::from(&*client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert!(is_reset(&mut server).await);
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"upstream_closed\""], 1.0).await;
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"downstream_closed\""], 1.0).await;
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
}

/// Though it is by writing to it that one side is found to be gone.
#[tokio::test]
async fn a_reset_is_passed_on_while_the_other_side_sends() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    for _ in 0..10 {
        let (client, mut server) = through(&pillion, &mut backend).await;
        let (mut read, mut write) = tokio::io::split(client.stream);
        let sending = tokio::spawn(async move {
            loop {
                if let Err(error) = write.write_all(&[b'x'; 10_000]).await {
                    return error.kind();
                }
            }
        });
        server.take(100_000).await;
        server.send("partial").await;
        SockRef::from(&*server.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let mut received = Vec::new();
        let ended = timeout(PATIENCE, read.read_to_end(&mut received)).await.expect("it ends");
        let sent = timeout(PATIENCE, sending).await.expect("it ends").unwrap();
        // The kernel tells it once: who writes, or who reads. After an orderly end it would be another error.
        let kinds = [ended.err().map(|error| error.kind()), Some(sent)];
        assert!(kinds.contains(&Some(std::io::ErrorKind::ConnectionReset)), "{kinds:?} after {received:?}");
    }
}

/// Whom nobody reads, because the other side takes nothing.
#[tokio::test]
async fn one_that_leaves_is_noticed_though_the_other_does_not_read() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    let (mut client, _server) = through(&pillion, &mut backend).await;
    let full = async { while client.stream.write_all(&[b'x'; 100_000]).await.is_ok() {} };
    timeout(Duration::from_secs(3), full).await.expect_err("it comes to a stop");
    SockRef::from(&*client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"downstream_closed\""], 1.0).await;
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
}

/// Else nobody could tell a part of it from all of it.
#[tokio::test]
async fn a_connection_that_is_closed_while_bytes_move_is_reset() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).service("db: { tcp: { max_age: 5s } }").start().await;
    let (client, server) = through(&pillion, &mut backend).await;
    let (mut read, _write) = tokio::io::split(client.stream);
    let Peer { mut stream, .. } = server;
    let sending = tokio::spawn(async move { while stream.write_all(&[b'x'; 100_000]).await.is_ok() {} });
    let (mut space, reading) = (vec![0; 1 << 20], Instant::now());
    let error = loop {
        match timeout(PATIENCE, read.read(&mut space)).await.expect("it goes on") {
            Ok(0) => panic!("an orderly end after {:?}", reading.elapsed()),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    sending.await.unwrap();
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"stream_timeout\""], 1.0).await;
}

/// A server that refuses says why and closes at once, though the client is still sending.
#[tokio::test]
async fn the_last_words_of_a_server_arrive() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    for _ in 0..20 {
        let (mut client, mut server) = through(&pillion, &mut backend).await;
        server.send("too many connections").await;
        drop(server);
        // It may be too late for these.
        let _ = client.stream.write_all(&[b'x'; 1000]).await;
        assert_eq!(client.take(20).await, b"too many connections");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).service("db: { tcp: { idle_timeout: 5s } }").start().await;
    let start = Instant::now();
    let (mut idle, _server) = through(&pillion, &mut backend).await;
    let (mut busy, mut echo) = through(&pillion, &mut backend).await;
    let ended = tokio::spawn(async move {
        assert_eq!(idle.rest().await, b"");
        start.elapsed()
    });
    while !ended.is_finished() {
        busy.send("x").await;
        assert_eq!(echo.take(1).await, b"x");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = ended.await.unwrap();
    assert!(took >= Duration::from_millis(4900) && took < Duration::from_secs(30), "{took:?}");
    busy.send("x").await;
    assert_eq!(echo.take(1).await, b"x");
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"idle_timeout\""], 1.0).await;
}

#[tokio::test]
async fn a_connection_has_its_time() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).service("db: { tcp: { max_age: 5s } }").start().await;
    let start = Instant::now();
    let (mut client, mut server) = through(&pillion, &mut backend).await;
    assert_eq!(client.rest().await, b"");
    assert!(start.elapsed() >= Duration::from_millis(4900), "{:?}", start.elapsed());
    assert_eq!(server.rest().await, b"");
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"stream_timeout\""], 1.0).await;
}

/// By `tcp.when_gone`.
#[tokio::test]
async fn connections_to_an_endpoint_that_leaves_are_kept_drained_or_cut() {
    for (settings, closes) in [("keep", None), ("drain, drain: 3s", Some(2900)), ("cut", Some(0))] {
        let (mut leaving, mut staying) = (Backend::start().await, Backend::start().await);
        let service = format!("db: {{ guard: {{ enabled: false }}, tcp: {{ when_gone: {settings} }} }}");
        let pillion = db([leaving.address]).service(&service).start().await;
        let (mut client, mut server) = through(&pillion, &mut leaving).await;
        let start = Instant::now();
        pillion.write_instances(&format!("services:\n  db: [{}]\n", staying.address));
        // Once it is known, new ones go to the other.
        let deadline = Instant::now() + PATIENCE;
        let mut other = loop {
            let other = Peer::connect(pillion.address("db")).await;
            let taken = tokio::select! {
                _ = staying.next() => true,
                _ = leaving.next() => false,
            };
            if taken {
                break other;
            }
            assert!(Instant::now() < deadline);
        };
        match closes {
            None => {
                // For longer than it would take.
                tokio::time::sleep(Duration::from_secs(3)).await;
                client.send("x").await;
                assert_eq!(server.take(1).await, b"x");
            }
            Some(least) => {
                assert_eq!(client.rest().await, b"");
                let took = start.elapsed();
                assert!(
                    took >= Duration::from_millis(least) && took < Duration::from_millis(least + 20_000),
                    "{took:?}"
                );
                pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"endpoint_gone\""], 1.0).await;
            }
        }
        other.send("y").await;
    }
}

/// They are what the end waits for, as requests are.
#[tokio::test]
async fn open_connections_go_on_while_pillion_drains() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    let (mut client, mut server) = through(&pillion, &mut backend).await;
    let stopping = tokio::spawn(pillion.stop());
    for _ in 0..10 {
        client.send("x").await;
        assert_eq!(server.take(1).await, b"x");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!stopping.is_finished());
    drop(client);
    assert_eq!(server.rest().await, b"");
    drop(server);
    timeout(PATIENCE, stopping).await.expect("it ends with the last connection").unwrap();
}
