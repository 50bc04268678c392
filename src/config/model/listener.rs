//! Where traffic comes in.

use super::{super::human, localhost};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};

/// One place where pillion takes traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    pub name: String,
    pub listen: SocketAddr,
    #[serde(default)]
    pub protocol: ListenerProtocol,
    /// All requests go to this service, whatever they ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// A request header that names the service; `Host` by default and where the header is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_header: Option<String>,
    /// Endings to take off the `Host` to get the service's name, e.g. `.svc.cluster.local`. The first that fits is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_suffixes: Vec<String>,
    /// Pass HTTP/1.1 header names on with upper and lower case as they came, for old applications.
    #[serde(default)]
    pub preserve_header_case: bool,
    #[serde(default)]
    pub limits: ListenerLimits,
}

/// What a listener's clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum ListenerProtocol {
    /// HTTP/1.1 and HTTP/2 (prior knowledge) on one port.
    #[default]
    Http,
}

/// What one listener accepts before it refuses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Open connections, over all workers. Further ones are closed at once.
    pub connections: usize,
    /// Bytes of a request's head; more is answered with 431. From 1024 to 1048576.
    pub head_bytes: usize,
    /// Lines of a request's head; more is answered with 431.
    pub head_lines: usize,
    /// From a request's first byte to the end of its head; more is answered with 408.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub head_timeout: Duration,
    /// A connection without any request for this long is closed.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle_timeout: Duration,
    /// Requests at one time on one HTTP/2 connection.
    pub h2_streams: u32,
}

impl Listener {
    /// The listener that there is when the config names none.
    pub fn egress() -> Self {
        Self {
            name: "egress".into(),
            listen: localhost(4140),
            protocol: ListenerProtocol::Http,
            service: None,
            service_header: None,
            host_suffixes: Vec::new(),
            preserve_header_case: false,
            limits: ListenerLimits::default(),
        }
    }
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head_bytes: 64 * 1024,
            head_lines: 100,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            h2_streams: 100,
        }
    }
}
