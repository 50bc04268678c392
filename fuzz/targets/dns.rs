//! A DNS server's answer, and a question that it is asked.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::dns;
use pillion_fuzz::check;

fuzz_target!(|message: &[u8]| {
    let _ = dns::answers(message);
    if let Some(instances) = dns::instances(message) {
        check(&instances);
    }
});
