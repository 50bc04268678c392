//! Our own instance: a key with a time to live, or a field of the service's hash, which frameworks renew each in their way.

use super::{
    Redis,
    follow::milliseconds,
    resp::{Pipeline, Value},
    session::Session,
};
use crate::{
    config::RedisLayout,
    registry::{
        self, Registration, RegistryError, Renewal,
        layout::{dubbo, kitex, plain},
    },
};
use futures_util::future::BoxFuture;
use std::{future::pending, sync::Arc};
use tracing::warn;

/// One instance of ours.
pub(super) struct OwnEntry {
    redis: Arc<Redis>,
    registration: Arc<Registration>,
    record: Record,
    /// Where it was put or renewed last.
    session: Option<Arc<Session>>,
    /// Whether anything may have been written.
    written: bool,
    /// Whether it was said that the server does not let us publish.
    warned: bool,
}

/// What is written.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    key: String,
    /// Of a hash; empty for a key of its own.
    field: String,
    /// Empty where the value is a time.
    value: Vec<u8>,
    /// What is published when it is there, and when it is gone.
    told: [String; 2],
}

impl Record {
    fn new(redis: &Redis, registration: &Registration) -> Result<Self, RegistryError> {
        let Registration { service, instance, asked, .. } = registration;
        let keys = &redis.keys;
        let impossible = |cause: String| Err(RegistryError::Impossible { cause });
        match keys.layout() {
            RedisLayout::Plain if instance.id.contains('/') => impossible(format!(
                "the id `{}` has a slash, which a key cannot hold; expected another one",
                instance.id
            )),
            RedisLayout::Plain => Ok(Self {
                key: keys.of_instance(service, &instance.id),
                field: String::new(),
                value: match plain::encode(instance) {
                    Ok(value) => value,
                    Err(error) => return impossible(error.to_string()),
                },
                told: [instance.id.clone(), instance.id.clone()],
            }),
            RedisLayout::Dubbo => Ok(Self {
                key: keys.of_service(service),
                field: dubbo::url(service, instance),
                value: Vec::new(),
                told: ["register".into(), "unregister".into()],
            }),
            RedisLayout::Kitex => {
                let field = instance.address.to_string();
                let told = ["register", "deregister"].map(|what| format!("{what}-{service}-{field}"));
                let value = kitex::encode(service, instance, asked.weight);
                Ok(Self { key: keys.of_service(service), field, value, told })
            }
        }
    }
}

impl OwnEntry {
    pub(super) fn new(redis: Arc<Redis>, registration: Arc<Registration>) -> Result<Self, RegistryError> {
        let record = Record::new(&redis, &registration)?;
        Ok(Self { redis, registration, record, session: None, written: false, warned: false })
    }

    fn ttl(&self) -> u64 {
        // At most an hour.
        u64::try_from(self.registration.ttl.as_millis()).unwrap_or(u64::MAX)
    }

    async fn session(&mut self) -> Result<Arc<Session>, RegistryError> {
        let session = self.redis.master().await?;
        self.session = Some(session.clone());
        Ok(session)
    }

    async fn write(&mut self) -> Result<(), RegistryError> {
        let session = self.session().await?;
        self.written = true;
        match self.redis.keys.layout() {
            RedisLayout::Plain => self.write_key(&session).await?,
            RedisLayout::Dubbo => self.write_url(&session).await?,
            RedisLayout::Kitex => self.write_field(&session).await?,
        }
        self.publish(&session, 0).await
    }

    async fn write_key(&self, session: &Session) -> Result<(), RegistryError> {
        let (Record { key, value, .. }, ttl) = (&self.record, self.ttl().to_string());
        let set: [&[u8]; 5] = [b"SET", key.as_bytes(), value, b"PX", ttl.as_bytes()];
        let free = session.write(Pipeline::one(&[&set[..], &[b"NX"]].concat())).await?;
        if free.first() != Some(&Value::Nil) {
            return Ok(());
        }
        if let Some(there) = self.other_address(session).await? {
            return Err(self.registration.clash(session.server(), &there));
        }
        session.write(Pipeline::one(&set)).await.map(drop)
    }

    /// The address of somebody else who has our key.
    async fn other_address(&self, session: &Session) -> Result<Option<String>, RegistryError> {
        let instance = &self.registration.instance;
        let answer = session.write(Pipeline::one(&["GET", &self.record.key])).await?;
        let Some(Value::Bulk(value)) = answer.first() else { return Ok(None) };
        // What nobody can read is in nobody's way.
        let there = plain::decode(&instance.id, value).unwrap_or_default().pop();
        Ok(there.filter(|there| there.address != instance.address).map(|there| there.address.to_string()))
    }

    /// What an earlier run of ours wrote with other parameters goes.
    async fn write_url(&self, session: &Session) -> Result<(), RegistryError> {
        let (service, Record { key, field, .. }) = (&self.registration.service, &self.record);
        let mut ask = Pipeline::one(&["TIME"]);
        ask.add(&["HKEYS", key]);
        let answers = session.write(ask).await?;
        let [time, fields] = answers.as_slice() else { return Err(session.unexpected("HKEYS", None)) };
        let id = |url: &str| dubbo::instance(service, url).ok().flatten().map(|instance| instance.id);
        let ours = id(field);
        let mut set = Pipeline::one(&["HSET", key, field, &self.expiry(session, time)?]);
        for stale in fields.array().unwrap_or_default().iter().filter_map(Value::text) {
            if stale != field && ours.is_some() && id(stale) == ours {
                set.add(&["HDEL", key, stale]);
            }
        }
        session.write(set).await.map(drop)
    }

