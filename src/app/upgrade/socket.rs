//! The unix socket through which one pillion takes another one's place.

use anyhow::{Context, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};
use tokio::net::UnixStream;

/// Who may wait to be served.
const BACKLOG: i32 = 16;

/// The listening socket, and the file that leads to it.
#[derive(Debug)]
pub struct UpgradeSocket {
    pub listener: UnixListener,
    path: PathBuf,
    /// The file that is ours: device and inode.
    file: (u64, u64),
}

impl UpgradeSocket {
    /// Opens one at `path`. A file that nobody listens to any more is replaced; any other is an error.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        // Or two that find a file that nobody listens to could remove each other's.
        let locked = File::open(folder)?;
        flock(&locked, FlockOperation::LockExclusive)?;
        match fs::symlink_metadata(path) {
            Ok(found) => {
                ensure!(found.file_type().is_socket(), "{} is there and no socket", path.display());
                let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                probe.set_nonblocking(true)?;
                match probe.connect(&SockAddr::unix(path)?) {
                    Err(error) if is_nobody(&error) => fs::remove_file(path)?,
                    _ => bail!("another process listens on {}", path.display()),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Before it listens nobody can connect, whatever the file's mode.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        Self::new(OwnedFd::from(socket).into(), path)
    }

    /// The one at `path` from the pillion before.
    pub fn inherited(socket: OwnedFd, path: &Path) -> anyhow::Result<Self> {
        Self::new(socket.into(), path)
    }

    fn new(listener: UnixListener, path: &Path) -> anyhow::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned(), file: identity(path)? })
    }

    /// Nobody will listen to it any more.
    pub fn remove(&self) {
        // Somebody else's stays.
        if identity(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(file = %self.path.display(), %error, "it cannot be removed");
        }
    }
}

/// Connects to whoever listens there; `None` if nobody does.
pub async fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(path).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_nobody(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who is at the other end: for one that has connected its process, for the log; for one that listens that of whoever opened
/// the socket. An error unless it is this user's, or root's.
pub fn check_peer(stream: &UnixStream) -> anyhow::Result<String> {
    let peer = stream.peer_cred()?;
    let own = rustix::process::geteuid().as_raw();
    let (uid, process) = (peer.uid(), peer.pid().map_or_else(|| "unknown".into(), |pid| pid.to_string()));
    ensure!(uid == own || uid == 0, "process {process} belongs to user {uid}; expected user {own} or root");
    Ok(process)
}

fn is_nobody(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_nobody_listens_to_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/upgrade.sock");
        assert!(connect(&path).await.unwrap().is_none());
        let first = UpgradeSocket::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        check_peer(&connect(&path).await.unwrap().unwrap()).unwrap();
        let error = UpgradeSocket::open(&path).unwrap_err().to_string();
        assert!(error.contains("another process listens on"), "{error}");
        drop(first);
        assert!(connect(&path).await.unwrap().is_none());
        let second = UpgradeSocket::open(&path).unwrap();
        assert!(connect(&path).await.unwrap().is_some());
        second.remove();
        assert!(!path.exists());
    }

    #[test]
    fn only_its_own_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("upgrade.sock");
        let first = UpgradeSocket::open(&path).unwrap();
        // Moved, so that its inode is not used again at once.
        fs::rename(&path, folder.path().join("moved")).unwrap();
        let _second = UpgradeSocket::open(&path).unwrap();
        first.remove();
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("important");
        fs::write(&path, "text").unwrap();
        let error = UpgradeSocket::open(&path).unwrap_err().to_string();
        assert!(error.contains("is there and no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }
}
