//! Clients that no one here wrote: libnbd's, QEMU's and fio. A tool that is not installed is
//! passed over, unless `VAIO_REQUIRE_TOOLS` is set.

use std::{
    fs,
    io::ErrorKind,
    process::{Command, Output},
    sync::Arc,
};

use vaio_core::RamDisk;

use super::server::Plan;

fn output(tool: &str, args: &[&str]) -> Option<Output> {
    match Command::new(tool).args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let required = std::env::var_os("VAIO_REQUIRE_TOOLS").is_some();
            assert!(!required, "{tool} is not installed");
            eprintln!("passed over: {tool} is not installed");
            None
        }
        Err(error) => panic!("{tool}: {error}"),
    }
}

/// What a tool that succeeds prints; `None` if it is not there.
pub fn run(tool: &str, args: &[&str]) -> Option<String> {
    let output = output(tool, args)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{tool} {args:?}\n{out}\n{error}");
    Some(out)
}

/// What a tool that fails complains about.
pub fn fails(tool: &str, args: &[&str]) -> String {
    let output = output(tool, args).expect("it was there a moment ago");
    assert!(!output.status.success(), "{tool} {args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at / 4096 * 131 + at * 7) % 256).unwrap())
        .collect()
}

#[test]
fn nbdinfo_sees_what_is_advertised() {
    let mut plan = Plan::device(Arc::new(RamDisk::with_block(8 << 20, 4096)));
    plan.exports = |export| export.with_description("for nbdinfo");
    let server = plan.start();
    let Some(out) = run("nbdinfo", &["--json", &server.uri()]) else {
        return;
    };
    let info: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["description"], "for nbdinfo");
    assert_eq!(export["export-size"], 8 << 20);
    assert_eq!(export["contexts"][0], "base:allocation");
    for (key, value) in [
        ("block_size_minimum", 4096),
        ("block_size_preferred", 4096),
        ("block_size_maximum", 32 << 20),
    ] {
        assert_eq!(export[key], value, "{key}");
    }
    for can in [
        "flush",
        "fua",
        "trim",
        "zero",
        "fast_zero",
        "cache",
        "df",
        "multi_conn",
    ] {
        assert_eq!(export[format!("can_{can}")], true, "{can}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["is_rotational"], false);
}

#[test]
fn qemu_io_patterns_and_nbdinfo_map_agree() {
    let server = Plan::ram(16).start();
    let uri = server.uri();
    let commands = [
        "aio_write -P 0xab 1M 1M",
        "aio_write -P 0x11 4M 64k",
        "aio_flush",
        "write -f -P 0x22 6M 64k",
        "write -z -u 1M 64k",
        "write -z 1088k 64k",
        "discard 4M 64k",
        "flush",
        "read -P 0 1M 128k",
        "read -P 0xab 1152k 896k",
        "read -P 0 4M 64k",
        "read -P 0x22 6M 64k",
    ];
    let mut args = vec!["-f", "raw"];
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    args.push(&uri);
    if run("qemu-io", &args).is_none() {
        return;
    }
    let Some(map) = run("nbdinfo", &["--map", "--json", &uri]) else {
        return;
    };
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let data: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|piece| piece["type"] == 0)
        .collect();
    let at = |piece: &serde_json::Value| (piece["offset"].as_u64(), piece["length"].as_u64());
    assert_eq!(data.len(), 2, "{map}");
    assert_eq!(at(data[0]), (Some(1152 << 10), Some(896 << 10)));
    assert_eq!(at(data[1]), (Some(6 << 20), Some(64 << 10)));
}

#[test]
fn copies_in_and_out_are_identical() {
    let server = Plan::ram(48).start();
    let (uri, dir) = (server.uri(), &server.dir);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (source, out) = (path("source.raw"), path("out.raw"));
    let mut image = pattern(48 << 20);
    image[5 << 20..20 << 20].fill(0);
    fs::write(&source, &image).unwrap();
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw"];
    let convert = |from: &str, to: &str| run("qemu-img", &[&convert[..], &[from, to]].concat());
    if convert(&source, &uri).is_some() {
        fs::write(&out, vec![0; 48 << 20]).unwrap();
        convert(&uri, &out);
        assert!(fs::read(&out).unwrap() == image, "qemu-img");
    }
    image.reverse();
    fs::write(&source, &image).unwrap();
    if run("nbdcopy", &[&source, &uri]).is_some() {
        run("nbdcopy", &[&uri, &out]);
        assert!(fs::read(&out).unwrap() == image, "nbdcopy");
    }
}

#[test]
fn fio_verifies_random_io_at_depth() {
    let server = Plan::ram(32).start();
    let uri = format!("--uri={}", server.uri());
    let common = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--iodepth=32",
    ];
    for size in ["--bsrange=4k-4k", "--bsrange=512-128k"] {
        let verify = ["--size=32M", "--verify=crc32c", "--verify_fatal=1", size];
        let Some(out) = run("fio", &[&common[..], &verify].concat()) else {
            return;
        };
        assert!(out.contains("err= 0"), "{out}");
    }
}

#[test]
fn libnbd_python_checks_flags_and_structured_reads() {
    let server = Plan::ram(8).start();
    let script = format!(
        r#"
try:
    import nbd
except ImportError:
    print("absent")
    raise SystemExit
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri("{}")
assert h.can_meta_context("base:allocation") and h.get_structured_replies_negotiated()
h.pwrite(b"\x5a" * 8192, 65536, nbd.CMD_FLAG_FUA)
chunks = []
h.pread_structured(131072, 0, lambda *chunk: chunks.append(chunk[1:3]), nbd.CMD_FLAG_DF)
assert chunks == [(0, nbd.READ_DATA)], chunks
seen = []
h.block_status(8 << 20, 0, lambda name, at, entries, e: seen.append((name, at, entries)))
assert seen == [("base:allocation", 0, [65536, 3, 65536, 0, (8 << 20) - 131072, 3])], seen
h.zero(4096, 65536, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
h.trim(65536, 65536)
h.cache(65536, 0)
h.flush()
h.set_strict_mode(0)
for bad in (lambda: h.pread(512, 8 << 20), lambda: h.pread(100, 3), lambda: h.zero(0x10000, 8 << 20)):
    try:
        bad()
        raise SystemExit("a bad request succeeded")
    except nbd.Error as error:
        assert error.errno == "EINVAL", error
assert h.pread(8192, 65536) == bytearray(8192)
h.shutdown()
print("done")
"#,
        server.uri()
    );
    // The system's interpreter: the binding is a package of the system.
    let Some(out) = run("/usr/bin/python3", &["-c", &script]) else {
        return;
    };
    assert!(["done", "absent"].contains(&out.trim()), "{out}");
}
