//! TLS as a client: from the config's file names to what rustls wants.

use crate::config::Tls;
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why TLS settings cannot be used. Names the file that is at fault.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {kind} from {path}: {cause}", path = path.display())]
    File { kind: &'static str, path: PathBuf, cause: String },
    #[error("{path} holds no {kind}", path = path.display())]
    Empty { kind: &'static str, path: PathBuf },
    #[error("`cert` and `key` go together, only `{present}` is given")]
    HalfPair { present: &'static str },
    #[error("the certificate of {cert} and the key of {key} cannot be used: {cause}", cert = cert.display(), key = key.display())]
    Pair { cert: PathBuf, key: PathBuf, cause: String },
    #[error("the system has no certificate authorities ({cause}); install ca-certificates or set `ca`")]
    NoSystemRoots { cause: String },
    #[error("`{name}` cannot be the name in a certificate")]
    Name { name: String },
    #[error("TLS cannot be set up: {cause}")]
    Setup { cause: String },
}

/// A client's TLS settings: trusts the authorities of `ca` or the system's, presents `cert` if there is one, and offers
/// the protocols in `alpn` (e.g. `["h2"]`).
///
/// Reads files each time it is called, so that calling it at each reconnect picks up renewed certificates.
pub fn client_config(tls: &Tls, alpn: &[&str]) -> Result<ClientConfig, TlsError> {
    let builder = builder()?.with_root_certificates(roots(tls.ca.as_deref())?);
    let mut config = match (&tls.cert, &tls.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| TlsError::Pair { cert: cert.clone(), key: key.clone(), cause: error.to_string() })?,
        (Some(_), None) => return Err(TlsError::HalfPair { present: "cert" }),
        (None, Some(_)) => return Err(TlsError::HalfPair { present: "key" }),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(config)
}

/// For clients that want TLS settings even though they will not use TLS.
pub fn trusting_nobody() -> Result<ClientConfig, TlsError> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// The name that the certificate of a server at `host` must have.
pub fn server_name(tls: &Tls, host: &str) -> Result<ServerName<'static>, TlsError> {
    let name = tls.server_name.as_deref().unwrap_or(host);
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    ServerName::try_from(bare.to_owned()).map_err(|_| TlsError::Name { name: name.into() })
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    // The provider is named here and not installed process-wide: a library may not decide that for its user.
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup { cause: error.to_string() })
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| TlsError::File {
                kind: "certificates",
                path: path.into(),
                cause: error.to_string(),
            })?;
        }
        return Ok(roots);
    }
    let found = rustls_native_certs::load_native_certs();
    // Systems carry the odd certificate that webpki refuses; the others still count.
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let cause = found.errors.first().map_or_else(|| "none found".into(), ToString::to_string);
        return Err(TlsError::NoSystemRoots { cause });
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const KIND: &str = "certificates";
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| file_error(KIND, path, &error))?;
    if found.is_empty() { Err(TlsError::Empty { kind: KIND, path: path.into() }) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| file_error("private key", path, &error))
}

fn file_error(kind: &'static str, path: &Path, error: &pem::Error) -> TlsError {
    match error {
        pem::Error::NoItemsFound => TlsError::Empty { kind, path: path.into() },
        pem::Error::Io(io) => TlsError::File { kind, path: path.into(), cause: io.to_string() },
        other => TlsError::File { kind, path: path.into(), cause: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (missing, empty, broken) =
            (dir.path().join("missing.pem"), dir.path().join("empty.pem"), dir.path().join("broken.pem"));
        fs::write(&empty, "").unwrap();
        fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        for (ca, expected) in
            [(&missing, "No such file"), (&empty, "holds no certificates"), (&broken, "cannot read certificates from")]
        {
            let error = client_config(&Tls { ca: Some(ca.clone()), ..Tls::default() }, &[]).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(ca.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_client_certificate_needs_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let signed = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let write = |name: &str, text: String| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        };
        let ca = write("ca.pem", signed.cert.pem());
        let key = write("key.pem", signed.signing_key.serialize_pem());
        let other = write("other.pem", other.signing_key.serialize_pem());
        let half = Tls { ca: ca.clone(), cert: ca.clone(), ..Tls::default() };
        assert!(client_config(&half, &[]).unwrap_err().to_string().contains("only `cert` is given"));
        let wrong = Tls { key: other, ..half.clone() };
        assert!(matches!(client_config(&wrong, &[]).unwrap_err(), TlsError::Pair { .. }));
        let no_key = Tls { key: ca, ..half.clone() };
        assert!(client_config(&no_key, &[]).unwrap_err().to_string().contains("holds no private key"));
        let config = client_config(&Tls { key, ..half }, &["h2"]).unwrap();
        assert_eq!(config.alpn_protocols, [b"h2".to_vec()]);
    }

    #[test]
    fn the_servers_name_is_its_host_unless_told_otherwise() {
        let tls = Tls::default();
        assert_eq!(server_name(&tls, "etcd.internal").unwrap().to_str(), "etcd.internal");
        assert_eq!(server_name(&tls, "[::1]").unwrap().to_str(), "::1");
        let named = Tls { server_name: Some("etcd".into()), ..Tls::default() };
        assert_eq!(server_name(&named, "10.0.0.1").unwrap().to_str(), "etcd");
        assert!(server_name(&tls, "a b").is_err());
    }
}
