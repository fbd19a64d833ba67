//! The `vaio` program with the filters that come with it.

// At depth 32 more boxes of one size live than glibc keeps at hand, and it does not give back what
// a burst of large IO took.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    vaio_host::main_with(vaio_host::default_registry())
}
