//! What one client, or all of them together, can make the server hold, and for how long.

use std::time::Duration;

use vaio_host::nbd::proto::{Command, ReplyMode};

use super::{
    client::{Client, request},
    server::{Plan, TestServer, wait_until},
};

/// Of one read: more than a socket takes.
const LEN: usize = 4 << 20;
const READ: u64 = LEN as u64;
const STALL: Duration = Duration::from_millis(300);

fn ask(client: &mut Client, reads: u64) {
    for index in (0..reads).map(|index| index * 512) {
        client.request(request(Command::Read, index, READ), &[]);
    }
}

fn take(client: &mut Client, reads: u64) {
    for _ in 0..reads {
        let (reply, data) = client.reply(LEN);
        assert_eq!((reply.error(), data.len()), (0, LEN));
    }
}

/// The most that the server held while nothing ended.
#[expect(
    clippy::disallowed_methods,
    reason = "the test looks at another thread"
)]
fn peak(server: &TestServer) -> usize {
    (0..100)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(2));
            server.watch.memory_bytes()
        })
        .max()
        .unwrap_or(0)
}

#[test]
fn all_connections_together_hold_what_the_server_may_and_each_gets_its_answers() {
    let plan = Plan::ram(16).settings(|settings| settings.memory_bytes_max = 4 * LEN);
    let server = plan.start();
    let mut clients: Vec<_> = (0..6)
        .map(|_| Client::open(&server.socket, ReplyMode::Simple))
        .collect();
    for client in &mut clients {
        ask(client, 8);
    }
    let held_max = 4 * LEN;
    wait_until("replies wait", || server.watch.memory_bytes() >= held_max);
    let peak = peak(&server);
    // Those that came too late for a share have one read each.
    assert!(peak <= held_max + 6 * LEN, "{peak}");
    // The last first: no one waits for one that does not read.
    for client in clients.iter_mut().rev() {
        take(client, 8);
    }
    wait_until("all is given back", || server.watch.memory_bytes() == 0);
}

#[test]
fn request_larger_than_all_memory_is_served_alone() {
    let plan = Plan::ram(16).settings(|settings| settings.memory_bytes_max = 1);
    let server = plan.start();
    let mut client = Client::open(&server.socket, ReplyMode::Simple);
    let write = request(Command::Write, 0, READ);
    assert_eq!(client.call(write, &vec![7; LEN]).0, 0);
    ask(&mut client, 4);
    take(&mut client, 4);
}

#[test]
fn what_a_connection_held_is_given_back_when_it_is_cut() {
    let plan = Plan::ram(16).settings(|settings| settings.memory_bytes_max = 4 * LEN);
    let server = plan.start();
    let mut client = Client::open(&server.socket, ReplyMode::Simple);
    ask(&mut client, 8);
    wait_until("replies wait", || server.watch.memory_bytes() > LEN);
    drop(client);
    server.wait_connections(0);
    assert_eq!(server.watch.memory_bytes(), 0);
}

fn impatient() -> TestServer {
    Plan::ram(16)
        .settings(|settings| settings.stall_timeout = STALL)
        .start()
}

#[test]
fn client_that_stops_in_a_message_is_disconnected_and_an_idle_one_is_not() {
    let server = impatient();
    let mut idle = Client::open(&server.socket, ReplyMode::Simple);
    let mut in_header = Client::open(&server.socket, ReplyMode::Simple);
    let mut in_payload = Client::open(&server.socket, ReplyMode::Simple);
    assert_eq!(idle.call(request(Command::Read, 0, 512), &[]).0, 0);
    in_header.send(&[0x25, 0x60]);
    in_payload.request(request(Command::Write, 0, 1 << 20), &[1; 4096]);
    assert!(in_header.is_closed() && in_payload.is_closed());
    server.wait_connections(1);
    assert_eq!(idle.call(request(Command::Read, 0, 512), &[]).0, 0);
}

#[test]
fn client_that_does_not_take_its_replies_is_disconnected_and_a_slow_one_is_not() {
    let server = impatient();
    let mut stuck = Client::open(&server.socket, ReplyMode::Simple);
    let mut slow = Client::open(&server.socket, ReplyMode::Simple);
    ask(&mut stuck, 16);
    ask(&mut slow, 16);
    for _ in 0..16 {
        take(&mut slow, 1);
        #[expect(clippy::disallowed_methods, reason = "a client of a thread of its own")]
        std::thread::sleep(STALL / 5);
    }
    server.wait_connections(1);
    assert_eq!(slow.call(request(Command::Read, 0, 512), &[]).0, 0);
}
