//! The real program, started and ended: the stock one, or a vendor's with test filters, which is
//! this test binary itself run as a program.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod filters;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use vaio_core::BlockDevice;
use vaio_host::{
    device::{FileOptions, Spec, open_spec},
    runtime::HostRuntime,
};

const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(30);
const VENDOR_ARGS: &str = "VAIO_TEST_VENDOR_ARGS";

/// Which program.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    Stock,
    /// Knows [`filters::registry`].
    Vendor,
}

impl Program {
    pub(crate) fn command(self, dir: &Path, args: &[&str]) -> Command {
        let mut command = match self {
            Self::Stock => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_vaio"));
                command.args(args);
                command
            }
            Self::Vendor => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args([
                    "--exact",
                    "vendor_program",
                    "--ignored",
                    "--nocapture",
                    "-q",
                ]);
                command.env(VENDOR_ARGS, args.join("\n"));
                command
            }
        };
        command
            .current_dir(dir)
            .stdin(Stdio::null())
            .env_remove("RUST_LOG");
        command
    }

    /// Runs a command that ends by itself.
    pub(crate) fn run(self, dir: &Path, args: &[&str]) -> Output {
        self.command(dir, args).output().unwrap()
    }
}

/// Does something with a served disk as an NBD client.
pub(crate) fn with_client<T, F, Fut>(socket: &Path, export: &str, act: F) -> vaio_core::Result<T>
where
    F: FnOnce(Arc<dyn BlockDevice>) -> Fut,
    Fut: Future<Output = vaio_core::Result<T>>,
{
    let spec: Spec = format!("nbd+unix:///{export}?socket={}", socket.display())
        .parse()
        .unwrap();
    let with_disk = |rt| async move {
        let disk = open_spec(&spec, &FileOptions::default(), &rt).await?;
        act(disk).await
    };
    HostRuntime::run(with_disk).unwrap()
}

/// What the test `vendor_program` does: it is the vendor's program.
pub(crate) fn vendor_main() {
    let Ok(args) = std::env::var(VENDOR_ARGS) else {
        return;
    };
    let args = std::iter::once("vaio").chain(args.lines()).map(Into::into);
    let exit = vaio_host::run(args, filters::registry());
    std::process::exit(exit.code().into());
}

/// A running `vaio serve`.
#[derive(Debug)]
pub(crate) struct Vaio {
    pub program: Program,
    pub dir: PathBuf,
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
}

impl Vaio {
    /// Starts it in `dir` and waits until it says `ready`.
    pub(crate) fn start(program: Program, dir: &Path, args: &[&str]) -> Self {
        Self::start_command(program, dir, program.command(dir, args))
    }

    pub(crate) fn start_command(program: Program, dir: &Path, mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = collect(child.stdout.take().unwrap());
        let err = collect(child.stderr.take().unwrap());
        let vaio = Self {
            program,
            dir: dir.to_owned(),
            child,
            out,
            err,
        };
        vaio.wait_for("it is ready", START_MAX, |vaio| {
            vaio.out().contains("ready")
        });
        vaio
    }

    /// Waits until something is so.
    pub(crate) fn wait_for(&self, what: &str, limit: Duration, is_so: impl Fn(&Self) -> bool) {
        let started = now();
        while !is_so(self) {
            assert!(
                started.elapsed() < limit,
                "not so in {limit:?}: {what}\n{}{}",
                self.out(),
                self.err()
            );
            pause(Duration::from_millis(10));
        }
    }

    pub(crate) fn out(&self) -> String {
        self.out.lock().unwrap().clone()
    }

    pub(crate) fn err(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Waits for the end, and returns the exit code.
    pub(crate) fn wait(mut self) -> ExitStatus {
        let started = now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < STOP_MAX, "did not end: {}", self.err());
            pause(Duration::from_millis(5));
        }
    }

    /// SIGTERM; the exit code.
    pub(crate) fn stop(self) -> Option<i32> {
        self.signal("TERM");
        self.wait().code()
    }

    pub(crate) fn kill9(self) {
        self.signal("KILL");
        self.wait();
    }

    /// Runs another subcommand of the same program in the same folder.
    pub(crate) fn ask(&self, args: &[&str]) -> Output {
        self.program.run(&self.dir, args)
    }
}

impl Drop for Vaio {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::<Mutex<String>>::default();
    let into = Arc::clone(&text);
    #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            into.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
    text
}

#[expect(clippy::disallowed_methods, reason = "a test's own clock")]
pub(crate) fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a test's own clock")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// A short folder: a Unix socket's path has at most 107 bytes.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("vaio-")
        .tempdir_in("/tmp")
        .unwrap()
}

/// A sparse file.
pub(crate) fn blank(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Whether a tool is installed; says so if not.
pub(crate) fn has(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_err() {
        eprintln!("SKIPPED: {tool} is not installed");
    }
    found.is_ok()
}

pub(crate) fn stdout(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    // The vendor's program is a test binary, which says so first.
    text.strip_prefix("\nrunning 1 test\n")
        .unwrap_or(&text)
        .to_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// One line of JSON to a control socket, one back.
pub(crate) fn talk(socket: &Path, line: &str) -> Value {
    let mut talk = Talk::new(socket);
    talk.say(line);
    talk.hear()
}

/// A conversation over a control socket.
#[derive(Debug)]
pub(crate) struct Talk(BufReader<UnixStream>);

impl Talk {
    pub(crate) fn new(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn say(&mut self, line: &str) {
        self.0
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    /// The next line; `Null` at the end.
    pub(crate) fn hear(&mut self) -> Value {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) | Err(_) => Value::Null,
            Ok(_) => serde_json::from_str(&line).unwrap(),
        }
    }
}
