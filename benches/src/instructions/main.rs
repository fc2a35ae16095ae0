//! What a record costs in instructions, step by step: programs for callgrind, which counts the same on every machine.
//!
//! `cargo xtask instructions` runs each case under callgrind with the collection switched on inside [`measured`] alone, and
//! holds the counts against `benches/instructions.json`. The cases use no clock, no thread and no seed but their own.

mod core;
mod plugin;
mod steps;

use std::process::ExitCode;

/// Records of a case.
const RECORDS: i64 = 10_000;

/// A case by name, and what it runs.
type Case = (&'static str, fn());

const CASES: [Case; 6] = [
    ("route", steps::route),
    ("ledger", steps::ledger),
    ("dispatch", core::dispatch),
    ("settlement", core::settlement),
    ("abi_call", plugin::abi_call),
    ("core", core::whole),
];

/// The only place that callgrind counts; its name is what `--toggle-collect` matches.
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
