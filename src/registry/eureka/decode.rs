//! From a server's JSON to instances.

#[cfg(test)]
mod tests;

use crate::{
    config::EurekaAddress,
    registry::{
        Address, AddressError, Instance,
        layout::{Endpoint, Metadata, endpoint_instance},
    },
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A whole answer to `apps` or `apps/delta`.
#[derive(Debug)]
pub struct Answer {
    /// How many instances there are in each status, in all of the server's applications: see [`super::Applications::hash`].
    pub hash: String,
    pub listed: Vec<Listed>,
}

/// One instance, in whatever status.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// In capitals.
    pub app: String,
    pub id: String,
    pub status: String,
    /// In a delta: the instance is gone.
    pub is_deleted: bool,
    /// In capitals.
    pub vips: Vec<String>,
    pub usage: Usage,
}

/// What can be done with an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Usage {
    Use(Box<Instance>),
    /// It takes no requests now, or none that a proxy for HTTP could carry.
    Leave,
    Unreadable(String),
}

#[derive(Deserialize)]
struct Document {
    applications: Applications,
}

#[derive(Deserialize)]
struct Applications {
    #[serde(default, rename = "apps__hashcode")]
    hash: Option<String>,
    #[serde(default)]
    application: Value,
}

#[derive(Deserialize)]
struct Application {
    name: String,
    #[serde(default)]
    instance: Value,
}

/// What is read of an instance that is to be used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(default)]
    host_name: Option<String>,
    #[serde(default)]
    ip_addr: Option<String>,
    #[serde(default)]
    port: Value,
    #[serde(default)]
    secure_port: Value,
    #[serde(default)]
    home_page_url: Option<String>,
    #[serde(default)]
    data_center_info: Value,
    #[serde(default)]
    metadata: Metadata,
}

/// Reads an answer. Fails if it is not one; what is wrong with a single instance does not hide the others.
pub fn answer(body: &[u8], connect_to: EurekaAddress) -> Result<Answer, String> {
    let Document { applications } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut listed = Vec::new();
    for application in many(applications.application) {
        let Application { name, instance } =
            Application::deserialize(application).map_err(|error| error.to_string())?;
        let app = name.to_uppercase();
        listed.extend(many(instance).into_iter().filter_map(|instance| Listed::read(&app, instance, connect_to)));
    }
    Ok(Answer { hash: applications.hash.unwrap_or_default(), listed })
}

/// A list of one is written as that one by servers whose JSON is made from XML.
fn many(value: Value) -> Vec<Value> {
    match value {
        Value::Array(all) => all,
        Value::Object(_) => vec![value],
        _ => Vec::new(),
    }
}

impl Listed {
    /// `None` for what is not an instance at all.
    fn read(app: &str, instance: Value, connect_to: EurekaAddress) -> Option<Self> {
        let fields = instance.as_object()?;
        let id = id(fields)?.to_owned();
        let status = text(fields, "status").unwrap_or("UNKNOWN").to_owned();
        let vips = ["vipAddress", "secureVipAddress"].into_iter().filter_map(|key| text(fields, key));
        let mut vips: Vec<_> = vips.flat_map(|all| all.split(',')).map(|vip| vip.trim().to_uppercase()).collect();
        vips.sort_unstable();
        vips.dedup();
        vips.retain(|vip| !vip.is_empty());
        let is_deleted = text(fields, "actionType") == Some("DELETED");
        let is_up = is_up(fields, &status);
        let usage = match usage(&id, instance, connect_to) {
            // Known, and not to be used: it is not gone.
            Usage::Use(instance) if !is_up => Usage::Use(Box::new(Instance { healthy: false, ..*instance })),
            Usage::Unreadable(_) if !is_up => Usage::Leave,
            usage => usage,
        };
        Some(Self { app: app.into(), id, status, is_deleted, vips, usage })
    }
}

fn text<'v>(fields: &'v Map<String, Value>, key: &str) -> Option<&'v str> {
    fields.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// As Eureka's own clients have it: its id, else what the cloud calls it, else its host.
