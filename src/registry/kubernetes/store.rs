//! ConfigMaps as a store: the values below a path are in one, `pillion/routes/users` under the key `users` of `pillion-routes`.
//! The server counts versions of the whole map; so a value's version is its content, and a write is tried again while only
//! other keys of the map change. A lock is a `Lease`, as others in the cluster use it.

#[cfg(test)]
mod tests;

use super::{
    Kubernetes,
    api::{CallError, JSON},
    encoded,
    objects::{Metadata, Object, Objects, null_is_empty},
};
use crate::{
    backoff::Backoff,
    config::KubernetesRegistry,
    registry::{
        RegistryError,
        store::{self, Cell, Claim, Holder, InDocument, Item, Put, Sink, Store, Version},
        watch::{Failure, News, Watch},
    },
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration, time::SystemTime};
use tokio::time::sleep;

/// A write is tried so often while other keys of its map change. Waits grow, since writers who meet once meet again and again
/// where the server takes longer for a write than they wait.
const ATTEMPTS: u32 = 20;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// The most that an object's name may have.
const LONGEST_NAME: usize = 253;

/// One ConfigMap, as far as it is of use.
#[derive(Debug, Deserialize)]
struct ConfigMap {
    metadata: Metadata,
    #[serde(default, deserialize_with = "null_is_empty")]
    data: BTreeMap<String, String>,
}

impl Object for ConfigMap {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Kubernetes {
    fn config_maps(&self) -> String {
        format!("/api/v1/namespaces/{}/configmaps", self.namespace)
    }

