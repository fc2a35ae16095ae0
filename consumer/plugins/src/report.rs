//! The registry's report on its pools, in the types of the admin API.

use sluicegate_engine::dispatch::WorkerPool;
use sluicegate_engine::status::{HandlerState, PoolReport};
use sluicegate_pool::pool::relock;

use super::managed::ManagedHandler;
use super::registry::{CountersEntry, Registry};

impl Registry {
    /// One entry per handler and version that was ever active; counters never decrease.
    pub fn report(&self) -> Vec<PoolReport> {
        let inner = relock(&self.inner);
        let entry = |(key, entry): (&(String, String), &CountersEntry)| {
            let (handler, version) = key;
            let mut report = one(handler, version, entry, inner.live.get(handler));
            report.hung = u32::try_from(self.builder.hung.of(handler)).unwrap_or(u32::MAX);
            report
        };
        inner.counters.iter().map(entry).collect()
    }
}

fn one(
    handler: &str,
    version: &str,
    entry: &CountersEntry,
    live: Option<&ManagedHandler>,
) -> PoolReport {
    let counts = entry.counters.stats.counts();
    let mut report = PoolReport {
        handler: handler.to_owned(),
        version: version.to_owned(),
        generation: entry.generation,
        path: None,
        sha256: None,
        state: HandlerState::Draining,
        workers: 0,
        busy: 0,
        quarantined: u32::try_from(counts.quarantined).unwrap_or(u32::MAX),
        hung: 0,
        panics: counts.panics,
        restarts: counts.restarts,
        reason: None,
        last_error: counts.last_error,
        since_ms: None,
        durations: counts.durations,
        emitted: entry.counters.stats.emitted().counts(),
        metrics: entry.counters.metrics.snapshot(),
    };
    let serving = live.and_then(|live| live.generation.as_ref());
    if let Some(generation) = serving.filter(|generation| &*generation.version == version) {
        report.path = Some(generation.origin.path.display().to_string());
        report.sha256 = Some(generation.origin.sha256.clone());
        report.workers = generation.pool.workers();
        report.busy = generation.pool.busy();
        report.state = HandlerState::Active;
        report.since_ms = generation.pool.failing_since_ms();
        if let Some(why) = generation.pool.unhealthy_reason() {
            report.state = HandlerState::Unhealthy;
            report.reason = Some(why.to_string());
        }
        if let Some(why) = generation.pool.failure() {
            report.state = HandlerState::Failed;
            report.reason = Some(why.to_string());
        }
    }
    report
}
