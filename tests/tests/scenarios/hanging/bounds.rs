//! What threads, memory, queues and images may amount to while calls hang, and afterwards.

use std::time::Instant;

use super::samples::{Sample, Threads};
use super::{HANGING, OVERLAP, all_workers};

/// Threads that hang in a process when each handler is tripped by its first one.
const MAX_HUNG: u64 = 256;
/// Memory beyond that of the start that a storm may use, with the records that wait for calls that hang: the budget of records
/// (`processing.memory`).
const MORE_MEMORY_MIB: u64 = 256;

/// Whether no generation is being replaced: there are the workers of the present ones, and nothing is prepared.
pub(crate) fn is_settled(sample: &Sample) -> bool {
    let threads = sample.threads;
    threads.workers <= all_workers() && threads.preparing == 0 && threads.runtimes <= 2
}

/// What has not returned to the start yet.
pub(crate) fn not_returned(sample: &Sample, start: &Sample) -> Option<String> {
    let Threads {
        workers,
        runtimes,
        others,
        ..
    } = sample.threads;
    if sample.marks.count() > 0 {
        return Some(format!("{:?} hang", sample.marks.by_generation));
    }
    if sample.hung > 0 {
        return Some(format!("{} threads count as hung", sample.hung));
    }
    if workers > all_workers() {
        return Some(format!("{workers} workers of {} at most", all_workers()));
    }
    if runtimes > start.threads.runtimes {
        return Some(format!("{runtimes} threads of async runtimes"));
    }
    if others > start.threads.others + 2 {
        return Some(format!("{others} other threads"));
    }
    (sample.images > start.images).then(|| format!("{} images", sample.images))
}

/// The bounds of docs/concepts/isolation.md.
pub(crate) fn check_bounds(sample: &Sample, start: &Sample, begun: Instant) {
    let at = begun.elapsed();
    let hang = sample.marks.count();
    for (generation, hang) in &sample.marks.by_generation {
        let name = generation.split('.').next().unwrap_or_default();
        let one = HANGING.iter().find(|one| one.name == name);
        let workers = one.expect("a handler that hangs").workers;
        // Four per worker trip it. By then each of the other workers can hang too, and so can the drains and drops that
        // follow.
        assert!(
            *hang <= 6 * workers,
            "{at:?}: {hang} calls of {generation} hang; {sample}"
        );
    }
    // By the time that a handler is tripped by its first one, its other workers can hang, and so can the drains and drops
    // that follow.
    assert!(
        hang <= MAX_HUNG + 2 * all_workers(),
        "{at:?}: {hang} calls hang; {sample}"
    );
    let Threads {
        workers,
        runtimes,
        others,
        ..
    } = sample.threads;
    // The generations that serve, those that they replace, and those that are prepared.
    let living = 3 * all_workers();
    assert!(workers <= hang + living, "{at:?}: {sample}");
    let generations = sample.marks.by_generation.keys();
    let overlapping = generations.filter(|name| name.split('.').next() == Some(OVERLAP));
    assert!(
        runtimes <= 2 * (overlapping.count() as u64 + 4),
        "{at:?}: {sample}"
    );
    assert!(others <= start.threads.others + 12, "{at:?}: {sample}");
    assert!(
        sample.resident_mib <= start.resident_mib + MORE_MEMORY_MIB,
        "{at:?}: {sample}; at the start {} MiB",
        start.resident_mib
    );
    assert!(
        sample.in_flight_bytes <= sample.in_flight_limit + sample.in_flight_limit / 10,
        "{at:?}: {sample}"
    );
    assert!(sample.images <= start.images, "{at:?}: {sample}");
}
