//! Kubeconfigs as kubectl, kind, EKS and GKE write them.

use super::*;
use std::fs;

const FILE: &str = "
apiVersion: v1
kind: Config
current-context: dev
preferences: {}
contexts:
- { name: dev, context: { cluster: local, user: me, namespace: shop } }
- { name: token, context: { cluster: local, user: token } }
- { name: files, context: { cluster: files, user: files } }
- { name: eks, context: { cluster: local, user: eks } }
- { name: gcp, context: { cluster: local, user: gcp } }
- { name: basic, context: { cluster: local, user: basic } }
- { name: open, context: { cluster: open } }
- { name: proxied, context: { cluster: proxied } }
- { name: nowhere, context: { cluster: gone } }
- { name: nobody, context: { cluster: local, user: gone } }
- { name: broken, context: { cluster: broken } }
clusters:
- name: local
  cluster: { server: 'https://127.0.0.1:6443', certificate-authority-data: Q0E=, tls-server-name: kubernetes, extensions: [{ name: x }] }
- { name: files, cluster: { server: 'https://k8s.example', certificate-authority: pki/ca.crt } }
- { name: open, cluster: { server: 'https://127.0.0.1:6443', insecure-skip-tls-verify: true } }
- { name: proxied, cluster: { server: 'https://a:1', proxy-url: 'socks5://b:1' } }
- { name: broken, cluster: { server: 'https://a:1', certificate-authority-data: '%%%' } }
users:
- { name: me, user: { client-certificate-data: Q0VSVA==, client-key-data: S0VZ } }
- { name: token, user: { token: sesame } }
- { name: files, user: { client-certificate: me.crt, client-key: /pki/me.key, tokenFile: token, token: stale } }
- { name: eks, user: { exec: { apiVersion: client.authentication.k8s.io/v1, command: aws, args: [eks, get-token] } } }
- { name: gcp, user: { auth-provider: { name: gcp } } }
- { name: basic, user: { username: admin, password: admin } }
";

fn with(settings: KubernetesRegistry) -> Result<Access, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    fs::write(&path, FILE).unwrap();
    let shown = |text: String| text.replace(folder.path().to_str().unwrap(), "DIR");
    read(&path, &settings).map_err(|error| shown(error.to_string()))
}

fn of(context: &str) -> Result<Access, String> {
    with(KubernetesRegistry { context: Some(context.into()), ..KubernetesRegistry::default() })
}

#[test]
fn the_current_context_counts_unless_another_is_named() {
    let access = with(KubernetesRegistry::default()).unwrap();
    assert_eq!((access.servers[0].text.as_str(), access.namespace.as_str()), ("https://127.0.0.1:6443", "shop"));
    assert!(matches!(access.token, Token::None));
    let text = |pem: Option<Pem>| match pem {
        Some(Pem::Text { text, .. }) => text.expose().to_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (text(access.tls.ca), text(access.tls.cert), text(access.tls.key)),
        ("CA".into(), "CERT".into(), "KEY".into())
    );
    assert_eq!(access.tls.server_name.as_deref(), Some("kubernetes"));
    let token = of("token").unwrap();
    assert_eq!(token.namespace, "default");
    assert!(matches!(token.token, Token::Fixed(header) if header == "Bearer sesame"));
}

#[test]
fn paths_are_relative_to_the_file() {
    let access = of("files").unwrap();
    let shown = |pem: Option<Pem>| pem.unwrap().to_string();
    assert!(shown(access.tls.ca).ends_with("/pki/ca.crt") && shown(access.tls.cert).ends_with("/me.crt"));
    assert_eq!(shown(access.tls.key), "/pki/me.key");
    assert!(matches!(access.token, Token::File(path) if path.is_absolute() && path.ends_with("token")));
    assert_eq!((access.servers[0].host.as_str(), access.servers[0].port), ("k8s.example", 443));
}

#[test]
fn what_cannot_work_is_said_clearly() {
    for (context, expected) in [
        ("eks", "DIR/config: the user's credentials come from another program (`exec`)"),
        ("gcp", "(`auth-provider`)"),
        ("basic", "since 1.19"),
        ("open", "set `insecure_skip_tls_verify: true`"),
        ("proxied", "`proxy-url`"),
        ("nowhere", "it has no cluster named `gone`"),
        ("nobody", "it has no user named `gone`"),
        ("missing", "it has no context named `missing`"),
        ("broken", "`certificate-authority-data` is no base64"),
    ] {
        let error = of(context).unwrap_err();
        assert!(error.contains(expected), "{context}: {error}");
    }
    let asked = KubernetesRegistry {
        context: Some("open".into()),
        insecure_skip_tls_verify: true,
        ..KubernetesRegistry::default()
    };
    assert!(with(asked).is_ok());
    let missing = read(Path::new("/no/such/config"), &KubernetesRegistry::default()).unwrap_err().to_string();
    assert!(missing.contains("cannot read /no/such/config"), "{missing}");
}

#[test]
fn a_file_that_is_something_else_is_said_to_be() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for text in ["", "[]", "clusters: 7", "clusters: [{}]", "current-context: dev", "\u{0}"] {
        fs::write(file.path(), text).unwrap();
        let error = read(file.path(), &KubernetesRegistry::default()).unwrap_err().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{text}: {error}");
    }
}
