//! TLS: the server's certificate for clients, and the certificate authorities trusted for nodes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Certificate used for new handshakes; a reload replaces it, and open connections keep theirs.
pub type Certificate = ArcSwap<ServerConfig>;

/// Protocol identifier of HTTP/2 (ALPN).
pub const HTTP2: &[u8] = b"h2";

/// Unusable files, described in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// Missing or unreadable file, or a file without the expected content.
    #[error("{}: {why}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error text of the library.
        why: String,
    },
    /// Files that do not match each other.
    #[error("{0}")]
    Unfit(String),
}

/// Paths of the server's certificate files, in PEM format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Server certificate, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
    /// Authorities that client certificates must be signed by; without any, no client certificate is requested.
    pub client_ca: Option<PathBuf>,
    /// `true` if HTTP/2 is offered to clients, before HTTP/1.1.
    pub http2: bool,
}

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] if a file cannot be read or has no PEM content of its kind, or if the key does not match the
    /// certificate.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let certificates = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|why| unreadable(&self.key, &why))?;
        let unfit = |why: &dyn std::fmt::Display| TlsError::Unfit(format!("{}: {why}", self.certificate.display()));
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|why| unfit(&why))?;
        let config = match &self.client_ca {
            None => config.with_no_client_auth(),
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                add(&mut roots, authorities)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                    .build()
                    .map_err(|why| unreadable(authorities, &why))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let mut config = config.with_single_cert(certificates, key).map_err(|why| unfit(&why))?;
        let offered = self.http2.then_some(HTTP2).into_iter().chain([b"http/1.1".as_slice()]);
        config.alpn_protocols = offered.map(<[u8]>::to_vec).collect();
        Ok(Arc::new(config))
    }
}

/// Returns the TLS configuration for connections to nodes, which trusts the system's authorities and those in `ca`.
///
/// # Errors
/// [`TlsError`] if `ca` cannot be read or has no valid certificate.
pub fn trust(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    // About a hundred; those that cannot be parsed are skipped.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(ca) = ca {
        add(&mut roots, ca)?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|why| TlsError::Unfit(why.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|why| unreadable(path, &why))?;
    if found.is_empty() {
        return Err(unreadable(path, &"contains no certificate; use a PEM file"));
    }
    Ok(found)
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|why| unreadable(path, &why))?;
    }
    Ok(())
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> TlsError {
    TlsError::File {
        path: path.to_owned(),
        why: why.to_string(),
    }
}
