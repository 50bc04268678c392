//! How a listener finds the service that a request is for.

use super::condition::host_and_port;
use crate::{
    config,
    error::{ProxyError, Reason},
};
use http::{HeaderMap, HeaderName, Request, header::HOST};
use std::net::IpAddr;

/// How a listener finds the service's name.
#[derive(Debug, Clone)]
pub struct Rule {
    fixed: Option<String>,
    header: Option<HeaderName>,
    suffixes: Vec<String>,
}

/// A service's name, as a client gives it that may mean somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'n> {
    pub service: &'n str,
    /// Whether it looks like that of a host elsewhere, which no registry is to be asked about.
    pub may_be_stranger: bool,
    /// Whether it is a host's, and so the same in any case.
    pub is_host: bool,
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

impl Rule {
    /// The service whose server has this name.
    pub fn of_server<'n>(&self, name: &'n str) -> Result<&'n str, ProxyError> {
        let service = strip(name, &self.suffixes);
        if is_name(service) { Ok(service) } else { Err(no_name("the server's name", service)) }
    }

    /// The service that a host's name may be that of.
    pub fn of_stranger<'n>(&self, host: &'n str) -> Option<Named<'n>> {
        let (bare, _) = host_and_port(host);
        let service = strip(host, &self.suffixes);
        let is_address = bare.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let may_be_stranger = service.len() == bare.len() && bare.contains('.');
        (is_name(service) && !is_address).then_some(Named { service, may_be_stranger, is_host: true })
    }

    /// The service that a request may be for, by what it names.
    pub fn names<'r, B>(&'r self, request: &'r Request<B>) -> Option<Named<'r>> {
        match self.header.as_ref().and_then(|name| request.headers().get(name)) {
            Some(value) => {
                let service = value.to_str().ok().filter(|name| is_name(name))?;
                Some(Named { service, may_be_stranger: false, is_host: false })
            }
            None => self.of_stranger(authority(request.uri(), request.headers())),
        }
    }

    /// The service of a listener whose connections all go to one.
    pub fn fixed(&self) -> Result<&str, ProxyError> {
        // The config was validated: there is one.
        self.fixed.as_deref().ok_or_else(|| ProxyError::new(Reason::UnknownService, "the listener has no service"))
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
    match named {
        _ if is_name(name) => Ok(name),
        Some(_) => Err(no_name("the service header's value", name)),
        None if name.is_empty() => {
            Err(ProxyError::new(Reason::UnknownService, "the request names no host, so no service"))
        }
        None => Err(no_name("the host", name)),
    }
}

/// Whether that name is the request's host. (Hosts are the same in any case; what the config or a header says is as it is.)
pub fn is_host<B>(request: &Request<B>, rule: &Rule) -> bool {
    let is_in_header = || rule.header.as_ref().is_some_and(|name| request.headers().contains_key(name));
    rule.fixed.is_none() && !is_in_header()
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(is_name_byte)
}

fn no_name(what: &str, name: &str) -> ProxyError {
    let shown: String = name.chars().take(80).flat_map(char::escape_default).collect();
    ProxyError::new(Reason::UnknownService, format!("{what} `{shown}` cannot be a service's name"))
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
    let (host, _) = host_and_port(host);
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
    fn hosts_elsewhere_are_told_from_services() {
        let rule = rule(|l| {
            l.host_suffixes = vec![".mesh".into()];
            l.service_header = Some("x-service".into());
        });
        for (host, named) in [
            ("users", Some(("users", false))),
            ("users:80", Some(("users", false))),
            ("users.", Some(("users", false))),
            ("users.mesh:80", Some(("users", false))),
            ("com.example.Users.mesh", Some(("com.example.Users", false))),
            ("www.example.com", Some(("www.example.com", true))),
            ("10.0.0.1", None),
            ("10.0.0.1:80", None),
            ("[fd00::1]:80", None),
            ("[fd00::1]", None),
            ("", None),
        ] {
            let found = rule.of_stranger(host).map(|named| (named.service, named.may_be_stranger));
            assert_eq!(found, named, "{host}");
        }
        let asked = request("www.example.com", &[("x-service", "com.example.Users")]);
        assert_eq!(
            rule.names(&asked),
            Some(Named { service: "com.example.Users", may_be_stranger: false, is_host: false })
        );
        assert_eq!(rule.names(&request("a", &[("x-service", "b c")])), None);
    }

    #[test]
    fn what_cannot_be_a_name_is_an_unknown_service() {
        for host in ["", "a/b", "a b", "ä", &"x".repeat(254)] {
            let error = service(&request(host, &[]), &rule(|_| ())).unwrap_err();
            assert_eq!(error.reason, Reason::UnknownService, "{host}");
        }
    }
}
