//! What an API server sends: a list's page, an error, and the lines of a watch.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::{config::KubernetesRegistry, fuzzing::kubernetes, registry::Kubernetes};
use pillion_fuzz::{check, check_ids};
use std::sync::{Arc, LazyLock};

static KUBERNETES: LazyLock<Arc<Kubernetes>> = LazyLock::new(|| {
    let config = KubernetesRegistry {
        servers: vec!["http://127.0.0.1:1".into()],
        namespace: Some("shop".into()),
        ..KubernetesRegistry::default()
    };
    Arc::new(Kubernetes::new("main", &config, None).unwrap())
});

fuzz_target!(|bytes: &[u8]| {
    kubernetes::refused(bytes);
    let watched = kubernetes::watched(&KUBERNETES, bytes.split(|byte| *byte == b'\n'));
    for instances in [Some(watched), kubernetes::listed(bytes)].into_iter().flatten() {
        check(&instances);
        check_ids(&instances);
    }
});
