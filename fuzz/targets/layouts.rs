//! What frameworks write into key-value registries: the key's last part, a line end, the value. Read as each layout.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::{config::Layout, registry::layout::Keys};
use pillion_fuzz::check;

const LAYOUTS: [Layout; 7] =
    [Layout::Plain, Layout::Kratos, Layout::GoMicro, Layout::GoZero, Layout::Grpc, Layout::Curator, Layout::Dubbo];

fuzz_target!(|entry: &[u8]| {
    let mut lines = entry.splitn(2, |byte| *byte == b'\n');
    let (Some(key), Some(value)) = (lines.next(), lines.next()) else { return };
    for layout in LAYOUTS {
        let keys = Keys::new(layout, None);
        let whole = [keys.of_service("users").as_bytes(), key].concat();
        let service = keys.service_at(&whole);
        let Ok(key) = str::from_utf8(key) else { continue };
        if let Ok(instances) = keys.decode("users", key, value) {
            check(&instances);
        }
        // Where it is the key alone that counts.
        if let Some(service) = service {
            let _ = keys.decode(&service, key, b"");
        }
    }
});
