//! Durations as Go and Kubernetes write them: `1h30m`, `1.5s`, `100ms`.

use std::time::Duration;

pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut any = false;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let one = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += digits.parse::<f64>().ok()? * one;
        any = true;
        rest = after;
    }
    // To the microsecond, which is as fine as the config writes it.
    let micros = (seconds * 1e6).round();
    // A number above 2^53 has lost digits, and is no duration that anybody means.
    (any && micros < 9e15).then(|| Duration::from_micros(micros as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_as_go_writes_them() {
        for (text, micros) in [
            ("5s", 5_000_000),
            ("0.1s", 100_000),
            ("1.5s", 1_500_000),
            ("1h30m", 5_400_000_000),
            ("100ms", 100_000),
            ("1m0.5s", 60_500_000),
            ("25us", 25),
            ("0s", 0),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "5", "s", "5 s", "-1s", "5d", "1.2.3s", "1e3s", "five"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
