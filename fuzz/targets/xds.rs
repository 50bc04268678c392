//! What a control plane sends: resources, and responses, of which there may be several with their lengths before them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::xds;
use pillion_fuzz::{check, check_ids};

fuzz_target!(|bytes: &[u8]| {
    let (mut responses, mut rest) = (vec![bytes], bytes);
    while let Some((length, after)) = rest.split_first_chunk() {
        let (response, after) = after.split_at(after.len().min(u16::from_be_bytes(*length).into()));
        responses.push(response);
        rest = after;
    }
    for instances in [xds::instances(bytes), xds::answered(responses.into_iter())] {
        check(&instances);
        check_ids(&instances);
    }
});
