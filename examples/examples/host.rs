//! A vendor's own `vaio`: the program as it is, with one's filters in it.
//!
//! `cargo run -p vaio-examples --example host -- filters`

use std::process::ExitCode;

fn main() -> ExitCode {
    vaio_host::main_with(vaio_examples::registry())
}
