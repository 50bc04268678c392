//! A Eureka server's answers, one a line: a full one, and deltas. Or any of it in gzip.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::eureka;
use pillion_fuzz::{check, check_ids};

const LIMIT: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let text = eureka::unpack(bytes, LIMIT).unwrap_or_else(|| bytes.to_vec());
    assert!(text.len() <= LIMIT.max(bytes.len()));
    let mut lines = text.split(|byte| *byte == b'\n');
    let full = lines.next().unwrap_or_default();
    for instances in eureka::instances(full, lines).unwrap_or_default() {
        check(&instances);
        check_ids(&instances);
    }
});
