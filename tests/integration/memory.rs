//! Large bodies flow through; they are not gathered. (The same with 1 GiB and `curl` in `real_curl`.)

use crate::{
    http2_peer::{Client, H2Upstream, read, request, send_all, soon},
    peer::{Peer, Upstream, get},
    pillion::{Pillion, Setup},
};
use bytes::Bytes;
use http::Response;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIZE: usize = 64 << 20;
const PIECE: usize = 64 << 10;
/// What the program may take besides its own code, whatever goes through it.
pub const LIMIT: u64 = 20 << 20;

pub fn is_small(pillion: &Pillion) {
    let peak = pillion.peak_memory();
    println!("peak of pillion's memory: {:.1} MiB", peak as f64 / f64::from(1 << 20));
    assert!(peak < LIMIT, "{peak}");
}

/// Reads slower than the other end writes: little at a time, with many turns for others in between.
async fn read_slowly(peer: &mut Peer, mut left: usize) {
    let mut piece = vec![0; PIECE];
    left -= std::mem::take(&mut peer.buf).len();
    let mut turn = 0;
    while left > 0 {
        turn += 1;
        if turn % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        left -= soon("more", peer.stream.read(&mut piece)).await.unwrap();
    }
}

/// Chunks of one piece each, `SIZE` bytes in all.
async fn write_chunks(peer: &mut Peer) {
    let chunk = [format!("{PIECE:x}\r\n").as_bytes(), &vec![b'x'; PIECE], b"\r\n"].concat();
    for _ in 0..SIZE / PIECE {
        soon("room", peer.stream.write_all(&chunk)).await.unwrap();
    }
    peer.send("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_large_download_to_a_slow_reader() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = Peer::connect_with_small_buffer(pillion.egress()).await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")).await;
    client.head().await;
    let data = vec![b'x'; PIECE];
    let write = async {
        for _ in 0..SIZE / PIECE {
            soon("room", server.stream.write_all(&data)).await.unwrap();
        }
    };
    tokio::join!(write, read_slowly(&mut client, SIZE));
    is_small(&pillion);
}

#[tokio::test]
async fn a_large_upload_to_a_slow_reader() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: user-service\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    // pillion's chunks need not be cut like the client's; nothing else may come than the body and its framing.
    let read = async {
        let mut buf = vec![0; PIECE];
        let (mut taken, mut tail) = (0, Vec::new());
        let mut turn = 0;
        while !tail.ends_with(b"\r\n0\r\n\r\n") {
            turn += 1;
            if turn % 64 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let read = soon("more", server.stream.read(&mut buf)).await.unwrap();
            taken += read;
            tail.extend_from_slice(&buf[..read]);
            tail.drain(..tail.len().saturating_sub(16));
        }
        assert!((SIZE..SIZE + SIZE / 100).contains(&taken), "{taken}");
    };
    tokio::join!(write_chunks(&mut client), read);
    pillion.until_metric("pillion_requests_in_flight", &[], 1.0).await;
    is_small(&pillion);
}

#[tokio::test]
async fn large_bodies_in_both_directions_of_an_http_2_stream() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let (response, mut up) = client.start(request("POST", "/"), false).await;
    let mut connection = upstream.accept().await;
    let mut exchange = connection.next().await;
    let mut down = exchange.respond.send_response(Response::new(()), false).unwrap();
    let mut body = soon("a response", response).await.unwrap().into_body();
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let send = async |stream: &mut _| {
        for _ in 0..SIZE / PIECE {
            soon("room", send_all(stream, piece.clone(), false)).await.unwrap();
        }
    };
    let take = async |stream: &mut h2::RecvStream| {
        let (mut taken, mut turn) = (0, 0);
        while taken < SIZE {
            let data = soon("more", stream.data()).await.unwrap().unwrap();
            taken += data.len();
            turn += 1;
            if turn % 64 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            stream.flow_control().release_capacity(data.len()).unwrap();
        }
    };
    tokio::join!(send(&mut up), take(&mut exchange.body), send(&mut down), take(&mut body));
    up.send_data(Bytes::new(), true).unwrap();
    assert!(read(&mut exchange.body).await.unwrap().0.is_empty());
    down.send_data(Bytes::new(), true).unwrap();
    assert!(read(&mut body).await.unwrap().0.is_empty());
    is_small(&pillion);
}

#[tokio::test]
async fn many_slow_readers_at_once() {
    const CLIENTS: usize = 50;
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut held = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Peer::connect_with_small_buffer(pillion.egress()).await;
        client.send(get("/")).await;
        let mut server = upstream.accept().await;
        server.request().await;
        server.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")).await;
        client.head().await;
        held.push((client, server));
    }
    // Everything that anybody takes, until all are stuck.
    let data = vec![b'x'; PIECE];
    for (_, server) in &mut held {
        while let Ok(written) = tokio::time::timeout(Duration::from_millis(20), server.stream.write_all(&data)).await {
            written.unwrap();
        }
    }
    is_small(&pillion);
    drop(held);
    pillion.until_free().await;
}
