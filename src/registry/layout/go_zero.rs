//! go-zero: one key per lease, whose value is the bare address.

use super::{DecodeError, Record, id_segment};
use crate::registry::{Address, Instance};

/// The instance in one key's value: `10.0.0.1:8080`. Its id is its address, because the key is the lease's number: a
/// process that lost its lease, or was started again, is in twice until the old one runs out, and is still one instance.
pub fn decode(suffix: &str, value: &[u8]) -> Result<Vec<Instance>, DecodeError> {
    if id_segment(suffix).is_none() {
        return Ok(Vec::new());
    }
    let address: Address = std::str::from_utf8(value)?.trim().parse()?;
    Ok(vec![Instance::new(address.to_string(), address)])
}

/// What is written for `instance`: its address. An id that is a number is the key's last part, as go-zero takes one from its
/// configuration; else that is the number of the lease.
pub fn encode(instance: &Instance) -> Record {
    let suffix = instance.id.parse::<i64>().ok().filter(|id| *id > 0).map(|id| id.to_string());
    Record { suffix, value: instance.address.to_string().into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_the_address_and_the_id() {
        let instances = decode("7587870137262312214", b"10.0.0.1:8080").unwrap();
        assert_eq!(instances, [Instance::new("10.0.0.1:8080", "10.0.0.1:8080".parse().unwrap())]);
        assert_eq!(decode("other/7587870137262312214", b"10.0.0.1:8080").unwrap(), []);
        for value in [&b""[..], b"10.0.0.1", b"{}", b"\xff"] {
            assert!(decode("1", value).is_err());
        }
    }
}