fn id(fields: &Map<String, Value>) -> Option<&str> {
    let in_cloud = || text(fields.get("dataCenterInfo")?.get("metadata")?.as_object()?, "instance-id");
    text(fields, "instanceId").or_else(in_cloud).or_else(|| text(fields, "hostName"))
}

/// The status that a server tells has overrides in it already; but another server's may have come since.
fn is_up(fields: &Map<String, Value>, status: &str) -> bool {
    // Clients write it in either way.
    let overridden = text(fields, "overriddenStatus").or_else(|| text(fields, "overriddenstatus"));
    status == "UP" && matches!(overridden, None | Some("UP" | "UNKNOWN"))
}

fn usage(id: &str, instance: Value, connect_to: EurekaAddress) -> Usage {
    match Row::deserialize(instance).map_err(|error| error.to_string()) {
        Ok(row) => match row.instance(id, connect_to) {
            Ok(Some(instance)) => Usage::Use(Box::new(instance)),
            Ok(None) => Usage::Leave,
            Err(error) => Usage::Unreadable(error),
        },
        Err(error) => Usage::Unreadable(error),
    }
}

impl Row {
    /// `None` if it speaks what a proxy for HTTP cannot carry.
    fn instance(mut self, id: &str, connect_to: EurekaAddress) -> Result<Option<Instance>, String> {
        // Which class an empty map is of.
        self.metadata.0.remove("@class");
        if self.metadata.0.contains_key("Endpoints") {
            return self.kratos(id).map_err(|error| error.to_string());
        }
        // Where both ports are on, Spring Cloud takes the secure one, too.
        let secure = port(&self.secure_port);
        let Some(at) = secure.or_else(|| port(&self.port)) else {
            return Err("it has no port that is enabled".into());
        };
        let hosts = [self.ip_addr.as_deref(), self.host_name.as_deref()];
        let mut instance = Instance::new(id, address(hosts, at, connect_to).map_err(|error| error.to_string())?);
        instance.tls = Some(secure.is_some());
        instance.zone = self.zone_of_cloud();
        self.metadata.apply(&mut instance);
        Ok(Some(instance))
    }

    /// Kratos registers an instance per endpoint, whose URL is its home page. (That among the metadata is often the last
    /// endpoint's for all of them.)
    fn kratos(mut self, id: &str) -> Result<Option<Instance>, AddressError> {
        let url = self.home_page_url.take().unwrap_or_default();
        let Some(endpoint) = Endpoint::parse(url.trim_end_matches('/'))? else { return Ok(None) };
        let version = self.metadata.0.get("Version").cloned().unwrap_or_default();
        Ok(Some(endpoint_instance(id, endpoint, &version, self.metadata)))
    }

    /// The zone as Amazon calls it.
    fn zone_of_cloud(&self) -> Option<String> {
        let metadata = self.data_center_info.get("metadata")?.as_object()?;
        text(metadata, "availability-zone").map(str::to_owned)
    }
}

/// The number of a port that is enabled: `{"$": 8080, "@enabled": "true"}`, whose values may be texts or not. 0 means
/// that there is no such port.
pub(super) fn port(value: &Value) -> Option<u16> {
    let is = |value: &Value| value.as_bool().or_else(|| value.as_str()?.parse().ok());
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
    let enabled = value.get("@enabled").is_some_and(|enabled| is(enabled) == Some(true));
    let port = number(value.get("$")?).and_then(|port| u16::try_from(port).ok());
    port.filter(|port| enabled && *port > 0)
}

/// The first of the two hosts that is one; `hosts` are the IP address and the name.
fn address(hosts: [Option<&str>; 2], port: u16, connect_to: EurekaAddress) -> Result<Address, AddressError> {
    let [ip, name] = hosts.map(|host| host.unwrap_or_default());
    let (first, second) = match connect_to {
        EurekaAddress::Ip => (ip, name),
        EurekaAddress::Hostname => (name, ip),
    };
    Address::new(first, port).or_else(|error| Address::new(second, port).map_err(|_| error))
}