    /// By the server's clock, as readers have it.
    fn expiry(&self, session: &Session, time: &Value) -> Result<String, RegistryError> {
        let now = milliseconds(time).ok_or_else(|| session.unexpected("TIME", Some(time)))?;
        Ok(now.saturating_add(self.ttl()).to_string())
    }

    async fn write_field(&self, session: &Session) -> Result<(), RegistryError> {
        let Record { key, field, value, .. } = &self.record;
        let lives = session.write(Pipeline::one(&["PTTL", key])).await?;
        // Both or neither, or the hash would stay for ever.
        let mut set = Pipeline::one(&["MULTI"]);
        let words: [&[u8]; 4] = [b"HSET", key.as_bytes(), field.as_bytes(), value];
        set.add(&words);
        if self.is_too_short(lives.first(), true) {
            set.add(&["PEXPIRE", key, &self.ttl().to_string()]);
        }
        set.add(&["EXEC"]);
        session.write(set).await.map(drop)
    }

    /// Whether the hash, which is all instances', ends sooner than we need it. Others may have given it longer, or made it
    /// stay.
    fn is_too_short(&self, lives: Option<&Value>, may_be_new: bool) -> bool {
        match lives {
            Some(Value::Integer(-2)) => may_be_new,
            Some(Value::Integer(left @ 0..)) => left.unsigned_abs() < self.ttl(),
            _ => false,
        }
    }

    /// Frameworks and pillions hear of it by that. It is no failure that they may not: they look at intervals, too.
    async fn publish(&mut self, session: &Session, what: usize) -> Result<(), RegistryError> {
        let channel = self.redis.keys.of_service(&self.registration.service);
        match session.write(Pipeline::one(&["PUBLISH", &channel, &self.record.told[what]])).await {
            Err(error @ RegistryError::Refused { .. }) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let (registry, service) = (&self.redis.name, &self.registration.service);
                    warn!(registry, service, %error, "others are not told of it, and see it at their next check");
                }
                Ok(())
            }
            published => published.map(drop),
        }
    }

    async fn renewed(&mut self) -> Result<Renewal, RegistryError> {
        let session = self.session().await?;
        let (Record { key, field, value, .. }, ttl) = (&self.record, self.ttl().to_string());
        let mut look = Pipeline::new();
        match self.redis.keys.layout() {
            RedisLayout::Plain => look.add(&["GET", key]),
            RedisLayout::Dubbo | RedisLayout::Kitex => look.add(&["HGET", key, field]),
        }
        look.add(&["PTTL", key]);
        look.add(&["TIME"]);
        let answers = session.write(look).await?;
        let [there, lives, time] = answers.as_slice() else { return Err(session.unexpected("PTTL", None)) };
        let renewal = match there {
            Value::Bulk(there) if there == value || value.is_empty() => match self.redis.keys.layout() {
                RedisLayout::Plain => Pipeline::one(&["PEXPIRE", key, &ttl]),
                RedisLayout::Dubbo => Pipeline::one(&["HSET", key, field, &self.expiry(&session, time)?]),
                RedisLayout::Kitex if self.is_too_short(Some(lives), false) => Pipeline::one(&["PEXPIRE", key, &ttl]),
                RedisLayout::Kitex => return Ok(Renewal::Kept),
            },
            Value::Bulk(_) => return Ok(Renewal::Lost("somebody changed it".into())),
            _ => return Ok(Renewal::Lost("it is not there".into())),
        };
        let done = session.write(renewal).await?;
        // `HSET` says so of every field that was there before.
        let gone = self.redis.keys.layout() != RedisLayout::Dubbo && done.first() == Some(&Value::Integer(0));
        Ok(if gone { Renewal::Lost("it expired".into()) } else { Renewal::Kept })
    }

    async fn removed(&mut self) -> Result<(), RegistryError> {
        if !self.written {
            return Ok(());
        }
        let session = self.session().await?;
        let Record { key, field, .. } = &self.record;
        let remove = match self.redis.keys.layout() {
            RedisLayout::Plain if self.other_address(&session).await?.is_some() => return Ok(()),
            RedisLayout::Plain => Pipeline::one(&["DEL", key]),
            RedisLayout::Dubbo | RedisLayout::Kitex => Pipeline::one(&["HDEL", key, field]),
        };
        session.write(remove).await?;
        self.publish(&session, 1).await
    }
}

impl registry::Entry for OwnEntry {
    fn put(&mut self, _: bool) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(self.write())
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>> {
        Box::pin(self.renewed())
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(self.removed())
    }

    /// The next master may not have it.
    fn lost(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            match &self.session {
                Some(session) => drop(session.end.reached().await),
                None => pending().await,
            }
        })
    }
}
