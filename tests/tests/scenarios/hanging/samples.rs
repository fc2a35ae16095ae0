//! Samples of a running service: its threads by kind, its memory, its images, and the calls that hang.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use e2e::metrics::Metrics;
use e2e::process::resident_bytes;

/// Threads of a process, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Threads {
    /// Of the handlers' pools, also abandoned ones.
    pub(crate) workers: u64,
    /// Of the async handlers' runtimes.
    pub(crate) runtimes: u64,
    /// Those that prepare generations: they end when there is nothing to prepare.
    pub(crate) preparing: u64,
    /// All others.
    pub(crate) others: u64,
}

impl Threads {
    pub(crate) fn all(self) -> u64 {
        self.workers + self.runtimes + self.preparing + self.others
    }

    fn of(pid: u32) -> Self {
        let mut threads = Self::default();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.expect("a running process").flatten() {
            // It may have ended.
            let Ok(name) = std::fs::read_to_string(task.path().join("comm")) else {
                continue;
            };
            let kind = match name.trim_end() {
                "handler/watch" | "handler/release" => &mut threads.others,
                "handler-async" => &mut threads.runtimes,
                "prepare" => &mut threads.preparing,
                name if name.starts_with("handler/") => &mut threads.workers,
                _ => &mut threads.others,
            };
            *kind += 1;
        }
        threads
    }
}

/// The calls that hang in a process, by the generation of a handler: `HANDLER.GENERATION`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    pub(crate) by_generation: BTreeMap<String, u64>,
}

impl Marks {
    pub(crate) fn count(&self) -> u64 {
        self.by_generation.values().sum()
    }

    fn read(folder: &Path, pid: u32, seen: &mut BTreeMap<String, BTreeSet<String>>) -> Self {
        let mut marks = Self::default();
        let prefix = format!("{pid}.");
        for entry in std::fs::read_dir(folder).expect("the folder").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let mut parts = name.split('.').skip(1);
            let generation = parts.by_ref().take(2).collect::<Vec<_>>().join(".");
            let phase = parts.next().expect("a phase").to_owned();
            if name.starts_with(&prefix) {
                *marks.by_generation.entry(generation).or_default() += 1;
            }
            seen.entry(phase).or_default().insert(name);
        }
        marks
    }
}

/// One sample.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) threads: Threads,
    pub(crate) resident_mib: u64,
    /// Mapped images of plugins.
    pub(crate) images: u64,
    pub(crate) marks: Marks,
    /// Handlers that are tripped.
    pub(crate) failed: u64,
    /// Partitions of the process.
    pub(crate) partitions: u64,
    /// Abandoned threads that have not returned, as the service counts them.
    pub(crate) hung: u64,
    /// Threads abandoned since the start.
    pub(crate) abandoned: u64,
    /// Records in lanes and pools.
    pub(crate) in_flight: u64,
    pub(crate) in_flight_bytes: u64,
    pub(crate) in_flight_limit: u64,
}

impl Sample {
    /// Records in lanes and pools.
    pub(crate) fn in_flight(metrics: &Metrics) -> u64 {
        metrics.sum("sluicegate_handler_in_flight_records", &[]) as u64
    }

    /// Samples the process. `seen` collects the names of all marks by phase.
    pub(crate) fn of(
        pid: u32,
        metrics: &Metrics,
        marks: &Path,
        seen: &mut BTreeMap<String, BTreeSet<String>>,
    ) -> Self {
        let sum = |name: &str| metrics.sum(name, &[]) as u64;
        // The threads first: a call that begins to hang in between has a mark without being counted, not the reverse.
        let threads = Threads::of(pid);
        Self {
            threads,
            resident_mib: resident_bytes(pid).expect("a running process") >> 20,
            images: images(pid),
            marks: Marks::read(marks, pid, seen),
            failed: metrics.sum("sluicegate_handler_state", &[("state", "FAILED")]) as u64,
            partitions: metrics
                .matching("sluicegate_partition_frontier", &[])
                .count() as u64,
            hung: sum("sluicegate_handler_hung_threads"),
            abandoned: sum("sluicegate_handler_quarantined_workers"),
            in_flight: Self::in_flight(metrics),
            in_flight_bytes: sum("sluicegate_in_flight_bytes"),
            in_flight_limit: sum("sluicegate_in_flight_bytes_limit"),
        }
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Threads {
            workers,
            runtimes,
            preparing,
            others,
        } = self.threads;
        write!(
            f,
            "{} threads ({workers} workers, {runtimes} of runtimes, {preparing} preparing, {others} others), {} hang in {} \
             generations, {} of {} abandoned threads have not returned, {} handlers failed, {} partitions, {} MiB resident, {} images, {} records and \
             {} KiB in flight",
            self.threads.all(),
            self.marks.count(),
            self.marks.by_generation.len(),
            self.hung,
            self.abandoned,
            self.failed,
            self.partitions,
            self.resident_mib,
            self.images,
            self.in_flight,
            self.in_flight_bytes >> 10,
        )
    }
}

/// The private copies of plugins that are mapped, each counted by its executable mapping.
fn images(pid: u32) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("a running process");
    let is_code = |line: &&str| line.contains(" r-xp ") && line.contains("-native-copies/");
    let files = maps.lines().filter(is_code).map(|line| {
        // Device and inode: a removed copy keeps its own.
        line.split_whitespace().skip(3).take(2).collect::<Vec<_>>()
    });
    files.collect::<BTreeSet<_>>().len() as u64
}
