//! The request path. [`http::handle`] is where a request comes in, whichever codec read it; it reads downwards from there.

pub mod admission;
pub mod body;
pub mod fallback;
pub mod fault;
pub mod h1;
pub mod h2;
pub mod header_maps;
pub mod headers;
pub mod hedge;
pub mod http;
pub mod journey;
pub mod last_good;
pub mod listener;
pub mod pool;
pub mod record;
pub mod respond;
pub mod retry;
pub mod timer;
pub mod tunnel;
pub mod waiting;
