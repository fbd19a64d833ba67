//! TLS of the server: a certificate, its key, and optionally who may connect.

use std::{fs::File, io::BufReader, path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;
use vaio_core::{Error, Result};

/// Largest PEM file that is read, in bytes.
const PEM_MAX: u64 = 1 << 20;

/// Server side of STARTTLS, ready to use. Clones share it.
#[derive(Clone)]
pub struct TlsServer(TlsAcceptor);

impl TlsServer {
    /// Reads a certificate chain and its private key from PEM files. With `client_ca`, only
    /// clients whose certificate one of its certificates signed are served (mutual TLS).
    ///
    /// TLS 1.2 and 1.3. Blocks on the files: call it before the disk serves IO.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](vaio_core::ErrorKind::Config) naming the file.
    pub fn from_pem(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::config("TLS cannot start").with_source(error))?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots
                        .add(certificate)
                        .map_err(|error| bad(path, "is no certificate authority", error))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| bad(path, "holds no certificate authority", error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|error| bad(certificate, "does not fit its key", error))?;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.write_str("TlsServer")
    }
}

fn open(path: &Path) -> Result<BufReader<std::io::Take<File>>> {
    use std::io::Read;
    let file = File::open(path).map_err(|error| bad(path, "cannot be read", error))?;
    Ok(BufReader::new(file.take(PEM_MAX)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_reader_iter(open(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(path, "holds no readable certificate", error))?;
    if chain.is_empty() {
        return Err(Error::config(format!(
            "PEM file holds no certificate, file={}",
            path.display()
        )));
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_reader(open(path)?)
        .map_err(|error| bad(path, "holds no readable private key", error))
}

fn bad(path: &Path, what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::config(format!("PEM file {what}, file={}", path.display())).with_source(error)
}
