//! STARTTLS with our own client over rustls, and with libnbd's where it is installed.

use std::{fs, net::TcpStream, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use vaio_host::nbd::{
    TlsServer,
    proto::{ClientOption, Command, OptionReply, OptionReplyType, ReplyMode},
};

use super::{
    client::{Client, request},
    server::{Plan, TestServer},
    tools,
};

/// Files as libnbd expects them, and the server's.
fn certificates() -> TempDir {
    let dir = TempDir::new().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let put = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
    put("ca-cert.pem", authority.pem());
    for who in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        put(&format!("{who}-cert.pem"), certificate.pem());
        put(&format!("{who}-key.pem"), key.serialize_pem());
    }
    dir
}

fn start(dir: &Path, mutual: bool, required: bool) -> TestServer {
    let file = |name: &str| dir.join(name);
    let authority = file("ca-cert.pem");
    let tls = TlsServer::from_pem(
        &file("server-cert.pem"),
        &file("server-key.pem"),
        mutual.then_some(authority.as_path()),
    );
    let mut plan = Plan::ram(16).settings(|settings| {
        settings.tls = Some(tls.unwrap());
        settings.tls_required = required;
    });
    plan.tcp = true;
    plan.start()
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A client of our own, up to the end of the TLS handshake.
fn connect(server: &TestServer, dir: &Path, own_certificate: bool) -> Client<Tls> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(dir.join("ca-cert.pem")).unwrap();
    roots.add(authority).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if own_certificate {
        let certificate = CertificateDer::from_pem_file(dir.join("client-cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(dir.join("client-key.pem")).unwrap();
        config
            .with_client_auth_cert(vec![certificate], key)
            .unwrap()
    } else {
        config.with_no_client_auth()
    };
    let mut plain = Client::greet(TcpStream::connect(server.address.unwrap()).unwrap());
    assert_eq!(plain.option(&ClientOption::StartTls), [OptionReply::Ack]);
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    Client::without_greeting(StreamOwned::new(session, plain.stream))
}

#[test]
fn data_goes_through_tls() {
    let dir = certificates();
    let server = start(dir.path(), false, true);
    let mut client = connect(&server, dir.path(), false);
    client.enter(ReplyMode::Structured, "");
    let data: Vec<u8> = (0..4u32 << 20)
        .map(|at| (at / 3).to_be_bytes()[3])
        .collect();
    let len = data.len() as u64;
    for round in 0..3 {
        let offset = round * 4096;
        assert_eq!(
            client.call(request(Command::Write, offset, len), &data).0,
            0
        );
        let (error, read) = client.call(request(Command::Read, offset, len), &[]);
        assert!(error == 0 && read == data);
    }
    client.request(request(Command::Disconnect, 0, 0), &[]);
    assert!(client.is_closed());
}

#[test]
fn plain_client_of_a_tls_server_is_told_so() {
    let dir = certificates();
    let required = start(dir.path(), false, true);
    let mut client = Client::connect(&required.socket);
    let replies = client.option(&ClientOption::List);
    assert!(matches!(
        replies[..],
        [OptionReply::Error {
            kind: Some(OptionReplyType::ErrTlsReqd),
            ..
        }]
    ));
    let offered = start(dir.path(), false, false);
    let _ = Client::open(&offered.socket, ReplyMode::Structured);
}

#[test]
fn plain_text_behind_starttls_is_never_taken() {
    let dir = certificates();
    let server = start(dir.path(), false, true);
    let mut client = Client::connect(&server.socket);
    let mut bytes = Vec::new();
    ClientOption::StartTls.encode(&mut bytes);
    ClientOption::List.encode(&mut bytes);
    client.send(&bytes);
    client.take(20);
    assert!(client.is_closed());
}

#[test]
fn mutual_tls_serves_known_clients_only() {
    let dir = certificates();
    let server = start(dir.path(), true, true);
    let mut known = connect(&server, dir.path(), true);
    known.enter(ReplyMode::Simple, "");
    assert_eq!(known.call(request(Command::Read, 0, 512), &[]).0, 0);
    let other = certificates();
    let mut stranger = connect(&server, dir.path(), false);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        stranger.enter(ReplyMode::Simple, "");
    }));
    assert!(
        refused.is_err(),
        "a client without a certificate gets nothing"
    );
    drop(other);
}

#[test]
fn unfit_files_are_refused_by_name() {
    let (dir, other) = (certificates(), certificates());
    let file = |name: &str| dir.path().join(name);
    let empty = file("empty.pem");
    fs::write(&empty, "").unwrap();
    for (certificate, key, named) in [
        (file("missing.pem"), file("server-key.pem"), "missing.pem"),
        (empty.clone(), file("server-key.pem"), "empty.pem"),
        (file("server-cert.pem"), empty.clone(), "empty.pem"),
        (
            file("server-cert.pem"),
            other.path().join("server-key.pem"),
            "server-cert.pem",
        ),
    ] {
        let error = TlsServer::from_pem(&certificate, &key, None).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn libnbd_client_speaks_tls() {
    let dir = certificates();
    let server = start(dir.path(), true, true);
    let uri = format!(
        "nbds://localhost:{}/?tls-certificates={}",
        server.address.unwrap().port(),
        dir.path().display()
    );
    let Some(out) = tools::run("nbdinfo", &["--json", &uri]) else {
        return;
    };
    assert!(out.contains("\"TLS\": true"), "{out}");
    let plain = format!("nbd://localhost:{}/", server.address.unwrap().port());
    let complaint = tools::fails("nbdinfo", &["--json", &plain]);
    assert!(
        complaint.contains("server replied with error"),
        "{complaint}"
    );
}
