//! The host of vaio: filters in front of a real virtual disk, served to real clients.
//!
//! [`main_with`] is the whole `vaio` program; a vendor builds their own by giving it a registry
//! with their filters:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     let registry = vaio_host::default_registry(); // .with(MyFilterFactory)
//!     vaio_host::main_with(registry)
//! }
//! ```
//!
//! To embed disks in a program of your own, use [`runtime`] and [`device`]; [`nbd`] serves them.

mod cache_cli;
mod cli;
mod client;
mod control;
mod default_filter;
pub mod device;
mod device_size;
mod dirty_context;
mod exit;
mod filter_arg;
mod filter_devices;
mod log;
mod metrics;
pub mod nbd;
mod plan;
mod policy_file;
mod ready;
pub mod runtime;
mod serve;
mod show;
mod sidecar_file;
mod stack;
mod systemd;
#[cfg(test)]
mod testing;
mod watchdog;
mod watched;

use std::{ffi::OsString, process::ExitCode};

use vaio_core::FilterRegistry;

use cli::{Command, Parsed};
pub use exit::Exit;
use exit::Outcome;
pub use sidecar_file::SidecarFileStore;

/// The filters that come with `vaio`: the write-back cache.
///
/// Where a registry knows the cache, `vaio serve DISK` puts one beside the disk unless it is told
/// otherwise.
pub fn default_registry() -> FilterRegistry {
    FilterRegistry::default().with(vaio_cache::CacheFactory::default())
}

/// The `vaio` program with these filters, on the process's arguments.
pub fn main_with(registry: FilterRegistry) -> ExitCode {
    ExitCode::from(run(std::env::args_os(), registry).code())
}

/// The same on given arguments, the program's name first. Prints to stdout and stderr.
pub fn run(args: impl IntoIterator<Item = OsString>, registry: FilterRegistry) -> Exit {
    let command = match cli::parse(args) {
        Ok(cli) => cli.command,
        Err(Parsed::Help(text)) => {
            print!("{text}");
            return Exit::Ok;
        }
        Err(Parsed::Mistake(failure)) => {
            eprintln!("vaio: {failure}");
            return failure.exit();
        }
    };
    match execute(command, registry) {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            eprintln!("vaio: {failure}");
            failure.exit()
        }
    }
}

fn execute(command: Command, registry: FilterRegistry) -> Outcome<()> {
    match command {
        Command::Serve(args) => {
            log::start();
            serve::run(&args, registry)
        }
        Command::Cache(command) => {
            log::start();
            cache_cli::run(&command)
        }
        other => client::run(other, &registry),
    }
}
