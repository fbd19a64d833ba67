//! The cache in the program: its file made, locked and told apart, the disk refused without it,
//! and what the verbs say of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod program;

use std::{fs, path::Path, process::Output};

use program::{Program, Vaio, blank, folder, stderr, stdout, with_client};
use vaio_core::{BlockDeviceExt, Io};

const SIZE: u64 = 16 << 20;

fn write(dir: &Path, byte: u8) {
    with_client(&dir.join("a.img.nbd"), "", |disk| async move {
        disk.submit(Io::write(4096, vec![byte; 4096].into()))
            .await?;
        disk.flush().await
    })
    .unwrap();
}

fn check(dir: &Path, byte: u8) {
    with_client(&dir.join("a.img.nbd"), "", |disk| async move {
        assert_eq!(disk.read(4096, 4096).await?[..], [byte; 4096]);
        Ok(())
    })
    .unwrap();
}

fn refused(done: &Output, code: i32, words: &[&str]) {
    let said = stderr(done);
    assert_eq!(done.status.code(), Some(code), "{said}");
    let errors: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("vaio: "))
        .collect();
    assert_eq!(errors.len(), 1, "{said}");
    let line = errors[0];
    for word in words {
        assert!(line.contains(word), "{word} in {line}");
    }
}

#[test]
fn cache_file_is_made_with_size_and_left_alone_afterwards() {
    let dir = folder();
    let at = dir.path();
    blank(at, "a.img", SIZE);
    let with = |cache: &'static str| ["serve", "a.img", "--filter", cache];
    let missing = Program::Stock.run(at, &with("cache:file=a.ssd"));
    refused(&missing, 5, &["a.ssd", "add size=SIZE", "filter=cache"]);
    assert!(!at.join("a.ssd").exists() && !at.join("a.img.vaio").exists());

    let vaio = Vaio::start(Program::Stock, at, &with("cache:file=a.ssd,size=16M"));
    assert_eq!(fs::metadata(at.join("a.ssd")).unwrap().len(), 16 << 20);
    write(at, 7);
    vaio.kill9();
    assert_eq!(fs::read(at.join("a.img")).unwrap()[4096], 0, "not destaged");

    refused(
        &Program::Stock.run(at, &with("cache:file=a.ssd,size=17M")),
        5,
        &["a.ssd", "another size", "size=16777216 asked=17825792"],
    );
    refused(
        &Program::Stock.run(at, &with("none")),
        5,
        &["missing=cache", "a.img"],
    );
    // Made, found to be the wrong one, and taken away again.
    refused(
        &Program::Stock.run(at, &["serve", "a.img"]),
        5,
        &["find the right device", "filter=cache"],
    );
    assert!(!at.join("a.img.cache").exists());

    for cache in ["cache:file=a.ssd", "cache:file=a.ssd,size=16M"] {
        let again = Vaio::start(Program::Stock, at, &with(cache));
        check(at, 7);
        assert_eq!(again.stop(), Some(0));
    }
    assert_eq!(fs::read(at.join("a.img")).unwrap()[4096], 7, "destaged");
    let bare = Vaio::start(Program::Stock, at, &with("none"));
    check(at, 7);
    assert_eq!(bare.stop(), Some(0));
}

#[test]
fn cache_file_in_use_is_refused_to_everyone_else() {
    let dir = folder();
    let at = dir.path();
    blank(at, "a.img", SIZE);
    blank(at, "b.img", SIZE);
    let cache = "cache:file=c.ssd,size=16M";
    let first = Vaio::start(Program::Stock, at, &["serve", "a.img", "--filter", cache]);
    write(at, 3);
    let second = Program::Stock.run(at, &["serve", "b.img", "--filter", cache]);
    refused(&second, 4, &["c.ssd", "filter=cache"]);
    assert_eq!(first.stop(), Some(0));
    let both = ["serve", "a.img", "b.img", "--filter", cache];
    refused(
        &Program::Stock.run(at, &both),
        4,
        &["c.ssd", "filter=cache"],
    );
    let itself = ["serve", "b.img", "--filter", "cache:file=b.img"];
    refused(&Program::Stock.run(at, &itself), 4, &["b.img"]);
    assert!(
        fs::read(at.join("b.img"))
            .unwrap()
            .iter()
            .all(|&byte| byte == 0)
    );
}

#[test]
fn default_cache_is_beside_the_disk_and_none_switches_it_off() {
    let dir = folder();
    let at = dir.path();
    let vaio = Vaio::start(Program::Stock, at, &["serve", "a.img", "--create", "16M"]);
    assert!(vaio.out().contains("filters: cache"), "{}", vaio.out());
    assert_eq!(
        fs::metadata(at.join("a.img.cache")).unwrap().len(),
        64 << 20
    );
    let stack = stdout(&vaio.ask(&["stack", "a.img.control"]));
    assert!(stack.contains("a.img.cache,size=67108864"), "{stack}");
    write(at, 5);
    vaio.kill9();
    let again = Vaio::start(Program::Stock, at, &["serve", "a.img"]);
    check(at, 5);
    assert_eq!(again.stop(), Some(0));
    fs::remove_file(at.join("a.img.cache")).unwrap();
    let bare = Vaio::start(Program::Stock, at, &["serve", "a.img", "--filter", "none"]);
    check(at, 5);
    assert_eq!(bare.stop(), Some(0));
    assert!(!at.join("a.img.cache").exists());
}

