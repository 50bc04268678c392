//! The address of one of a registry's servers, as the operator writes it.

use super::SetupError;
use http::Uri;

/// One server: a member of a cluster, an agent, a peer.
#[derive(Debug, Clone)]
pub struct Server {
    /// As the operator wrote it: what errors name.
    pub text: String,
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub origin: Uri,
    /// Without the brackets of IPv6.
    pub host: String,
    pub port: u16,
    pub secure: bool,
    /// What requests' paths begin with: empty, or with a `/` at the start and none at the end.
    pub base: String,
}

impl Server {
    /// Those of a list, which must have one at least.
    pub fn parse_all(texts: &[String]) -> Result<Vec<Self>, SetupError> {
        if texts.is_empty() {
            return Err(SetupError::Address { text: String::new(), expected: "at least one address" });
        }
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    /// From `HOST:PORT`, as registries that do not speak HTTP are written.
    pub fn from_host_and_port(text: &str) -> Result<Self, SetupError> {
        let expected = "`HOST:PORT`";
        let server = Self::with_base(&format!("http://{text}"), expected);
        match server {
            Ok(server) if server.base.is_empty() && text.ends_with(&format!(":{}", server.port)) => {
                Ok(Self { text: text.into(), ..server })
            }
            _ => Err(SetupError::Address { text: text.into(), expected }),
        }
    }

    /// From `http://HOST:PORT` or `https://HOST:PORT`.
    pub fn parse(text: &str) -> Result<Self, SetupError> {
        let expected = "`http://HOST:PORT` or `https://HOST:PORT`";
        let server = Self::with_base(text, expected)?;
        if server.base.is_empty() { Ok(server) } else { Err(SetupError::Address { text: text.into(), expected }) }
    }

    /// From the same with a path behind it, perhaps. `expected` is for the error.
    pub fn with_base(text: &str, expected: &'static str) -> Result<Self, SetupError> {
        let bad = || SetupError::Address { text: text.into(), expected };
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(bad()) };
        let secure = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(bad()),
        };
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            // As for every URL; but what is no number is no port left out.
            None if uri.authority().is_some_and(|authority| authority.as_str() == host) => {
                [80, 443][usize::from(secure)]
            }
            None => return Err(bad()),
        };
        // A user in it would be taken for a part of the host.
        if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(bad());
        }
        let origin = format!("{scheme}://{host}:{port}").parse().map_err(|_| bad())?;
        let base = uri.path().trim_end_matches('/').to_owned();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { text: text.trim_end_matches('/').into(), origin, host, port, secure, base })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_urls() {
        let server = Server::parse("https://[::1]:2379").unwrap();
        assert_eq!((server.host.as_str(), server.port, server.secure), ("::1", 2379, true));
        assert_eq!(Server::parse("http://etcd-0.etcd:2379/").unwrap().origin, "http://etcd-0.etcd:2379");
        assert_eq!(["http://a", "https://a"].map(|text| Server::parse(text).unwrap().port), [80, 443]);
        let bad = ["", "127.0.0.1:2379", "etcd://a:1", "http://a:1/path", "http://a:1?x=y", "http://u:p@a:1"];
        for text in bad {
            let error = Server::parse(text).unwrap_err().to_string();
            assert!(error.contains("expected `http://HOST:PORT`"), "{text}: {error}");
        }
    }

    #[test]
    fn servers_without_http_are_host_and_port() {
        let server = Server::from_host_and_port("[::1]:6379").unwrap();
        assert_eq!((server.text.as_str(), server.host.as_str(), server.port), ("[::1]:6379", "::1", 6379));
        for text in ["", "a", "a:", "a:x", "a:1/path", "u:p@a:1", "redis://a:1"] {
            let error = Server::from_host_and_port(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}` is not")) && error.contains("expected `HOST:PORT`"), "{error}");
        }
    }

    #[test]
    fn a_path_is_kept_where_it_may_be() {
        for (text, base) in [("http://a:1", ""), ("http://a:1/", ""), ("http://a:1/x/y/", "/x/y")] {
            assert_eq!(Server::with_base(text, "").unwrap().base, base);
        }
    }
}
