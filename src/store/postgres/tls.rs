//! The certificates of encrypted connections. The server must show a certificate in its own name, from
//! a trusted authority. No setting weakens this requirement.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;
use zeroize::Zeroizing;

use super::fault::ConnectError;
use super::url::Files;

/// The value of `sslrootcert` for the authorities that the system trusts.
const SYSTEM: &str = "system";

/// The certificates of a connection. By default a connection trusts the system's authorities, and shows
/// no certificate.
#[derive(Clone, Default)]
pub(super) struct Certificates {
    roots: Option<Pem>,
    client: Option<(Pem, Pem)>,
}

/// Certificates or a key, as text or as the path of a file.
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

    /// Adds the certificate files that a URL names, unless certificates were given by other means.
    pub(super) fn or(self, files: Files) -> Result<Self, ConnectError> {
        let Files {
            roots,
            certificate,
            key,
        } = files;
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((Pem::File(certificate), Pem::File(key))),
            (None, None) => None,
            _ => {
                return Err(unusable(
                    "a certificate to show needs its key, and a key needs it",
                ));
            }
        };
        Ok(Self {
            roots: self.roots.or(roots.map(Pem::File)),
            client: self.client.or(client),
        })
    }

    /// Returns whether any certificate was given. Only an encrypted connection can use certificates.
    pub(super) const fn are_given(&self) -> bool {
        self.roots.is_some() || self.client.is_some()
    }

    /// Reads the files, and returns a connector.
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
        // Servers that know the protocol's name require it for direct TLS.
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
            true => Err(unusable("there is no authority to trust")),
            false => Ok(trusted),
        }
    }
}

/// Adds the authorities that the system trusts, except those that cannot be read.
fn add_system(trusted: &mut RootCertStore) {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "certificates of the system cannot be read");
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
    // The cause is left out, since it may quote a part of the key.
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(unusable(
            "there is no certificate that can be read in what was given as one",
        )),
    }
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, ConnectError> {
    let key = PrivateKeyDer::from_pem_slice(&pem.text()?);
    key.map_err(|_| unusable("there is no private key that can be read in what was given as one"))
}

fn unusable(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConnectError {
    ConnectError::Certificates(why.into())
}
