//! The certificates of encrypted connections.
//!
//! The server must present a certificate for its host name, issued by a trusted authority. No setting weakens
//! this requirement.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;
use zeroize::Zeroizing;

use super::fault::ConnectError;
use super::url::CertificateFiles;
use crate::observe::WithSources;

/// The value of `sslrootcert` that selects the system's trusted authorities.
const SYSTEM: &str = "system";

/// The root and client certificates of a connection. By default a connection trusts the system's authorities
/// and presents no client certificate.
#[derive(Clone, Default)]
pub(super) struct Certificates {
    roots: Option<Pem>,
    client: Option<(Pem, Pem)>,
}

/// Certificates or a private key in PEM format, as text or as the path of a file.
#[derive(Clone)]
enum Pem {
    Text(Arc<Zeroizing<Vec<u8>>>),
    File(PathBuf),
}

impl Certificates {
    pub(super) fn trust(&mut self, roots: Vec<u8>) {
        self.roots = Some(Pem::new(roots));
    }

    pub(super) fn show(&mut self, certificate: Vec<u8>, key: Vec<u8>) {
        self.client = Some((Pem::new(certificate), Pem::new(key)));
    }

    /// Adds the certificate files that a URL names, for certificates that the options do not set.
    pub(super) fn or(self, files: CertificateFiles) -> Result<Self, ConnectError> {
        let CertificateFiles {
            roots,
            certificate,
            key,
        } = files;
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((Pem::File(certificate), Pem::File(key))),
            (None, None) => None,
            _ => {
                return Err(unusable(
                    "a client certificate needs its private key, and a key needs its certificate",
                ));
            }
        };
        Ok(Self {
            roots: self.roots.or(roots.map(Pem::File)),
            client: self.client.or(client),
        })
    }

    /// Returns `true` if the options or the URL name certificates. Connections are then encrypted, unless the
    /// URL says `sslmode=disable`.
    pub(super) const fn are_given(&self) -> bool {
        self.roots.is_some() || self.client.is_some()
    }

    /// Reads the files, and returns a TLS connector.
    pub(super) fn connector(&self) -> Result<MakeRustlsConnect, ConnectError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(self.trusted()?);
        let mut config = match &self.client {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => config
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(unusable)?,
        };
        // For direct TLS (`sslnegotiation=direct`) servers require the ALPN protocol `postgresql`.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(MakeRustlsConnect::new(config))
    }

    fn trusted(&self) -> Result<RootCertStore, ConnectError> {
        let mut trusted = RootCertStore::empty();
        match &self.roots {
            Some(Pem::File(name)) if name == Path::new(SYSTEM) => add_system(&mut trusted),
            None => add_system(&mut trusted),
            Some(roots) => {
                for root in certificates(roots)? {
                    trusted.add(root).map_err(unusable)?;
                }
            }
        }
        match trusted.is_empty() {
            true => Err(unusable("there is no trusted authority")),
            false => Ok(trusted),
        }
    }
}

/// Adds the system's trusted authorities. Logs the certificates that cannot be read, and skips them.
fn add_system(trusted: &mut RootCertStore) {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(error = %WithSources(&error), "cannot read some of the system's certificates");
    }
    trusted.add_parsable_certificates(found.certs);
}

impl Pem {
    fn new(text: Vec<u8>) -> Self {
        Self::Text(Arc::new(Zeroizing::new(text)))
    }

    fn text(&self) -> Result<Arc<Zeroizing<Vec<u8>>>, ConnectError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => {
                let text = std::fs::read(path).map_err(unusable)?;
                Ok(Arc::new(Zeroizing::new(text)))
            }
        }
    }
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let text = pem.text()?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    // Leave the parse error out, because it may quote the text, which may also contain a private key.
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(unusable(
            "the PEM text or file contains no readable certificate",
        )),
    }
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, ConnectError> {
    let key = PrivateKeyDer::from_pem_slice(&pem.text()?);
    key.map_err(|_| unusable("the PEM text or file contains no readable private key"))
}

fn unusable(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConnectError {
    ConnectError::Certificates(why.into())
}
