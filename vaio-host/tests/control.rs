//! The control protocol as `docs/spec/control.md` says it, against the real program.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod program;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use program::{Program, Talk, Vaio, blank, folder, now, stderr, stdout, talk};
use serde_json::{Value, json};
use vaio_core::{BlockDevice, BlockDeviceExt};

/// The vendor's program; see `program`.
#[test]
#[ignore = "run by the other tests as a program"]
fn vendor_program() {
    program::vendor_main();
}

/// A vendor's program with one file disk, `a`, and its control socket.
fn serve(args: &[&str]) -> (tempfile::TempDir, Vaio, PathBuf) {
    let dir = folder();
    blank(dir.path(), "a.img", 1 << 20);
    let mut all = vec!["serve", "a.img"];
    all.extend_from_slice(args);
    let vaio = Vaio::start(Program::Vendor, dir.path(), &all);
    let control = dir.path().join("a.img.control");
    (dir, vaio, control)
}

/// Reads once in the background; joins to whether that worked.
fn read_in_background(dir: &Path) -> std::thread::JoinHandle<bool> {
    let socket = dir.join("a.img.nbd");
    #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
    std::thread::spawn(move || {
        program::with_client(&socket, "", |disk| async move { disk.read(0, 512).await }).is_ok()
    })
}

