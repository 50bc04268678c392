//! Where the API server is, whom to trust there, and who we are: from the config, the pod that we run in, or a kubeconfig.

use super::kubeconfig;
use crate::{
    config::{KubernetesRegistry, Secret},
    net::tls::{self, Pem},
    registry::{SetupError, server::Server},
};
use http::HeaderValue;
use std::path::{Path, PathBuf};

/// Where Kubernetes puts what a pod needs.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";
/// Where services are whose namespace nobody names; Kubernetes' own word.
const DEFAULT_NAMESPACE: &str = "default";
const EXPECTED: &str = "`https://HOST:PORT` or `http://HOST:PORT`";

/// All that there is to know before a connection is made.
#[derive(Debug)]
pub struct Access {
    pub servers: Vec<Server>,
    pub tls: tls::Client,
    pub token: Token,
    pub namespace: String,
}

/// What proves who we are, besides a certificate.
#[derive(Debug, Clone)]
pub enum Token {
    None,
    Fixed(HeaderValue),
    /// Read for each request: Kubernetes renews it every hour or so.
    File(PathBuf),
}

impl Access {
    pub fn find(config: &KubernetesRegistry) -> Result<Self, SetupError> {
        Self::find_in(config, Path::new(ACCOUNT), |name| std::env::var(name).ok())
    }

