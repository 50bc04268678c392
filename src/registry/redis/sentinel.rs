//! Sentinels: which server is the master, and the news that it is another one.

use super::{
    resp::{Pipeline, Value},
    wire::{Access, Wire, no_answer, refusal},
};
use crate::{
    backoff::Backoff,
    registry::{
        RegistryError,
        server::Server,
        watch::{LONGEST_WAIT, SHORTEST_WAIT},
    },
};
use arc_swap::ArcSwap;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

/// A sentinel that says nothing for two of these is gone.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// For how long an older answer than one that was seen is not believed. A sentinel that was away hears the newest from
/// the others within seconds; sentinels that were all set up anew begin to count anew, and must be believed in the end.
const EPOCH_MEMORY: Duration = Duration::from_secs(60);
const SWITCHED: &str = "+switch-master";

/// Where a sentinel says that the master is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    pub host: String,
    pub port: u16,
    /// Grows with each fail-over. Not known if the user may only ask for the address.
    epoch: Option<u64>,
}

/// The sentinels of one master.
pub struct Sentinels {
    servers: Vec<Server>,
    name: String,
    access: Access,
    /// The highest epoch that was seen, and when that last was so.
    newest: ArcSwap<Option<(u64, Instant)>>,
}

impl Sentinels {
    pub fn new(servers: Vec<Server>, name: &str, access: Access) -> Self {
        Self { servers, name: name.into(), access, newest: ArcSwap::default() }
    }

    /// Asks one sentinel.
    pub async fn master(&self, sentinel: &Server) -> Result<Master, RegistryError> {
        let mut wire = Wire::open(&sentinel.host, sentinel.port, &self.access).await?;
        let server = wire.server().to_string();
        let mut answer = wire.ask(&Pipeline::one(&["SENTINEL", "MASTER", &self.name])).await?;
        if matches!(answer.as_slice(), [Value::Error(text)] if text.starts_with("NOPERM")) {
            answer = wire.ask(&Pipeline::one(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &self.name])).await?;
        }
        let master = match answer.as_slice() {
            [Value::Error(text)] if text.contains("No such master") => return Err(self.unknown(server)),
            [Value::Error(text)] => return Err(refusal(&server, text)),
            [Value::Nil] => return Err(self.unknown(server)),
            [Value::Array(items)] => master(items),
            _ => None,
        };
        let cause = || format!("no address in its answer about the master `{}`", self.name);
        let master = master.ok_or_else(|| RegistryError::Protocol { server: server.clone(), cause: cause() })?;
        self.check_epoch(server, &master)?;
        Ok(master)
    }

    fn unknown(&self, server: String) -> RegistryError {
        let cause = format!("it watches no master named `{}`; expected the name in its `sentinel monitor`", self.name);
        RegistryError::Refused { server, cause }
    }

    fn check_epoch(&self, server: String, master: &Master) -> Result<(), RegistryError> {
        let Some(epoch) = master.epoch else { return Ok(()) };
        if let Some((newest, seen)) = **self.newest.load()
            && epoch < newest
            && seen.elapsed() < EPOCH_MEMORY
        {
            let cause = format!("it has not heard of the last fail-over (epoch {epoch}, another one said {newest})");
            return Err(RegistryError::Busy { server, cause });
        }
        self.newest.store(Some((epoch, Instant::now())).into());
        Ok(())
    }

    /// The last answer still holds.
    fn confirm(&self) {
        if let Some((epoch, _)) = **self.newest.load() {
            self.newest.store(Some((epoch, Instant::now())).into());
        }
    }

    /// Waits until `current` is the master no more. Begins with `sentinel`, and goes on with another one when that is gone.
    pub async fn until_switched(&self, sentinel: &Server, current: &Master) -> RegistryError {
        let mut backoff = Backoff::new(SHORTEST_WAIT, LONGEST_WAIT);
        let first = self.servers.iter().position(|server| server.text == sentinel.text).unwrap_or_default();
        let mut turns = self.servers.iter().cycle().skip(first);
        loop {
            let sentinel = turns.next().unwrap_or(sentinel);
            match self.listen(sentinel, current, &mut backoff).await {
                Ok(error) => return error,
                Err(error) => debug!(sentinel = sentinel.text, %error, "lost the sentinel"),
            }
            sleep(backoff.next_wait()).await;
        }
    }

    /// The end of `current`, or of the connection.
    async fn listen(
        &self,
        sentinel: &Server,
        current: &Master,
        backoff: &mut Backoff,
    ) -> Result<RegistryError, RegistryError> {
        let mut wire = Wire::open(&sentinel.host, sentinel.port, &self.access).await?;
        let server = wire.server().to_string();
        if let [Value::Error(text)] = wire.ask(&Pipeline::one(&["SUBSCRIBE", SWITCHED])).await?.as_slice() {
            return Err(refusal(&server, text));
        }
        // It may have been before the subscription.
        let now = self.master(sentinel).await?;
        if (&now.host, now.port) != (&current.host, current.port) {
            return Ok(moved(server, &now.host, &now.port.to_string()));
        }
        backoff.reset();
        let mut pinged = false;
        loop {
            let Ok(value) = timeout(PING_INTERVAL, wire.next()).await else {
                if pinged {
                    return Err(no_answer(&server));
                }
                pinged = true;
                wire.send(&Pipeline::one(&["PING"])).await?;
                continue;
            };
            let value = value?;
            pinged = false;
            self.confirm();
            if let Some((host, port)) = switched(&value, &self.name) {
                return Ok(moved(server, host, port));
            }
        }
    }
}