/// The keys of an object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[test]
#[expect(clippy::too_many_lines, reason = "one answer after the other")]
fn answers_have_the_documented_shape() {
    let (_dir, vaio, control) = serve(&["--filter", "tag:text=x"]);
    let answer = talk(&control, r#"{"v":1,"id":7,"do":"status"}"#);
    assert_eq!(
        (answer["v"].clone(), answer["id"].clone()),
        (json!(1), json!(7))
    );
    let status = &answer["ok"];
    assert_eq!(
        keys(status),
        [
            "disks",
            "io_thread_blocked_ms",
            "nbd_connections",
            "pid",
            "uptime_ms",
            "version"
        ]
    );
    assert_eq!(status["pid"], vaio.pid());
    let disk = &status["disks"][0];
    assert_eq!(
        keys(disk),
        [
            "dirty_bytes",
            "dirty_policy",
            "generation",
            "in_flight",
            "info",
            "layers",
            "name",
            "orphans",
            "phase",
            "polling",
            "running",
            "spec",
            "vm"
        ]
    );
    assert_eq!(
        (&disk["name"], &disk["phase"], &disk["info"]["capacity"]),
        (&json!("a"), &json!("open"), &json!(1 << 20))
    );
    let layer = &disk["layers"][0];
    assert_eq!(
        keys(layer),
        [
            "class", "fault", "faults", "filter", "health", "name", "version"
        ]
    );
    assert_eq!(
        (&layer["name"], &layer["health"]),
        (&json!("tag"), &json!("active"))
    );

    let stats = &talk(&control, r#"{"v":1,"do":"stats"}"#)["ok"]["disks"][0];
    assert_eq!(
        keys(stats),
        ["gate_closed", "layers", "name", "ops", "orphans"]
    );
    assert_eq!(
        keys(&stats["gate_closed"]),
        [
            "count", "max_ns", "mean_ns", "p50_ns", "p90_ns", "p999_ns", "p99_ns"
        ]
    );
    assert_eq!(
        keys(&stats["ops"][0]),
        ["bytes", "errors", "ios", "latency", "op"]
    );
    assert_eq!(
        keys(&stats["layers"][0]),
        ["errors", "faults", "ios", "name", "own", "total"]
    );

    let stack = talk(&control, r#"{"v":1,"do":"stack"}"#);
    assert_eq!(
        stack["ok"],
        json!({ "disks": [{ "name": "a", "filters": [{ "name": "tag", "settings": { "text": "x" } }] }] })
    );
    let dirty = talk(&control, r#"{"v":1,"do":"dirty","to":"cache"}"#);
    assert_eq!(
        dirty["ok"],
        json!({ "disks": [{ "name": "a", "level": "cache", "bytes": 0, "oldest_age_ms": 0, "is_estimate": false }] })
    );
    let filters = talk(&control, r#"{"v":1,"do":"filters"}"#);
    let names: Vec<_> = filters["ok"]["filters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].clone())
        .collect();
    assert_eq!(names, ["scramble", "spin", "tag"]);
}

#[test]
fn errors_have_kind_text_and_id() {
    let (_dir, _vaio, control) = serve(&[]);
    for (line, id, kind) in [
        ("garbage", Value::Null, "invalid"),
        (r#"{"v":2,"id":3,"do":"status"}"#, json!(3), "invalid"),
        (r#"{"v":1,"id":3,"do":"burn"}"#, json!(3), "invalid"),
        (
            r#"{"v":1,"id":3,"do":"status","disk":"no"}"#,
            json!(3),
            "invalid",
        ),
        (r#"{"v":1,"id":3,"do":"release"}"#, json!(3), "refused"),
        (
            r#"{"v":1,"id":"x","do":"attach","filter":{"name":"no"}}"#,
            json!("x"),
            "config",
        ),
        (
            r#"{"v":1,"id":3,"do":"flush","to":"replica"}"#,
            json!(3),
            "unsupported",
        ),
    ] {
        let answer = talk(&control, line);
        assert_eq!(
            (&answer["id"], &answer["error"]["kind"]),
            (&id, &json!(kind)),
            "{line}: {answer}"
        );
        assert_eq!(
            keys(&answer["error"]),
            ["disk", "filter", "kind", "retry", "text"]
        );
    }
}

#[test]
fn filters_come_and_go_on_the_running_disk() {
    let (_dir, vaio, _control) = serve(&[]);
    for args in [
        &["attach", "a.img.control", "tag"][..],
        &["replace", "a.img.control", "tag:text=new"],
        &["stack", "a.img.control"],
        &["detach", "a.img.control", "tag", "--dirty", "flush"],
    ] {
        let done = vaio.ask(args);
        assert!(done.status.success(), "{args:?}: {}", stderr(&done));
        if args[0] == "stack" {
            assert!(stdout(&done).contains("tag:text=new"), "{}", stdout(&done));
        }
    }
    let events = stdout(&vaio.ask(&["events", "a.img.control", "--json"]));
    let kinds: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].clone())
        .collect();
    assert_eq!(kinds, ["opened", "attached", "replaced", "detached"]);
    let status: Value =
        serde_json::from_str(&stdout(&vaio.ask(&["status", "a.img.control", "--json"]))).unwrap();
    assert_eq!(status["disks"][0]["layers"], json!([]));
}

#[test]
fn followed_events_arrive_as_they_happen() {
    let (_dir, vaio, control) = serve(&[]);
    let mut talk = Talk::new(&control);
    talk.say(r#"{"v":1,"id":1,"do":"events","follow":true}"#);
    assert_eq!(talk.hear()["event"]["kind"], "opened");
    assert!(
        vaio.ask(&["attach", "a.img.control", "tag"])
            .status
            .success()
    );
    let event = talk.hear()["event"].clone();
    assert_eq!(
        (&event["kind"], &event["filter"], &event["disk"]),
        (&json!("attached"), &json!("tag"), &json!("a"))
    );
    // The end of the one who follows ends nothing else.
    drop(talk);
    assert!(vaio.ask(&["status", "a.img.control"]).status.success());
}

#[test]
fn status_answers_and_names_the_filter_while_it_spins() {
    let (dir, vaio, control) = serve(&["--filter", "spin:time=4s"]);
    let reading = read_in_background(dir.path());
    vaio.wait_for("the watchdog's event", Duration::from_secs(10), |vaio| {
        vaio.err().contains("ThreadBlocked")
    });
    let asked = now();
    let status = &talk(&control, r#"{"v":1,"do":"status"}"#)["ok"];
    assert!(
        asked.elapsed() < Duration::from_millis(500),
        "{:?}",
        asked.elapsed()
    );
    assert!(
        status["io_thread_blocked_ms"].as_u64().unwrap() >= 1000,
        "{status}"
    );
    assert_eq!(status["disks"][0]["polling"], "spin");
    assert!(talk(&control, r#"{"v":1,"do":"stats"}"#)["ok"].is_object());
    let events = stdout(&vaio.ask(&["events", "a.img.control"]));
    assert!(
        events.contains("thread_blocked") && events.contains("filter=spin"),
        "{events}"
    );
    assert!(reading.join().unwrap(), "the read is answered in the end");
    vaio.wait_for("the thread is back", Duration::from_secs(5), |_| {
        talk_is_null(&control)
    });
    assert_eq!(vaio.stop(), Some(0));
}

fn talk_is_null(control: &Path) -> bool {
    talk(control, r#"{"v":1,"do":"status"}"#)["ok"]["io_thread_blocked_ms"].is_null()
}

#[test]
fn verb_is_given_up_while_a_filter_spins() {
    let (dir, vaio, _control) = serve(&["--filter", "spin:time=9s"]);
    let reading = read_in_background(dir.path());
    vaio.wait_for("the watchdog's event", Duration::from_secs(10), |vaio| {
        vaio.err().contains("ThreadBlocked")
    });
    let done = vaio.ask(&["attach", "a.img.control", "tag"]);
    assert_eq!(done.status.code(), Some(7), "{}", stderr(&done));
    assert!(stderr(&done).contains("spin"), "{}", stderr(&done));
    assert!(reading.join().unwrap());
}

#[test]
fn garbage_does_no_harm() {
    let (_dir, vaio, control) = serve(&[]);
    let fds = || {
        fs::read_dir(format!("/proc/{}/fd", vaio.pid()))
            .unwrap()
            .count()
    };
    assert!(talk(&control, r#"{"v":1,"do":"status"}"#)["ok"].is_object());
    let before = fds();
    let long = vec![b'x'; 200 << 10];
    let deep = "[".repeat(10_000);
    let lines: [&[u8]; 8] = [
        b"\n\n\n",
        b"\x00\xff\xfe\n",
        &long,
        deep.as_bytes(),
        b"{\"v\":1,\"do\":\"status\"",
        b"{\"v\":1,\"do\":\"hold\"}\n",
        b"{\"v\":1,\"do\":\"events\",\"follow\":true}\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for turn in 0..200 {
        let mut stream = UnixStream::connect(&control).unwrap();
        // It may hang up on us at any time.
        let _ = stream.write_all(lines[turn % lines.len()]);
    }
    vaio.wait_for("the descriptors are back", Duration::from_secs(10), |_| {
        fds() <= before
    });
    assert!(talk(&control, r#"{"v":1,"do":"status"}"#)["ok"].is_object());
    let answer = {
        let mut talk = Talk::new(&control);
        talk.say(std::str::from_utf8(&long).unwrap());
        talk.hear()
    };
    assert!(
        answer["error"]["text"]
            .as_str()
            .unwrap()
            .contains("too long"),
        "{answer}"
    );
    assert_eq!(vaio.stop(), Some(0));
}

#[test]
fn connection_beyond_the_limit_is_told_and_others_go_on() {
    let (_dir, vaio, control) = serve(&[]);
    let mut held: Vec<Talk> = (0..32).map(|_| Talk::new(&control)).collect();
    held[31].say(r#"{"v":1,"do":"status"}"#);
    assert!(held[31].hear()["ok"].is_object());
    let mut beyond = Talk::new(&control);
    assert_eq!(beyond.hear()["error"]["kind"], "busy");
    drop(held);
    vaio.wait_for("a place is free", Duration::from_secs(5), |_| {
        talk(&control, r#"{"v":1,"do":"status"}"#)["ok"].is_object()
    });
}

#[test]
fn snapshot_holds_while_the_command_runs_and_says_so() {
    let (dir, vaio, control) = serve(&[]);
    let command = "cp --sparse=always a.img copy.img && vaio_phase=1";
    let done = vaio.ask(&["snapshot", "a.img.control", "--exec", command, "--json"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let answer: Value = serde_json::from_str(&stdout(&done)).unwrap();
    assert_eq!(answer["held"][0]["by"], "quiesce");
    assert_eq!(answer["released"][0]["release"], "held");
    assert!(dir.path().join("copy.img").exists());

    let mut holder = Talk::new(&control);
    holder.say(r#"{"v":1,"do":"hold"}"#);
    assert_eq!(holder.hear()["ok"]["held"][0]["name"], "a");
    assert_eq!(
        talk(&control, r#"{"v":1,"do":"status"}"#)["ok"]["disks"][0]["phase"],
        "quiesced"
    );
    holder.say(r#"{"v":1,"do":"hold"}"#);
    assert_eq!(holder.hear()["error"]["kind"], "refused");
    // Whoever holds and goes away lets go.
    drop(holder);
    vaio.wait_for("the disk is open again", Duration::from_secs(5), |_| {
        talk(&control, r#"{"v":1,"do":"status"}"#)["ok"]["disks"][0]["phase"] == "open"
    });
    let events = stdout(&vaio.ask(&["events", "a.img.control"]));
    assert!(events.contains("verb_aborted"), "{events}");
}

#[test]
fn end_while_a_snapshot_is_held_is_orderly_and_told() {
    let (_dir, vaio, control) = serve(&[]);
    let mut holder = Talk::new(&control);
    holder.say(r#"{"v":1,"do":"hold"}"#);
    assert!(holder.hear()["ok"].is_object());
    assert_eq!(vaio.stop(), Some(0));
    assert_eq!(holder.hear()["error"]["kind"], "gone");
}

#[test]
fn resize_grows_the_file_and_the_disk() {
    let (dir, vaio, _control) = serve(&["--filter", "tag"]);
    let done = vaio.ask(&["resize", "a.img.control", "2M"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(
        fs::metadata(dir.path().join("a.img")).unwrap().len(),
        2 << 20
    );
    program::with_client(&dir.path().join("a.img.nbd"), "", |disk| async move {
        assert_eq!(disk.info().capacity, 2 << 20);
        disk.write((2 << 20) - 512, vec![5; 512]).await
    })
    .unwrap();
    let odd = vaio.ask(&["resize", "a.img.control", "2097153"]);
    assert_eq!(odd.status.code(), Some(2), "{}", stderr(&odd));
    assert_eq!(
        fs::metadata(dir.path().join("a.img")).unwrap().len(),
        2 << 20
    );
    assert_eq!(vaio.stop(), Some(0));
}

#[test]
fn metrics_are_served_over_http_and_the_socket() {
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap()
    };
    let (_dir, vaio, _control) = serve(&["--metrics", &port.to_string(), "--filter", "tag"]);
    let get = |path: &str| {
        let mut stream = TcpStream::connect(port).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let text = get("/metrics");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    let line = r#"vaio_filter_health{disk="a",filter="tag"} 0.0"#;
    assert!(text.contains(line), "{text}");
    assert!(get("/").starts_with("HTTP/1.1 404"));
    assert!(stdout(&vaio.ask(&["metrics", "a.img.control"])).contains(line));
}

#[test]
fn several_disks_need_a_name_for_a_verb_and_flush_together() {
    let dir = folder();
    let vaio = Vaio::start(
        Program::Vendor,
        dir.path(),
        &["serve", "ram:1M", "null:1M", "--nbd", "s", "--control", "c"],
    );
    let unnamed = vaio.ask(&["attach", "c", "tag"]);
    assert_eq!(unnamed.status.code(), Some(2), "{}", stderr(&unnamed));
    assert!(
        stderr(&unnamed).contains("ram,null"),
        "{}",
        stderr(&unnamed)
    );
    assert!(
        vaio.ask(&["attach", "c", "tag", "--disk", "ram"])
            .status
            .success()
    );
    assert!(vaio.ask(&["flush", "c"]).status.success());
    let snapshot = vaio.ask(&["snapshot", "c", "--exec", "true"]);
    assert!(snapshot.status.success(), "{}", stderr(&snapshot));
    assert_eq!(vaio.stop(), Some(0));
}
