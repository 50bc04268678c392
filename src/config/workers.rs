//! Reading `workers`. By hand, because an untagged derive says only that nothing fitted.

use super::{Auto, Workers};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected},
};
use std::fmt;

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Workers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 1 to 256 or `auto`")
            }

            fn visit_u64<E: Error>(self, count: u64) -> Result<Workers, E> {
                match u16::try_from(count) {
                    Ok(count @ 1..=256) => Ok(Workers::Count(count)),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(count), &self)),
                }
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Workers, E> {
                match text.parse() {
                    _ if text == "auto" => Ok(Workers::Auto(Auto::Auto)),
                    Ok(count @ 1..=256) => Ok(Workers::Count(count)),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }

        from.deserialize_any(Visitor)
    }
}
