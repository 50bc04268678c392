//! Which keys there are. Redis has no way to list those of one service without a look at all keys of the database, so that
//! one look is shared by all services.

use super::{
    commands::Commands,
    end::End,
    keys::Keys,
    resp::{Pipeline, Value},
    wire::refusal,
};
use crate::registry::RegistryError;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// Keys that the server looks at per call. It serves nobody else meanwhile: about half a millisecond.
const KEYS_PER_CALL: &[u8] = b"1000";

/// The rests of keys, after the service's prefix.
type Names = Result<BTreeSet<String>, RegistryError>;

struct Ask {
    service: String,
    soon: bool,
    answer: oneshot::Sender<Names>,
}

/// An answer to come.
pub struct Answer {
    names: oneshot::Receiver<Names>,
    end: End,
}

/// The way to the task that looks.
pub struct Sweeps {
    asks: mpsc::UnboundedSender<Ask>,
    end: End,
}

/// What looks for keys, at once when asked to and otherwise each `interval`, and the way to it.
pub fn sweeps(
    commands: Commands,
    keys: Arc<Keys>,
    interval: Duration,
    end: End,
) -> (Sweeps, impl Future<Output = RegistryError>) {
    let (asks, queue) = mpsc::unbounded_channel();
    (Sweeps { asks, end: end.clone() }, serve(commands, keys, interval, end, queue))
}

impl Sweeps {
    /// What there is of the service by a look that begins after this call: at once, or with `soon` unset, when it is time.
    pub fn ask(&self, service: &str, soon: bool) -> Answer {
        let (answer, names) = oneshot::channel();
        // If the task is gone, so is the other end of the answer.
        let _ = self.asks.send(Ask { service: service.into(), soon, answer });
        Answer { names, end: self.end.clone() }
    }
}

impl Answer {
    /// Waits for it. May be dropped and called again until it is there.
    pub async fn names(&mut self) -> Names {
        match (&mut self.names).await {
            Ok(names) => names,
            Err(_) => Err(self.end.reached().await),
        }
    }
}

async fn serve(
    commands: Commands,
    keys: Arc<Keys>,
    interval: Duration,
    end: End,
    mut asks: mpsc::UnboundedReceiver<Ask>,
) -> RegistryError {
    let mut patient: Vec<Ask> = Vec::new();
    let mut due = Instant::now() + interval;
    loop {
        let mut now = Vec::new();
        tokio::select! {
            ask = asks.recv() => match ask {
                Some(ask) if ask.soon => now.push(ask),
                Some(ask) => {
                    if patient.is_empty() && due <= Instant::now() {
                        // Nobody wanted to know for a while; this one has just looked.
                        due = Instant::now() + super::jittered(interval);
                    }
                    patient.push(ask);
                    continue;
                }
                None => return end.reached().await,
            },
            () = sleep_until(due), if !patient.is_empty() => {}
        }
        while let Ok(ask) = asks.try_recv() {
            if ask.soon { now.push(ask) } else { patient.push(ask) }
        }
        if due <= Instant::now() {
            due = Instant::now() + super::jittered(interval);
            now.append(&mut patient);
        }
        if now.is_empty() {
            continue;
        }
        let wanted = now.iter().map(|ask| (ask.service.clone(), BTreeSet::new())).collect();
        let found = look(&commands, &keys, wanted).await;
        for Ask { service, answer, .. } in now {
            let names = found.as_ref().map(|found| found.get(&service).cloned().unwrap_or_default());
            // Whoever asked may be gone.
            let _ = answer.send(names.map_err(Clone::clone));
        }
    }
}

/// Goes once through all keys. One that is there from the start to the end is found.
async fn look(
    commands: &Commands,
    keys: &Keys,
    mut wanted: BTreeMap<String, BTreeSet<String>>,
) -> Result<BTreeMap<String, BTreeSet<String>>, RegistryError> {
    scan(commands, &keys.pattern(), |key| {
        if let Some((service, name)) = keys.split(key)
            && let Some(names) = wanted.get_mut(service)
        {
            names.insert(name.to_owned());
        }
    })
    .await?;
    Ok(wanted)
}

/// Calls `found` for each key that matches, perhaps more than once.
pub async fn scan(commands: &Commands, pattern: &[u8], mut found: impl FnMut(&[u8])) -> Result<(), RegistryError> {
    let mut cursor = bytes::Bytes::from_static(b"0");
    loop {
        let call = Pipeline::one(&[b"SCAN", &cursor[..], b"MATCH", pattern, b"COUNT", KEYS_PER_CALL]);
        let answers = commands.ask(call).await?;
        let page = match answers.first() {
            Some(Value::Error(text)) => return Err(refusal(commands.server(), text)),
            Some(Value::Array(page)) => page.as_slice(),
            _ => &[],
        };
        let [Value::Bulk(next), Value::Array(keys)] = page else {
            let cause = "no keys in its answer to `SCAN`".into();
            return Err(RegistryError::Protocol { server: commands.server().into(), cause });
        };
        for key in keys {
            if let Value::Bulk(key) = key {
                found(key);
            }
        }
        if next == "0" {
            return Ok(());
        }
        cursor = next.clone();
    }
}
