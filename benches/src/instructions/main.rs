//! Instructions per record, step by step: programs for callgrind, whose counts do not depend on the machine's speed.
//!
//! `cargo xtask instructions` runs each case under callgrind, collecting only inside [`measured`], and compares the counts
//! with `benches/instructions.json`. The cases use no clock, no threads and only fixed seeds.

mod core;
mod plugin;
mod steps;

use std::process::ExitCode;

/// Records per case.
const RECORDS: i64 = 10_000;

/// Name and function of a case.
type Case = (&'static str, fn());

const CASES: [Case; 7] = [
    ("route", steps::route),
    ("ledger", steps::ledger),
    ("dispatch", core::dispatch),
    ("settlement", core::settlement),
    ("emitting", core::emitting),
    ("abi_call", plugin::abi_call),
    ("core", core::whole),
];

/// The only function in which callgrind collects; `--toggle-collect` matches its name.
#[inline(never)]
fn measured<R>(work: impl FnOnce() -> R) -> R {
    work()
}

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    if name == "list" {
        for (name, _) in CASES {
            println!("{name} {RECORDS}");
        }
        return ExitCode::SUCCESS;
    }
    let Some((_, run)) = CASES.iter().find(|(case, _)| *case == name) else {
        let names = CASES.map(|(name, _)| name);
        eprintln!(
            "error: `{name}` is not a case; the cases are {}",
            names.join(", ")
        );
        return ExitCode::from(2);
    };
    run();
    ExitCode::SUCCESS
}
