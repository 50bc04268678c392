//! Sockets and what is spoken on them before a request is seen.

pub mod tls;
