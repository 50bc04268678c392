//! Why a session ended, known to everybody who uses it.

use crate::registry::RegistryError;
use tokio::sync::watch;

/// The first reason counts.
#[derive(Clone)]
pub struct End {
    reason: watch::Sender<Option<RegistryError>>,
}

impl End {
    pub fn new() -> Self {
        Self { reason: watch::Sender::new(None) }
    }

    pub fn set(&self, reason: RegistryError) {
        self.reason.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(reason);
            is_first
        });
    }

    pub fn is_set(&self) -> bool {
        self.reason.borrow().is_some()
    }

    /// Waits for it.
    pub async fn reached(&self) -> RegistryError {
        let mut reason = self.reason.subscribe();
        loop {
            if let Some(reason) = &*reason.borrow_and_update() {
                return reason.clone();
            }
            // This holds the sending end, so the wait cannot fail.
            let _ = reason.changed().await;
        }
    }
}
