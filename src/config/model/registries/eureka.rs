//! How to reach Eureka.

use super::{
    super::{super::human, Secret, Tls},
    Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Eureka, of Netflix or Spring Cloud.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EurekaRegistry {
    /// `http://HOST:PORT/PATH` or `https://HOST:PORT/PATH`, several for servers that replicate to each other: one of them
    /// is used, and the next one when it fails. The path is `/eureka` with Spring Cloud and `/eureka/v2` with Netflix's
    /// own server.
    pub servers: Vec<String>,
    /// Goes with `password`; sent by HTTP's basic authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// How often the server is asked what changed. The server itself answers with what it knew up to 30 s ago, unless it
    /// is configured otherwise.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub interval: Duration,
    /// What a service's name is looked for among.
    pub by: EurekaName,
    /// Which address of an instance is used; the other one where it has no such.
    pub connect_to: EurekaAddress,
    #[serde(skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}

/// What makes an instance one of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum EurekaName {
    /// The name of its application.
    #[default]
    App,
    /// One of its VIP addresses, secure or not.
    Vip,
}

/// Where an instance is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum EurekaAddress {
    /// `ipAddr`.
    #[default]
    Ip,
    /// `hostName`, which is what Spring Cloud's own clients use.
    Hostname,
}

impl Default for EurekaRegistry {
    fn default() -> Self {
        Self {
            servers: vec!["http://127.0.0.1:8761/eureka".into()],
            user: None,
            password: None,
            // As often as Eureka's own clients.
            interval: Duration::from_secs(30),
            by: EurekaName::default(),
            connect_to: EurekaAddress::default(),
            tls: Tls::default(),
            scope: Scope::default(),
        }
    }
}
