//! The saved state: a file that is either whole or recognized as not whole.
//!
//! Below its seal (see [`durable`]) it has the form of the `file` registry, plus a `ttl` for each instance; and the values of
//! the key-value store.

use super::{
    TTL,
    state::{Contents, Kept},
    values,
};
use crate::{config::human, durable, registry::layout::plain::Entry};
use serde_json::{Map, Value, json};
use std::{
    fs, io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// What the file says that it is.
pub(super) const WHAT: &str = "pillion's embedded registry, saved";

/// The state as it is in the file.
pub(super) fn encode(contents: &Contents) -> Result<Vec<u8>, serde_json::Error> {
    let mut services: Map<String, Value> = Map::new();
    for Kept { name, instance, ttl } in &contents.instances {
        let mut entry = serde_json::to_value(Entry::from(instance))?;
        // Not the time of expiry: while pillion was away nobody could renew, so whoever comes back gets a full TTL.
        entry["ttl"] = human::format(*ttl).into();
        let list = services.entry(name.as_str()).or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(entry);
        }
    }
    let mut body = json!({ "services": services });
    if contents.values != values::Kept::default() {
        body["values"] = serde_json::to_value(&contents.values)?;
    }
    let body = serde_json::to_string_pretty(&body)? + "\n";
    Ok(durable::seal(WHAT, body.as_bytes()))
}

/// The state in a file's bytes, or why there is none in it.
pub(super) fn decode(bytes: &[u8]) -> Result<Contents, String> {
    let mut file: Value = serde_json::from_slice(durable::unseal(WHAT, bytes)?).map_err(|error| error.to_string())?;
    // Pillions of before knew none.
    let values = file.get_mut("values").map(Value::take).unwrap_or_else(|| json!({}));
    let values = serde_json::from_value(values).map_err(|error| error.to_string())?;
    let services = file.get("services").and_then(Value::as_object).ok_or("it has no `services`")?;
    let mut instances = Vec::new();
    for (name, list) in services {
        for entry in list.as_array().ok_or("a service has no list")? {
            let mut entry = entry.clone();
            let ttl = entry.as_object_mut().and_then(|entry| entry.remove("ttl")).ok_or("an instance has no `ttl`")?;
            let ttl = human::parse(ttl.as_str().unwrap_or_default())?;
            if !TTL.contains(&ttl) {
                return Err(format!("a ttl of {} is out of range", human::format(ttl)));
            }
            let entry: Entry = serde_json::from_value(entry).map_err(|error| error.to_string())?;
            let instance = entry.into_instance(None).map_err(|error| error.to_string())?;
            instances.push(Kept { name: name.clone(), instance, ttl });
        }
    }
    Ok(Contents { instances, values })
}

/// Replaces the file at `path`. Whenever the machine stops, the file is the old or the new one.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    durable::replace(path, &durable::beside(path, "tmp"), bytes)
}

/// The state in the file at `path`. A file that is not whole is put aside and reported: losing it is no harm that lasts,
/// because those who were in it register again when they cannot renew.
pub(super) fn load(path: &Path) -> io::Result<Contents> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::default()),
        Err(error) => return Err(error),
    };
    decode(&bytes).or_else(|cause| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let aside = durable::beside(path, &format!("corrupt-{}", now.as_secs()));
        fs::rename(path, &aside)?;
        tracing::error!(
            file = %path.display(), aside = %aside.display(), cause,
            "what was saved cannot be read; the file is put aside and the registry starts empty"
        );
        Ok(Contents::default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Instance, Protocol};
    use std::time::Duration;

    fn state(weight: u32) -> Contents {
        let full = Instance {
            weight,
            zone: Some("az-1".into()),
            protocol: Some(Protocol::Http2),
            tls: Some(true),
            labels: [("version".to_owned(), "ä\n\"".to_owned())].into(),
            ..Instance::new("a", "[::1]:80".parse().unwrap())
        };
        let bare = Instance::new("b", "users.internal:80".parse().unwrap());
        let kept = |name: &str, instance: &Instance| Kept {
            name: name.into(),
            instance: instance.clone(),
            ttl: Duration::from_secs(24 * 3600),
        };
        let value = values::Value { text: "ä\n".into(), version: u64::from(weight) };
        Contents {
            instances: vec![kept("orders", &bare), kept("users", &full), kept("users", &bare)],
            values: values::Kept { newest: 9, all: [("pillion/routes/users".to_owned(), value)].into() },
        }
    }

    fn aside(dir: &Path) -> usize {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(".corrupt-")).count()
    }

    #[test]
    fn what_is_written_can_be_read() {
        for state in [state(7), Contents::default()] {
            assert_eq!(decode(&encode(&state).unwrap()).unwrap(), state);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(load(&path).unwrap(), Contents::default());
        write(&path, &encode(&state(7)).unwrap()).unwrap();
        write(&path, &encode(&state(8)).unwrap()).unwrap();
        assert_eq!(load(&path).unwrap(), state(8));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_crash_at_any_byte_of_a_write_leaves_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write(&path, &encode(&state(7)).unwrap()).unwrap();
        let new = encode(&state(8)).unwrap();
        for cut in 0..=new.len() {
            fs::write(durable::beside(&path, "tmp"), &new[..cut]).unwrap();
            assert_eq!(load(&path).unwrap(), state(7), "cut at {cut}");
        }
        write(&path, &new).unwrap();
        assert_eq!(load(&path).unwrap(), state(8), "what was left over is no hindrance");
        assert_eq!(aside(dir.path()), 0);
    }

    #[test]
    fn damage_at_any_byte_is_noticed_and_the_file_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let whole = encode(&state(7)).unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|cut| whole[..cut].to_vec()).collect();
        for at in 0..whole.len() {
            for change in [1, 0x20, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                damaged.push(bytes);
            }
            // A torn page: what follows was never written.
            damaged.push([&whole[..at], &vec![0; whole.len() - at]].concat());
            // The start of one file and the end of another.
            let other = encode(&state(8)).unwrap();
            damaged.push([&whole[..at], &other[at..]].concat());
        }
        for bytes in damaged {
            let new = encode(&state(8)).unwrap();
            match decode(&bytes) {
                Ok(state_) => assert!(bytes == whole && state_ == state(7) || bytes == new && state_ == state(8)),
                Err(cause) => assert!(!cause.is_empty()),
            }
        }
        for bytes in [&whole[..0], &whole[..1], &whole[..whole.len() - 1]] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(load(&path).unwrap(), Contents::default());
            assert!(!path.exists());
        }
        assert!(aside(dir.path()) >= 1);
    }

    #[test]
    fn a_ttl_that_nobody_could_have_asked_for_is_damage() {
        let with = |ttl: &str| {
            let body =
                format!(r#"{{"services": {{"users": [{{"address": "10.0.0.1:80", "id": "a", "ttl": "{ttl}"}}]}}}}"#);
            decode(&durable::seal(WHAT, body.as_bytes()))
        };
        assert_eq!(with("24h").unwrap().instances.len(), 1, "and no values, as before there were any");
        // The last is no moment that a clock could reach.
        for ttl in ["0s", "99ms", "25h", "200000000000000d"] {
            assert!(with(ttl).unwrap_err().contains("out of range"), "{ttl}");
        }
    }

    #[test]
    fn a_name_that_is_no_file_is_an_error_and_no_empty_state() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).is_err());
    }
}
