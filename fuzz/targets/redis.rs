//! What Redis or a Sentinel sends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::redis;
use pillion_fuzz::{check, cuttings};

fuzz_target!(|bytes: &[u8]| {
    let values = redis::values([bytes].into_iter());
    for cutting in cuttings(bytes) {
        assert_eq!(redis::values(cutting).is_ok(), values.is_ok());
    }
    for value in values.unwrap_or_default() {
        check(&redis::instances(&value));
    }
});
