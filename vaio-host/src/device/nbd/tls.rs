//! TLS of the client: certificates from a directory, in the layout that NBD tools share.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio_rustls::TlsConnector;
use vaio_core::{Error, Result};

use super::{
    super::spec::{NbdAddress, NbdUri},
    link::Stream,
};

/// Largest PEM file that is read, in bytes.
const PEM_MAX: u64 = 1 << 20;

/// Encrypts `stream`. The server's certificate must be signed by `ca-cert.pem` of the directory
/// and name the host (`localhost` over a Unix socket).
pub(super) async fn start(stream: Stream, uri: &NbdUri) -> Result<Stream> {
    let directory = uri.tls_certificates.as_deref().ok_or_else(|| {
        Error::config(format!(
            "TLS needs certificates: add tls-certificates=DIR with ca-cert.pem in it, uri={uri}"
        ))
    })?;
    let config = config(directory)?;
    let host = match &uri.address {
        NbdAddress::Unix(_) => "localhost",
        NbdAddress::Tcp(host, _) => host,
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|cause| {
        Error::config(format!("not a host name for TLS, host={host}")).with_source(cause)
    })?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(|cause| {
        Error::config(format!("TLS with the NBD server failed, uri={uri}")).with_source(cause)
    })?;
    Ok(Stream::new(stream))
}

fn config(directory: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let path = directory.join("ca-cert.pem");
    for certificate in certificates(&path)? {
        roots
            .add(certificate)
            .map_err(|cause| bad(&path, "is no certificate authority", cause))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::config("TLS cannot start").with_source(cause))?
        .with_root_certificates(roots);
    let chain = directory.join("client-cert.pem");
    if !chain.exists() {
        return Ok(builder.with_no_client_auth());
    }
    let key_path = directory.join("client-key.pem");
    let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
        .map_err(|cause| bad(&key_path, "holds no readable private key", cause))?;
    builder
        .with_client_auth_cert(certificates(&chain)?, key)
        .map_err(|cause| bad(&chain, "does not fit its key", cause))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<std::result::Result<_, _>>()
        .map_err(|cause| bad(path, "holds no readable certificate", cause))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PEM_MAX).read_to_end(&mut bytes))
        .map_err(|cause| bad(path, "cannot be read", cause))?;
    Ok(bytes)
}

fn bad(path: &Path, what: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::config(format!("PEM file {what}, file={}", path.display())).with_source(cause)
}
