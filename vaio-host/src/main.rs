//! The `vaio` program with the filters that come with it.

fn main() -> std::process::ExitCode {
    vaio_host::main_with(vaio_core::FilterRegistry::default())
}
