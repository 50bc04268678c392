//! What a ZooKeeper server sends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::fuzzing::zookeeper;
use pillion_fuzz::cuttings;

fuzz_target!(|bytes: &[u8]| {
    let frames = zookeeper::frames([bytes].into_iter());
    for cutting in cuttings(bytes) {
        assert_eq!(zookeeper::frames(cutting), frames);
    }
    for frame in frames.unwrap_or_default() {
        zookeeper::read(frame);
    }
});
