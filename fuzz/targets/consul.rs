//! A Consul agent's answer about a service's health.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::consul;
use pillion_fuzz::check;

fuzz_target!(|body: &[u8]| {
    if let Some(instances) = consul::instances(body) {
        check(&instances);
    }
});
