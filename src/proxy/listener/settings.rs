//! What a listener is told by the config, and which way its traffic goes.

use crate::{
    config::{self, ListenerLimits, ListenerProtocol, Transparent},
    inbound::LocalApp,
    proxy::{callers, tcp},
    registry::Address,
    route,
    telemetry::Telemetry,
};
use http::HeaderValue;
use std::{net::SocketAddr, rc::Rc, sync::Arc};

/// What can change while a listener is up.
#[derive(Debug)]
pub struct Settings {
    pub protocol: ListenerProtocol,
    /// Whether each connection says first whom it comes from.
    pub proxy_protocol: bool,
    /// Of a listener for what the kernel redirects.
    pub transparent: Option<Transparent>,
    pub way: Way,
    pub limits: ListenerLimits,
    /// Whether header names keep their case.
    pub keep_case: bool,
}

/// Which way a listener's traffic goes.
#[derive(Debug)]
pub enum Way {
    /// From the local application to the services that it asks for.
    Outbound {
        rule: route::Rule,
        /// What they are told that the application is called.
        caller: Option<HeaderValue>,
        /// Where tunnels may go, where there may be any.
        tunnels: Option<tcp::Tunnels>,
    },
    /// To the local application.
    Inbound {
        app: Arc<LocalApp>,
        callers: callers::Rule,
        /// What requests are told of versions.
        marking: Option<route::Marking>,
    },
}

/// Whom a listener's traffic comes from, or goes to.
#[derive(Debug, Clone)]
pub enum Side {
    /// From the local application, which has this name.
    From(Option<Arc<str>>),
    /// To the local application, which has this version.
    To(Arc<LocalApp>, Option<Arc<str>>),
}

impl Settings {
    pub(super) fn new(config: &config::Listener, side: Side, telemetry: &Telemetry) -> Rc<Self> {
        Rc::new(Self {
            protocol: config.protocol,
            proxy_protocol: config.proxy_protocol,
            transparent: config.transparent.clone(),
            way: Way::new(config, side, telemetry),
            limits: config.limits.clone(),
            keep_case: config.preserve_header_case,
        })
    }
}

impl Way {
    fn new(config: &config::Listener, side: Side, telemetry: &Telemetry) -> Self {
        match side {
            Side::To(app, version) => {
                let config::Callers { header, max, idle } =
                    config.app.as_ref().map(|app| app.callers.clone()).unwrap_or_default();
                // The config was validated; a name that is none after all is one that no request has.
                let header = header.parse().unwrap_or(route::X_PILLION_CALLER);
                let marking =
                    config.app.as_ref().and_then(|app| route::Marking::new(&app.version_baggage, version.as_ref()));
                Self::Inbound { app, callers: callers::Rule { header, max, idle }, marking }
            }
            Side::From(name) => Self::Outbound {
                rule: route::Rule::new(config),
                // Made anew on each worker, so that they do not all count the references to one.
                caller: name.and_then(|name| route::caller_name(&name)),
                tunnels: config.connect.as_ref().map(|connect| tcp::Tunnels::new(connect, telemetry)),
            },
        }
    }

    /// Where the local application is that it goes to.
    pub fn app_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Inbound { app, .. } => match app.cluster.load().endpoints.first()?.instance.address {
                Address::Ip(address) => Some(address),
                Address::Name { .. } => None,
            },
            Self::Outbound { .. } => None,
        }
    }

    /// Which local application it goes to, to tell one from another.
    pub(super) fn app(&self) -> Option<*const LocalApp> {
        match self {
            Self::Inbound { app, .. } => Some(Arc::as_ptr(app)),
            Self::Outbound { .. } => None,
        }
    }
}
