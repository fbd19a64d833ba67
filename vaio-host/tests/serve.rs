//! `vaio serve` from its start to its end, with the real program and real clients.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod program;

use std::{
    fs,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixDatagram, UnixListener},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use program::{Program, Vaio, blank, folder, has, now, stderr, stdout};
use vaio_core::{BlockDevice, BlockDeviceExt, Io};

/// The vendor's program; see `program`.
#[test]
#[ignore = "run by the other tests as a program"]
fn vendor_program() {
    program::vendor_main();
}

/// Does something with a disk as an NBD client, which works.
fn with_client<F, Fut>(socket: &Path, export: &str, act: F)
where
    F: FnOnce(std::sync::Arc<dyn BlockDevice>) -> Fut,
    Fut: Future<Output = vaio_core::Result<()>>,
{
    program::with_client(socket, export, act).unwrap();
}

#[test]
fn defaults_in_an_empty_folder_serve_and_end_with_0() {
    let dir = folder();
    let vaio = Vaio::start(Program::Stock, dir.path(), &["serve"]);
    assert!(vaio.out().starts_with("ready"), "{}", vaio.out());
    let data = dir.path().join("vaio-data");
    for socket in ["nbd.sock", "control.sock"] {
        let mode = fs::metadata(data.join(socket))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{socket}");
    }
    let uri = format!(
        "nbd+unix:///disk?socket={}",
        data.join("nbd.sock").display()
    );
    for words in [
        "qemu-system-x86_64",
        "qemu-img info",
        "nbdinfo",
        "vaio status",
        &uri,
    ] {
        assert!(vaio.out().contains(words), "{words} in {}", vaio.out());
    }
    if has("nbdinfo") {
        let info = Command::new("nbdinfo")
            .args(["--size", &uri])
            .output()
            .unwrap();
        assert_eq!(
            stdout(&info).trim(),
            (1u64 << 30).to_string(),
            "{}",
            stderr(&info)
        );
    }
    with_client(&data.join("nbd.sock"), "", |disk| async move {
        // Not flushed: a clean end does that.
        disk.submit(Io::write(1 << 20, vec![7; 4096].into()))
            .await
            .map(drop)
    });
    assert_eq!(vaio.stop(), Some(0));
    assert!(!data.join("nbd.sock").exists() && !data.join("control.sock").exists());
    let image = fs::read(data.join("disk.img")).unwrap();
    assert!(image[1 << 20..][..4096].iter().all(|&byte| byte == 7));

    let again = Vaio::start(Program::Stock, dir.path(), &["serve"]);
    with_client(&data.join("nbd.sock"), "disk", |disk| async move {
        assert_eq!(disk.read(1 << 20, 512).await?[..], [7; 512]);
        Ok(())
    });
    assert_eq!(again.stop(), Some(0));
}

#[test]
fn killed_program_starts_again_over_what_it_left() {
    let dir = folder();
    let data = dir.path().join("vaio-data");
    let vaio = Vaio::start(Program::Stock, dir.path(), &["serve"]);
    with_client(&data.join("nbd.sock"), "", |disk| async move {
        disk.submit(Io::write(0, vec![9; 512].into()).with_fua())
            .await
            .map(drop)
    });
    vaio.kill9();
    assert!(data.join("nbd.sock").exists(), "it had no time to tidy up");
    let sidecar = fs::read(data.join("disk.img.vaio")).unwrap();
    assert!(String::from_utf8_lossy(&sidecar).contains("clean=false"));

    let again = Vaio::start(Program::Stock, dir.path(), &["serve"]);
    with_client(&data.join("nbd.sock"), "", |disk| async move {
        assert_eq!(disk.read(0, 512).await?[..], [9; 512]);
        Ok(())
    });
    assert_eq!(again.stop(), Some(0));
    let sidecar = fs::read(data.join("disk.img.vaio")).unwrap();
    assert!(String::from_utf8_lossy(&sidecar).contains("clean=true"));
}

#[test]
fn second_serve_on_a_disk_is_refused_by_whatever_path() {
    let dir = folder();
    blank(dir.path(), "a.img", 1 << 20);
    std::os::unix::fs::symlink("a.img", dir.path().join("b.img")).unwrap();
    fs::hard_link(dir.path().join("a.img"), dir.path().join("c.img")).unwrap();
    let first = Vaio::start(Program::Stock, dir.path(), &["serve", "a.img"]);
    for name in ["a.img", "b.img", "c.img"] {
        let second = first.ask(&["serve", name, "--nbd", "x.nbd", "--control", "x.control"]);
        assert_eq!(second.status.code(), Some(4), "{name}: {}", stderr(&second));
        assert_eq!(stderr(&second).lines().count(), 1, "{}", stderr(&second));
    }
    assert!(!dir.path().join("x.nbd").exists() && !dir.path().join("c.img.vaio").exists());
    assert_eq!(first.stop(), Some(0));
}

