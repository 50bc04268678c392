//! HTTP/2 on both sides of the proxy, over the `h2` crate: what hyper builds its HTTP/2 on, without the channel and the
//! extra task per request that hyper's generality needs.

mod client;
mod ending;
mod pump;
mod recv;
mod server;

pub use client::{Connection, Duplex, send};
pub use recv::RecvBody;
pub use server::serve;

use h2::{Ping, PingPong};
use std::{future::pending, time::Duration};

/// What a peer may send on one stream before we have passed it on. Large enough for 100 Mbit/s at 20 ms.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for a whole connection: bounds the memory that one peer can make us hold.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How long a peer may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Pings the peer every `interval`; returns when it did not answer: it vanished without a word.
async fn keep_asking(mut pings: PingPong, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection ends by itself and says why.
            Ok(Err(_)) => pending().await,
            Err(_) => return,
        }
    }
}
