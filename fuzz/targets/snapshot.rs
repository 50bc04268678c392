//! What is saved of a service named `users`, below its seal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::snapshot;
use pillion_fuzz::check;

fuzz_target!(|body: &[u8]| {
    if let Some(instances) = snapshot::instances(body) {
        check(&instances);
    }
});
