//! The file that kubectl and its like are set up with.

#[cfg(test)]
mod tests;

use super::access::{Access, Token, server};
use crate::{
    config::{self, KubernetesRegistry, Secret},
    net::tls::{self, Pem},
    registry::SetupError,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, de::IgnoredAny};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[derive(Default)]
struct Kubeconfig {
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
    contexts: Option<Vec<NamedContext>>,
    current_context: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: Option<Secret>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    username: Option<String>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: Option<String>,
    namespace: Option<String>,
}

/// What the file at `path` says of the context that `settings` name, or of its current one.
pub fn read(path: &Path, settings: &KubernetesRegistry) -> Result<Access, SetupError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| SetupError::Access(format!("cannot read {name}: {error}")))?;
    let file: Kubeconfig = config::read(&name, &bytes).map_err(|errors| SetupError::Access(errors.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    file.access(folder, settings).map_err(|error| match error {
        SetupError::Access(cause) => SetupError::Access(format!("{name}: {cause}")),
        other => other,
    })
}

impl Kubeconfig {
    fn access(self, folder: &Path, settings: &KubernetesRegistry) -> Result<Access, SetupError> {
        let wanted = settings.context.clone().or(self.current_context).filter(|name| !name.is_empty());
        let wanted = wanted.ok_or_else(|| fault("it has no `current-context`; set `context`"))?;
        let context = named(self.contexts, "context", &wanted, |it| &it.name)?.context;
        let cluster = named(self.clusters, "cluster", &context.cluster, |it| &it.name)?.cluster;
        let user = match context.user.filter(|name| !name.is_empty()) {
            Some(name) => named(self.users, "user", &name, |it| &it.name)?.user,
            None => User::default(),
        };
        if cluster.insecure_skip_tls_verify == Some(true) && !settings.insecure_skip_tls_verify {
            return Err(fault(
                "the cluster has `insecure-skip-tls-verify`, so that anybody could answer in its place; \
                 set `insecure_skip_tls_verify: true` if you want that",
            ));
        }
        if cluster.proxy_url.is_some() {
            return Err(fault("the cluster has a `proxy-url`, which pillion does not support"));
        }
        Ok(Access {
            servers: vec![server(&cluster.server)?],
            tls: tls::Client {
                ca: pem(
                    folder,
                    "certificate-authority-data",
                    cluster.certificate_authority_data,
                    cluster.certificate_authority,
                )?,
                cert: pem(
                    folder,
                    "client-certificate-data",
                    user.client_certificate_data.clone(),
                    user.client_certificate.clone(),
                )?,
                key: pem(folder, "client-key-data", user.client_key_data.clone(), user.client_key.clone())?,
                server_name: cluster.tls_server_name.filter(|name| !name.is_empty()),
                unverified: false,
            },
            token: user.token(folder)?,
            namespace: context.namespace.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into()),
        })
    }
}

impl User {
    fn token(self, folder: &Path) -> Result<Token, SetupError> {
        let foreign = [("exec", self.exec.is_some()), ("auth-provider", self.auth_provider.is_some())];
        if let Some((key, _)) = foreign.into_iter().find(|(_, there)| *there) {
            return Err(fault(&format!(
                "the user's credentials come from another program (`{key}`), which pillion does not run; \
                 use a token or a certificate, or run `kubectl proxy` and set `servers: [\"http://127.0.0.1:8001\"]`"
            )));
        }
        if self.username.is_some_and(|name| !name.is_empty()) {
            return Err(fault("the user has a `username`, which Kubernetes has not taken since 1.19"));
        }
        // As kubectl has it: the file, which may be renewed, before the token beside it.
        match (self.token_file, self.token) {
            (Some(path), _) if path != Path::new("") => Ok(Token::File(folder.join(path))),
            (_, Some(token)) if !token.expose().is_empty() => Token::fixed(&token),
            _ => Ok(Token::None),
        }
    }
}

fn fault(cause: &str) -> SetupError {
    SetupError::Access(cause.into())
}

fn named<T>(list: Option<Vec<T>>, kind: &str, wanted: &str, name: impl Fn(&T) -> &String) -> Result<T, SetupError> {
    let found = list.unwrap_or_default().into_iter().find(|one| name(one) == wanted);
    found.ok_or_else(|| fault(&format!("it has no {kind} named `{wanted}`")))
}

/// The text that is in the file itself goes before the path of another.
fn pem(
    folder: &Path,
    name: &'static str,
    data: Option<String>,
    file: Option<PathBuf>,
) -> Result<Option<Pem>, SetupError> {
    let Some(data) = data.filter(|data| !data.is_empty()) else {
        return Ok(file.filter(|path| path != Path::new("")).map(|path| Pem::File(folder.join(path))));
    };
    let text = BASE64.decode(data.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.ok_or_else(|| fault(&format!("`{name}` is no base64 of a PEM text")))?;
    Ok(Some(Pem::Text { name, text: Secret::new(text) }))
}
