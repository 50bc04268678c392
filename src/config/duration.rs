//! Durations with units in the config: `250ms`, `15s`, `1h 30m`.

/// For `#[serde(with = "human")]` and `#[schemars(with = "human::Text")]`.
pub mod human {
    use schemars::JsonSchema;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    // How a duration looks in the JSON Schema, where a comment for documents would be that of all keys without one.
    #[derive(JsonSchema)]
    #[schemars(rename = "Duration", transparent)]
    #[allow(dead_code, reason = "only its schema is used")]
    pub struct Text(#[schemars(regex(pattern = r"^(\d+ *(us|ms|s|m|h|d) *)+$"))] String);

    /// The units that there are. humantime knows more, but `M`, `months` or `years` are slips here.
    const UNITS: [&str; 6] = ["us", "ms", "s", "m", "h", "d"];

    pub fn parse(text: &str) -> Result<Duration, String> {
        let text = text.trim();
        let mut units = text.split(|c: char| c.is_ascii_digit() || c == ' ').filter(|unit| !unit.is_empty()).peekable();
        // humantime would also take `0`.
        let unit_missing = units.peek().is_none();
        if !unit_missing
            && units.all(|unit| UNITS.contains(&unit))
            && let Ok(duration) = humantime::parse_duration(text)
        {
            return Ok(duration);
        }
        let text = crate::config::error::shorten(text);
        Err(format!("`{text}` is not a duration; expected a number with a unit, like `250ms`, `15s` or `1h 30m`"))
    }

    /// In the same units, largest first: `1h 30m`. Parts under a microsecond are left out.
    pub fn format(duration: Duration) -> String {
        let seconds = duration.as_secs();
        let parts = [
            (seconds / 86_400, "d"),
            (seconds / 3600 % 24, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (u64::from(duration.subsec_millis()), "ms"),
            (u64::from(duration.subsec_micros() % 1000), "us"),
        ];
        let parts: Vec<_> =
            parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect();
        if parts.is_empty() { "0s".into() } else { parts.join(" ") }
    }

    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(from)?).map_err(D::Error::custom)
    }

    /// For an `Option<Duration>`.
    pub mod optional {
        use serde::{Deserialize, Deserializer, Serializer, de::Error};
        use std::time::Duration;

        pub fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
            match duration {
                Some(duration) => super::serialize(duration, to),
                None => to.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
            let text = Option::<String>::deserialize(from)?;
            text.map(|text| super::parse(&text).map_err(D::Error::custom)).transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::human::{format, parse};
    use std::time::Duration;

    #[test]
    fn durations_read_with_their_unit_and_show_alike() {
        for (text, micros, shown) in [
            ("250ms", 250_000, "250ms"),
            ("90s", 90_000_000, "1m 30s"),
            (" 1h30m ", 5_400_000_000, "1h 30m"),
            ("1h 30m", 5_400_000_000, "1h 30m"),
            ("7 us", 7, "7us"),
            ("400d", 34_560_000_000_000, "400d"),
            ("0s", 0, "0s"),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_micros(micros)), "{text}");
            assert_eq!(format(Duration::from_micros(micros)), shown);
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "0", "15", "s", "1.5s", "-1s", "1M", "2years", "1ns", "99999999999999999999d", "1s x"] {
            assert!(parse(text).unwrap_err().contains("is not a duration; expected"), "{text}");
        }
    }
}
