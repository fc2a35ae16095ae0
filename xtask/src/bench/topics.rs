//! Topics of the benchmark, filled and checked by the bare loop's program: `cargo xtask` has no Kafka client.

use std::process::Command;

use anyhow::{Context, Result, bail};
use e2e::launcher::run;

use super::workload::{Input, Relay};
use super::{Bench, Case};

/// Fills the topic of a workload.
pub(crate) fn load(bench: &Bench<'_>, input: &Input) -> Result<()> {
    let Case {
        partitions, keys, ..
    } = bench.case;
    create(bench, input.topic)?;
    let mut command = bench.bare_loop("load", input.topic);
    command
        .args([input.records.to_string(), input.value_bytes.to_string()])
        .args([&keys.to_string(), input.spread.name()]);
    if input.regions > 0 {
        command.arg(input.regions.to_string());
    }
    run(&mut command)?;
    let loaded: u64 = ends(bench, input.topic)?.iter().sum();
    if loaded != input.records {
        bail!(
            "{} has {loaded} records in {partitions} partitions, not {}",
            input.topic,
            input.records
        );
    }
    Ok(())
}

/// The output topic of one run.
pub(crate) struct Output {
    pub(crate) topic: String,
    pub(crate) relay: Relay,
}

impl Output {
    /// An empty topic for run number `run` of a relay.
    pub(crate) fn create(bench: &Bench<'_>, relay: Relay, run: u64) -> Result<Self> {
        let topic = format!("output-{run}");
        create(bench, &topic)?;
        Ok(Self { topic, relay })
    }

    /// Deletes the topic, after a check that it has exactly the copies of the input's records that it must have.
    pub(crate) fn finish(&self, bench: &Bench<'_>, input: &Input) -> Result<()> {
        let expected = self.relay.expected(&ends(bench, input.topic)?);
        let found: u64 = ends(bench, &self.topic)?.iter().sum();
        if found != expected {
            bail!("the output has {found} records, not {expected}");
        }
        run(&mut bench.bare_loop("delete", &self.topic)).map(drop)
    }
}

fn create(bench: &Bench<'_>, topic: &str) -> Result<()> {
    let mut command = bench.bare_loop("create", topic);
    run(command.arg(bench.case.partitions.to_string())).map(drop)?;
    // Answers once every partition has a leader, so that no contender waits for it.
    let ends = ends(bench, topic)?;
    if ends.iter().any(|&end| end > 0) {
        bail!("{topic} is new, but has records: {ends:?}");
    }
    Ok(())
}

/// The end offset of each partition.
fn ends(bench: &Bench<'_>, topic: &str) -> Result<Vec<u64>> {
    let mut command: Command = bench.bare_loop("ends", topic);
    let printed = run(command.arg(bench.case.partitions.to_string()))?;
    serde_json::from_str(&printed).with_context(|| format!("not a list of offsets: {printed}"))
}
