//! Sockets: accepting them, telling protocols apart, reading and writing them from one task, carrying bytes between two of
//! them, TLS, sockets from others, and how many there may be.

pub mod activation;
pub mod borrowed;
pub mod buffers;
pub mod client_hello;
pub mod descriptors;
pub mod detect;
pub mod handover;
pub mod io;
pub mod listen;
pub mod loops;
pub mod malformed;
pub mod original;
pub mod own;
pub mod proxy_protocol;
pub mod relay;
pub mod splice;
pub mod tls;
