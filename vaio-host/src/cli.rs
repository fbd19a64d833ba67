//! The command line: what can be written, and nothing of what it does.

use std::{fmt::Write, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use vaio_core::{DirtyDisposition, FilterSpec, Level, parse_bytes, parse_duration};

use crate::{
    cache_cli::CacheCommand,
    device::{Direct, Engine},
    exit::{Exit, Failure, one_line},
    filter_arg,
};

/// IO filters in front of a virtual disk.
#[derive(Debug, Parser)]
#[command(
    name = "vaio",
    version,
    about = "IO filters in front of a virtual disk, in user space",
    after_help = exit_codes(),
    disable_help_subcommand = true,
    // Mistakes are one line; see `parse`.
    color = clap::ColorChoice::Never
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve disks through their filters over NBD, until SIGTERM
    #[command(after_help = exit_codes())]
    Serve(Box<ServeArgs>),
    /// Show disks and filters as they are now
    Status(StatusArgs),
    /// Show counters and latencies
    Stats(AskArgs),
    /// Show what happened, oldest first
    Events(EventsArgs),
    /// List the filters that this program knows, with their settings
    Filters(FiltersArgs),
    /// Show the stack with its settings as given
    Stack(AskArgs),
    /// Attach a filter to a running disk
    Attach(AttachArgs),
    /// Detach a filter from a running disk
    Detach(DetachArgs),
    /// Replace a filter of a running disk
    Replace(ReplaceArgs),
    /// Bring everything acknowledged so far to a level
    Flush(FlushArgs),
    /// Show how much data is short of a level
    Dirty(DirtyArgs),
    /// Hold the backing at a point, run a command, let go
    Snapshot(SnapshotArgs),
    /// Grow a disk
    Resize(ResizeArgs),
    /// Show metrics as Prometheus text
    Metrics(ConnectArgs),
    /// Look at a cache device, or recover it, without a running disk
    #[command(subcommand)]
    Cache(CacheCommand),
}

/// `vaio serve`
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ServeArgs {
    /// Disk: a file, a block device, ram:SIZE, null:SIZE or an NBD URI. Several are several
    /// exports; the first is the default one. None: a 1 GiB disk in vaio-data/
    #[arg(value_name = "DISK")]
    pub(crate) positional: Vec<String>,
    /// The same as DISK
    #[arg(long = "disk", value_name = "DISK")]
    pub(crate) disks: Vec<String>,
    /// Name of the disk and its NBD export; as often as there are disks. Default: the file's name
    /// without what follows its last dot
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Make DISK, sparse and this large, where it is missing
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) create: Option<u64>,
    /// Where NBD clients connect: a Unix socket's path, or ADDRESS:PORT (loopback unless TLS is
    /// on). May be repeated. Default: DISK.nbd, or the socket that systemd passes
    #[arg(long = "nbd", value_name = "SOCKET|ADDR")]
    pub(crate) nbd: Vec<String>,
    /// Unix socket for status and control. Default: DISK.control
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,
    /// Filter of every disk, `NAME[:KEY=VALUE,...]`, or `none`. May be repeated; filters of one
    /// class keep this order, top first. Default: a write-back cache in DISK.cache (an eighth of
    /// the disk, 64 MiB to 16 GiB; one that is there keeps its size), where the disk is a file
    #[arg(long = "filter", value_name = "FILTER", conflicts_with = "policy")]
    pub(crate) filters: Vec<String>,
    /// File that says which disk gets which filters
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// Name of the VM, for the policy and for events
    #[arg(long, value_name = "NAME", default_value = "vm")]
    pub(crate) vm: String,
    /// Folder for what must be remembered of a disk that is no file (NBD, block device)
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Certificate chain for TLS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Serve only clients whose certificate this authority signed, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Serve Prometheus metrics over HTTP on this loopback ADDRESS:PORT
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<String>,
    /// Go around the page cache (`O_DIRECT`)
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) direct: DirectArg,
    /// What does the system calls
    #[arg(long, value_name = "ENGINE", value_enum, default_value_t)]
    pub(crate) engine: EngineArg,
    /// Refuse every write
    #[arg(long)]
    pub(crate) read_only: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectArg {
    #[default]
    Auto,
    On,
    Off,
}

