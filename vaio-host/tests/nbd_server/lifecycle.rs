//! From listen to shutdown: sockets, limits, refusals, and IO in flight when the server stops.

use std::{
    fs,
    net::SocketAddr,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    sync::Arc,
    time::Duration,
};

use vaio_core::{ErrorKind, Instant, RamDisk, Verb};
use vaio_host::nbd::{
    Export, Server, ServerSettings,
    proto::{ClientOption, Command, Errno, InfoRequest, OptionReply, OptionReplyType, ReplyMode},
};

use super::{
    client::{Client, request},
    device::TestDevice,
    server::{Plan, open, wait_until},
};

/// Runs a test that needs no server of its own thread.
fn on_runtime<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(test)
}

async fn server(settings: ServerSettings) -> Server {
    let disk = open(Arc::new(RamDisk::new(1 << 20))).await;
    Server::new(vec![Export::new("a", disk)], settings).unwrap()
}

#[test]
fn socket_is_private_and_goes_with_the_server() {
    let mut server = Plan::ram(1).start();
    let mode = fs::metadata(&server.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.stop();
    assert!(!server.socket.exists());
}

#[test]
fn stale_socket_is_replaced_and_a_live_one_is_left_alone() {
    let live = Plan::ram(1).start();
    let dir = tempfile::tempdir().unwrap();
    let stale = dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    on_runtime(async {
        let mut server = server(ServerSettings::default()).await;
        server.listen_unix(&stale).unwrap();
        let error = server.listen_unix(&live.socket).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("socket in use"), "{error}");
    });
    assert!(!stale.exists(), "removed by the server that replaced it");
    let _ = Client::open(&live.socket, ReplyMode::Simple);
}

#[test]
fn something_else_in_the_sockets_place_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    fs::write(&path, b"data").unwrap();
    on_runtime(async {
        let mut server = server(ServerSettings::default()).await;
        let error = server.listen_unix(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(server.listen_unix(&dir.path().join("no/such/dir")).is_err());
    });
    assert_eq!(fs::read(&path).unwrap(), b"data");
}

#[test]
fn tcp_beyond_this_machine_needs_required_tls() {
    on_runtime(async {
        let mut server = server(ServerSettings::default()).await;
        let error = server
            .listen_tcp(SocketAddr::from(([0, 0, 0, 0], 0)))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = server.listen_tcp(loopback).unwrap();
        assert_eq!(
            server.listen_tcp(bound).unwrap_err().kind(),
            ErrorKind::Busy
        );
    });
}

