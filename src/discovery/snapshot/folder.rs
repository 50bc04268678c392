//! The folder: names, ages, and what goes. Everything here blocks.

use super::{Saved, content};
use crate::{config, durable, registry::Instance};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::{
    fs::{self, DirBuilder, File},
    hash::Hasher,
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use twox_hash::XxHash64;

/// The largest file, for some fifty thousand instances: what is read must fit in the memory, whoever wrote it.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The longest part of a file's name that is taken from the service's.
const MAX_NAME: usize = 64;

/// Its own, so that other files in the folder are left alone.
const ENDING: &str = ".pillion-snapshot";

/// The same for routes. No sweep removes them: they do not grow old.
const ROUTES_ENDING: &str = ".pillion-routes";

/// A file that was begun so long ago will not be finished.
const UNFINISHED: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    max_age: Duration,
    max_services: usize,
}

/// What there is of a service.
#[derive(Debug)]
pub(super) enum Found {
    Saved(Saved),
    Nothing,
    /// It is removed.
    TooOld(Duration),
    /// `aside`: where it is now.
    Corrupt {
        cause: String,
        aside: io::Result<PathBuf>,
    },
}

/// What became of a set that was to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// There is one file more.
    First,
    Again,
    /// Nothing is kept of a service that never had an instance.
    Nothing,
    /// It would take so many bytes, which is more than can be kept. What there was stays.
    TooLarge(usize),
}

/// What a file of ours is, by its name.
enum Kind {
    Snapshot,
    Aside,
    Unfinished,
}

