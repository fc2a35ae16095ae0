//! What an engine needs from outside, scripted: a pool that holds its batches, a producer that is never asked, and settings
//! of a plain handler of which a test changes what it is about.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluicegate_config::spec::{Predicate, Route, TopicPattern};
use sluicegate_engine::dispatch::{Batch, HandlerIx, Inbox, PoolState, WorkerPool};
use sluicegate_engine::emit::{EmitToken, Emitter, ProducerRecord, Sent, Way};
use sluicegate_engine::flow::FlowSettings;
use sluicegate_engine::queue::{GenerationId, HandlerSettings, OnFailure, Order, Target};
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::settlement::RetryPolicy;

/// A pool of one worker that holds its batches until the test takes them.
#[derive(Default)]
pub struct HeldPool {
    // Boxes, as in the trait's signature.
    #[allow(clippy::vec_box)]
    held: Mutex<Vec<Box<Batch>>>,
    full: AtomicBool,
}

impl HeldPool {
    /// Takes the batches that it has accepted.
    #[allow(clippy::vec_box)]
    pub fn take(&self) -> Vec<Box<Batch>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *held)
    }

    /// The offsets of the records in these batches.
    pub fn offsets(&self) -> Vec<i64> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let records = held.iter().flat_map(|batch| &batch.records);
        records.map(|record| record.offset).collect()
    }

    /// Whether it refuses batches from now on.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }
}

impl WorkerPool for HeldPool {
    fn submit(&self, batch: Box<Batch>, _reply_to: &Arc<Inbox>) -> Result<(), Box<Batch>> {
        if self.full.load(Ordering::Relaxed) {
            return Err(batch);
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push(batch);
        Ok(())
    }

    fn workers(&self) -> u32 {
        1
    }

    fn state(&self) -> PoolState {
        PoolState::Active
    }
}

/// A producer for tests in which nothing is emitted.
pub struct NoEmitter;

impl Emitter for NoEmitter {
    fn send(&self, _: &ProducerRecord<'_>, _: Way, _: &Arc<Inbox>, _: EmitToken) -> Sent {
        panic!("nothing is emitted here")
    }
}

/// Bounds that no test reaches unless it lowers them; each turn commits.
pub fn flow_settings() -> FlowSettings {
    FlowSettings {
        max_uncommitted: 1_000_000,
        budget_bytes: 1 << 30,
        stall_timeout_ms: 60_000,
        commit_interval_ms: 0,
        drain_timeout_ms: 1_000,
        group: "g".into(),
        seed: 1,
    }
}

/// A handler that takes record by record, in the order of keys, and retries nothing.
pub fn handler(pool: Arc<dyn WorkerPool>) -> HandlerSettings {
    HandlerSettings {
        name: "h".into(),
        targets: vec![Target::only(GenerationId::new("1.0.0", 1), pool)],
        gate_open: true,
        order: Order::Key,
        retry: retry(1, Duration::ZERO),
        dead_letter_topic: "{topic}.dlt".into(),
        on_failure: OnFailure::Hold,
        first_call: 32,
        max_in_flight_records: 4_096,
        max_in_flight_bytes: 1 << 30,
    }
}

/// As many attempts, always `delay` apart.
pub fn retry(max_attempts: u32, delay: Duration) -> RetryPolicy {
    RetryPolicy {
        max_attempts,
        delay,
        multiplier: 1.0,
        max_delay: delay,
        jitter: 0.0,
    }
}

/// The plan of a single handler that reads all of `topic`.
///
/// # Panics
/// If `topic` is not a topic's name.
pub fn plan(
    topic: &str,
    handler: HandlerSettings,
) -> (Arc<RoutingIndex>, Vec<(HandlerIx, HandlerSettings)>) {
    let route = Route {
        topics: vec![TopicPattern::Exact(topic.into())],
        when: Predicate::always(),
    };
    let index = RoutingIndex::compile(1, vec![(HandlerIx(0), route)]).expect("a topic's name");
    (index, vec![(HandlerIx(0), handler)])
}
