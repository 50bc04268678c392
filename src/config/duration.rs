//! Durations with units in the config: `250ms`, `15s`, `1h 30m`.

/// For `#[serde(with = "human")]` and `#[schemars(with = "human::Text")]`.
pub mod human {
    use schemars::JsonSchema;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    /// How a duration looks in the JSON Schema.
    #[derive(JsonSchema)]
    #[schemars(rename = "Duration", transparent)]
    #[allow(dead_code, reason = "only its schema is used")]
    pub struct Text(#[schemars(regex(pattern = r"^(\d+ *(us|ms|s|m|h|d) *)+$"))] String);

    pub fn parse(text: &str) -> Result<Duration, String> {
        let bad =
            || format!("`{text}` is not a duration; expected a number with a unit, like `250ms`, `15s` or `1h 30m`");
        // humantime would also take `0`, and units like `months`, which nobody means here.
        if text.trim().bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        humantime::parse_duration(text.trim()).map_err(|_| bad())
    }

    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}
