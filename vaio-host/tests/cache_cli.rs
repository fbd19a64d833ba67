//! `vaio cache`: what it shows, brings to the disk, refuses and leaves alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod program;

use std::{fs, path::Path, process::Output};

use program::{Program, Vaio, blank, folder, stderr, stdout, with_client};
use vaio_core::{BlockDeviceExt, Io};

const SIZE: u64 = 16 << 20;
const CACHE: &str = "cache:file=a.ssd,size=16M,dirty_age_max=1h";

/// `a.img` with a cache `a.ssd` that alone has a block of `byte`, after a kill.
fn leave(at: &Path, byte: u8) {
    blank(at, "a.img", SIZE);
    let vaio = Vaio::start(Program::Stock, at, &["serve", "a.img", "--filter", CACHE]);
    with_client(&at.join("a.img.nbd"), "", |disk| async move {
        let data = vec![byte; 4096];
        disk.submit(Io::write(4096, data.into())).await?;
        disk.flush().await
    })
    .unwrap();
    vaio.kill9();
    assert_eq!(fs::read(at.join("a.img")).unwrap()[4096], 0, "not destaged");
}

fn run(at: &Path, args: &[&str]) -> Output {
    Program::Stock.run(at, &[&["cache"], args].concat())
}

fn refused(done: &Output, code: i32, words: &[&str]) {
    let said = stderr(done);
    assert_eq!(done.status.code(), Some(code), "{said}");
    let line = said.lines().find(|line| line.starts_with("vaio: "));
    for word in words {
        assert!(line.unwrap().contains(word), "{word} in {said}");
    }
}

