//! The layouts that keep a service in one hash: its fields as instances, and until when each of them counts.

use super::resp::Value;
use crate::{
    config::RedisLayout,
    registry::{
        Instance,
        layout::{DecodeError, dubbo, kitex},
    },
};
use std::{collections::BTreeMap, time::Duration};

/// What one field says.
#[derive(Debug, PartialEq)]
pub struct Field {
    /// `None` if the field is not meant to be used.
    pub instance: Option<Instance>,
    /// For how long, unless it is written again.
    pub lives: Option<Duration>,
}

/// What is wrong with a field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error(transparent)]
    Instance(#[from] DecodeError),
    #[error("`{0}` is not the time when it expires, in milliseconds")]
    Expiry(String),
}

/// All fields of the answer to `HGETALL` that count at `now` (milliseconds, by the server's clock), by their names;
/// `None` if it is no such answer.
pub fn fields(
    layout: RedisLayout,
    service: &str,
    answer: &Value,
    now: u64,
) -> Option<BTreeMap<String, Result<Field, FieldError>>> {
    let mut found = BTreeMap::new();
    for pair in answer.array()?.chunks(2) {
        let [Value::Bulk(name), Value::Bulk(value)] = pair else { return None };
        if let Some(field) = field(layout, service, name, value, now).transpose() {
            found.insert(String::from_utf8_lossy(name).into_owned(), field);
        }
    }
    Some(found)
}

/// Nothing if it has expired.
fn field(layout: RedisLayout, service: &str, name: &[u8], value: &[u8], now: u64) -> Result<Option<Field>, FieldError> {
    if layout != RedisLayout::Dubbo {
        // The hash as a whole has a time to live.
        return Ok(Some(Field { instance: Some(kitex::decode(value)?), lives: None }));
    }
    let instance = dubbo::instance(service, std::str::from_utf8(name).map_err(DecodeError::from)?)?;
    // One that somebody has put there by hand, and that nobody renews.
    if instance.as_ref().is_some_and(|instance| instance.labels.get("dynamic").is_some_and(|text| text == "false")) {
        return Ok(Some(Field { instance, lives: None }));
    }
    let expires = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
    let expires = expires.ok_or_else(|| FieldError::Expiry(value[..value.len().min(40)].escape_ascii().to_string()))?;
    Ok(expires.checked_sub(now).map(|lives| Field { instance, lives: Some(Duration::from_millis(lives)) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    const URL: &str = "dubbo://10.0.0.1:20880/com.foo.Bar?application=bar&dubbo=2.0.2&interface=com.foo.Bar\
        &methods=hello&pid=7&side=provider&timestamp=1795286782126&version=1.0.0&weight=50";

    fn hash(pairs: &[(&str, &str)]) -> Value {
        let bulk = |text: &str| Value::Bulk(Bytes::copy_from_slice(text.as_bytes()));
        Value::Array(pairs.iter().flat_map(|(name, value)| [bulk(name), bulk(value)]).collect())
    }

    #[test]
    fn dubbo_providers_live_until_their_time() {
        let fixed = format!("{URL}&dynamic=false");
        let answer = hash(&[(URL, "1000"), (&fixed, "1")]);
        let found = fields(RedisLayout::Dubbo, "com.foo.Bar", &answer, 400).unwrap();
        let field = found[URL].as_ref().unwrap();
        assert_eq!(field.lives, Some(Duration::from_millis(600)));
        let instance = field.instance.as_ref().unwrap();
        assert_eq!((instance.address.to_string().as_str(), instance.weight), ("10.0.0.1:20880", 50));
        assert_eq!(found[&fixed].as_ref().unwrap().lives, None);
        let still = fields(RedisLayout::Dubbo, "com.foo.Bar", &answer, 1000).unwrap();
        assert_eq!(still.len(), 2, "to the last millisecond, as Dubbo's own reader has it");
        let later = fields(RedisLayout::Dubbo, "com.foo.Bar", &answer, 1001).unwrap();
        assert_eq!(later.keys().collect::<Vec<_>>(), [&fixed]);
    }

    #[test]
    fn a_bad_field_is_one_bad_field() {
        let good = r#"{"service_name":"users","addr":"10.0.0.1:8888","weight":10,"tags":{}}"#;
        let found = fields(RedisLayout::Kitex, "users", &hash(&[("10.0.0.1:8888", good), ("x", "{")]), 0).unwrap();
        assert!(found["10.0.0.1:8888"].is_ok() && found["x"].is_err());
        let found = fields(RedisLayout::Dubbo, "com.foo.Bar", &hash(&[(URL, "soon"), ("x", "1")]), 0).unwrap();
        assert_eq!(found[URL], Err(FieldError::Expiry("soon".into())));
        assert!(found["x"].is_err());
        for answer in [Value::Nil, Value::Array(vec![Value::Nil]), Value::Integer(1)] {
            assert_eq!(fields(RedisLayout::Dubbo, "com.foo.Bar", &answer, 0), None);
        }
    }

    proptest! {
        #[test]
        fn no_field_makes_it_panic(
            name in prop_oneof![prop::collection::vec(any::<u8>(), 0..100), "[a-z]{0,6}://[0-9.:/?&=a-z%]{0,60}".prop_map(String::into_bytes)],
            value in prop_oneof![prop::collection::vec(any::<u8>(), 0..60), "[0-9]{0,25}".prop_map(String::into_bytes)],
            now: u64,
            at in 0..URL.len(),
            byte: u8,
        ) {
            let mut changed = URL.as_bytes().to_vec();
            changed[at] = byte;
            let bulk = |bytes: &[u8]| Value::Bulk(Bytes::copy_from_slice(bytes));
            let answer = Value::Array(vec![bulk(&name), bulk(&value), bulk(&changed), bulk(b"18446744073709551615")]);
            for layout in [RedisLayout::Dubbo, RedisLayout::Kitex] {
                let _ = fields(layout, "com.foo.Bar:1.0.0", &answer, now);
            }
        }
    }
}
