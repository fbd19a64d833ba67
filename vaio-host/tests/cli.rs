//! Every mistake on the command line: one clear line, the documented code, nothing made.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod program;

use std::{collections::BTreeMap, fs, path::Path};

use program::{Program, Vaio, blank, folder, stderr, stdout};
use vaio_host::Exit;

/// The vendor's program; see `program`.
#[test]
#[ignore = "run by the other tests as a program"]
fn vendor_program() {
    program::vendor_main();
}

/// Name and content of everything in a folder.
fn listing(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap_or_default())
        })
        .collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_mistake_is_one_line_with_its_code_and_changes_nothing() {
    let dir = folder();
    for (name, size) in [
        ("good.img", 1 << 20),
        ("odd.img", 1000),
        ("empty.img", 0),
        ("busy.img", 1 << 20),
    ] {
        blank(dir.path(), name, size);
    }
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("bad.toml"), "frobnicate = true\n").unwrap();
    fs::write(
        dir.path().join("nix.toml"),
        "[[policy]]\n[[policy.filter]]\nname = \"nix\"\n",
    )
    .unwrap();
    let busy = Vaio::start(Program::Vendor, dir.path(), &["serve", "busy.img"]);
    let before = listing(dir.path());
    let carrier = "nbd+carrier://pigeon/x";
    let nobody = "nbd+unix:///?socket=absent.nbd";
    for (exit, words, line) in [
        (Exit::Usage, "frobnicate", "frobnicate"),
        (Exit::Usage, "--frobnicate", "serve good.img --frobnicate"),
        (Exit::Disk, "absent.img", "serve absent.img"),
        (Exit::Disk, "directory", "serve sub --nbd s"),
        (Exit::Disk, "no/x.img", "serve no/x.img --create 1M"),
        (Exit::Disk, "multiple", "serve odd.img"),
        (Exit::Disk, "empty.img", "serve empty.img"),
        (Exit::Usage, "12parsecs", "serve c.img --create 12parsecs"),
        (Exit::Disk, "multiple", "serve c.img --create 1000"),
        (Exit::Usage, "null:many", "serve null:many --nbd s"),
        (Exit::Usage, "--nbd", "serve null:1M"),
        (Exit::Disk, "absent.nbd", &format!("serve {nobody} --nbd s")),
        (Exit::Disk, carrier, &format!("serve {carrier} --nbd s")),
        (
            Exit::Busy,
            "busy.img.nbd",
            "serve good.img --nbd busy.img.nbd",
        ),
        (
            Exit::Busy,
            "busy.img.control",
            "serve good.img --control busy.img.control",
        ),
        (Exit::Busy, "busy.img", "serve busy.img --nbd s --control c"),
        (Exit::Usage, "good.img", "serve good.img ./good.img"),
        (Exit::Filter, "nix", "serve good.img --filter nix"),
        (Exit::Filter, "hue", "serve good.img --filter tag:hue=1"),
        (
            Exit::Filter,
            "time",
            "serve good.img --filter spin:time=long",
        ),
        (Exit::Filter, "time", "serve good.img --filter spin:time"),
        (
            Exit::Usage,
            "none",
            "serve good.img --filter none --filter tag",
        ),
        (
            Exit::Filter,
            "--state-dir",
            &format!("serve {nobody} --nbd s --filter scramble"),
        ),
        (
            Exit::Usage,
            "absent.toml",
            "serve good.img --policy absent.toml",
        ),
        (
            Exit::Usage,
            "line=1 column=1",
            "serve good.img --policy bad.toml",
        ),
        (
            Exit::Usage,
            "line=3 column=8",
            "serve good.img --policy nix.toml",
        ),
        (
            Exit::Usage,
            "localhost:zero",
            "serve good.img --nbd localhost:zero",
        ),
        (
            Exit::Usage,
            "--tls-cert",
            "serve good.img --nbd 192.0.2.1:10809",
        ),
        (
            Exit::Usage,
            "absent.pem",
            "serve good.img --tls-cert absent.pem --tls-key absent.pem",
        ),
        (Exit::Control, "absent.control", "status absent.control"),
        (Exit::Usage, "FILTER", "attach busy.img.control"),
        (Exit::Filter, "nix", "attach busy.img.control nix"),
        (Exit::Filter, "hue", "attach busy.img.control tag:hue=1"),
        (Exit::Filter, "tag", "detach busy.img.control tag"),
        (
            Exit::Usage,
            "nodisk",
            "stats busy.img.control --disk nodisk",
        ),
        (Exit::Usage, "grow", "resize busy.img.control 512"),
        (
            Exit::Filter,
            "replica",
            "flush busy.img.control --to replica",
        ),
        (
            Exit::Failed,
            "command failed",
            "snapshot busy.img.control --exec false",
        ),
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let done = Program::Vendor.run(dir.path(), &args);
        let said = stderr(&done);
        assert_eq!(
            done.status.code(),
            Some(exit.code().into()),
            "{line}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{line}: {said}");
        assert!(
            said.starts_with("vaio: ") && said.contains(words),
            "{line}: {said}"
        );
        assert!(!stdout(&done).contains("ready"), "{line}");
        assert_eq!(listing(dir.path()), before, "{line}");
    }
    assert_eq!(busy.stop(), Some(0));
}

#[test]
fn defaults_that_fail_leave_no_folder_behind() {
    let dir = folder();
    // The address is taken, which is found after the disk was opened.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for option in ["--nbd", "--metrics"] {
        let done = Program::Stock.run(dir.path(), &["serve", option, &address]);
        assert_eq!(
            done.status.code(),
            Some(Exit::Busy.code().into()),
            "{}",
            stderr(&done)
        );
        assert!(
            listing(dir.path()).is_empty(),
            "{option}: {:?}",
            listing(dir.path()).keys()
        );
    }
}

#[test]
fn help_documents_every_exit_code() {
    let dir = folder();
    for args in [&["--help"][..], &["serve", "--help"]] {
        let help = stdout(&Program::Stock.run(dir.path(), args));
        for exit in Exit::ALL {
            assert!(
                help.contains(&format!("  {} {}", exit.code(), exit.meaning())),
                "{help}"
            );
        }
    }
}

#[test]
fn guide_documents_every_exit_code() {
    let guide = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/guide/operating.md"
    ))
    .unwrap();
    for exit in Exit::ALL {
        assert!(
            guide.contains(&format!("| {} | {} |", exit.code(), exit.meaning())),
            "{exit:?}"
        );
    }
}