#[test]
fn several_disks_are_exports_and_the_first_is_the_default() {
    let dir = folder();
    blank(dir.path(), "a.img", 1 << 20);
    let vaio = Vaio::start(
        Program::Stock,
        dir.path(),
        &[
            "serve", "a.img", "ram:2M", "null:3M", "--nbd", "s", "--filter", "none", "--name", "a",
            "--name", "b", "--name", "c",
        ],
    );
    let socket = dir.path().join("s");
    for (export, size) in [
        ("", 1 << 20),
        ("a", 1 << 20),
        ("b", 2 << 20),
        ("c", 3 << 20),
    ] {
        with_client(&socket, export, |disk| async move {
            assert_eq!(disk.info().capacity, size, "{export}");
            Ok(())
        });
    }
    assert_eq!(vaio.stop(), Some(0));
}

#[test]
fn encrypted_disk_without_its_filter_is_refused_and_untouched() {
    let dir = folder();
    let args = ["serve", "a.img", "--create", "1M", "--filter", "scramble"];
    let vaio = Vaio::start(Program::Vendor, dir.path(), &args);
    with_client(&dir.path().join("a.img.nbd"), "", |disk| async move {
        disk.submit(Io::write(0, vec![0; 512].into()))
            .await
            .map(drop)
    });
    assert_eq!(vaio.stop(), Some(0));
    let before = fs::read(dir.path().join("a.img")).unwrap();
    assert_eq!(before[..512], [0xff; 512]);
    for filter in ["none", "tag"] {
        let refused = Program::Vendor.run(dir.path(), &["serve", "a.img", "--filter", filter]);
        assert_eq!(refused.status.code(), Some(5), "{}", stderr(&refused));
        let line = stderr(&refused);
        assert!(
            line.contains("scramble") && line.contains("a.img"),
            "{line}"
        );
    }
    assert_eq!(fs::read(dir.path().join("a.img")).unwrap(), before);
}

#[test]
fn second_signal_ends_at_once_and_not_with_0() {
    let dir = folder();
    let vaio = Vaio::start(
        Program::Vendor,
        dir.path(),
        &["serve", "ram:1M", "--nbd", "s", "--filter", "spin:time=20s"],
    );
    let socket = dir.path().join("s");
    #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
    let client = std::thread::spawn(move || {
        let read =
            |disk: std::sync::Arc<dyn BlockDevice>| async move { Ok(disk.read(0, 512).await) };
        program::with_client(&socket, "", read).unwrap().is_err()
    });
    // The event that names the filter says that it spins.
    vaio.wait_for("the watchdog's event", Duration::from_secs(10), |vaio| {
        vaio.err().contains("filter=spin")
    });
    for _ in 0..2 {
        vaio.signal("TERM");
        program::pause(Duration::from_millis(600));
    }
    let second = now();
    vaio.signal("TERM");
    assert_eq!(vaio.wait().code(), Some(1));
    assert!(second.elapsed() < Duration::from_secs(5));
    assert!(client.join().unwrap(), "the client's IO failed");
}

#[test]
fn systemd_is_told_and_its_socket_served() {
    let dir = folder();
    let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notify
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let passed = UnixListener::bind(dir.path().join("passed")).unwrap();
    let mut command = Command::new("sh");
    command
        .current_dir(dir.path())
        .args(["-c", "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$VAIO\" serve ram:1M --control c"])
        .env("VAIO", env!("CARGO_BIN_EXE_vaio"))
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(passed)));
    let vaio = Vaio::start_command(Program::Stock, dir.path(), command);
    let told = || {
        let mut buffer = [0; 512];
        let count = notify.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    assert!(told().contains("READY=1"));
    with_client(&dir.path().join("passed"), "", |disk| async move {
        assert_eq!(disk.info().capacity, 1 << 20);
        Ok(())
    });
    vaio.signal("TERM");
    assert!(told().contains("STOPPING=1"));
    assert_eq!(vaio.wait().code(), Some(0));
    assert!(
        dir.path().join("passed").exists(),
        "the socket is systemd's"
    );
}
