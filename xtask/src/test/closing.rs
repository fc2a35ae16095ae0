//! The summary at the end of a run.

use std::process::ExitCode;

use super::scenarios::ON_KAFKA;
use crate::step::Report;

/// Prints the table, the steps that ran on a real Kafka, what was skipped and why, what failed, and the line of counts.
pub(super) fn print(reports: &[Report]) -> ExitCode {
    let width = reports
        .iter()
        .map(|report| report.name.len())
        .max()
        .unwrap_or(0);
    println!(
        "\n{:width$}  {:8} {:>7} {:>7} {:>7} {:>8}",
        "step", "", "passed", "failed", "skipped", "seconds"
    );
    for report in reports {
        println!(
            "{:width$}  {:8} {:>7} {:>7} {:>7} {:>8.1}  {}",
            report.name,
            report.verdict(),
            report.passed,
            report.failed.len(),
            report.skipped.len(),
            report.took.as_secs_f32(),
            report.note,
        );
    }
    let on_kafka: Vec<&str> = reports
        .iter()
        .filter(|report| report.note == ON_KAFKA)
        .map(|report| report.name.as_str())
        .collect();
    if !on_kafka.is_empty() {
        println!("\nran on a real Kafka: {}", on_kafka.join(", "));
    }
    for (name, reason) in reports.iter().flat_map(|report| &report.skipped) {
        println!("skipped: {name}: {reason}");
    }
    for report in reports {
        for name in &report.failed {
            println!("FAILED: {}: {name}", report.name);
        }
    }
    let failed: usize = reports.iter().map(|report| report.failed.len()).sum();
    let passed: u64 = reports.iter().map(|report| report.passed).sum();
    let skipped: usize = reports.iter().map(|report| report.skipped.len()).sum();
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
