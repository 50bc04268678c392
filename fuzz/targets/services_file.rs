//! The file of the `file` registry.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::file;
use pillion_fuzz::{check, check_ids};

fuzz_target!(|bytes: &[u8]| {
    for instances in file::instances(bytes).unwrap_or_default() {
        check(&instances);
        check_ids(&instances);
    }
});
