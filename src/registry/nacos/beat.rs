//! Registering over HTTP, where an instance lives for as long as it is told to be alive.

use super::{
    calls::CallError,
    encode::Host,
    message::{Key, ServiceInfo},
    poll::{Api, Version, call_error, encoded},
};
use crate::registry::RegistryError;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Nacos' numbers for an instance that it does not know, of the first API and of the third.
const UNKNOWN: [i64; 2] = [20404, 21003];
/// After so many of the intervals between its beats an instance is forgotten.
const BEATS: u32 = 3;

#[derive(Deserialize)]
struct Code {
    code: i64,
}

impl Host {
    /// With what tells the server how long it lives without a beat. It is as long until it is held unhealthy: one that is
    /// restarted should not be without traffic meanwhile.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        for (key, time) in [
            ("preserved.heart.beat.interval", ttl / BEATS),
            ("preserved.heart.beat.timeout", ttl),
            ("preserved.ip.delete.timeout", ttl),
        ] {
            self.metadata.insert(key.into(), time.as_millis().to_string());
        }
        self
    }
}

impl Api {
    /// Registers it, or changes what is there.
    pub async fn register(&self, key: &Key, host: &Host) -> Result<(), CallError> {
        let metadata = json!(host.metadata).to_string();
        let more = format!(
            "&weight={}&enabled={}&healthy={}&metadata={}",
            host.weight,
            host.enabled,
            host.healthy,
            encoded(&metadata)
        );
        self.done(Method::POST, &self.instance_path(key, host, &more)).await.map_err(call_error)
    }

    /// Shows that it is alive. False: the server does not know it.
    pub async fn beat(&self, key: &Key, host: &Host) -> Result<bool, CallError> {
        self.beaten(key, host).await.map_err(call_error)
    }

    async fn beaten(&self, key: &Key, host: &Host) -> Result<bool, RegistryError> {
        let (method, path) = match self.version() {
            Version::One => {
                (Method::PUT, self.instance_path(key, host, "").replacen("/instance?", "/instance/beat?", 1))
            }
            Version::Three => (Method::POST, self.instance_path(key, host, "&heartBeat=true")),
        };
        let answer = self.send(method, &path).await?;
        match serde_json::from_slice(&answer.body) {
            Ok(Code { code }) if UNKNOWN.contains(&code) => Ok(false),
            _ if answer.status == StatusCode::OK => Ok(true),
            _ => Err(self.refusal(&answer)),
        }
    }

    /// That it is not there is no error.
    pub async fn deregister(&self, key: &Key, host: &Host) -> Result<(), CallError> {
        self.done(Method::DELETE, &self.instance_path(key, host, "")).await.map_err(call_error)
    }

    /// The hosts of that host's cluster.
    pub async fn beside(&self, key: &Key, host: &Host) -> Result<Vec<Value>, CallError> {
        self.instances_of(key, &host.cluster).await.map(|ServiceInfo { hosts, .. }| hosts)
    }

    fn instance_path(&self, key: &Key, host: &Host, more: &str) -> String {
        let path = match self.version() {
            Version::One => "/v1/ns/instance",
            Version::Three => "/v3/client/ns/instance",
        };
        let (ip, port, cluster) = (encoded(&host.ip), host.port, encoded(&host.cluster));
        format!("{path}?{}&ip={ip}&port={port}&clusterName={cluster}&ephemeral=true{more}", self.service_query(key))
    }

    async fn done(&self, method: Method, path: &str) -> Result<(), RegistryError> {
        let answer = self.send(method, path).await?;
        // The first API answers `ok`, the third something with a number.
        match (answer.status, serde_json::from_slice(&answer.body)) {
            (StatusCode::OK, Ok(Code { code: 1.. })) => Err(self.protocol(&answer)),
            (StatusCode::OK, _) => Ok(()),
            _ => Err(self.refusal(&answer)),
        }
    }
}