    fn find_in(
        config: &KubernetesRegistry,
        account: &Path,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SetupError> {
        let mut access = match &config.kubeconfig {
            Some(path) => kubeconfig::read(path, config)?,
            None if config.servers.is_empty() => Self::of_pod(account, env)?,
            None => Self::explicit(config)?,
        };
        access.tls.unverified |= config.insecure_skip_tls_verify;
        if let Some(namespace) = &config.namespace {
            access.namespace.clone_from(namespace);
        }
        Ok(access)
    }

    fn explicit(config: &KubernetesRegistry) -> Result<Self, SetupError> {
        let token = match (&config.token, &config.token_file) {
            (Some(token), _) => Token::fixed(token)?,
            (None, Some(path)) => Token::File(path.clone()),
            (None, None) => Token::None,
        };
        Ok(Self {
            servers: config.servers.iter().map(|url| server(url)).collect::<Result<_, _>>()?,
            tls: (&config.tls).into(),
            token,
            namespace: DEFAULT_NAMESPACE.into(),
        })
    }

    fn of_pod(account: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Self, SetupError> {
        let (Some(host), Some(port)) = (env(HOST), env(PORT)) else {
            let cause = format!("this process is in no Kubernetes ({HOST} is not set); set `kubeconfig` or `servers`");
            return Err(SetupError::Access(cause));
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let file = |name: &str| account.join(name);
        let read = |name: &str| std::fs::read_to_string(file(name));
        read("token").map_err(|error| {
            let path = file("token");
            SetupError::Access(format!("the pod has no service account's token: {}: {error}", path.display()))
        })?;
        let namespace = read("namespace").unwrap_or_default();
        let namespace = if namespace.trim().is_empty() { DEFAULT_NAMESPACE } else { namespace.trim() };
        Ok(Self {
            servers: vec![server(&format!("https://{host}:{port}"))?],
            tls: tls::Client { ca: Some(Pem::File(file("ca.crt"))), ..Default::default() },
            token: Token::File(file("token")),
            namespace: namespace.into(),
        })
    }
}

impl Token {
    pub fn fixed(token: &Secret) -> Result<Self, SetupError> {
        header(token.expose()).map(Self::Fixed).ok_or(SetupError::Token)
    }

    /// As requests carry it, or why it cannot be had.
    pub async fn header(&self) -> Result<Option<HeaderValue>, String> {
        let path = match self {
            Self::None => return Ok(None),
            Self::Fixed(header) => return Ok(Some(header.clone())),
            Self::File(path) => path,
        };
        let token = tokio::fs::read_to_string(path).await;
        let token = token.map_err(|error| format!("there is no token: {}: {error}", path.display()))?;
        match header(token.trim()) {
            Some(header) => Ok(Some(header)),
            None => Err(format!("there is no token: {} holds something else", path.display())),
        }
    }
}

fn header(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| !token.is_empty())?;
    header.set_sensitive(true);
    Some(header)
}

/// A server from its URL, whose port may be left out.
pub fn server(url: &str) -> Result<Server, SetupError> {
    let bad = || SetupError::Address { text: url.into(), expected: EXPECTED };
    let uri: http::Uri = url.parse().map_err(|_| bad())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(bad()) };
    if authority.port().is_some() {
        return Server::with_base(url, EXPECTED);
    }
    let port = if scheme == "https" { 443 } else { 80 };
    let whole = format!("{scheme}://{authority}:{port}{}", uri.path_and_query().map_or("", |rest| rest.as_str()));
    let server = Server::with_base(&whole, EXPECTED).map_err(|_| bad())?;
    Ok(Server { text: url.trim_end_matches('/').into(), ..server })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn pod(host: &'static str) -> impl Fn(&str) -> Option<String> {
        move |name| match name {
            HOST => Some(host.into()),
            PORT => Some("6443".into()),
            _ => None,
        }
    }

    #[test]
    fn in_a_pod_all_is_found() {
        let account = tempfile::tempdir().unwrap();
        let config = KubernetesRegistry::default();
        let error = Access::find_in(&config, account.path(), pod("10.96.0.1")).unwrap_err().to_string();
        assert!(error.contains("no service account's token") && error.contains("/token"), "{error}");
        fs::write(account.path().join("token"), "secret\n").unwrap();
        let access = Access::find_in(&config, account.path(), pod("10.96.0.1")).unwrap();
        assert_eq!((access.servers[0].text.as_str(), access.namespace.as_str()), ("https://10.96.0.1:6443", "default"));
        fs::write(account.path().join("namespace"), "shop\n").unwrap();
        let access = Access::find_in(&config, account.path(), pod("fd00::1")).unwrap();
        assert_eq!((access.servers[0].host.as_str(), access.namespace.as_str()), ("fd00::1", "shop"));
        assert!(access.tls.ca.is_some_and(|ca| ca.to_string().ends_with("/ca.crt")));
        let other = KubernetesRegistry { namespace: Some("other".into()), ..config };
        assert_eq!(Access::find_in(&other, account.path(), pod("10.96.0.1")).unwrap().namespace, "other");
    }

    #[test]
    fn outside_of_a_pod_something_must_be_said() {
        let error = Access::find_in(&KubernetesRegistry::default(), Path::new("/"), |_| None).unwrap_err().to_string();
        assert!(error.contains("set `kubeconfig` or `servers`"), "{error}");
    }

    #[test]
    fn servers_may_leave_out_their_port_and_have_a_path() {
        for (url, shown, base) in [
            ("https://a.eks.amazonaws.com", "https://a.eks.amazonaws.com:443", ""),
            ("https://rancher/k8s/clusters/c-1/", "https://rancher:443", "/k8s/clusters/c-1"),
            ("http://127.0.0.1:8001", "http://127.0.0.1:8001", ""),
            ("https://[::1]:6443", "https://[::1]:6443", ""),
        ] {
            let server = server(url).unwrap();
            let origin = server.origin.to_string();
            assert_eq!((origin.trim_end_matches('/'), server.base.as_str()), (shown, base), "{url}");
        }
        for url in ["", "127.0.0.1:6443", "tcp://a:1", "https://u:p@a", "https://a?x=y"] {
            assert!(server(url).is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_token_file_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = Token::File(file.path().into());
        assert!(token.header().await.unwrap_err().contains("holds something else"));
        for text in ["first", "second\n"] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(token.header().await.unwrap().unwrap(), format!("Bearer {}", text.trim()));
        }
        drop(file);
        assert!(token.header().await.unwrap_err().contains("No such file"));
        assert!(matches!(Token::fixed(&Secret::new("a\nb")), Err(SetupError::Token)));
    }
}