fn moved(server: String, host: &str, port: &str) -> RegistryError {
    RegistryError::Busy { server, cause: format!("the master is now {host}:{port}") }
}

/// The master in what a sentinel answers: a map as a list, or only host and port.
pub(super) fn master(items: &[Value]) -> Option<Master> {
    if let [host, port] = items {
        return Some(Master { host: host.text()?.into(), port: port.text()?.parse().ok()?, epoch: None });
    }
    let field = |name: &str| items.chunks_exact(2).find(|pair| pair[0].text() == Some(name))?[1].text();
    let epoch = field("config-epoch").and_then(|epoch| epoch.parse().ok());
    Some(Master { host: field("ip")?.into(), port: field("port")?.parse().ok()?, epoch })
}

/// The new master's host and port, if it is the message of a fail-over of `name`: `NAME OLD-IP OLD-PORT NEW-IP NEW-PORT`.
pub(super) fn switched<'v>(message: &'v Value, name: &str) -> Option<(&'v str, &'v str)> {
    let [kind, channel, payload] = message.array()? else { return None };
    if kind.text() != Some("message") || channel.text() != Some(SWITCHED) {
        return None;
    }
    let mut words = payload.text()?.split(' ');
    if words.next() != Some(name) {
        return None;
    }
    Some((words.nth(2)?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(texts: &[&str]) -> Vec<Value> {
        texts.iter().map(|text| Value::Bulk(text.to_string().into())).collect()
    }

    #[test]
    fn a_master_is_read_from_both_answers() {
        let map =
            texts(&["name", "mymaster", "ip", "10.0.0.1", "port", "6379", "config-epoch", "7", "flags", "master"]);
        let found = master(&map).unwrap();
        assert_eq!((found.host.as_str(), found.port, found.epoch), ("10.0.0.1", 6379, Some(7)));
        let found = master(&texts(&["redis-0.redis", "6379"])).unwrap();
        assert_eq!((found.host.as_str(), found.port, found.epoch), ("redis-0.redis", 6379, None));
        for bad in [&["ip", "10.0.0.1", "port", "x"][..], &["10.0.0.1", "65536"], &["name", "mymaster", "ip"], &[]] {
            assert_eq!(master(&texts(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn only_the_own_masters_switch_counts() {
        let message = |channel, text| Value::Array(texts(&["message", channel, text]));
        let news = "mymaster 10.0.0.1 6379 10.0.0.2 6380";
        assert_eq!(switched(&message(SWITCHED, news), "mymaster"), Some(("10.0.0.2", "6380")));
        assert_eq!(switched(&message(SWITCHED, news), "other"), None);
        assert_eq!(switched(&message("+sdown", news), "mymaster"), None);
        assert_eq!(switched(&message(SWITCHED, "mymaster 10.0.0.1"), "mymaster"), None);
        assert_eq!(switched(&Value::Status("PONG".into()), "mymaster"), None);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(words in prop::collection::vec("(message|[+]switch-master|ip|port|mymaster [0-9a-z. ]{0,20}|.{0,9})", 0..8)) {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let _ = master(&texts(&words));
            let _ = switched(&Value::Array(texts(&words)), "mymaster");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sentinel_that_is_behind_is_not_believed_for_a_while() {
        let sentinels = Sentinels::new(Vec::new(), "mymaster", Access::default());
        let at = |epoch| Master { host: "10.0.0.1".into(), port: 6379, epoch };
        sentinels.check_epoch("s".into(), &at(Some(7))).unwrap();
        let error = sentinels.check_epoch("s".into(), &at(Some(6))).unwrap_err().to_string();
        assert!(error.contains("epoch 6, another one said 7"), "{error}");
        sentinels.check_epoch("s".into(), &at(None)).unwrap();
        tokio::time::advance(EPOCH_MEMORY / 2).await;
        sentinels.confirm();
        tokio::time::advance(EPOCH_MEMORY / 2).await;
        assert!(sentinels.check_epoch("s".into(), &at(Some(6))).is_err());
        tokio::time::advance(EPOCH_MEMORY).await;
        sentinels.check_epoch("s".into(), &at(Some(1))).unwrap();
        sentinels.check_epoch("s".into(), &at(Some(2))).unwrap();
    }
}
