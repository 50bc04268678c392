//! For the target `zookeeper` of `fuzz/`.

use super::proto::{self, Malformed, Message};
use bytes::{Bytes, BytesMut};

/// The frames that a server sends in these pieces.
pub fn frames<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Result<Vec<Bytes>, Malformed> {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(frame) = proto::take_frame(&mut buffer)? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

/// Reads a frame as everything that it could be.
pub fn read(frame: Bytes) {
    let _ = proto::connected(frame.clone());
    if let Ok(Message::Reply { answer: Ok(answer), .. }) = proto::message(frame) {
        let _ = proto::children(answer.clone());
        let _ = proto::data(answer.clone());
        let _ = proto::multi(answer);
    }
}
