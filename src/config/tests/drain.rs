//! The times of the end.

use super::{REGISTRY, faults::table, load_text};
use std::time::Duration;

#[test]
fn the_end_has_its_times() {
    let drain = |text: &str| load_text(&format!("{REGISTRY}{text}")).unwrap().config.drain;
    assert_eq!((drain("").timeout, drain("").spread), (Duration::from_secs(30), Duration::from_secs(2)));
    assert_eq!(drain("drain: { timeout: 3s }").timeout, Duration::from_secs(3), "the default `spread` is in no way");
    let short = drain("drain: { timeout: 1s, spread: 0s }");
    assert_eq!((short.timeout, short.spread), (Duration::from_secs(1), Duration::ZERO));
}

#[test]
fn times_that_leave_none_for_requests_are_refused() {
    table(&[
        ("drain: { timeout: 0s, spread: 0s }", &["2:19: drain.timeout: found `0s`; expected at least `1s`"]),
        ("drain: { timeout: 400d }", &["2:19: drain.timeout: found `400d`; expected at most a year"]),
        (
            "drain: { spread: 20s }",
            &["2:18: drain.spread: found `20s`; expected at most `15s`, which is half of `drain.timeout`"],
        ),
    ]);
}
