//! What `/api/explain` is asked.

use super::carried;
use crate::config::{self, Config, ListenerProtocol, shorten};
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri, header::HOST};
use percent_encoding::percent_decode_str;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A request that somebody asks about.
pub(super) struct Question {
    pub request: Request<()>,
    pub source: IpAddr,
    pub listener: Option<String>,
    /// The address that the client called, where the kernel redirects its connection.
    pub called: Option<SocketAddr>,
}

impl Question {
    pub fn read(query: &str) -> Result<Self, String> {
        let (mut method, mut url, mut source, mut listener, mut called) = (None, None, None, None, None);
        let mut builder = Request::builder();
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value);
            match key {
                "method" => method = Some(value),
                "url" => url = Some(value),
                "source" => source = Some(value),
                "listener" => listener = Some(value),
                "called" => called = Some(value),
                "header" => {
                    let field = value.split_once(':').and_then(|(name, value)| {
                        Some((name.trim().parse::<HeaderName>().ok()?, value.trim().parse::<HeaderValue>().ok()?))
                    });
                    let Some((name, value)) = field else {
                        return Err(format!("`{}` is no header", shorten(&value)));
                    };
                    builder = builder.header(name, value);
                }
                _ => return Err(format!("`{}` means nothing here", shorten(&decode(key)))),
            }
        }
        let url = url.ok_or("there is no `url`")?;
        let method = method.unwrap_or_else(|| "GET".into());
        let method: Method = method.parse().map_err(|_| format!("`{}` is no method", shorten(&method)))?;
        let uri: Uri = url.parse().map_err(|error| format!("`{}` is no URL: {error}", shorten(&url)))?;
        let source = match source {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(text) => text.parse().map_err(|_| format!("`{}` is no IP address", shorten(&text)))?,
        };
        let called = match called {
            None => carried::address_in(&uri),
            Some(text) => {
                let address = text.parse().map_err(|_| format!("`{}` is no address with a port", shorten(&text)))?;
                Some(carried::canonical(address))
            }
        };
        let host = uri.authority().map(|authority| authority.to_string());
        let mut request = builder.method(method).uri(uri).body(()).map_err(|error| error.to_string())?;
        if let Some(host) = host.filter(|_| !request.headers().contains_key(HOST))
            && let Ok(host) = host.parse()
        {
            request.headers_mut().insert(HOST, host);
        }
        Ok(Self { request, source, listener, called })
    }

    /// The listener that was asked for, or the first one for outbound traffic: of those that take requests, if there are any.
    pub fn listener<'c>(&self, config: &'c Config) -> Result<&'c config::Listener, String> {
        let mut listeners = config.listeners.iter();
        let Some(name) = &self.listener else {
            let outbound: Vec<_> = listeners.filter(|listener| !listener.is_inbound()).collect();
            let takes_requests = |listener: &&&config::Listener| {
                matches!(listener.protocol, ListenerProtocol::Http | ListenerProtocol::Auto)
            };
            let first = outbound.iter().find(takes_requests).or(outbound.first()).copied();
            return first.ok_or_else(|| "no listener is for outbound traffic; expected the name of another".into());
        };
        let names = || config.listeners.iter().map(|listener| listener.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = listeners.find(|listener| listener.name == *name);
        found.ok_or_else(|| format!("no listener is called `{}`; there are: {}", shorten(name), names()))
    }
}