impl From<DirectArg> for Direct {
    fn from(arg: DirectArg) -> Self {
        match arg {
            DirectArg::Auto => Self::Auto,
            DirectArg::On => Self::On,
            DirectArg::Off => Self::Off,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineArg {
    #[default]
    Auto,
    IoUring,
    Threads,
}

impl From<EngineArg> for Engine {
    fn from(arg: EngineArg) -> Self {
        match arg {
            EngineArg::Auto => Self::Auto,
            EngineArg::IoUring => Self::IoUring,
            EngineArg::Threads => Self::Threads,
        }
    }
}

/// The control socket.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConnectArgs {
    /// Control socket of `vaio serve`
    #[arg(value_name = "CONTROL")]
    pub(crate) control: PathBuf,
}

/// A question about one disk or all.
#[derive(Args, Clone, Debug)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    /// Only this disk
    #[arg(long, value_name = "NAME")]
    pub(crate) disk: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Show it again every second, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Go on with new events, until interrupted
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct FiltersArgs {
    /// Ask the program that serves there; default: this program
    #[arg(value_name = "CONTROL")]
    pub(crate) control: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// `NAME[:KEY=VALUE,...]`
    #[arg(value_name = "FILTER")]
    pub(crate) filter: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DetachArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Name of the filter
    #[arg(value_name = "FILTER")]
    pub(crate) filter: String,
    /// What becomes of data that only the filter holds: refuse, flush or discard:BYTES (at most
    /// so many)
    #[arg(long, value_name = "WHAT", value_parser = dirty, default_value = "refuse")]
    pub(crate) dirty: DirtyDisposition,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ReplaceArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// The new one, `NAME[:KEY=VALUE,...]`
    #[arg(value_name = "FILTER")]
    pub(crate) filter: String,
    /// Name of the filter whose place it takes. Default: the same name
    #[arg(long, value_name = "NAME")]
    pub(crate) instead_of: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct FlushArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// cache (survives a crash of this host), backing (on the disk alone) or replica
    #[arg(long, value_name = "LEVEL", value_parser = level, default_value = "backing")]
    pub(crate) to: Level,
    /// Longest wait; the flush goes on after it
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub(crate) timeout: Duration,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DirtyArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// cache, backing or replica
    #[arg(long, value_name = "LEVEL", value_parser = level, default_value = "backing")]
    pub(crate) to: Level,
    /// List every extent, too: byte offset and length
    #[arg(long)]
    pub(crate) extents: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Command that takes the snapshot, run by `sh -c` here while the backing is held
    #[arg(long, value_name = "CMD")]
    pub(crate) exec: String,
    /// Name of the snapshot, for the filters
    #[arg(long, value_name = "NAME", default_value = "snapshot")]
    pub(crate) name: String,
    /// Let the guest wait meanwhile, though a cache could take its writes
    #[arg(long)]
    pub(crate) quiesce: bool,
    /// Longest wait for the backing to be held
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub(crate) timeout: Duration,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ResizeArgs {
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// New size in bytes, or with K, M, G or T after it
    #[arg(value_name = "SIZE", value_parser = size)]
    pub(crate) size: u64,
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "not a size: use a number with K, M, G or T after it".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "not a time: use a number with us, ms, s, m or h".into())
}

fn level(text: &str) -> Result<Level, String> {
    [
        Level::CacheDurable,
        Level::BackingDurable,
        Level::ReplicaDurable,
    ]
    .into_iter()
    .find(|level| level.name() == text)
    .ok_or_else(|| "not a level: use cache, backing or replica".into())
}

fn dirty(text: &str) -> Result<DirtyDisposition, String> {
    match text {
        "refuse" => Ok(DirtyDisposition::Refuse),
        "flush" => Ok(DirtyDisposition::Flush),
        _ => text
            .strip_prefix("discard:")
            .and_then(parse_bytes)
            .map(|bytes_max| DirtyDisposition::Discard { bytes_max })
            .ok_or_else(|| "use refuse, flush or discard:BYTES".into()),
    }
}

/// The filters of `--filter`; `None` where it was not given.
pub(crate) fn filters(args: &ServeArgs) -> vaio_core::Result<Option<Vec<FilterSpec>>> {
    if args.filters.is_empty() {
        return Ok(None);
    }
    if args.filters == [filter_arg::NONE] {
        return Ok(Some(Vec::new()));
    }
    let specs = args.filters.iter().map(|text| filter_arg::parse(text));
    specs.collect::<vaio_core::Result<_>>().map(Some)
}

fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {} {}", exit.code(), exit.meaning());
    }
    text.push_str("\nRUST_LOG sets what is logged to stderr (default warn,vaio::event=info).");
    text
}