#[test]
fn contradictory_exports_and_settings_are_refused() {
    on_runtime(async {
        let disk = open(Arc::new(RamDisk::new(1 << 20))).await;
        let twice = vec![
            Export::new("a", disk.clone()),
            Export::new("a", disk.clone()),
        ];
        let long = vec![Export::new("x".repeat(5000), disk.clone())];
        for exports in [vec![], twice, long] {
            let error = Server::new(exports, ServerSettings::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
        }
        let mut no_certificate = ServerSettings::default();
        no_certificate.tls_required = true;
        let mut no_room = ServerSettings::default();
        no_room.in_flight_max = 0;
        for settings in [no_certificate, no_room] {
            let exports = vec![Export::new("a", disk.clone())];
            assert_eq!(
                Server::new(exports, settings).unwrap_err().kind(),
                ErrorKind::Config
            );
        }
    });
}

#[test]
fn several_exports_are_listed_and_opened_by_name() {
    let mut plan = Plan::ram(1);
    plan.devices = vec![
        ("first", Arc::new(RamDisk::new(1 << 20)) as _),
        ("second", Arc::new(RamDisk::new(2 << 20)) as _),
    ];
    plan.exports = |export| export.with_description("a disk");
    let server = plan.start();
    let mut client = Client::connect(&server.socket);
    let listed = client.option(&ClientOption::List);
    assert_eq!(listed.len(), 3);
    assert!(
        matches!(&listed[1], OptionReply::Server { name, description }
        if name == "second" && description == "a disk")
    );
    assert_eq!(client.enter(ReplyMode::Simple, "second").0, 2 << 20);
    let (size, _) = Client::connect(&server.socket).enter(ReplyMode::Simple, "");
    assert_eq!(size, 1 << 20, "the first is the default");
}

#[test]
fn connection_beyond_the_limit_is_told_so() {
    let plan = Plan::ram(1).settings(|settings| settings.connections_max = 2);
    let server = plan.start();
    let one = Client::open(&server.socket, ReplyMode::Simple);
    let mut two = Client::open(&server.socket, ReplyMode::Simple);
    let mut third = Client::connect(&server.socket);
    let replies = third.option(&ClientOption::Go(InfoRequest::default()));
    let [OptionReply::Error { kind, text }] = &replies[..] else {
        panic!("a refusal, {replies:?}");
    };
    assert_eq!(*kind, Some(OptionReplyType::ErrPolicy));
    assert_eq!(text, "too many connections, max=2");
    assert!(third.is_closed());
    assert_eq!(two.call(request(Command::Read, 0, 512), &[]).0, 0);
    drop(one);
    server.wait_connections(1);
    let _ = Client::open(&server.socket, ReplyMode::Simple);
}

#[test]
fn slow_handshake_is_closed_and_a_quiet_session_is_not() {
    let short = Duration::from_millis(200);
    let server = Plan::ram(1)
        .settings(|settings| settings.handshake_timeout = short)
        .start();
    let mut quiet = Client::open(&server.socket, ReplyMode::Simple);
    let mut silent = Client::without_greeting(UnixStream::connect(&server.socket).unwrap());
    let mut undecided = Client::connect(&server.socket);
    silent.take(18);
    assert!(silent.is_closed() && undecided.is_closed());
    server.wait_connections(1);
    assert_eq!(quiet.call(request(Command::Read, 0, 512), &[]).0, 0);
}

#[test]
fn stop_answers_what_is_in_flight_and_refuses_the_rest() {
    let device = Arc::new(TestDevice::new(|_| {}));
    let plan = Plan::device(Arc::clone(&device) as _);
    let mut server = plan.settings(|settings| settings.in_flight_max = 4).start();
    let mut client = Client::open(&server.socket, ReplyMode::Structured);
    let mut idle = Client::open(&server.socket, ReplyMode::Structured);
    let mut in_handshake = Client::connect(&server.socket);
    device.hold();
    // One send, so that all are received before the fifth waits for room.
    let mut bytes = Vec::new();
    for index in 0..8 {
        request(Command::Read, index * 4096, 4096).encode(ReplyMode::Structured, &mut bytes);
    }
    client.send(&bytes);
    wait_until("IO is in flight", || device.waiting() == 4);
    server.begin_stop();
    assert!(idle.is_closed());
    assert!(
        UnixStream::connect(&server.socket).is_err(),
        "no one is accepted any more"
    );
    device.release();
    let errors: Vec<_> = (0..8).map(|_| client.reply(0).0.error()).collect();
    let shutdown = Errno::Shutdown.to_wire();
    assert_eq!(
        errors.iter().filter(|error| **error == 0).count(),
        4,
        "{errors:?}"
    );
    assert_eq!(
        errors.iter().filter(|error| **error == shutdown).count(),
        4,
        "{errors:?}"
    );
    assert!(client.is_closed());
    assert!(in_handshake.is_closed());
    server.stop();
    assert!(!server.socket.exists());
}

#[test]
fn stop_does_not_wait_for_a_device_that_hangs() {
    let device = Arc::new(TestDevice::new(|_| {}));
    let plan = Plan::device(Arc::clone(&device) as _);
    let short = Duration::from_millis(100);
    let mut server = plan
        .settings(|settings| settings.stop_timeout = short)
        .start();
    let mut client = Client::open(&server.socket, ReplyMode::Simple);
    device.hold();
    client.request(request(Command::Read, 0, 4096), &[]);
    wait_until("IO is in flight", || device.waiting() == 1);
    server.stop();
    assert!(client.is_closed());
    device.release();
}

#[test]
fn resize_moves_the_bounds_of_old_and_new_connections() {
    let device = Arc::new(TestDevice::new(|info| info.capacity = 1 << 20));
    let server = Plan::device(Arc::clone(&device) as _).start();
    let mut client = Client::open(&server.socket, ReplyMode::Structured);
    let beyond = || request(Command::Read, 1 << 20, 4096);
    assert_eq!(client.call(beyond(), &[]).0, Errno::Inval.to_wire());
    let (disk, grown) = (server.disk.clone(), Arc::clone(&device));
    let resize = server.runtime.spawn(async move {
        let (from, to) = (1 << 20, 2 << 20);
        let prepared = disk.prepare(Verb::Resize { from, to }).await?;
        let deadline = Instant::from_nanos(u64::MAX);
        let grow = async move {
            grown.set_capacity(to);
            Ok(())
        };
        prepared.commit(deadline, grow).await
    });
    wait_until("the resize", || resize.is_finished());
    assert_eq!(client.call(beyond(), &[]).0, 0);
    let (size, _) = Client::connect(&server.socket).enter(ReplyMode::Simple, "");
    assert_eq!(size, 2 << 20);
}
