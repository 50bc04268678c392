//! The first bytes of a connection, of which nobody knows what they are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::net::detect::{Detector, LONGEST_UNSURE, Protocol};
use pillion_fuzz::cuttings;

fuzz_target!(|bytes: &[u8]| {
    let whole = Detector::default().look(bytes);
    assert!(whole != Protocol::Unsure || bytes.len() < LONGEST_UNSURE);
    for cutting in cuttings(bytes) {
        let (mut detector, mut length, mut answer) = (Detector::default(), 0, Protocol::Unsure);
        for piece in cutting {
            length += piece.len();
            let now = detector.look(&bytes[..length]);
            assert!(answer == Protocol::Unsure || answer == now, "an answer holds");
            answer = now;
        }
        assert_eq!(answer, whole);
    }
});
