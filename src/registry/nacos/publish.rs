//! What is registered on one connection. The server keeps that by connection and service: one host, or several at once. So
//! the hosts of one service go out together, one request after the other.

use super::{
    calls::{CallError, Calls},
    message::Key,
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};
use tokio::sync::oneshot;

/// A host that is to be registered, or taken out.
pub struct Publish {
    pub key: Key,
    pub id: String,
    pub host: Option<Value>,
    pub done: oneshot::Sender<Result<(), CallError>>,
}

pub struct Published {
    calls: Arc<Calls>,
    namespace: String,
    /// The hosts of ours by their ids.
    services: HashMap<Key, BTreeMap<String, Value>>,
    waiting: VecDeque<Publish>,
    /// One at most, lest an older one is the last to arrive.
    under_way: FuturesUnordered<BoxFuture<'static, (Publish, Result<(), CallError>)>>,
}

impl Published {
    pub fn new(calls: Arc<Calls>, namespace: &str) -> Self {
        let (services, waiting, under_way) = Default::default();
        Self { calls, namespace: namespace.into(), services, waiting, under_way }
    }

    /// It is done while [`Self::next`] is waited for, whether anybody waits for the answer or not.
    pub fn add(&mut self, publish: Publish) {
        self.waiting.push_back(publish);
        self.start();
    }

    /// Waits for the end of what is under way. `None`: nothing is.
    pub async fn next(&mut self) -> Option<()> {
        let (Publish { key, id, host, done }, result) = self.under_way.next().await?;
        // What was refused is as before; of all else it is not known.
        if !matches!(result, Err(CallError::Call(_))) {
            let hosts = self.services.entry(key.clone()).or_default();
            match host {
                Some(host) => drop(hosts.insert(id, host)),
                None => drop(hosts.remove(&id)),
            }
            if hosts.is_empty() {
                self.services.remove(&key);
            }
        }
        let _ = done.send(result);
        self.start();
        Some(())
    }

    fn start(&mut self) {
        while self.under_way.is_empty()
            && let Some(publish) = self.waiting.pop_front()
        {
            let before = self.services.get(&publish.key);
            let Some((kind, fields)) = request(before, &publish.id, publish.host.as_ref()) else {
                let _ = publish.done.send(Ok(()));
                continue;
            };
            let request = publish.key.request(&self.namespace, fields);
            let calls = self.calls.clone();
            let call = async move {
                let result = calls.call::<IgnoredAny>(kind, &request).await.map(drop);
                (publish, result)
            };
            self.under_way.push(call.boxed());
        }
    }
}

/// What to ask the server for, which has the hosts of `before`. `None`: it is as it should be.
fn request(before: Option<&BTreeMap<String, Value>>, id: &str, host: Option<&Value>) -> Option<(&'static str, Value)> {
    let mut hosts = before.cloned().unwrap_or_default();
    let gone = hosts.remove(id);
    if let Some(host) = host {
        hosts.insert(id.to_owned(), host.clone());
    }
    let mut all: Vec<_> = hosts.into_values().collect();
    match (all.len(), host.is_some()) {
        (0, _) => gone.map(|gone| ("InstanceRequest", json!({ "type": "deregisterInstance", "instance": gone }))),
        (_, false) if gone.is_none() => None,
        (1, _) => Some(("InstanceRequest", json!({ "type": "registerInstance", "instance": all.remove(0) }))),
        _ => Some(("BatchInstanceRequest", json!({ "type": "batchRegisterInstance", "instances": all }))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_one_service_go_out_together() {
        let (a, b, changed) = (json!({ "port": 1 }), json!({ "port": 2 }), json!({ "port": 1, "weight": 2 }));
        let one: BTreeMap<_, _> = [("a".to_owned(), a.clone())].into();
        let both: BTreeMap<_, _> = [("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())].into();
        let register = |host: &Value| ("InstanceRequest", json!({ "type": "registerInstance", "instance": host }));
        let batch = |hosts: [&Value; 2]| {
            ("BatchInstanceRequest", json!({ "type": "batchRegisterInstance", "instances": hosts }))
        };
        let deregister = ("InstanceRequest", json!({ "type": "deregisterInstance", "instance": a }));
        for (before, id, host, expected) in [
            (None, "a", Some(&a), Some(register(&a))),
            // Once more, too: the server may have lost it.
            (Some(&one), "a", Some(&a), Some(register(&a))),
            (Some(&one), "a", Some(&changed), Some(register(&changed))),
            (Some(&one), "b", Some(&b), Some(batch([&a, &b]))),
            (Some(&both), "a", Some(&changed), Some(batch([&changed, &b]))),
            (Some(&both), "a", None, Some(register(&b))),
            (Some(&one), "a", None, Some(deregister)),
            (Some(&one), "b", None, None),
            (None, "a", None, None),
        ] {
            assert_eq!(request(before, id, host), expected, "{before:?} {id} {host:?}");
        }
    }
}