/// Reads the command line. `Err` holds what to print and the code to end with: the help that was
/// asked for, or one line about the mistake.
pub(crate) fn parse<I>(args: I) -> Result<Cli, Parsed>
where
    I: IntoIterator,
    I::Item: Into<std::ffi::OsString> + Clone,
{
    Cli::try_parse_from(args).map_err(|error| {
        use clap::error::ErrorKind as K;
        match error.kind() {
            K::DisplayHelp | K::DisplayVersion => Parsed::Help(error.to_string()),
            K::DisplayHelpOnMissingArgumentOrSubcommand | K::MissingSubcommand => Parsed::Mistake(
                Failure::usage("say what to do, for instance `vaio serve`; see `vaio --help`"),
            ),
            _ => Parsed::Mistake(Failure::usage(first_line(&error))),
        }
    })
}

/// What came of a command line that is not to be run.
#[derive(Debug)]
pub(crate) enum Parsed {
    Help(String),
    Mistake(Failure),
}

/// A clap error as one line: its first paragraph, and where to read on.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let line = words.join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    // The program may be a vendor's, under a name of its own.
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let mut words = usage.unwrap_or("vaio").split(' ');
    let program = words.next().unwrap_or("vaio");
    let help = match words.next() {
        Some(verb) if verb.chars().all(|c| c.is_ascii_lowercase()) => {
            format!("{program} {verb} --help")
        }
        _ => format!("{program} --help"),
    };
    one_line(&format!("{line}; see `{help}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn mistake(args: &[&str]) -> String {
        match parse(args) {
            Err(Parsed::Mistake(failure)) => {
                assert_eq!(failure.exit(), Exit::Usage);
                failure.to_string()
            }
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_are_one_line_with_the_word_at_fault() {
        for (args, word) in [
            (&["vaio"][..], "vaio serve"),
            (&["vaio", "frobnicate"], "frobnicate"),
            (&["vaio", "serve", "--frobnicate"], "--frobnicate"),
            (&["vaio", "serve", "--create", "12parsecs"], "12parsecs"),
            (&["vaio", "serve", "--tls-cert", "x"], "--tls-key"),
            (
                &["vaio", "serve", "--filter", "a", "--policy", "p"],
                "--policy",
            ),
            (&["vaio", "attach", "sock"], "FILTER"),
            (&["vaio", "attach", "sock"], "`vaio attach --help`"),
            (&["vaio", "detach", "sock", "x", "--dirty", "burn"], "burn"),
            (&["vaio", "flush", "sock", "--to", "moon"], "moon"),
            (&["vaio", "resize", "sock", "large"], "large"),
        ] {
            let line = mistake(args);
            assert!(
                line.contains(word) && !line.contains('\n'),
                "{args:?}: {line}"
            );
        }
    }

    #[test]
    fn filters_of_none_are_an_empty_stack() {
        let with = |filters: &[&str]| ServeArgs {
            filters: filters.iter().map(|&text| text.into()).collect(),
            ..ServeArgs::default()
        };
        assert_eq!(filters(&with(&[])).unwrap(), None);
        assert_eq!(filters(&with(&["none"])).unwrap(), Some(Vec::new()));
        assert_eq!(filters(&with(&["a", "b:c=d"])).unwrap().unwrap().len(), 2);
    }
}
