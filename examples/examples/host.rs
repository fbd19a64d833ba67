//! A vendor's own `vaio`: the program as it is, its cache and one's own filters in it.
//!
//! `cargo run -p vaio-examples --example host -- filters`

use std::process::ExitCode;

// As the `vaio` program has it: cheaper at depth, and memory of a burst is given back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    vaio_host::main_with(vaio_examples::add_to(vaio_host::default_registry()))
}
