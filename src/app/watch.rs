//! Notices that the config file changed.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    time::Duration,
};

/// How often the file is looked at. It is read whole: it is small, and what Kubernetes and editors do to files (links that
/// swing, renames, clocks with coarse ticks) defeats anything cleverer.
const PERIOD: Duration = Duration::from_secs(1);

/// A config file and the content that was last acted upon.
#[derive(Debug)]
pub struct ConfigFile {
    pub path: PathBuf,
    seen: Option<u64>,
}

impl ConfigFile {
    pub fn new(path: PathBuf) -> Self {
        let seen = content(&path);
        Self { path, seen }
    }

    /// What is in the file now is acted upon for another reason.
    pub fn seen(&mut self) {
        self.seen = content(&self.path);
    }

    /// Returns when the file has a new content and has had it for a whole period, so that it is not read half written. A file
    /// that is missing is waited for.
    pub async fn changed(&mut self) {
        let mut last = self.seen;
        loop {
            tokio::time::sleep(PERIOD).await;
            let now = content(&self.path);
            if now.is_some() && now == last && now != self.seen {
                self.seen = now;
                return;
            }
            last = now;
        }
    }
}

fn content(path: &PathBuf) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    std::fs::read(path).ok()?.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_is_seen_once_it_has_settled_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pillion.yaml");
        std::fs::write(&path, "a").unwrap();
        let mut file = ConfigFile::new(path.clone());
        std::fs::remove_file(&path).unwrap();
        let later = Duration::from_secs(3600);
        assert!(tokio::time::timeout(later, file.changed()).await.is_err(), "a missing file is no change");
        std::fs::write(&path, "b").unwrap();
        tokio::time::timeout(later, file.changed()).await.unwrap();
        assert!(tokio::time::timeout(later, file.changed()).await.is_err());
        std::fs::write(&path, "c").unwrap();
        file.seen();
        assert!(tokio::time::timeout(later, file.changed()).await.is_err(), "it was acted upon");
    }
}
