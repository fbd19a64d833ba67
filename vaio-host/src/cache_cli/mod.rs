//! `vaio cache`: a cache device by itself, without a running disk. `inspect` shows what is on it,
//! `recover` brings what it holds to its disk.

mod discarding;
mod inspect;
mod recover;
mod show;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::exit::Outcome;

/// `vaio cache`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show what is on a cache device: superblocks, segments, records, dirty extents. Only reads,
    /// takes no lock. Ends with 1 where there is no log or it is damaged
    Inspect(InspectArgs),
    /// Bring everything that a cache device holds to its disk, whose host is gone. An interrupted
    /// run is repeated as it was
    Recover(RecoverArgs),
}

/// `vaio cache inspect`
#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Cache device: a file, a block device or an NBD URI
    #[arg(value_name = "FILE")]
    pub(crate) file: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// List every record, and verify every payload
    #[arg(long)]
    pub(crate) records: bool,
}

/// `vaio cache recover`
#[derive(Args, Clone, Debug)]
pub(crate) struct RecoverArgs {
    /// Cache device: a file, a block device or an NBD URI
    #[arg(value_name = "FILE")]
    pub(crate) file: String,
    /// The disk that it belongs to: a file, a block device or an NBD URI
    #[arg(long, value_name = "DISK")]
    pub(crate) onto: String,
    /// The disk's sidecar, which says which cache device is its own. Default: DISK.vaio
    #[arg(long, value_name = "PATH")]
    pub(crate) sidecar: Option<PathBuf>,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Give up at most so many bytes of dirty data where they are damaged or of another disk; a
    /// refusal says how many it takes
    #[arg(long, value_name = "BYTES", value_parser = crate::cli::size)]
    pub(crate) discard_dirty: Option<u64>,
}

/// Runs a subcommand.
///
/// # Errors
/// What was refused or failed.
pub(crate) fn run(command: &CacheCommand) -> Outcome<()> {
    match command {
        CacheCommand::Inspect(args) => inspect::run(args),
        CacheCommand::Recover(args) => recover::run(args),
    }
}
