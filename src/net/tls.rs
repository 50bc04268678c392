//! TLS as a client: from the config's file names to what rustls wants.

use crate::config::{Secret, Tls};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
};
use std::{fmt, path::PathBuf, sync::Arc};

/// Why TLS settings cannot be used. Names the file that is at fault.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {kind} from {pem}: {cause}")]
    File { kind: &'static str, pem: String, cause: String },
    #[error("{pem} holds no {kind}")]
    Empty { kind: &'static str, pem: String },
    #[error("`cert` and `key` go together, only `{present}` is given")]
    HalfPair { present: &'static str },
    #[error("the certificate of {cert} and the key of {key} cannot be used: {cause}")]
    Pair { cert: String, key: String, cause: String },
    #[error("the system has no certificate authorities ({cause}); install ca-certificates or set `ca`")]
    NoSystemRoots { cause: String },
    #[error("`{name}` cannot be the name in a certificate")]
    Name { name: String },
    #[error("TLS cannot be set up: {cause}")]
    Setup { cause: String },
}

/// A PEM text.
#[derive(Debug, Clone)]
pub enum Pem {
    /// Read each time, so that renewed certificates are picked up.
    File(PathBuf),
    /// At hand, with a name for errors.
    Text { name: &'static str, text: Secret },
}

/// What TLS needs as a client.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// The authorities to trust; the system's where there are none.
    pub ca: Option<Pem>,
    pub cert: Option<Pem>,
    pub key: Option<Pem>,
    /// The name that the server's certificate must have, where it is not the host that is connected to.
    pub server_name: Option<String>,
    /// Trusts whoever answers.
    pub unverified: bool,
}

impl From<&Tls> for Client {
    fn from(tls: &Tls) -> Self {
        let file = |path: &Option<PathBuf>| path.clone().map(Pem::File);
        Self {
            ca: file(&tls.ca),
            cert: file(&tls.cert),
            key: file(&tls.key),
            server_name: tls.server_name.clone(),
            unverified: false,
        }
    }
}

impl Client {
    /// As rustls wants it, offering the protocols in `alpn` (e.g. `["h2"]`).
    ///
    /// Reads files each time it is called, so that calling it at each reconnect picks up renewed certificates.
    pub fn config(&self, alpn: &[&str]) -> Result<ClientConfig, TlsError> {
        let builder = if self.unverified {
            builder()?.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(ring::default_provider())))
        } else {
            builder()?.with_root_certificates(roots(self.ca.as_ref())?)
        };
        let mut config = match (&self.cert, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                builder.with_client_auth_cert(certificates(cert)?, private_key(key)?).map_err(|error| {
                    TlsError::Pair { cert: cert.to_string(), key: key.to_string(), cause: error.to_string() }
                })?
            }
            (Some(_), None) => return Err(TlsError::HalfPair { present: "cert" }),
            (None, Some(_)) => return Err(TlsError::HalfPair { present: "key" }),
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(config)
    }

    /// The name that the certificate of a server at `host` must have.
    pub fn server_name(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        ServerName::try_from(bare.to_owned()).map_err(|_| TlsError::Name { name: name.into() })
    }
}

/// [`Client::config`] of the config's settings.
pub fn client_config(tls: &Tls, alpn: &[&str]) -> Result<ClientConfig, TlsError> {
    Client::from(tls).config(alpn)
}

/// For clients that want TLS settings even though they will not use TLS.
pub fn trusting_nobody() -> Result<ClientConfig, TlsError> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// [`Client::server_name`] of the config's settings.
pub fn server_name(tls: &Tls, host: &str) -> Result<ServerName<'static>, TlsError> {
    Client::from(tls).server_name(host)
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    // The provider is named here and not installed process-wide: a library may not decide that for its user.
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup { cause: error.to_string() })
}

fn roots(ca: Option<&Pem>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = ca {
        for certificate in certificates(pem)? {
            roots.add(certificate).map_err(|error| TlsError::File {
                kind: "certificates",
                pem: pem.to_string(),
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

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const KIND: &str = "certificates";
    let found: Vec<_> = match pem {
        Pem::File(path) => CertificateDer::pem_file_iter(path).and_then(Iterator::collect),
        Pem::Text { text, .. } => CertificateDer::pem_slice_iter(text.expose().as_bytes()).collect(),
    }
    .map_err(|error| pem_error(KIND, pem, &error))?;
    if found.is_empty() { Err(TlsError::Empty { kind: KIND, pem: pem.to_string() }) } else { Ok(found) }
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, TlsError> {
    match pem {
        Pem::File(path) => PrivateKeyDer::from_pem_file(path),
        Pem::Text { text, .. } => PrivateKeyDer::from_pem_slice(text.expose().as_bytes()),
    }
    .map_err(|error| pem_error("private key", pem, &error))
}

fn pem_error(kind: &'static str, pem: &Pem, error: &pem::Error) -> TlsError {
    let pem = pem.to_string();
    match error {
        pem::Error::NoItemsFound => TlsError::Empty { kind, pem },
        pem::Error::Io(io) => TlsError::File { kind, pem, cause: io.to_string() },
        other => TlsError::File { kind, pem, cause: other.to_string() },
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Text { name, .. } => f.write_str(name),
        }
    }
}

/// Takes any certificate, for those who asked for that. Signatures of the handshake are checked all the same.
#[derive(Debug)]
struct Unverified(CryptoProvider);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
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
