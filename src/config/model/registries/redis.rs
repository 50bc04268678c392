//! How to reach Redis.

use super::{
    super::{super::human, Secret, Tls},
    Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Redis, one server or several of which one is the master; or a master that Sentinels know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisRegistry {
    /// `HOST:PORT`, several to go on with when one is gone. Or else `sentinels`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The Sentinels to ask for the master, each `HOST:PORT`; goes with `master`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sentinels: Vec<String>,
    /// The name that the Sentinels have for the master.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// Number of the database.
    pub db: u32,
    /// How keys and values are written.
    pub layout: RedisLayout,
    /// The part of the key before the service name. Each layout has its own as default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// How often all is read, whatever was heard of changes: how late a change may be seen where Redis sends no keyspace
    /// notifications and the writer publishes nothing.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub interval: Duration,
    /// ACL user; without it `password` is the default user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// TLS to the Redis servers, where this is given. `{}` trusts the system's authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// ACL user at the Sentinels, who have users of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_password: Option<Secret>,
    /// TLS to the Sentinels, where this is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_tls: Option<Tls>,
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}

/// How instances are written into Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum RedisLayout {
    /// `PREFIX/SERVICE/ID` → `host:port`, or JSON of the same map as in the `file` registry, with a time to live:
    /// `SET key value PX ttl`. Who writes may say so: `PUBLISH PREFIX/SERVICE ID`. Default prefix `/pillion`.
    #[default]
    Plain,
    /// Dubbo: the hash `/dubbo/INTERFACE/providers`.
    Dubbo,
    /// Kitex: the hash `/kitex/SERVICE/server`. Hertz does the same under `/hertz`.
    Kitex,
}

impl RedisLayout {
    /// The key prefix that the framework uses unless told otherwise.
    pub fn default_prefix(self) -> &'static str {
        match self {
            Self::Plain => "/pillion",
            Self::Dubbo => "/dubbo",
            Self::Kitex => "/kitex",
        }
    }
}

impl Default for RedisRegistry {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            sentinels: Vec::new(),
            master: None,
            db: 0,
            layout: RedisLayout::default(),
            prefix: None,
            interval: Duration::from_secs(5),
            user: None,
            password: None,
            tls: None,
            sentinel_user: None,
            sentinel_password: None,
            sentinel_tls: None,
            scope: Scope::default(),
        }
    }
}
