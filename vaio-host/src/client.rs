//! The other subcommands: they speak to the control socket of a running `vaio serve`.
//!
//! Plain blocking IO: one request, then lines until its answer.

use std::{
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::Command as Process,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use vaio_core::{Error, ErrorKind, FilterRegistry};

use crate::{
    cli::{AskArgs, Command, DirtyArgs, SnapshotArgs},
    control::{Request, encode, filters_json},
    exit::{At, Exit, Failure, Outcome, Stage, exit_of},
    filter_arg, show,
};

/// Longest line that a server may answer with, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Longest wait for the next line, beyond what the request itself may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// Longest wait for a verb that may have to recover a filter's state.
const VERB_MAX: Duration = Duration::from_mins(11);
/// Time between two views of `status --watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Runs a subcommand that is not `serve`.
///
/// # Errors
/// What the server or the way to it says.
pub(crate) fn run(command: Command, registry: &FilterRegistry) -> Outcome<()> {
    match command {
        Command::Serve(_) | Command::Cache(_) => Err(Failure::new(
            Stage::Serve,
            Error::new(ErrorKind::Internal, "this is not for the control socket"),
        )),
        Command::Status(args) if args.watch => watch(&args.ask),
        Command::Status(args) => ask(&args.ask, &Request::Status {}, show::status),
        Command::Stats(args) => ask(&args, &Request::Stats {}, show::stats),
        Command::Events(args) => events(&args.ask, args.follow),
        Command::Filters(args) => {
            let filters = match &args.control {
                None => json!({ "filters": filters_json(&registry.descriptors()) }),
                Some(control) => Client::connect(control)?.ask(None, &Request::Filters {})?,
            };
            say(args.json, &filters, show::filters)
        }
        Command::Stack(args) => ask(&args, &Request::Stack {}, show::stack),
        Command::Attach(args) => {
            let filter = filter_arg::parse(&args.filter).at(Stage::Filter)?.into();
            ask(&args.ask, &Request::Attach { filter }, |_| {
                format!("attached {}\n", args.filter)
            })
        }
        Command::Detach(args) => {
            let request = Request::Detach {
                filter: args.filter.clone(),
                dirty: args.dirty.into(),
            };
            ask(&args.ask, &request, |_| {
                format!("detached {}\n", args.filter)
            })
        }
        Command::Replace(args) => {
            let request = Request::Replace {
                filter: filter_arg::parse(&args.filter).at(Stage::Filter)?.into(),
                instead_of: args.instead_of,
            };
            ask(&args.ask, &request, |_| {
                format!("replaced by {}\n", args.filter)
            })
        }
        Command::Flush(args) => {
            let request = Request::Flush {
                to: args.to.into(),
                timeout_ms: millis(args.timeout),
            };
            ask(&args.ask, &request, |_| {
                format!("everything acknowledged is at level {}\n", args.to)
            })
        }
        Command::Dirty(args) => dirty(&args),
        Command::Snapshot(args) => snapshot(&args),
        Command::Resize(args) => ask(&args.ask, &Request::Resize { bytes: args.size }, |_| {
            format!("the disk has {} bytes\n", args.size)
        }),
        Command::Metrics(args) => {
            let answer = Client::connect(&args.control)?.ask(None, &Request::Metrics {})?;
            print(answer["text"].as_str().unwrap_or_default())
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One question, one answer.
fn ask(args: &AskArgs, request: &Request, show: impl FnOnce(&Value) -> String) -> Outcome<()> {
    let answer = Client::connect(&args.connect.control)?.ask(args.disk.as_deref(), request)?;
    say(args.json, &answer, show)
}

fn say(as_json: bool, answer: &Value, show: impl FnOnce(&Value) -> String) -> Outcome<()> {
    if as_json {
        return print(&format!("{answer:#}\n"));
    }
    print(&show(answer))
}

/// Prints to stdout at once.
pub(crate) fn print(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader has seen enough.
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other
            .map_err(|cause| Error::io("cannot print to stdout", cause))
            .at(Stage::Serve),
    }
}

fn watch(args: &AskArgs) -> Outcome<()> {
    let mut client = Client::connect(&args.connect.control)?;
    let mut before = None;
    loop {
        let status = client.ask(args.disk.as_deref(), &Request::Status {})?;
        let stats = client.ask(args.disk.as_deref(), &Request::Stats {})?;
        let now = now();
        let view = show::watch(
            &status,
            &stats,
            before
                .as_ref()
                .map(|(at, old): &(Instant, Value)| (now - *at, old)),
        );
        // To the upper left, line by line to its end, then clear what is left below.
        let view = view.replace('\n', "\x1b[K\n");
        print(&format!("\x1b[H{view}\x1b[J"))?;
        before = Some((now, stats));
        pause(WATCH_EVERY);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client of its own thread and clock"
)]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client of its own thread and clock"
)]
fn now() -> Instant {
    Instant::now()
}

fn events(args: &AskArgs, follow: bool) -> Outcome<()> {
    let mut client = Client::connect(&args.connect.control)?;
    if follow {
        client.patience(None)?;
    }
    client.send(args.disk.as_deref(), &Request::Events { follow })?;
    loop {
        match client.line()? {
            Line::Event(event) if args.json => print(&format!("{event}\n"))?,
            Line::Event(event) => print(&show::event(&event))?,
            Line::Progress(_) => {}
            Line::Ok(answer) => {
                let missed = answer["missed"].as_u64().unwrap_or(0);
                if missed > 0 && !args.json {
                    print(&format!("({missed} older events are no longer kept)\n"))?;
                }
                return Ok(());
            }
        }
    }
}

/// Shows what is short of a level, and, where asked for, every extent of it.
fn dirty(args: &DirtyArgs) -> Outcome<()> {
    let mut client = Client::connect(&args.ask.connect.control)?;
    let request = |from| Request::Dirty {
        to: args.to.into(),
        extents: args.extents,
        from,
    };
    let mut answer = client.ask(args.ask.disk.as_deref(), &request(0))?;
    // Where an answer has no more room, the next goes on: disk by disk.
    for disk in answer["disks"].as_array_mut().into_iter().flatten() {
        let name = disk["name"].as_str().map(str::to_owned);
        while let Some(next) = disk["next"].as_u64() {
            let mut more = client.ask(name.as_deref(), &request(next))?;
            let more = &mut more["disks"][0];
            if let (Some(all), Some(some)) = (
                disk["extents"].as_array_mut(),
                more["extents"].as_array_mut(),
            ) {
                all.append(some);
            }
            disk["next"] = more["next"].take();
        }
    }
    say(args.ask.json, &answer, show::dirty)
}

/// Holds the backing, runs the command, lets go; the exit code says the truth about both.
fn snapshot(args: &SnapshotArgs) -> Outcome<()> {
    let mut client = Client::connect(&args.ask.connect.control)?;
    let request = Request::Hold {
        name: args.name.clone(),
        timeout_ms: millis(args.timeout),
        quiesce: args.quiesce,
    };
    let held = client.ask(args.ask.disk.as_deref(), &request)?;
    let ran = Process::new("sh").arg("-c").arg(&args.exec).status();
    let failed = match ran {
        Ok(status) if status.success() => None,
        Ok(status) => Some(Error::new(
            ErrorKind::Io,
            format!("the command failed, so there is no snapshot: {status}"),
        )),
        Err(cause) => Some(Error::io(
            "the command cannot be run, so there is no snapshot",
            cause,
        )),
    };
    if let Some(error) = failed {
        // Closing the connection lets go and tells the filters that nothing was taken.
        drop(client);
        return Err(Failure::new(Stage::Verb, error));
    }
    let released = client.ask(None, &Request::Release {})?;
    let mut answer = released;
    answer["held"] = held["held"].clone();
    say(args.ask.json, &answer, |_| {
        "held until released: the snapshot is whole\n".into()
    })
}

/// A line of an answer that is not an error.
enum Line {
    Ok(Value),
    Event(Value),
    Progress(Value),
}

/// A connection to a control socket.
struct Client {
    reader: BufReader<UnixStream>,
    /// Whether a line of progress stands on the terminal.
    has_bar: bool,
}

impl Client {
    fn connect(control: &Path) -> Outcome<Self> {
        let at = control.display();
        let stream = UnixStream::connect(control).map_err(|cause| {
            let what = match cause.kind() {
                io::ErrorKind::NotFound => "no such control socket: is `vaio serve` running there?",
                io::ErrorKind::ConnectionRefused => {
                    "no one listens on the control socket: `vaio serve` is not running any more"
                }
                _ => "cannot reach the control socket",
            };
            let error = Error::config(format!("{what}, socket={at}")).with_source(cause);
            Failure::new(Stage::Connect, error)
        })?;
        let mut client = Self {
            reader: BufReader::new(stream),
            has_bar: false,
        };
        client.patience(Some(PATIENCE))?;
        Ok(client)
    }

    /// Longest wait for the next line; `None`: for ever.
    fn patience(&mut self, limit: Option<Duration>) -> Outcome<()> {
        let stream = self.reader.get_ref();
        stream
            .set_read_timeout(limit)
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(|cause| Error::io("cannot set the time-out of the control socket", cause))
            .at(Stage::Connect)
    }

    fn send(&mut self, disk: Option<&str>, request: &Request) -> Outcome<()> {
        self.reader
            .get_mut()
            .write_all(encode(disk, request).as_bytes())
            .map_err(|cause| Error::io("cannot write to the control socket", cause))
            .at(Stage::Connect)
    }

    /// Sends a request and waits for its answer, showing progress on a terminal.
    fn ask(&mut self, disk: Option<&str>, request: &Request) -> Outcome<Value> {
        self.patience(Some(match request {
            Request::Flush { timeout_ms, .. } | Request::Hold { timeout_ms, .. } => {
                Duration::from_millis(*timeout_ms).saturating_add(PATIENCE)
            }
            Request::Attach { .. }
            | Request::Replace { .. }
            | Request::Detach { .. }
            | Request::Release {} => VERB_MAX,
            _ => PATIENCE,
        }))?;
        self.send(disk, request)?;
        loop {
            match self.line()? {
                Line::Ok(answer) => {
                    self.clear_bar();
                    return Ok(answer);
                }
                Line::Progress(progress) if io::stderr().is_terminal() => {
                    eprint!("\r{}\x1b[K", show::progress(&progress));
                    self.has_bar = true;
                }
                Line::Progress(_) | Line::Event(_) => {}
            }
        }
    }

    /// Leaves the terminal as it was.
    fn clear_bar(&mut self) {
        if std::mem::take(&mut self.has_bar) {
            eprint!("\r\x1b[K");
        }
    }

    fn line(&mut self) -> Outcome<Line> {
        let lost = |kind, text: &str| Failure::new(Stage::Connect, Error::new(kind, text));
        let mut line = Vec::new();
        let read = (&mut self.reader)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        match read {
            Err(cause)
                if matches!(
                    cause.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                return Err(lost(
                    ErrorKind::TimedOut,
                    "no answer from the control socket in time",
                ));
            }
            Err(cause) => {
                return Err(Failure::new(
                    Stage::Connect,
                    Error::io("cannot read from the control socket", cause),
                ));
            }
            Ok(_) if !line.ends_with(b"\n") => {
                return Err(lost(
                    ErrorKind::Gone,
                    "`vaio serve` closed the control socket before it answered",
                ));
            }
            Ok(_) => {}
        }
        let mut value: Value = serde_json::from_slice(&line).map_err(|_| {
            lost(
                ErrorKind::Corrupt,
                "what answers on the control socket is not vaio",
            )
        })?;
        if let Some(error) = value.get("error") {
            self.clear_bar();
            return Err(failure(error));
        }
        for (kind, make) in [
            ("ok", Line::Ok as fn(Value) -> Line),
            ("event", Line::Event),
            ("progress", Line::Progress),
        ] {
            if let Some(body) = value.get_mut(kind) {
                return Ok(make(body.take()));
            }
        }
        Err(lost(
            ErrorKind::Corrupt,
            "what answers on the control socket is not vaio",
        ))
    }
}

/// The server's error, with the code that its kind has.
fn failure(error: &Value) -> Failure {
    let name = error["kind"].as_str().unwrap_or_default();
    let kind = KINDS
        .into_iter()
        .find(|kind| kind.name() == name)
        .unwrap_or(ErrorKind::Internal);
    let text = error["text"].as_str().unwrap_or("the server says no more");
    let exit: Exit = exit_of(Stage::Verb, kind, error["filter"].is_string());
    Failure::told(exit, Error::new(kind, text))
}

/// Every kind that a server tells.
const KINDS: [ErrorKind; 14] = [
    ErrorKind::Invalid,
    ErrorKind::Unsupported,
    ErrorKind::ReadOnly,
    ErrorKind::NoSpace,
    ErrorKind::Io,
    ErrorKind::TimedOut,
    ErrorKind::Gone,
    ErrorKind::Fenced,
    ErrorKind::Refused,
    ErrorKind::Busy,
    ErrorKind::FilterFault,
    ErrorKind::Corrupt,
    ErrorKind::Config,
    ErrorKind::Internal,
];