#[test]
fn attached_cache_is_made_and_a_failed_attach_leaves_nothing() {
    let dir = folder();
    let at = dir.path();
    blank(at, "a.img", SIZE);
    let vaio = Vaio::start(Program::Stock, at, &["serve", "a.img", "--filter", "none"]);
    let attach = |cache: &str| vaio.ask(&["attach", "a.img.control", cache]);
    // Large enough for a device, too small for a log.
    refused(&attach("cache:file=x.ssd,size=8K"), 5, &["filter=cache"]);
    assert!(!at.join("x.ssd").exists());
    let done = attach("cache:file=x.ssd,size=16M");
    assert!(done.status.success(), "{}", stderr(&done));
    write(at, 9);
    assert_eq!(vaio.stop(), Some(0));
    assert_eq!(fs::read(at.join("a.img")).unwrap()[4096], 9, "destaged");
    let filters = stdout(&Program::Stock.run(at, &["filters"]));
    assert!(
        filters.contains("  size: Size to make file with"),
        "{filters}"
    );
}

#[test]
fn dirty_is_told_alike_by_status_dirty_metrics_and_map_until_it_is_flushed() {
    let dir = folder();
    let at = dir.path();
    let vaio = Vaio::start(Program::Stock, at, &["serve", "a.img", "--create", "16M"]);
    write(at, 5);
    let ask = |args: &[&str]| {
        let done = vaio.ask(args);
        assert!(done.status.success(), "{}", stderr(&done));
        stdout(&done)
    };
    let dirty = ask(&["dirty", "a.img.control", "--extents"]);
    assert!(
        dirty.contains("disk a: 4 KiB not at level backing"),
        "{dirty}"
    );
    assert!(dirty.contains("4096 +4096"), "{dirty}");
    let json: serde_json::Value =
        serde_json::from_str(&ask(&["dirty", "a.img.control", "--extents", "--json"])).unwrap();
    assert_eq!(
        json["disks"][0]["extents"],
        serde_json::json!([[4096, 4096]])
    );
    let status = ask(&["status", "a.img.control"]);
    for words in [
        "4 KiB dirty",
        "mode      write_back, ordered, at_flush",
        "log used",
        "MiB",
    ] {
        assert!(status.contains(words), "{words} in {status}");
    }
    let metrics = ask(&["metrics", "a.img.control"]);
    for line in [
        r#"vaio_filter_dirty_bytes{disk="a",filter="cache"} 4096.0"#,
        r#"vaio_filter_value{disk="a",filter="cache",name="log_used_bytes"} 4194304.0"#,
        r#"vaio_filter_count_total{disk="a",filter="cache",name="writes_waited_total"} 0"#,
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} in {metrics}"
        );
    }
    assert!(
        metrics.contains(r#"vaio_disk_dirty_age_seconds{disk="a"}"#),
        "{metrics}"
    );
    if program::has("nbdinfo") {
        let uri = format!("nbd+unix:///?socket={}", at.join("a.img.nbd").display());
        let map = std::process::Command::new("nbdinfo")
            .args(["--map=vaio:dirty", &uri])
            .output()
            .unwrap();
        let map = stdout(&map);
        let found: Vec<Vec<&str>> = map
            .lines()
            .map(|line| line.split_whitespace().take(3).collect())
            .collect();
        let rest = (SIZE - 8192).to_string();
        let expected = [
            ["0", "4096", "0"],
            ["4096", "4096", "1"],
            ["8192", &rest, "0"],
        ];
        assert_eq!(found, expected, "{map}");
    }
    ask(&["flush", "a.img.control", "--to", "backing"]);
    assert_eq!(fs::read(at.join("a.img")).unwrap()[4096], 5, "destaged");
    let dirty = ask(&["dirty", "a.img.control", "--extents"]);
    assert_eq!(dirty.lines().count(), 1, "{dirty}");
    assert!(dirty.contains("disk a: 0 B"), "{dirty}");
    assert_eq!(vaio.stop(), Some(0));
}

#[test]
fn snapshot_has_what_was_written_before_and_tells_when_it_did_not_hold() {
    let dir = folder();
    let at = dir.path();
    let vaio = Vaio::start(Program::Stock, at, &["serve", "a.img", "--create", "16M"]);
    write(at, 5);
    for args in [&[][..], &["--quiesce"]] {
        let verb = ["snapshot", "a.img.control", "--exec", "cp a.img a.snap"];
        let done = vaio.ask(&[&verb[..], args].concat());
        assert!(done.status.success(), "{}", stderr(&done));
        assert_eq!(fs::read(at.join("a.snap")).unwrap()[4096], 5);
        fs::remove_file(at.join("a.snap")).unwrap();
    }
    let failed = vaio.ask(&["snapshot", "a.img.control", "--exec", "exit 3"]);
    refused(&failed, 1, &["the command failed", "3"]);
    write(at, 6);
    check(at, 6);
    assert_eq!(vaio.stop(), Some(0));
}
