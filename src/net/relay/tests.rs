use super::*;
use std::future::poll_fn;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

/// Sends `length` bytes through a relay, and gives how many pipes there are afterwards.
async fn carried(length: usize) -> usize {
    let ((mut client, downstream), (upstream, mut server)) = (pair().await, pair().await);
    let mut relay = Relay::new(Stream::Tcp(downstream), Stream::Tcp(upstream), BytesMut::from(&b"start"[..]));
    let (moved, data) = (Moved::default(), vec![7; length]);
    let sending = async {
        client.write_all(&data).await.unwrap();
        client.shutdown().await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap();
    };
    let receiving = async {
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!((&received[..5], received.len()), (&b"start"[..], length + 5));
        drop(server);
    };
    let (relayed, (), ()) = tokio::join!(poll_fn(|cx| relay.poll(&moved, cx)), sending, receiving);
    relayed.unwrap();
    assert_eq!(moved.both(), (length as u64 + 5, 0));
    splice::free()
}

#[tokio::test]
async fn only_bulk_goes_through_pipes_and_they_come_back() {
    assert_eq!(splice::free(), 0);
    assert_eq!(carried(1000).await, 0);
    assert_eq!(carried(16 << 20).await, 1);
    assert_eq!(carried(16 << 20).await, 1, "the same one");
}

#[tokio::test]
async fn a_pipe_with_something_in_it_is_not_for_others() {
    let ((mut client, downstream), (upstream, server)) = (pair().await, pair().await);
    let mut pipe = splice::lease().unwrap();
    client.write_all(b"left over").await.unwrap();
    downstream.readable().await.unwrap();
    assert_eq!(pipe.fill(&downstream).unwrap(), 9);
    drop(pipe);
    assert_eq!(splice::free(), 0);
    let mut pipe = splice::lease().unwrap();
    client.write_all(b"new").await.unwrap();
    downstream.readable().await.unwrap();
    assert_eq!((pipe.fill(&downstream).unwrap(), pipe.drain(&upstream).unwrap(), pipe.filled()), (3, 3, 0));
    drop(pipe);
    assert_eq!(splice::free(), 1);
    drop(server);
}

#[tokio::test]
async fn no_more_pipes_are_in_use_than_may_be() {
    let all: Vec<_> = std::iter::from_fn(splice::lease).take(100).collect();
    assert_eq!(all.len(), splice::MOST);
    drop(all);
    assert!(splice::lease().is_some());
}
