//! Where traffic comes in.

use super::{
    super::{
        app_address::{AddressOrApp, address_or_app},
        human,
    },
    App, Direction, Transparent, Unknown, localhost,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};

/// One place where pillion takes traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// What it is called, in metrics and logs.
    pub name: String,
    /// `IP:PORT`.
    pub listen: SocketAddr,
    #[serde(default)]
    pub protocol: ListenerProtocol,
    /// The local application: all requests go to it, whatever they ask for, and the listener is an inbound one. A port of
    /// 127.0.0.1, `IP:PORT`, or a map.
    #[serde(default, deserialize_with = "address_or_app", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AddressOrApp")]
    pub app: Option<App>,
    /// It takes what the kernel redirects to it (`pillion net up`), and looks where each connection was to go. Goes with
    /// `protocol: auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transparent: Option<Transparent>,
    /// All requests, or connections, go to this service, whatever they ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// A request header that names the service; `Host` by default and where the header is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_header: Option<String>,
    /// Endings to take off the `Host`, or the TLS server's name, to get the service's name, e.g. `.svc.cluster.local`. The
    /// first that fits is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_suffixes: Vec<String>,
    /// Pass HTTP/1.1 header names on with upper and lower case as they came, for old applications.
    #[serde(default)]
    pub preserve_header_case: bool,
    /// Each connection begins with a PROXY protocol header (version 1 or 2), which says whom it comes from; those without are
    /// closed.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Open tunnels for clients that ask for them by `CONNECT host:port`, as they do with pillion as their proxy (`HTTPS_PROXY`).
    /// The host is a service's name, as in `Host`. Without this key there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Connect>,
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
    /// Anything over TCP: bytes are carried as they come. The listener needs a `service` or an `app`.
    Tcp,
    /// Anything over TLS, which is not ended here: the service is the server's name in the ClientHello (SNI), less what
    /// `host_suffixes` says, and bytes are carried as they come.
    Tls,
    /// Found out for each connection from its first bytes: HTTP/1.1, HTTP/2, or anything else, whose bytes are carried as they
    /// come. Where the client waits for the server to speak first, it need not wait long. The listener needs `transparent`,
    /// a `service` or an `app`.
    Auto,
    /// Datagrams, in sessions by client address and port. The listener needs a `service`.
    Udp,
}

/// Where tunnels may go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Connect {
    /// What becomes of those whose host is no service that a registry or this config knows, or is an IP address.
    pub unknown: Unknown,
    /// The ports to which they are passed on.
    pub ports: Vec<u16>,
    /// For those that are passed on: to find the host's addresses, and to connect to each.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub timeout: Duration,
    /// One that was passed on is closed when nothing came or went for so long. (For services, `tcp.idle_timeout` says it.)
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle_timeout: Duration,
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
    /// From a request's first byte to the end of its head; more is answered with 408. From a connection's start to the end of
    /// its ClientHello or PROXY protocol header, where it must have one.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub head_timeout: Duration,
    /// With `protocol: auto`, from a connection's first byte until it is clear what it speaks; after that it is carried as
    /// bytes.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub detect_timeout: Duration,
    /// A connection without any request for this long is closed.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle_timeout: Duration,
    /// Requests at one time on one HTTP/2 connection.
    pub h2_streams: u32,
}

impl Listener {
    /// Whether its traffic is for the local application, and not the application's own.
    pub fn is_inbound(&self) -> bool {
        let redirects_inbound = |transparent: &Transparent| transparent.direction == Direction::Inbound;
        self.app.is_some() || self.transparent.as_ref().is_some_and(redirects_inbound)
    }

    /// The listener that there is when the config names none.
    pub fn egress() -> Self {
        Self {
            name: "egress".into(),
            listen: localhost(4140),
            protocol: ListenerProtocol::Http,
            app: None,
            transparent: None,
            service: None,
            service_header: None,
            host_suffixes: Vec::new(),
            preserve_header_case: false,
            proxy_protocol: false,
            connect: None,
            limits: ListenerLimits::default(),
        }
    }
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            unknown: Unknown::Refuse,
            ports: vec![443],
            timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60 * 60),
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
            detect_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(300),
            h2_streams: 100,
        }
    }
}
