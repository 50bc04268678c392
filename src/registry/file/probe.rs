//! One look at the file: whether it changed, and whether whoever writes it seems to be done.

use super::content::{self, Services};
use std::{
    fs::{File, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A file is read once it was left alone for this long. One that is cut off at the end of a line is good YAML, so that
/// no reader of the content could tell that it is half written.
pub(super) const SETTLE: Duration = Duration::from_millis(100);

/// A file can change twice within one tick of its file system's clock (2 s on FAT) and keep its stamp. So the content is
/// compared as long as the last change is not older than this.
const TICK: Duration = Duration::from_secs(3);

/// The most that is read.
const MAX_SIZE: u64 = 16 << 20;

/// What came out of a look.
#[derive(Debug)]
pub(super) enum Probe {
    /// The same content as at the last look that gave one.
    Same,
    /// It is being written. Look again after [`SETTLE`].
    Unsettled,
    Good(Services),
    /// `identity` stands for what is wrong: the same failure has the same.
    Bad {
        identity: u64,
        cause: String,
    },
    Unreadable {
        identity: u64,
        cause: String,
    },
}

/// What to remember for the next look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The content that was taken, and the stamp that it had.
    taken: Option<(Stamp, u64)>,
    /// The failure that was reported.
    failure: Option<u64>,
    /// The stamp of a file that was too young to be read.
    young: Option<Stamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Zero for a file of the future (a clock that was set back): it is as young as can be.
    pub(super) fn age(&self) -> Duration {
        let of = |(seconds, nanos): (i64, i64)| {
            UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0))
        };
        SystemTime::now().duration_since(of(self.modified)).unwrap_or_default()
    }
}

impl Probe {
    pub(super) fn unreadable(cause: &str) -> Self {
        Self::Unreadable { identity: hash(cause.as_bytes()), cause: cause.into() }
    }
}

/// Looks at the file. Blocks.
pub(super) fn probe(path: &Path, seen: Seen) -> (Probe, Seen) {
    match read(path, &seen) {
        Ok(Reading::Same) => (Probe::Same, Seen { young: None, ..seen }),
        Ok(Reading::Young(stamp)) => (Probe::Unsettled, Seen { young: Some(stamp), ..seen }),
        Ok(Reading::Content(stamp, bytes)) => {
            let hash = hash(&bytes);
            let same = seen.taken.as_ref().is_some_and(|(_, taken)| *taken == hash);
            let taken = Some((stamp, hash));
            // A file that comes back as it was, after it could not be read, is news nevertheless.
            if same && seen.failure.is_none_or(|failure| failure == hash) {
                return (Probe::Same, Seen { taken, young: None, failure: seen.failure });
            }
            match content::decode(&path.display().to_string(), &bytes) {
                Ok(services) => (Probe::Good(services), Seen { taken, young: None, failure: None }),
                Err(cause) => (Probe::Bad { identity: hash, cause }, Seen { taken, young: None, failure: Some(hash) }),
            }
        }
        Err(error) => {
            let cause = error.to_string();
            let identity = hash(cause.as_bytes());
            let probe =
                if seen.failure == Some(identity) { Probe::Same } else { Probe::Unreadable { identity, cause } };
            (probe, Seen { failure: Some(identity), young: None, ..seen })
        }
    }
}

enum Reading {
    Same,
    Young(Stamp),
    Content(Stamp, Vec<u8>),
}

