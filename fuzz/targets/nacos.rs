//! What Nacos sends: JSON as it is, and in a payload.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::nacos;
use pillion_fuzz::check;

fuzz_target!(|bytes: &[u8]| {
    for json in [Some(bytes.to_vec()), nacos::json(bytes)].into_iter().flatten() {
        if let Some(instances) = nacos::instances(&json) {
            check(&instances);
        }
    }
});
