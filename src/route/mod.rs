//! Which service a request is for.

use crate::{
    config,
    error::{ProxyError, Reason},
};
use http::{HeaderMap, HeaderName, Request, header::HOST};

/// How a listener finds the service's name.
#[derive(Debug, Clone)]
pub struct Rule {
    fixed: Option<String>,
    header: Option<HeaderName>,
    suffixes: Vec<String>,
}

/// A name longer than a host name can be is no service's.
const MAX_NAME: usize = 253;

impl Rule {
    pub fn new(listener: &config::Listener) -> Self {
        Self {
            fixed: listener.service.clone(),
            // The config was validated; a name that is none after all is as good as absent.
            header: listener.service_header.as_ref().and_then(|name| name.parse().ok()),
            suffixes: listener.host_suffixes.clone(),
        }
    }
}

/// The name of the service that the request is for.
pub fn service<'r, B>(request: &'r Request<B>, rule: &'r Rule) -> Result<&'r str, ProxyError> {
    if let Some(fixed) = &rule.fixed {
        return Ok(fixed);
    }
    let named = rule.header.as_ref().and_then(|name| request.headers().get(name));
    let name = match named {
        Some(value) => value.to_str().unwrap_or(""),
        None => strip(authority(request.uri(), request.headers()), &rule.suffixes),
    };
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_name_byte) {
        let shown: String = name.chars().take(80).flat_map(char::escape_default).collect();
        let detail = match named {
            Some(_) => format!("the service header's value `{shown}` cannot be a service's name"),
            None if name.is_empty() => "the request names no host, so no service".into(),
            None => format!("the host `{shown}` cannot be a service's name"),
        };
        return Err(ProxyError::new(Reason::UnknownService, detail));
    }
    Ok(name)
}

/// The host that the request is for, with its port if it has one: of the target if it has one, else of `Host`.
pub fn authority<'r>(uri: &'r http::Uri, headers: &'r HeaderMap) -> &'r str {
    match uri.authority() {
        Some(authority) => authority.as_str(),
        None => headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or(""),
    }
}

/// Without user, port, a final dot, and the first suffix that fits.
fn strip<'h>(host: &'h str, suffixes: &[String]) -> &'h str {
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let host = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    suffixes.iter().find_map(|suffix| strip_suffix_any_case(host, suffix)).unwrap_or(host)
}

fn strip_suffix_any_case<'h>(host: &'h str, suffix: &str) -> Option<&'h str> {
    let cut = host.len().checked_sub(suffix.len()).filter(|cut| *cut > 0)?;
    (host.is_char_boundary(cut) && host[cut..].eq_ignore_ascii_case(suffix)).then(|| &host[..cut])
}

/// What may stand in a service's name: it becomes part of registry keys and URLs.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.:~+@$".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(edit: impl FnOnce(&mut config::Listener)) -> Rule {
        let mut listener = config::Listener::egress();
        edit(&mut listener);
        Rule::new(&listener)
    }

    fn request(host: &str, more: &[(&str, &str)]) -> Request<()> {
        let builder = Request::get("/x").header("host", host);
        more.iter().fold(builder, |b, (name, value)| b.header(*name, *value)).body(()).unwrap()
    }

    #[test]
    fn the_host_names_the_service_without_port_and_suffix() {
        let rule = rule(|l| l.host_suffixes = vec![".svc.cluster.local".into(), ".local".into()]);
        for (host, name) in [
            ("user-service", "user-service"),
            ("user-service:8080", "user-service"),
            ("users.svc.cluster.local:80", "users"),
            ("users.Local", "users"),
            ("users.", "users"),
            (".local", ".local"),
            ("helloworld.Greeter", "helloworld.Greeter"),
        ] {
            assert_eq!(service(&request(host, &[]), &rule).unwrap(), name, "{host}");
        }
    }

    #[test]
    fn the_target_has_precedence_over_the_host_header() {
        let request = Request::get("http://users:81/x").header("host", "other").body(()).unwrap();
        assert_eq!(service(&request, &rule(|_| ())).unwrap(), "users");
    }

    #[test]
    fn a_header_or_the_listener_can_name_it() {
        let by_header = rule(|l| l.service_header = Some("x-service".into()));
        assert_eq!(service(&request("a", &[("x-service", "b")]), &by_header).unwrap(), "b");
        assert_eq!(service(&request("a", &[]), &by_header).unwrap(), "a");
        let fixed = rule(|l| l.service = Some("c".into()));
        assert_eq!(service(&request("", &[]), &fixed).unwrap(), "c");
    }

    #[test]
    fn what_cannot_be_a_name_is_an_unknown_service() {
        for host in ["", "a/b", "a b", "ä", &"x".repeat(254)] {
            let error = service(&request(host, &[]), &rule(|_| ())).unwrap_err();
            assert_eq!(error.reason, Reason::UnknownService, "{host}");
        }
    }
}
