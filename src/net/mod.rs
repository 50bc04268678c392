//! Sockets: accepting them, telling protocols apart, reading and writing them from one task, and TLS.

pub mod buffers;
pub mod detect;
pub mod io;
pub mod listen;
pub mod tls;