impl Folder {
    pub(super) fn open(config: &config::Snapshot) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&config.dir)?;
        fs::read_dir(&config.dir)?;
        Ok(Self { dir: config.dir.clone(), max_age: config.max_age, max_services: config.max_services })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn max_services(&self) -> usize {
        self.max_services
    }

    /// The file of `service`.
    pub(super) fn path(&self, service: &str) -> PathBuf {
        self.dir.join(file_name(service, ENDING))
    }

    pub(super) fn write(
        &self,
        service: &str,
        source: &str,
        instances: &[Instance],
        saved: SystemTime,
    ) -> io::Result<Written> {
        let path = self.path(service);
        let is_first = !path.try_exists()?;
        if is_first && instances.is_empty() {
            return Ok(Written::Nothing);
        }
        let bytes = content::encode(service, source, instances, saved)?;
        if bytes.len() > MAX_BYTES {
            return Ok(Written::TooLarge(bytes.len()));
        }
        durable::replace(&path, &through(&path), &bytes)?;
        Ok(if is_first { Written::First } else { Written::Again })
    }

    pub(super) fn read(&self, service: &str, now: SystemTime) -> io::Result<Found> {
        let path = self.path(service);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let bytes = bytes(&path)?;
        let decoded =
            if bytes.len() > MAX_BYTES { Err("it is too large".into()) } else { content::decode(service, &bytes) };
        let mut saved = match decoded {
            Ok(saved) => saved,
            Err(cause) => {
                // In place of the one that was put aside before.
                let aside = durable::beside(&path, "corrupt");
                let aside = fs::rename(&path, &aside).map(|()| aside);
                return Ok(Found::Corrupt { cause, aside });
            }
        };
        let modified = metadata.modified()?;
        let age = now.duration_since(saved.saved).unwrap_or_else(|_| age(&path, modified, now));
        if age > self.max_age {
            // Where that is not possible, a sweep will say so.
            let _ = remove(&path);
            return Ok(Found::TooOld(age));
        }
        saved.saved = now.checked_sub(age).unwrap_or(now);
        Ok(Found::Saved(saved))
    }

    /// The file of the store of routes called `name`.
    pub(super) fn routes_path(&self, name: &str) -> PathBuf {
        self.dir.join(file_name(name, ROUTES_ENDING))
    }

    pub(super) fn write_routes(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.routes_path(name);
        durable::replace(&path, &through(&path), content)
    }

    pub(super) fn read_routes(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let bytes = match bytes(&self.routes_path(name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if bytes.len() > MAX_BYTES {
            return Err(io::Error::other("it is too large"));
        }
        Ok(Some(bytes))
    }

    /// Removes what is too old or too much; returns how many snapshots there are.
    pub(super) fn sweep(&self, now: SystemTime) -> io::Result<usize> {
        let (mut snapshots, mut aside, mut unwanted) = (Vec::new(), Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Some(kind) = entry.file_name().to_str().and_then(kind) else { continue };
            // Another pillion may have removed it.
            let Ok(metadata) = entry.metadata() else { continue };
            if !metadata.is_file() {
                continue;
            }
            let modified = metadata.modified()?;
            let path = entry.path();
            let mut age = age(&path, modified, now);
            // As a rule a file was written after the confirmation that is in it, and there is no need to look.
            if matches!(kind, Kind::Snapshot) && age > self.max_age {
                age = age_inside(&path, now).unwrap_or(age);
            }
            match kind {
                Kind::Snapshot if age > self.max_age => unwanted.push(path),
                Kind::Snapshot => snapshots.push((age, path)),
                Kind::Aside => aside.push((age, path)),
                Kind::Unfinished if age > UNFINISHED => unwanted.push(path),
                Kind::Unfinished => {}
            }
        }
        for files in [&mut snapshots, &mut aside] {
            files.sort_unstable();
            unwanted.extend(files.drain(self.max_services.min(files.len())..).map(|(_, path)| path));
        }
        // One that stays is no reason for others to stay.
        let failures: Vec<io::Error> = unwanted.iter().filter_map(|path| remove(path).err()).collect();
        failures.into_iter().next().map_or(Ok(snapshots.len()), Err)
    }
}

/// The file's bytes, as far as they may be used and one more.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How long ago a file was written. One that seems to come from the future counts as new, because the clock was wrong then
/// or is now, and gets the time of now: so it ages from here on, and if it is this clock that is wrong, what the file says
/// in itself still holds when the clock is right again.
fn age(path: &Path, modified: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(modified).unwrap_or_else(|_| {
        // Where this is not possible, on a disk that can only be read, nothing else could be removed either.
        let _ = File::open(path).and_then(|file| file.set_modified(now));
        Duration::ZERO
    })
}

/// How long ago the snapshot in a file was confirmed, as it says itself; `None` where that makes no sense.
fn age_inside(path: &Path, now: SystemTime) -> Option<Duration> {
    now.duration_since(content::time(&bytes(path).ok()?).ok()?).ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        // Another pillion was here first.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// A name to write the file at `path` under first, that no other pillion has, nor one that was here before and left it.
fn through(path: &Path) -> PathBuf {
    durable::beside(path, &format!("{:016x}.tmp", fastrand::u64(..)))
}

/// `user-service` is in `user-service.pillion-snapshot`, `a/b` in `a%2Fb.pillion-snapshot`. Of a long name the start is
/// there and the hash of all, after a `~`, which no other has.
fn file_name(service: &str, ending: &str) -> String {
    const REST: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');
    let mut name = utf8_percent_encode(service, &REST).to_string();
    if name.len() > MAX_NAME {
        let mut hash = XxHash64::with_seed(0);
        hash.write(service.as_bytes());
        name.truncate(MAX_NAME);
        name += &format!("~{:016x}", hash.finish());
    }
    name + ending
}

fn kind(name: &str) -> Option<Kind> {
    if name.contains(ROUTES_ENDING) {
        return name.ends_with(".tmp").then_some(Kind::Unfinished);
    }
    let (_, after) = name.rsplit_once(ENDING)?;
    match after {
        "" => Some(Kind::Snapshot),
        ".corrupt" => Some(Kind::Aside),
        _ if after.ends_with(".tmp") => Some(Kind::Unfinished),
        _ => None,
    }
}
