//! For the target `redis` of `fuzz/`.

use super::{
    events::Message,
    hash,
    keys::Keys,
    resp::{Decoder, Malformed, Value},
    sentinel,
};
use crate::{config::RedisLayout, registry::Instance};
use bytes::BytesMut;

/// The values that a server sends in these pieces.
pub fn values<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Result<Vec<Value>, Malformed> {
    let (mut decoder, mut buffer, mut values) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(value) = decoder.next(&mut buffer)? {
            values.push(value);
        }
    }
    Ok(values)
}

/// What becomes of a value, as the answer to anything.
pub fn instances(value: &Value) -> Vec<Instance> {
    if let Some(items) = value.array() {
        sentinel::master(items);
        sentinel::switched(value, "mymaster");
        if let [.., Value::Bulk(channel), Value::Bulk(payload)] = items {
            let message = Message { channel: channel.clone(), payload: payload.clone() };
            Keys::new(RedisLayout::Plain, None, 0).changed("users", &message);
        }
    }
    let by_layout = [RedisLayout::Dubbo, RedisLayout::Kitex].into_iter();
    let fields = by_layout.filter_map(|layout| hash::fields(layout, "com.foo.Bar", value, 1_000));
    fields.flat_map(|fields| fields.into_values().filter_map(|field| field.ok()?.instance)).collect()
}
