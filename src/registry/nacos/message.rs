//! What is in the JSON of Nacos' requests, answers and pushes.

use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;

/// A service within a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub group: String,
    pub name: String,
}

impl Key {
    /// From a name that may have its group before it, as Nacos itself writes it: `GROUP@@NAME`.
    pub fn parse(text: &str, default_group: &str) -> Self {
        match text.split_once("@@") {
            Some((group, name)) if !group.is_empty() => Self { group: group.into(), name: name.into() },
            _ => Self { group: default_group.into(), name: text.into() },
        }
    }

    /// A request about this service, with further fields.
    pub fn request(&self, namespace: &str, fields: Value) -> Value {
        let mut request = json!({ "namespace": namespace, "serviceName": self.name, "groupName": self.group });
        if let (Value::Object(request), Value::Object(fields)) = (&mut request, fields) {
            request.extend(fields);
        }
        request
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@@{}", self.group, self.name)
    }
}

/// How a request went: a part of every answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    result_code: i64,
    #[serde(default)]
    pub error_code: i64,
    #[serde(default)]
    pub message: Option<String>,
}

impl Outcome {
    pub fn is_success(&self) -> bool {
        self.result_code == 200
    }
}

/// What Nacos says about one service: in the answer to a subscription or a query, in a push, and over HTTP.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceInfo {
    /// With the group before it in some versions and answers, without it in others.
    #[serde(default)]
    name: String,
    #[serde(default)]
    group_name: String,
    /// Read one by one: a mistake in one must not hide the others.
    pub hosts: Vec<Value>,
    /// When the server made this, in milliseconds by its clock.
    #[serde(default)]
    pub last_ref_time: i64,
}

impl ServiceInfo {
    pub fn key(&self) -> Key {
        Key::parse(&self.name, &self.group_name)
    }
}

impl From<Vec<Value>> for ServiceInfo {
    /// From an answer that is nothing but the hosts.
    fn from(hosts: Vec<Value>) -> Self {
        Self { name: String::new(), group_name: String::new(), hosts, last_ref_time: 0 }
    }
}

/// The answer to a subscription or a query.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAnswer {
    pub service_info: ServiceInfo,
}

/// One page of the services of a group.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePage {
    /// Over all pages.
    pub count: usize,
    #[serde(alias = "doms")]
    pub service_names: Vec<String>,
}

/// A change that the server tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Push {
    pub service_info: ServiceInfo,
}

/// A config within a namespace, and as such what the server tells when one has changed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigKey {
    pub group: String,
    pub data_id: String,
}

/// A config's value, as the answer to a query.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Config {
    pub content: String,
    /// Of the content, by which a change is told from another.
    pub md5: String,
}

/// Those that are not as they are said to be.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangedConfigs {
    pub changed_configs: Vec<ConfigKey>,
}

/// One page of the configs of a group, in the APIs of Nacos 2 and 3.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigPage {
    pub total_count: usize,
    pub page_items: Vec<ListedConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedConfig {
    #[serde(alias = "groupName")]
    pub group: String,
    pub data_id: String,
}

/// What every request of the server has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerRequest {
    #[serde(default)]
    pub request_id: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_may_name_its_group() {
        for (text, shown) in
            [("users", "G@@users"), ("H@@users", "H@@users"), ("@@users", "G@@@@users"), ("H@@a@@b", "H@@a@@b")]
        {
            assert_eq!(Key::parse(text, "G").to_string(), shown);
        }
        // As pushes and answers of the versions have it.
        for json in [
            r#"{"name":"users","groupName":"G","hosts":[]}"#,
            r#"{"name":"G@@users","groupName":"G","hosts":[]}"#,
            r#"{"name":"G@@users","hosts":[]}"#,
        ] {
            assert_eq!(serde_json::from_str::<ServiceInfo>(json).unwrap().key().to_string(), "G@@users", "{json}");
        }
    }

    #[test]
    fn an_answer_without_hosts_is_not_an_empty_one() {
        for json in [r#"{"name":"users"}"#, r#"{"name":"users","hosts":null}"#, "{}", "null", "[]"] {
            assert!(serde_json::from_str::<ServiceInfo>(json).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<ServiceAnswer>(r#"{"resultCode":200,"serviceInfo":null}"#).is_err());
    }

    #[test]
    fn outcomes_are_told_apart() {
        let failed = br#"{"resultCode":500,"errorCode":301,"message":"Connection is unregistered.","success":false}"#;
        let outcome: Outcome = serde_json::from_slice(failed).unwrap();
        assert_eq!((outcome.is_success(), outcome.error_code), (false, 301));
        let outcome: Outcome = serde_json::from_str(r#"{"resultCode":200,"errorCode":0,"success":true}"#).unwrap();
        assert!(outcome.is_success());
    }
}