    fn leases(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    /// The object at `path`, if there is one.
    async fn there<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, RegistryError> {
        match self.api.get(path, JSON).await {
            Ok(object) => Ok(Some(object)),
            Err(CallError::Absent(_)) => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    /// One attempt to put a value into a map that is there, or not. False: the map was changed meanwhile.
    async fn write(&self, map: &str, there: Option<&ConfigMap>, data: Value) -> Result<bool, RegistryError> {
        let collection = self.config_maps();
        let written: Result<ConfigMap, CallError> = match there {
            Some(there) => {
                let version = &there.metadata.resource_version;
                let changes = json!({ "metadata": { "resourceVersion": version }, "data": data });
                self.api.change(&format!("{collection}/{map}"), &changes).await
            }
            None => {
                let object =
                    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": map }, "data": data });
                self.api.create(&collection, &object).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            Err(CallError::Conflict(_)) => Ok(false),
            // Without a map it is the namespace that is not there.
            Err(CallError::Absent(_)) if there.is_some() => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }
}

/// The map that is below a path.
fn map_of(path: &str) -> Result<String, RegistryError> {
    KubernetesRegistry::config_map(path).ok_or_else(|| RegistryError::Impossible {
        cause: format!(
            "`{}` makes no name for a ConfigMap; expected names of lower-case letters, digits, `-` and `.` with `/` between \
             them, which begin and end with a letter or digit",
            path.escape_debug()
        ),
    })
}

/// The map and the key in it.
fn place(key: &str) -> Result<(String, String), RegistryError> {
    let (path, name) = key.rsplit_once('/').unwrap_or(("", key));
    Ok((map_of(path)?, escaped(name)))
}

/// A name as keys of a ConfigMap can have it: what is no letter, digit, `-`, `_` or `.` as `_` and two capital hexadecimal
/// digits, and so is a `_` that would look like the start of these.
fn escaped(name: &str) -> String {
    let mut key = String::with_capacity(name.len());
    for (at, &byte) in name.as_bytes().iter().enumerate() {
        let plain = match byte {
            b'_' => hex(&name.as_bytes()[at + 1..]).is_none(),
            // No key may be `.`, or begin with `..`.
            b'.' => at > 0 || !matches!(name.as_bytes(), [b'.'] | [b'.', b'.', ..]),
            _ => byte.is_ascii_alphanumeric() || byte == b'-',
        };
        if plain {
            key.push(char::from(byte));
        } else {
            // Writing to a `String` never fails.
            let _ = write!(key, "_{byte:02X}");
        }
    }
    key
}

/// The name that a key stands for; `None` for one that [`escaped`] does not make.
fn unescaped(key: &str) -> Option<String> {
    let mut name = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [byte, after @ ..] = rest {
        match hex(after).filter(|_| *byte == b'_') {
            Some(escaped) => {
                name.push(escaped);
                rest = &after[2..];
            }
            None => {
                name.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(name).ok().filter(|name| escaped(name) == key)
}

/// The byte that the first two characters stand for.
fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    Some(digit(*digits.first()?)? << 4 | digit(*digits.get(1)?)?)
}

fn item(key: String, value: String) -> Item {
    let version = Version::of_content(value.as_bytes());
    Item { key, value: value.into(), version }
}

/// What is below a path. There is one map at most.
struct Below {
    maps: Result<Objects<ConfigMap>, RegistryError>,
}

impl Below {
    fn maps(&mut self) -> Result<&mut Objects<ConfigMap>, Failure> {
        self.maps.as_mut().map_err(|error| Failure::Error(error.clone()))
    }
}

fn items(maps: &Objects<ConfigMap>) -> Vec<Item> {
    let data = maps.all.values().flat_map(|map| &map.data);
    data.filter_map(|(key, value)| Some(item(unescaped(key)?, value.clone()))).collect()
}

impl Watch<Vec<Item>> for Below {
    async fn list(&mut self) -> Result<Vec<Item>, Failure> {
        let maps = self.maps()?;
        maps.list().await?;
        Ok(items(maps))
    }

    async fn next(&mut self) -> Result<News<Vec<Item>>, Failure> {
        let maps = self.maps()?;
        let changed = maps.next().await?;
        Ok(if changed { News::Set(items(maps)) } else { News::Alive })
    }
}

impl Store for Kubernetes {
    fn watch(self: Arc<Self>, path: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let maps = map_of(&path).map(|map| {
                let path = format!("{}?fieldSelector=metadata.name%3D{}", self.config_maps(), encoded(&map));
                Objects::new(self.clone(), path)
            });
            store::follow(&self.name, &path, sink, Below { maps }).await;
        })
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>> {
        Box::pin(async move {
            let (map, name) = place(&key)?;
            let there: Option<ConfigMap> = self.there(&format!("{}/{map}", self.config_maps())).await?;
            let value = there.and_then(|mut there| there.data.remove(&name));
            Ok(value.map(|value| item(key, value)))
        })
    }

    fn put_if(
        self: Arc<Self>,
        key: String,
        expected: Option<Version>,
        value: Bytes,
    ) -> BoxFuture<'static, Result<Put, RegistryError>> {
        Box::pin(async move {
            let (map, name) = place(&key)?;
            let text = std::str::from_utf8(&value).map_err(|_| RegistryError::Impossible {
                cause: "the value is no text in UTF-8, which is all that a ConfigMap's `data` takes".into(),
            })?;
            let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
            for attempt in 0..ATTEMPTS {
                if attempt > 0 {
                    sleep(backoff.next_wait()).await;
                }
                let there: Option<ConfigMap> = self.there(&format!("{}/{map}", self.config_maps())).await?;
                let value = there.as_ref().and_then(|there| there.data.get(&name));
                if value.map(|value| Version::of_content(value.as_bytes())) != expected {
                    return Ok(Put::Conflict);
                }
                if self.write(&map, there.as_ref(), json!({ &name: text })).await? {
                    return Ok(Put::Done(Version::of_content(text.as_bytes())));
                }
            }
            let cause = format!("the ConfigMap `{map}` changes all the time: {ATTEMPTS} attempts to write failed");
            Err(RegistryError::Busy { server: self.name.clone(), cause })
        })
    }

    fn claim(self: Arc<Self>, key: String, owner: String, ttl: Duration) -> Box<dyn Claim> {
        let cell = LeaseObject { kubernetes: self, name: lease_of(&key), seen: Spec::default() };
        Box::new(InDocument::new(cell, owner, ttl))
    }
}

/// The name of a lock's `Lease`. Nobody has to tell the key from it; so where the key cannot be a name, a hash keeps them apart.
fn lease_of(key: &str) -> String {
    KubernetesRegistry::config_map(key).unwrap_or_else(|| {
        let hash = twox_hash::XxHash64::oneshot(0, key.as_bytes());
        let like = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let readable: String = key.chars().map(like).take(LONGEST_NAME - "lock-".len() - "-".len() - 16).collect();
        format!("lock-{readable}-{hash:016x}")
    })
}

/// A lock's document: a `Lease`, whose holder is as Kubernetes' own components write it.
struct LeaseObject {
    kubernetes: Arc<Kubernetes>,
    name: String,
    /// What it was when it was last read or written.
    seen: Spec,
}

#[derive(Debug, Deserialize)]
struct Lease {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<u64>,
    lease_transitions: Option<u64>,
}

impl LeaseObject {
    fn path(&self) -> String {
        format!("{}/{}", self.kubernetes.leases(), self.name)
    }

    /// The specification that makes it `holder`'s. What it does not name stays as it is.
    fn spec(&self, holder: &Holder) -> Value {
        let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        // Others must not judge by less than the TTL; the server takes whole seconds.
        let seconds = holder.ttl_ms.div_ceil(1000).max(1);
        let mut spec = json!({ "holderIdentity": holder.holder, "leaseDurationSeconds": seconds, "renewTime": now });
        if !holder.holder.is_empty() && self.seen.holder_identity.as_ref() != Some(&holder.holder) {
            let before = self.seen.holder_identity.is_some();
            spec["acquireTime"] = now.into();
            spec["leaseTransitions"] = (self.seen.lease_transitions.unwrap_or(0) + u64::from(before)).into();
        }
        spec
    }
}

impl Cell for LeaseObject {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<(Holder, Version)>, RegistryError>> {
        Box::pin(async move {
            let there: Option<Lease> = self.kubernetes.there(&self.path()).await?;
            let Some(Lease { metadata, spec }) = there else {
                self.seen = Spec::default();
                return Ok(None);
            };
            let holder = spec.holder_identity.clone().unwrap_or_default();
            let Some(seconds) = spec.lease_duration_seconds.or(holder.is_empty().then_some(0)) else {
                let cause = format!("the Lease `{}` has a holder and no `leaseDurationSeconds`", self.name);
                return Err(RegistryError::Protocol { server: self.kubernetes.name.clone(), cause });
            };
            self.seen = spec;
            let holder = Holder { holder, ttl_ms: seconds.saturating_mul(1000), renewals: 0 };
            Ok(Some((holder, Version::new(metadata.resource_version))))
        })
    }

    fn write<'a>(
        &'a mut self,
        holder: &'a Holder,
        expected: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Put, RegistryError>> {
        Box::pin(async move {
            let (api, spec) = (&self.kubernetes.api, self.spec(holder));
            let written: Result<Lease, CallError> = match expected {
                Some(version) => {
                    let changes = json!({ "metadata": { "resourceVersion": version.as_str() }, "spec": spec });
                    api.change(&self.path(), &changes).await
                }
                None => {
                    let object = json!({
                        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                        "metadata": { "name": self.name }, "spec": spec,
                    });
                    api.create(&self.kubernetes.leases(), &object).await
                }
            };
            match written {
                Ok(Lease { metadata, spec }) => {
                    self.seen = spec;
                    Ok(Put::Done(Version::new(metadata.resource_version)))
                }
                Err(CallError::Conflict(_)) => Ok(Put::Conflict),
                Err(CallError::Absent(_)) if expected.is_some() => Ok(Put::Conflict),
                Err(error) => Err(self.kubernetes.error(error)),
            }
        })
    }
}