fn read(path: &Path, seen: &Seen) -> io::Result<Reading> {
    let metadata = std::fs::metadata(path)?;
    // Before it is opened: to open a named pipe would wait for its writer.
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let stamp = Stamp::of(&metadata);
    let age = stamp.age();
    let taken = seen.taken.as_ref().is_some_and(|(taken, _)| *taken == stamp);
    // After a failure it is read again: a directory that was away comes back with the stamps that it had.
    if taken && age > TICK && seen.failure.is_none() {
        return Ok(Reading::Same);
    }
    if !taken && age < SETTLE && seen.young.as_ref() != Some(&stamp) {
        return Ok(Reading::Young(stamp));
    }
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    file.by_ref().take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(io::Error::other(format!("it is larger than {} MiB", MAX_SIZE >> 20)));
    }
    // The file that was read, and the one that has the name now, still have to be the one that was looked at first.
    for now in [Stamp::of(&file.metadata()?), Stamp::of(&std::fs::metadata(path)?)] {
        if now != stamp {
            return Ok(Reading::Young(now));
        }
    }
    Ok(Reading::Content(stamp, bytes))
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "services:\n  users:\n    - 10.0.0.1:80\n";
    const TWO: &str = "services:\n  users:\n    - 10.0.0.1:80\n    - 10.0.0.2:80\n";

    /// Writes with the last change at `modified`.
    fn write(path: &Path, text: &str, modified: SystemTime) {
        std::fs::write(path, text).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    }

    fn hours_from_now(hours: i64) -> SystemTime {
        let time = Duration::from_secs(3600 * hours.unsigned_abs());
        if hours < 0 { SystemTime::now() - time } else { SystemTime::now() + time }
    }

    fn count(probe: &Probe) -> usize {
        if let Probe::Good(services) = probe { services["users"].len() } else { panic!("{probe:?}") }
    }

    #[test]
    fn a_file_that_is_being_written_is_left_alone_until_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        // Always as young as can be, however slow this test runs.
        write(&path, ONE, hours_from_now(1));
        let (probed, seen) = probe(&path, Seen::default());
        assert!(matches!(probed, Probe::Unsettled), "{probed:?}");
        write(&path, TWO, hours_from_now(1));
        let (probed, seen) = probe(&path, seen);
        assert!(matches!(probed, Probe::Unsettled), "it went on: {probed:?}");
        let (probed, seen) = probe(&path, seen);
        assert_eq!(count(&probed), 2);
        assert!(matches!(probe(&path, seen).0, Probe::Same));
    }

    #[test]
    fn a_file_prepared_elsewhere_is_taken_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        write(&path, ONE, hours_from_now(-1));
        let (probed, seen) = probe(&path, Seen::default());
        assert_eq!(count(&probed), 1);
        let beside = dir.path().join("b.yaml");
        write(&beside, TWO, hours_from_now(-1));
        std::fs::rename(&beside, &path).unwrap();
        assert_eq!(count(&probe(&path, seen).0), 2);
    }

    #[test]
    fn a_change_within_one_tick_of_the_file_systems_clock_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let other_content_with_this_stamp = |hours| {
            write(&path, TWO, hours_from_now(hours));
            let stamp = Stamp::of(&std::fs::metadata(&path).unwrap());
            probe(&path, Seen { taken: Some((stamp, 0)), ..Seen::default() }).0
        };
        assert_eq!(count(&other_content_with_this_stamp(1)), 2);
        assert!(matches!(other_content_with_this_stamp(-1), Probe::Same), "an old file is not read again and again");
    }

    #[test]
    fn the_same_content_is_no_news_unless_it_could_not_be_read_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("a.yaml"), dir.path().join("away"));
        write(&path, ONE, hours_from_now(-1));
        let (_, seen) = probe(&path, Seen::default());
        write(&path, ONE, hours_from_now(-2));
        let (probed, seen) = probe(&path, seen);
        assert!(matches!(probed, Probe::Same), "{probed:?}");
        std::fs::rename(&path, &away).unwrap();
        let (probed, seen) = probe(&path, seen);
        assert!(matches!(probed, Probe::Unreadable { .. }), "{probed:?}");
        let (probed, seen) = probe(&path, seen);
        assert!(matches!(probed, Probe::Same), "told once: {probed:?}");
        std::fs::rename(&away, &path).unwrap();
        let (probed, seen) = probe(&path, seen);
        assert_eq!(count(&probed), 1);
        write(&path, "services: 7", hours_from_now(-1));
        let (probed, seen) = probe(&path, seen);
        assert!(matches!(probed, Probe::Bad { .. }), "{probed:?}");
        assert!(matches!(probe(&path, seen).0, Probe::Same));
    }

    #[test]
    fn what_is_no_file_or_too_large_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large");
        File::create(&large).unwrap().set_len(MAX_SIZE + 1).unwrap();
        File::options().write(true).open(&large).unwrap().set_modified(hours_from_now(-1)).unwrap();
        for path in [dir.path(), &large] {
            let (probed, _) = probe(path, Seen::default());
            assert!(matches!(probed, Probe::Unreadable { .. }), "{probed:?}");
        }
    }
}
