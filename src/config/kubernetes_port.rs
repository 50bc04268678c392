//! Reading the `port` of `kubernetes`. By hand, because an untagged derive says only that nothing fitted.

use super::KubernetesPort;
use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected},
};
use std::fmt;

impl<'de> Deserialize<'de> for KubernetesPort {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = KubernetesPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port's name, or a number from 1 to 65535")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<KubernetesPort, E> {
                let port = u16::try_from(number).ok().and_then(|number| number.try_into().ok());
                port.map(KubernetesPort::Number).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<KubernetesPort, E> {
                KubernetesPort::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        from.deserialize_any(Visitor)
    }
}
