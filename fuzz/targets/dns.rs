//! A DNS server's answer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::dns;
use pillion_fuzz::check;

fuzz_target!(|message: &[u8]| {
    if let Some(instances) = dns::instances(message) {
        check(&instances);
    }
});
