//! The request path. [`http::handle`] is where a request comes in, whichever codec read it, [`tcp::serve`] a connection
//! without requests, and [`auto::serve`] one that may be either; all read downwards from there.

pub mod admission;
pub mod auto;
pub mod body;
pub mod callers;
pub mod carried;
pub mod fallback;
pub mod fault;
pub mod first_bytes;
pub mod h1;
pub mod h2;
pub mod header_maps;
pub mod headers;
pub mod hedge;
pub mod http;
pub mod journey;
pub mod last_good;
pub mod listener;
pub mod mirror;
pub mod pool;
pub mod record;
pub mod respond;
pub mod retry;
pub mod routing;
pub mod tcp;
pub mod timer;
pub mod transparent;
pub mod tunnel;
pub mod udp;
pub mod waiting;
