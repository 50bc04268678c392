//! How to reach Kubernetes, and what to take from there.

use super::{
    super::{Secret, Tls},
    Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{num::NonZeroU16, path::PathBuf};

/// Kubernetes: a service's EndpointSlices, from the API server. Without `servers` and `kubeconfig` it is the cluster that
/// pillion runs in, with the pod's service account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesRegistry {
    /// API servers of one cluster: `https://HOST:PORT`, or `http://HOST:PORT` for a `kubectl proxy`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// A kubeconfig file, which says all that `servers`, `token`, `token_file` and `tls` would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// One of the kubeconfig's contexts; its current one by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Where services are that are called by their name alone, and not as `SERVICE.NAMESPACE`. By default the pod's or the
    /// context's own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The bearer token for `servers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// A file with it, which is read again for each request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Which of an endpoint's ports, by name or number (the pod's port, not the service's). By default the only one there
    /// is, or that named `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<KubernetesPort>,
    /// Which addresses to use of services that have both.
    pub ip_family: IpFamily,
    /// Whether a service whose endpoints all carry zone hints is called only at those meant for `node.zone`.
    pub zone_hints: bool,
    /// Takes whatever certificate the API server shows, so that anybody could answer in its place.
    pub insecure_skip_tls_verify: bool,
    #[serde(skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}

/// A port's name, or its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum KubernetesPort {
    Number(NonZeroU16),
    Name(String),
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    #[default]
    Ipv4,
    Ipv6,
}

impl KubernetesRegistry {
    /// Whether it can be the name of a service, a namespace or a port: a DNS label.
    pub fn is_name(text: &str) -> bool {
        (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }

    /// The ConfigMap with the values below a path of the store, if the path makes a name for one: a DNS subdomain.
    pub fn config_map(path: &str) -> Option<String> {
        let is_label = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            label.bytes().all(|byte| inner(byte) || byte == b'-')
                && label.bytes().next().is_some_and(inner)
                && label.bytes().last().is_some_and(inner)
        };
        let is_name = path.len() <= 253 && path.split(['/', '.']).all(is_label);
        is_name.then(|| path.replace('/', "-"))
    }
}

impl KubernetesPort {
    /// From a number, or a name as Kubernetes allows it, which is never only digits.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse() {
            return Some(Self::Number(number));
        }
        let name_like = KubernetesRegistry::is_name(text) && text.bytes().any(|b| b.is_ascii_lowercase());
        name_like.then(|| Self::Name(text.into()))
    }
}

impl Default for KubernetesRegistry {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            kubeconfig: None,
            context: None,
            namespace: None,
            token: None,
            token_file: None,
            port: None,
            ip_family: IpFamily::default(),
            // Whoever owns the service has asked for them.
            zone_hints: true,
            insecure_skip_tls_verify: false,
            tls: Tls::default(),
            scope: Scope::default(),
        }
    }
}
