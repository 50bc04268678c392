//! HTTP/1.1 on both sides of the proxy: our own codec, because this is what the project is for.
//!
//! One task carries a request from one socket to the other and its response back; there is no channel, no second task
//! and no copy of the body in between. Parsing of heads is `httparse`'s; framing is decided in [`head`], strictly.

mod client;
mod decode;
mod encode;
pub mod head;
mod reader;
mod server;

pub use client::{ResponseBody, Tunnel, send};
#[cfg(fuzzing)]
pub use decode::{Decoded, Decoder};
pub use reader::RequestBody;
pub use server::serve;