#[test]
fn inspect_shows_the_log_of_a_running_and_of_a_dead_host() {
    let dir = folder();
    let at = dir.path();
    leave(at, 7);
    let before = fs::read(at.join("a.ssd")).unwrap();
    let text = stdout(&run(at, &["inspect", "a.ssd"]));
    for word in [
        "not in use",
        "valid, generation 1, counts",
        "dirty: 4 KiB in 1 extents",
        "4096+4096",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let json = stdout(&run(at, &["inspect", "a.ssd", "--json", "--records"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let log = &json["device"]["log"];
    assert_eq!(log["dirty"][0]["offset"], 4096);
    assert_eq!(log["records"][0]["payload_valid"], true);
    assert_eq!(log["records"][0]["payload_bytes"], 4096);
    assert_eq!(fs::read(at.join("a.ssd")).unwrap(), before, "only read");

    let vaio = Vaio::start(Program::Stock, at, &["serve", "a.img", "--filter", CACHE]);
    let text = stdout(&run(at, &["inspect", "a.ssd"]));
    assert!(text.contains("in use by a running process"), "{text}");
    assert_eq!(vaio.stop(), Some(0));
}

#[test]
fn inspect_of_what_is_no_cache_or_damaged_fails_after_its_report() {
    let dir = folder();
    let at = dir.path();
    blank(at, "zero", SIZE);
    refused(
        &run(at, &["inspect", "zero"]),
        1,
        &["no cache log", "file=zero"],
    );
    fs::write(at.join("short"), b"VAIOCSB\x01").unwrap();
    assert_ne!(run(at, &["inspect", "short"]).status.code(), Some(0));
    refused(&run(at, &["inspect", "none"]), 3, &["none"]);
    leave(at, 7);
    let mut bytes = fs::read(at.join("a.ssd")).unwrap();
    // The first payload: behind two superblocks and its header.
    bytes[3 * 4096] ^= 1;
    fs::write(at.join("rotten"), &bytes).unwrap();
    let done = run(at, &["inspect", "rotten", "--records"]);
    assert!(
        stdout(&done).contains("end of the log: seq 0"),
        "{}",
        stdout(&done)
    );
}

#[test]
fn recover_brings_everything_and_the_disk_opens_without_its_cache() {
    let dir = folder();
    let at = dir.path();
    leave(at, 7);
    let files =
        |at: &Path| ["a.img", "a.ssd", "a.img.vaio"].map(|name| fs::read(at.join(name)).unwrap());
    let before = files(at);
    let done = run(at, &["recover", "a.ssd", "--onto", "a.img", "--dry-run"]);
    assert!(
        stdout(&done).contains("would bring 4 KiB"),
        "{}{}",
        stdout(&done),
        stderr(&done)
    );
    assert!(files(at) == before, "a dry run changes nothing");

    let done = run(at, &["recover", "a.ssd", "--onto", "a.img"]);
    assert!(
        stdout(&done).contains("4 KiB of a.ssd are on a.img"),
        "{}{}",
        stdout(&done),
        stderr(&done)
    );
    assert_eq!(fs::read(at.join("a.img")).unwrap()[4096..8192], [7; 4096]);
    let again = run(at, &["recover", "a.ssd", "--onto", "a.img"]);
    assert!(again.status.success(), "{}", stderr(&again));
    fs::remove_file(at.join("a.ssd")).unwrap();
    let bare = Vaio::start(Program::Stock, at, &["serve", "a.img", "--filter", "none"]);
    assert_eq!(bare.stop(), Some(0));
}

#[test]
fn recover_refuses_wrong_disk_missing_sidecar_and_what_is_in_use() {
    let dir = folder();
    let at = dir.path();
    leave(at, 7);
    blank(at, "b.img", SIZE);
    let onto_b = ["recover", "a.ssd", "--onto", "b.img"];
    refused(&run(at, &onto_b), 3, &["b.img.vaio", "--sidecar"]);
    let bare = ["serve", "b.img", "--filter", "none"];
    assert_eq!(Vaio::start(Program::Stock, at, &bare).stop(), Some(0));
    refused(&run(at, &onto_b), 5, &["names no cache device"]);
    let other = ["serve", "b.img", "--filter", "cache:file=b.ssd,size=16M"];
    assert_eq!(Vaio::start(Program::Stock, at, &other).stop(), Some(0));
    for dry in [&[][..], &["--dry-run"]] {
        let args = [&onto_b, dry].concat();
        refused(
            &run(at, &args),
            5,
            &["not the disk's cache device", "wanted="],
        );
    }
    assert!(
        fs::read(at.join("b.img"))
            .unwrap()
            .iter()
            .all(|&byte| byte == 0)
    );

    let vaio = Vaio::start(Program::Stock, at, &["serve", "a.img", "--filter", CACHE]);
    for dry in [&[][..], &["--dry-run"]] {
        let args = [&["recover", "a.ssd", "--onto", "a.img"], dry].concat();
        refused(&run(at, &args), 4, &["a.img"]);
    }
    vaio.kill9();
    let moved = ["recover", "a.ssd", "--onto", "a.img", "--sidecar", "kept"];
    fs::rename(at.join("a.img.vaio"), at.join("kept")).unwrap();
    let done = run(at, &moved);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(fs::read(at.join("a.img")).unwrap()[4096], 7);
}

#[test]
fn recover_of_a_damaged_log_says_what_would_be_lost_and_needs_the_word() {
    let dir = folder();
    let at = dir.path();
    leave(at, 7);
    let mut bytes = fs::read(at.join("a.ssd")).unwrap();
    bytes[..4 * 4096].fill(0);
    fs::write(at.join("a.ssd"), &bytes).unwrap();
    let recover = ["recover", "a.ssd", "--onto", "a.img"];
    refused(
        &run(at, &recover),
        5,
        &["not the disk's cache device", "identity=none"],
    );
    let allow = |bytes| run(at, &[&recover[..], &["--discard-dirty", bytes]].concat());
    refused(&allow("1M"), 5, &["would lose at most 16777216 bytes"]);
    let done = allow("16M");
    assert!(done.status.success(), "{}", stderr(&done));
}
