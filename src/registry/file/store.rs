//! A folder beside the file as a store, for tests and small set-ups: `NAME.store/pillion/routes/users` beside `NAME` is the key
//! `pillion/routes/users`. It is looked at several times a second, like the file; changes of pillion's own are made one at a
//! time, under a lock file.

use super::{
    BEAT, FileRegistry, POLL,
    probe::{SETTLE, Stamp},
};
use crate::{
    durable,
    registry::{
        RegistryError,
        store::{self, Claim, InDocument, InStore, Item, MAX_VALUE, Put, Sink, Store, Version},
        watch::{Failure, News, Watch},
    },
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// What of a name needs no escape in the file's.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// The lock file. No key has such a name.
const LOCK: &str = ".lock";

impl FileRegistry {
    fn root(&self) -> PathBuf {
        durable::beside(&self.path, "store")
    }

    fn place(&self, key: &str) -> PathBuf {
        key.split('/').fold(self.root(), |place, name| place.join(utf8_percent_encode(name, NAME).to_string()))
    }

    /// What is done with files, away from the thread that asks for it.
    async fn away<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let done = spawn_blocking(what).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        done.map_err(|error| RegistryError::Unreachable {
            server: format!("the folder {}", self.root().display()),
            cause: error.to_string(),
        })
    }
}

/// The files of one folder, and what they were when it was last looked at.
struct Folder {
    registry: Arc<FileRegistry>,
    place: PathBuf,
    stamps: BTreeMap<String, Stamp>,
    last: Option<Vec<Item>>,
}

/// One look at a folder.
enum Look {
    Same,
    /// Something in it is being written. Look again after [`SETTLE`].
    Unsettled(BTreeMap<String, Stamp>),
    Items(BTreeMap<String, Stamp>, Vec<Item>),
}

impl Folder {
    async fn look(&mut self) -> Result<Look, RegistryError> {
        let (place, stamps, first) = (self.place.clone(), self.stamps.clone(), self.last.is_none());
        self.registry.away(move || look(&place, &stamps, first)).await
    }

    /// The items that there are, once nobody writes.
    async fn read(&mut self) -> Result<Option<Vec<Item>>, RegistryError> {
        loop {
            match self.look().await? {
                Look::Same => return Ok(None),
                Look::Unsettled(stamps) => {
                    self.stamps = stamps;
                    // What was read before is no more what these stamps stand for.
                    self.last = None;
                    sleep(SETTLE).await;
                }
                Look::Items(stamps, items) => {
                    self.stamps = stamps;
                    self.last = Some(items.clone());
                    return Ok(Some(items));
                }
            }
        }
    }
}

impl Watch<Vec<Item>> for Folder {
    async fn list(&mut self) -> Result<Vec<Item>, Failure> {
        self.last = None;
        Ok(self.read().await?.unwrap_or_default())
    }

    async fn next(&mut self) -> Result<News<Vec<Item>>, Failure> {
        let since = Instant::now();
        loop {
            sleep(POLL).await;
            match self.read().await? {
                Some(items) => return Ok(News::Set(items)),
                None if since.elapsed() >= BEAT => return Ok(News::Alive),
                None => {}
            }
        }
    }
}

/// A folder that is not there is an empty one: the first key makes it.
fn look(place: &Path, before: &BTreeMap<String, Stamp>, first: bool) -> io::Result<Look> {
    let mut stamps = BTreeMap::new();
    match fs::read_dir(place) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                // Editors' and our own unfinished files.
                let Some(key) = entry.file_name().to_str().and_then(key_of) else { continue };
                let metadata = match fs::metadata(entry.path()) {
                    Ok(metadata) => metadata,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                if metadata.is_file() {
                    stamps.insert(key, Stamp::of(&metadata));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let same = stamps == *before;
    if same && !first {
        return Ok(Look::Same);
    }
    // One that is cut off at the end of a line would be good YAML: it is read once it was left alone for a moment.
    if !same && stamps.values().any(|stamp| stamp.age() < SETTLE) {
        return Ok(Look::Unsettled(stamps));
    }
    let mut items = Vec::new();
    for (key, stamp) in &stamps {
        let file = place.join(utf8_percent_encode(key, NAME).to_string());
        let value = match read(&file) {
            Ok(value) => value,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Unsettled(stamps)),
            Err(error) => return Err(error),
        };
        if Stamp::of(&fs::metadata(&file)?) != *stamp {
            return Ok(Look::Unsettled(stamps));
        }
        items.push(item(key, value));
    }
    Ok(Look::Items(stamps, items))
}

/// The key that a file stands for; `None` for one that is no key's.
fn key_of(name: &str) -> Option<String> {
    let key = percent_decode_str(name).decode_utf8().ok()?.into_owned();
    (!name.starts_with('.') && utf8_percent_encode(&key, NAME).to_string() == name).then_some(key)
}

fn read(file: &Path) -> io::Result<Bytes> {
    let mut value = Vec::new();
    // One byte more, so that whoever looks at it sees that it is too large.
    File::open(file)?.take(MAX_VALUE as u64 + 1).read_to_end(&mut value)?;
    Ok(value.into())
}

fn item(key: &str, value: Bytes) -> Item {
    let version = Version::of_content(&value);
    Item { key: key.into(), value, version }
}

fn read_if_there(file: &Path) -> io::Result<Option<Bytes>> {
    match read(file) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Store for FileRegistry {
    fn watch(self: Arc<Self>, path: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let place = self.place(&path);
            let folder = Folder { registry: self.clone(), place, stamps: BTreeMap::new(), last: None };
            store::follow(&self.name, &path, sink, folder).await;
        })
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>> {
        Box::pin(async move {
            let file = self.place(&key);
            let value = self.away(move || read_if_there(&file)).await?;
            Ok(value.map(|value| item(&key, value)))
        })
    }

    fn put_if(
        self: Arc<Self>,
        key: String,
        expected: Option<Version>,
        value: Bytes,
    ) -> BoxFuture<'static, Result<Put, RegistryError>> {
        Box::pin(async move {
            let (root, file) = (self.root(), self.place(&key));
            self.away(move || {
                let folder = file.parent().unwrap_or(&root);
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
                // Whoever ends lets go of it.
                let lock = File::create(root.join(LOCK))?;
                lock.lock()?;
                let there = read_if_there(&file)?.map(|value| Version::of_content(&value));
                if there != expected {
                    return Ok(Put::Conflict);
                }
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                durable::replace(&file, &folder.join(format!(".{name}.new")), &value)?;
                Ok(Put::Done(Version::of_content(&value)))
            })
            .await
        })
    }

    fn claim(self: Arc<Self>, key: String, owner: String, ttl: Duration) -> Box<dyn Claim> {
        Box::new(InDocument::new(InStore { store: self, key }, owner, ttl))
    }
}
