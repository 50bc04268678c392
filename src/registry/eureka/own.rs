//! What a server is told of an instance of ours, and what it tells of it afterwards.

#[cfg(test)]
mod tests;

use super::decode::port;
use crate::{
    config::Protocol,
    registry::{Address, Registration, layout::Metadata},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// An instance as a server has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Own {
    #[serde(flatten)]
    pub description: Description,
    #[serde(default)]
    pub status: String,
    /// What an operator says, over what the instance says of itself. Servers write it in either way.
    #[serde(default)]
    overridden_status: String,
    #[serde(default, rename = "overriddenstatus")]
    overridden_status_too: String,
    #[serde(default)]
    last_dirty_timestamp: Value,
}

/// What consumers go by.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    #[serde(default)]
    host_name: String,
    #[serde(default)]
    ip_addr: String,
    #[serde(deserialize_with = "enabled", default)]
    port: Option<u16>,
    #[serde(deserialize_with = "enabled", default)]
    secure_port: Option<u16>,
    #[serde(default)]
    vip_address: String,
    #[serde(default)]
    metadata: Metadata,
}

fn enabled<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    Ok(port(&Value::deserialize(from)?))
}

impl Own {
    /// From a server's answer.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Document {
            instance: Own,
        }
        let Document { mut instance } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        // Which class an empty map is of.
        instance.description.metadata.0.remove("@class");
        Ok(instance)
    }

    /// Whether an operator decides on its status.
    pub fn is_overridden(&self) -> bool {
        let either = [&self.overridden_status, &self.overridden_status_too];
        either.into_iter().any(|status| !matches!(status.as_str(), "" | "UNKNOWN"))
    }

    /// When it was changed, in milliseconds.
    pub fn dirty(&self) -> u64 {
        let dirty = &self.last_dirty_timestamp;
        dirty.as_u64().or_else(|| dirty.as_str()?.parse().ok()).unwrap_or_default()
    }
}

impl Description {
    /// What `registration` is to look like.
    pub fn of(registration: &Registration) -> Self {
        let Registration { instance, service, asked, .. } = registration;
        let host = host(&instance.address);
        let port = instance.address.port();
        let secure = instance.tls == Some(true);
        // Eureka has no tags, so these stay labels.
        let mut metadata = Metadata(instance.labels.clone());
        let weight = asked.weight.map(|weight| weight.to_string());
        let protocol = (instance.protocol == Some(Protocol::Http2)).then(|| "http2".to_owned());
        let known = [("zone", instance.zone.clone()), ("weight", weight), ("protocol", protocol)];
        metadata.0.extend(known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Self {
            // Spring Cloud's clients connect to the host name; as with `prefer-ip-address`, it is the address.
            host_name: host.clone(),
            ip_addr: host,
            port: (!secure).then_some(port),
            secure_port: secure.then_some(port),
            vip_address: service.clone(),
            metadata,
        }
    }

    /// The whole instance, in this status, changed at `dirty` (milliseconds of the Unix epoch).
    pub fn instance(&self, registration: &Registration, status: &str, dirty: u64) -> Value {
        let Registration { instance, service, ttl, asked } = registration;
        let (scheme, at) = (if self.secure_port.is_some() { "https" } else { "http" }, instance.address.port());
        let url = |path: &str| format!("{scheme}://{}{path}", instance.address);
        let port = |enabled: bool| json!({ "$": at, "@enabled": enabled.to_string() });
        let mut whole = json!({
            "instanceId": instance.id,
            "app": app(service),
            "hostName": self.host_name,
            "ipAddr": self.ip_addr,
            "port": port(self.port.is_some()),
            "securePort": port(self.secure_port.is_some()),
            "vipAddress": self.vip_address,
            "secureVipAddress": self.vip_address,
            "homePageUrl": url("/"),
            "status": status,
            "metadata": self.metadata.0,
            "dataCenterInfo": {
                "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
                "name": "MyOwn",
            },
            "leaseInfo": { "renewalIntervalInSecs": renewal(*ttl), "durationInSecs": duration(*ttl) },
            "lastDirtyTimestamp": dirty.to_string(),
        });
        if let Some(http) = &asked.health.http
            && asked.health.port.is_none()
        {
            whole["healthCheckUrl"] = url(&http.path).into();
        }
        json!({ "instance": whole })
    }

    pub fn is_at_the_address_of(&self, other: &Self) -> bool {
        let at = |one: &Self| (one.ip_addr.clone(), one.secure_port.or(one.port));
        at(self) == at(other)
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        let port = self.secure_port.or(self.port).unwrap_or_default();
        Address::new(&self.ip_addr, port).map_or_else(|_| self.ip_addr.clone(), |address| address.to_string())
    }
}

/// Eureka's names are in capitals.
pub fn app(service: &str) -> String {
    service.to_uppercase()
}

/// The id that Spring Cloud's clients would give it, unless another was asked for.
pub fn id(registration: &Registration) -> String {
    let Registration { instance, service, asked, .. } = registration;
    let spring = || format!("{}:{service}:{}", host(&instance.address), instance.address.port());
    asked.id.clone().unwrap_or_else(spring)
}

fn host(address: &Address) -> String {
    match address {
        Address::Ip(address) => address.ip().to_string(),
        Address::Name { host, .. } => host.clone(),
    }
}

/// Half of the TTL, because a server waits twice as long as it is told from each renewal on. (It adds the duration when
/// it renews, and again when it looks.)
fn duration(ttl: Duration) -> u64 {
    (ttl / 2).as_secs_f64().ceil().max(1.0) as u64
}

fn renewal(ttl: Duration) -> u64 {
    (ttl / 3).as_secs().max(1)
}
