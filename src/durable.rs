//! Files that are whole or recognized as not whole, wherever the machine stopped: replaced in one step, and sealed with a
//! first line that tells the length and a checksum of the rest.

use std::{
    fs::{self, File, OpenOptions},
    hash::Hasher,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use twox_hash::XxHash64;

/// Replaces the file at `path`, by way of another one in the same folder. Whenever the machine stops, the file is the old
/// or the new one. Writers that meet at one `path` need a `through` each.
pub fn replace(path: &Path, through: &Path, bytes: &[u8]) -> io::Result<()> {
    let replaced = write(through, bytes).and_then(|()| fs::rename(through, path));
    if replaced.is_err() {
        // On a full disk it would only be in the way. If it was never made, there is nothing to remove.
        let _ = fs::remove_file(through);
        return replaced;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    // Before the rename, or the name could outlive a crash and the content not.
    file.sync_all()
}

/// `PATH.ENDING`.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// `body` below a line that says what it is and seals it.
pub fn seal(what: &str, body: &[u8]) -> Vec<u8> {
    [head(what, body).as_bytes(), body].concat()
}

/// The body of a sealed file of this kind, or why it is none.
pub fn unseal<'b>(what: &str, bytes: &'b [u8]) -> Result<&'b [u8], &'static str> {
    let end = memchr::memchr(b'\n', bytes).ok_or("it has no first line")?;
    let (first, body) = bytes.split_at(end + 1);
    if first == head(what, body).as_bytes() {
        Ok(body)
    } else {
        Err("its checksum does not fit: it is cut short, damaged, or was edited")
    }
}

/// The checksum is to find damage, not forgery.
fn head(what: &str, body: &[u8]) -> String {
    let mut hash = XxHash64::with_seed(0);
    hash.write(body);
    format!("# {what}. Do not edit. {} bytes, XXH64 {:016x}\n", body.len(), hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const WHAT: &str = "A test";

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for bytes in [&b"longer than what follows"[..], b"short", b""] {
            replace(&path, &beside(&path, "tmp"), bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_crash_at_any_byte_of_a_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let through = beside(&path, "tmp");
        replace(&path, &through, b"old").unwrap();
        let new = seal(WHAT, b"new");
        for cut in 0..=new.len() {
            fs::write(&through, &new[..cut]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"old", "cut at {cut}");
            replace(&path, &through, b"old").unwrap();
            assert!(!through.exists(), "what was left over is no hindrance");
        }
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        // A folder that is not empty cannot be replaced by a file.
        let path = dir.path().join("state");
        fs::create_dir_all(path.join("more")).unwrap();
        assert!(replace(&path, &beside(&path, "tmp"), b"new").is_err());
        assert!(path.join("more").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_seal_is_one_that_others_can_check() {
        let sealed = seal(WHAT, b"abc");
        // `printf abc | xxhsum -H1`
        assert_eq!(String::from_utf8_lossy(&sealed), "# A test. Do not edit. 3 bytes, XXH64 44bc2cf5ad770999\nabc");
        assert_eq!(unseal(WHAT, &sealed), Ok(&b"abc"[..]));
        assert!(unseal("Another", &sealed).is_err(), "a file of another kind is none of this kind");
    }

    #[test]
    fn damage_at_any_byte_breaks_the_seal() {
        let (whole, other) = (seal(WHAT, b"{\"a\": 1}\n"), seal(WHAT, b"{\"a\": 2}\n"));
        let mut damaged = Vec::new();
        for at in 0..whole.len() {
            damaged.push(whole[..at].to_vec());
            for change in 1..=255 {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                damaged.push(bytes);
            }
            // A torn page: what follows was never written.
            damaged.push([&whole[..at], &vec![0; whole.len() - at]].concat());
            // The start of one file and the end of another.
            damaged.push([&whole[..at], &other[at..]].concat());
        }
        damaged.push([&whole[..], b"\n"].concat());
        for bytes in damaged {
            assert!(bytes == whole || bytes == other || unseal(WHAT, &bytes).is_err(), "{bytes:?}");
        }
    }
}
