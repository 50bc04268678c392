//! Following one service: what is said to have changed is read at once, what is about to expire when it has, and
//! everything each interval, because messages may be lost and most servers do not send Redis's own.

use super::{
    Redis,
    events::Subscription,
    hash::{self, Field},
    keys::Changed,
    resp::{Pipeline, Value},
    session::Session,
    sweep::Answer,
};
use crate::{
    config::RedisLayout,
    registry::{
        Instance, RegistryError,
        layout::plain,
        watch::{Failure, Found, News, Watch},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// Keys that are read in one go.
const KEYS_AT_ONCE: usize = 500;
/// Redis counts in milliseconds, and a key that expires now is there for the rest of this one.
const EXPIRED_FOR_SURE: Duration = Duration::from_millis(2);

/// What is known of one service.
pub struct Follower {
    redis: Arc<Redis>,
    service: String,
    /// By the name of the key or field. Kept over reconnects for those whose new value cannot be read.
    items: BTreeMap<String, Item>,
    /// What is wrong with the values that cannot be read, by name.
    unreadable: BTreeMap<String, String>,
    connected: Option<Connected>,
    /// Whether it was said that the server does not let us subscribe.
    warned: bool,
}

#[derive(Clone, Default)]
struct Item {
    instances: Vec<Instance>,
    expires: Option<Instant>,
}

struct Connected {
    session: Arc<Session>,
    subscription: Subscription,
    check: Check,
}

/// When all is read again.
enum Check {
    /// When the keys have been looked through.
    Sweep(Answer),
    At(Instant),
}

/// What is to be read again.
enum Due {
    All { names: Option<BTreeSet<String>> },
    Some(BTreeSet<String>),
}

impl Check {
    /// The names of all instances, if it is known by then which there are.
    async fn wait(&mut self) -> Result<Option<BTreeSet<String>>, RegistryError> {
        match self {
            Self::Sweep(answer) => answer.names().await.map(Some),
            Self::At(time) => {
                sleep_until(*time).await;
                Ok(None)
            }
        }
    }
}

impl Watch for Follower {
    async fn list(&mut self) -> Result<Found, Failure> {
        self.connected = None;
        let session = self.redis.link.connection().await.map_err(Failure::NoConnection)?;
        // First of all, so that no change falls between.
        let subscription = session.events.subscribe(self.redis.keys.topics(&self.service)).await?;
        if let Some(error) = &subscription.refused
            && !std::mem::replace(&mut self.warned, true)
        {
            let (registry, service) = (self.redis.name.as_str(), self.service.as_str());
            warn!(registry, service, %error, "no messages about changes, which are seen at the next check only");
        }
        self.read(&session, Due::All { names: None }).await?;
        let check = self.check(&session);
        self.connected = Some(Connected { session, subscription, check });
        Ok(self.current())
    }

    async fn next(&mut self) -> Result<News, Failure> {
        let Some(mut connected) = self.connected.take() else {
            return Err(Failure::Stale("there is no connection".into()));
        };
        let due = self.due(&mut connected).await?;
        if let Due::All { .. } = due {
            connected.check = self.check(&connected.session);
        }
        self.read(&connected.session, due).await?;
        self.connected = Some(connected);
        Ok(News::Set(self.current()))
    }
}

impl Follower {
    pub fn new(redis: Arc<Redis>, service: &str) -> Self {
        Self {
            redis,
            service: service.into(),
            items: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            connected: None,
            warned: false,
        }
    }

    fn current(&self) -> Found {
        // A provider that was restarted is in a hash twice for a while, and of two with one id the last stays.
        let mut items: Vec<_> = self.items.values().collect();
        items.sort_by_key(|item| (item.expires.is_none(), item.expires));
        Found {
            instances: items.into_iter().flat_map(|item| &item.instances).cloned().collect(),
            unreadable: self.unreadable.values().cloned().collect(),
        }
    }

    fn check(&self, session: &Session) -> Check {
        match self.redis.keys.layout() {
            RedisLayout::Plain => Check::Sweep(session.sweeps.ask(&self.service, false)),
            RedisLayout::Dubbo | RedisLayout::Kitex => Check::At(Instant::now() + super::jittered(self.redis.interval)),
        }
    }

    /// Waits until something must be read.
    async fn due(&self, connected: &mut Connected) -> Result<Due, Failure> {
        let Connected { session, subscription, check } = connected;
        let keys = &self.redis.keys;
        let expiry = self.items.values().filter_map(|item| item.expires).min();
        loop {
            let first = tokio::select! {
                // The reason for an end of the messages goes before that end.
                biased;
                error = session.end.reached() => return Err(error.into()),
                names = check.wait() => return Ok(Due::All { names: names? }),
                () = sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => {
                    let now = Instant::now();
                    let is_over = |item: &Item| item.expires.is_some_and(|expires| expires <= now);
                    let over = self.items.iter().filter(|(_, item)| is_over(item));
                    return Ok(Due::Some(over.map(|(name, _)| name.clone()).collect()));
                }
                message = subscription.next() => message,
            };
            let Some(mut message) = first else { return Err(Failure::Stale("messages were missed".into())) };
            // What comes in a burst is read once.
            let mut names = BTreeSet::new();
            loop {
                match keys.changed(&self.service, &message) {
                    Changed::All => return Ok(Due::All { names: None }),
                    Changed::One(name) => drop(names.insert(name.to_owned())),
                    Changed::Nothing => {}
                }
                match subscription.waiting() {
                    Some(next) => message = next,
                    None => break,
                }
            }
            if !names.is_empty() {
                return Ok(Due::Some(names));
            }
        }
    }

    async fn read(&mut self, session: &Session, due: Due) -> Result<(), RegistryError> {
        match (self.redis.keys.layout(), due) {
            (RedisLayout::Plain, Due::Some(names)) => self.read_keys(session, names).await,
            (RedisLayout::Plain, Due::All { names }) => {
                let names = match names {
                    Some(names) => names,
                    None => session.sweeps.ask(&self.service, true).names().await?,
                };
                let before: BTreeSet<_> = self.items.keys().chain(self.unreadable.keys()).cloned().collect();
                // Also what is not there any more: only an answer takes it away.
                self.read_keys(session, names.union(&before).cloned().collect()).await
            }
            (RedisLayout::Dubbo | RedisLayout::Kitex, _) => self.read_hash(session).await,
        }
    }

    /// Reads these instances' keys.
    async fn read_keys(&mut self, session: &Session, names: BTreeSet<String>) -> Result<(), RegistryError> {
        let names: Vec<_> = names.into_iter().collect();
        let mut answers = Vec::with_capacity(2 * names.len());
        for some in names.chunks(KEYS_AT_ONCE) {
            let mut pipeline = Pipeline::new();
            for name in some {
                let key = self.redis.keys.of_instance(&self.service, name);
                pipeline.add(&["GET", &key]);
                pipeline.add(&["PTTL", &key]);
            }
            answers.append(&mut session.read(pipeline).await?);
        }
        if names.is_empty() {
            // That there is nothing must come from a server that may be believed, too.
            session.read(Pipeline::new()).await?;
        }
        let now = Instant::now();
        for (name, answers) in names.iter().zip(answers.chunks(2)) {
            let [value, lives] = answers else { return Err(session.unexpected("PTTL", None)) };
            let decoded = match value {
                Value::Nil => {
                    self.items.remove(name);
                    self.unreadable.remove(name);
                    continue;
                }
                Value::Bulk(value) => plain::decode(name, value).map_err(|error| error.to_string()),
                Value::Error(text) if text.starts_with("WRONGTYPE") => Err("it is no text".into()),
                other => return Err(session.unexpected("GET", Some(other))),
            };
            self.take(name, decoded, expiry(session, lives, now)?);
        }
        Ok(())
    }

    /// Reads the service's hash.
    async fn read_hash(&mut self, session: &Session) -> Result<(), RegistryError> {
        let key = self.redis.keys.of_service(&self.service);
        let mut pipeline = Pipeline::one(&["HGETALL", &key]);
        pipeline.add(&["PTTL", &key]);
        pipeline.add(&["TIME"]);
        let answers = session.read(pipeline).await?;
        let [hash, lives, time] = answers.as_slice() else { return Err(session.unexpected("HGETALL", None)) };
        let now = Instant::now();
        let expires = expiry(session, lives, now)?;
        // The writers' clocks are compared with the server's, the same for every reader.
        let time = milliseconds(time).ok_or_else(|| session.unexpected("TIME", Some(time)))?;
        let found = hash::fields(self.redis.keys.layout(), &self.service, hash, time);
        let found = found.ok_or_else(|| session.unexpected("HGETALL", Some(hash)))?;
        self.items.retain(|name, _| found.contains_key(name));
        self.unreadable.clear();
        for (name, field) in found {
            match field {
                Ok(Field { instance, lives }) => {
                    let ends = lives.map(|lives| now + lives + EXPIRED_FOR_SURE);
                    let expires = expires.into_iter().chain(ends).min();
                    self.take(&name, Ok(instance.into_iter().collect()), expires);
                }
                Err(error) => self.take(&name, Err(error.to_string()), expires),
            }
        }
        Ok(())
    }

    /// What was read of a name. What was there before stays where the new cannot be read.
    fn take(&mut self, name: &str, decoded: Result<Vec<Instance>, String>, expires: Option<Instant>) {
        match decoded {
            Ok(instances) => {
                self.unreadable.remove(name);
                self.items.insert(name.to_owned(), Item { instances, expires });
            }
            Err(complaint) => {
                self.unreadable.insert(name.to_owned(), format!("{name}: {complaint}"));
                self.items.entry(name.to_owned()).or_default().expires = expires;
            }
        }
    }
}

/// When a key is gone, by the answer to `PTTL`.
fn expiry(session: &Session, answer: &Value, now: Instant) -> Result<Option<Instant>, RegistryError> {
    match answer {
        Value::Integer(-1) => Ok(None),
        // It went between the two questions, or this very moment.
        Value::Integer(..0) => Ok(Some(now + EXPIRED_FOR_SURE)),
        Value::Integer(lives) => {
            Ok(now.checked_add(Duration::from_millis(lives.unsigned_abs())).map(|end| end + EXPIRED_FOR_SURE))
        }
        other => Err(session.unexpected("PTTL", Some(other))),
    }
}

/// The answer to `TIME`: seconds and microseconds.
pub fn milliseconds(answer: &Value) -> Option<u64> {
    let [seconds, micros] = answer.array()? else { return None };
    let (seconds, micros): (u64, u64) = (seconds.text()?.parse().ok()?, micros.text()?.parse().ok()?);
    seconds.checked_mul(1000)?.checked_add(micros / 1000)
}
