//! Whom an encrypted connection trusts: a server that shows a certificate in its name, from an
//! authority that is trusted. Never less.

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

/// What `sslrootcert` calls the authorities that the system trusts.
const SYSTEM: &str = "system";

/// What a connection is made with. Nothing given: trust whom the system trusts, and show nothing.
#[derive(Clone, Default)]
pub(super) struct Certificates {
    roots: Option<Pem>,
    client: Option<(Pem, Pem)>,
}

/// Text with certificates or a key, or where it stands.
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

    /// Adds what a URL names, where nothing was given.
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

    /// Whether anything was given, which would be of no use to a connection that is not encrypted.
    pub(super) const fn are_given(&self) -> bool {
        self.roots.is_some() || self.client.is_some()
    }

    /// Reads what was named and sets up connections with it.
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
        // Servers that know the name of the protocol insist on it where TLS begins at once.
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

/// Adds those that the system trusts. One that cannot be read harms no other.
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
    // What is wrong with them is left out: it may be told with a part of what was given.
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
