//! The embedded registry's values as a store.

use super::{
    BEAT, Embedded, Refusal,
    values::{Change, Condition, MAX_KEY, MAX_VALUE, Map, Value},
};
use crate::registry::{
    RegistryError,
    store::{Claim, InDocument, InStore, Item, Put, Sink, Store, Version, below},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

impl Embedded {
    /// The value under a key.
    pub async fn value(&self, key: &str) -> Result<Option<Value>, Refusal> {
        let key = key.to_owned();
        self.with(move |state| state.values.get(&key)).await
    }

    /// All values, now and whenever one changes. It ends with the registry.
    pub(super) async fn watch_values(&self) -> Result<watch::Receiver<Arc<Map>>, Refusal> {
        self.with(|state| state.values.watch()).await
    }

    pub async fn put_value(&self, key: &str, condition: Condition, text: &str) -> Result<Change, Refusal> {
        check_key(key)?;
        if text.len() > MAX_VALUE {
            return Err(Refusal::Invalid(format!("the value has {} bytes, the most is {MAX_VALUE}", text.len())));
        }
        let (key, text) = (key.to_owned(), text.to_owned());
        self.with(move |state| state.put_value(&key, condition, text)).await
    }

    pub async fn delete_value(&self, key: &str, condition: Condition) -> Result<Change, Refusal> {
        let key = key.to_owned();
        self.with(move |state| state.delete_value(&key, condition)).await
    }

    /// Tells `sink` what is below `path` until the registry ends.
    async fn tell(&self, path: &str, sink: &Sink) -> Result<(), Refusal> {
        let prefix = below(path);
        let mut all = self.watch_values().await?;
        loop {
            let items = {
                let all = all.borrow_and_update();
                let below = all.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)));
                below.map(|(key, value)| item(key, value)).collect()
            };
            sink.set(items);
            loop {
                match timeout(BEAT, all.changed()).await {
                    Ok(Ok(())) => break,
                    Ok(Err(_)) => return Err(Refusal::Stopped),
                    Err(_) => sink.alive(),
                }
            }
        }
    }
}

impl Store for Embedded {
    fn watch(self: Arc<Self>, path: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                if let Err(refusal) = self.tell(&path, &sink).await {
                    // Its task is gone and does not come back; that is seen at shutdown only.
                    sink.failed(self.error(refusal));
                }
                sleep(BEAT).await;
            }
        })
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>> {
        Box::pin(async move {
            let value = self.value(&key).await.map_err(|refusal| self.error(refusal))?;
            Ok(value.map(|value| item(&key, &value)))
        })
    }

    fn put_if(
        self: Arc<Self>,
        key: String,
        expected: Option<Version>,
        value: Bytes,
    ) -> BoxFuture<'static, Result<Put, RegistryError>> {
        Box::pin(async move {
            let condition = match expected {
                Some(version) => Condition::Version(version.number()?),
                None => Condition::Absent,
            };
            let text = std::str::from_utf8(&value).map_err(|_| RegistryError::Refused {
                server: self.server(),
                cause: "the value is no text in UTF-8, which is all that it takes".into(),
            })?;
            match self.put_value(&key, condition, text).await.map_err(|refusal| self.error(refusal))? {
                Change::Done(version) => Ok(Put::Done(Version::new(version))),
                Change::Conflict(_) => Ok(Put::Conflict),
                Change::Full => Err(self.error(Refusal::FullOfKeys)),
            }
        })
    }

    fn claim(self: Arc<Self>, key: String, owner: String, ttl: Duration) -> Box<dyn Claim> {
        Box::new(InDocument::new(InStore { store: self, key }, owner, ttl))
    }
}

fn item(key: &str, Value { text, version }: &Value) -> Item {
    Item { key: key.into(), value: text.clone().into(), version: Version::new(version) }
}

fn check_key(key: &str) -> Result<(), Refusal> {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    if key.len() <= MAX_KEY && key.split('/').all(is_name) {
        return Ok(());
    }
    Err(Refusal::Invalid(format!(
        "`{}` is not usable as a key; expected names of printable ASCII characters with `/` between them, at most {MAX_KEY} \
         bytes in all",
        key.escape_debug()
    )))
}
