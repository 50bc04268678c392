//! The shares of a split over as many requests as show whether they are right.

use crate::{
    peer::{PATIENCE, Peer},
    pillion::Setup,
    routing::labelled,
    socket::Socket,
};
use std::{fmt::Write as _, net::SocketAddr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

const CONNECTIONS: usize = 8;
/// So many are under way on each connection at one time.
const AT_ONCE: usize = 50;

/// An upstream that answers each request with one byte, and does nothing else that would take time.
async fn marked(byte: u8) -> SocketAddr {
    let listener = Socket(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, byte));
        }
    });
    address
}

async fn serve(mut stream: TcpStream, byte: u8) {
    stream.set_nodelay(true).unwrap();
    let (mut buf, mut answers) = (Vec::new(), Vec::new());
    while matches!(stream.read_buf(&mut buf).await, Ok(1..)) {
        let whole = buf.windows(4).filter(|window| window == b"\r\n\r\n").count();
        if let Some(end) = buf.windows(4).rposition(|window| window == b"\r\n\r\n") {
            buf.drain(..end + 4);
        }
        for _ in 0..whole {
            answers.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n");
            answers.push(byte);
        }
        if stream.write_all(&answers).await.is_err() {
            return;
        }
        answers.clear();
    }
}

/// How often each of the bytes was the answer to these users' requests on this path, of which many are sent at once.
async fn divided(egress: SocketAddr, path: &'static str, users: u32, bytes: &'static [u8]) -> Vec<u32> {
    let mut clients = JoinSet::new();
    for number in 0..CONNECTIONS as u32 {
        clients.spawn(async move {
            let mut client = Peer::connect(egress).await;
            let mut counts = vec![0; bytes.len()];
            let mine: Vec<u32> = (0..users).filter(|user| user % CONNECTIONS as u32 == number).collect();
            for some in mine.chunks(AT_ONCE) {
                let mut requests = String::new();
                for user in some {
                    write!(requests, "GET {path} HTTP/1.1\r\nhost: user-service\r\nx-user: {user}\r\n\r\n").unwrap();
                }
                client.send(requests).await;
                let mut answered = 0;
                while answered < some.len() {
                    let mut read = [0; 16 * 1024];
                    let length = timeout(PATIENCE, client.stream.read(&mut read)).await.expect("answers").unwrap();
                    assert!(length > 0, "cut off after {answered} of {}", some.len());
                    for (count, byte) in counts.iter_mut().zip(bytes) {
                        let found = read[..length].iter().filter(|read| *read == byte).count();
                        *count += found as u32;
                        answered += found;
                    }
                }
            }
            counts
        });
    }
    clients
        .join_all()
        .await
        .into_iter()
        .fold(vec![0; bytes.len()], |sum, counts| sum.iter().zip(counts).map(|(sum, count)| sum + count).collect())
}

/// Whether each got its share of them, within five standard deviations.
fn are_divided(counts: &[u32], weights: &[f64]) -> bool {
    let all: u32 = counts.iter().sum();
    let sum: f64 = weights.iter().sum();
    counts.iter().zip(weights).all(|(count, weight)| {
        let share = weight / sum;
        let deviation = (f64::from(all) * share * (1.0 - share)).sqrt();
        (f64::from(*count) - f64::from(all) * share).abs() <= 5.0 * deviation
    })
}

#[tokio::test]
async fn a_hundred_thousand_requests_are_divided_by_the_weights() {
    const REQUESTS: u32 = 100_000;
    // None of them is in a head.
    const BYTES: &[u8] = b"\x01\x02\x03";
    let mut instances = Vec::new();
    for (byte, version) in BYTES.iter().zip(["v1", "v2", "v3"]) {
        instances.push(labelled(marked(*byte).await, version));
    }
    let route = |path: &str, split: &str| {
        format!("{{ match: {{ path: {{ exact: {path} }} }}, split: {{ {split} }}, sticky: {{ header: x-user }} }}")
    };
    let settings = format!(
        "user-service: {{ subsets: {{ a: {{ version: v1 }}, b: {{ version: v2 }}, c: {{ version: v3 }} }}, routes: [{}, {}, {}, \
         {{ split: {{ a: 90, b: 10 }} }}] }}",
        route("/ten", "a: 90, b: 10"),
        route("/one", "a: 99, b: 1"),
        route("/three", "a: 50, b: 30, c: 20"),
    );
    let pillion = Setup::users(instances).service(&settings).optimised().start().await;
    let mut sums = [0; 3];
    for (path, weights) in [
        ("/ten", [90.0, 10.0, 0.0]),
        ("/one", [99.0, 1.0, 0.0]),
        ("/three", [50.0, 30.0, 20.0]),
        ("/drawn", [90.0, 10.0, 0.0]),
    ] {
        let counts = divided(pillion.egress(), path, REQUESTS, BYTES).await;
        println!("{path}: {counts:?} of {REQUESTS}");
        assert_eq!(counts.iter().sum::<u32>(), REQUESTS);
        assert!(are_divided(&counts, &weights), "{path}: {counts:?}");
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    for (subset, sum) in ["a", "b", "c"].into_iter().zip(sums) {
        let labels = [format!("subset=\"{subset}\"")];
        pillion.until_metric("pillion_subset_requests_total", &[&labels[0]], f64::from(sum)).await;
    }
    assert_eq!(pillion.metric("pillion_errors_total", &[]).await, 0.0);
}

#[test]
fn what_is_not_divided_so_is_noticed() {
    assert!(are_divided(&[90_000, 10_000], &[90.0, 10.0]) && are_divided(&[90_470, 9_530], &[90.0, 10.0]));
    assert!(!are_divided(&[90_480, 9_520], &[90.0, 10.0]) && !are_divided(&[99_159, 841], &[99.0, 1.0]));
    assert!(!are_divided(&[50_000, 29_000, 21_000], &[50.0, 30.0, 20.0]) && !are_divided(&[9, 0, 1], &[9.0, 1.0, 0.0]));
}
