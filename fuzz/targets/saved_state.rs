//! What the embedded registry saves, below its seal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::embedded;
use pillion_fuzz::check;

fuzz_target!(|body: &[u8]| {
    if let Some(instances) = embedded::instances(body) {
        check(&instances);
    }
});
