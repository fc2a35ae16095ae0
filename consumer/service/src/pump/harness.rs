//! A pump on a scripted source and a scripted clock, whose handler holds its batches.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluicegate_config::spec::{Predicate, Route, TopicPattern};
use sluicegate_engine::dispatch::{Batch, HandlerIx, Inbox, PoolState, PumpMessage, WorkerPool};
use sluicegate_engine::emit::{Emitter, ProducerRecord, Sent, Ticket, Way};
use sluicegate_engine::engine::EngineSettings;
use sluicegate_engine::event::Event;
use sluicegate_engine::flow::FlowSettings;
use sluicegate_engine::flow::handler::{HandlerSettings, OnFailure, Order};
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::settlement::RetryPolicy;
use sluicegate_engine::source::{Source, SourceError, StartAt, TopicPartition};
use sluicegate_engine::status::PartitionReport;
use sluicegate_kafka::RecordBuf;
use sluicegate_kit::memory_source::MemoryKafka;
use sluicegate_runtime::{RawOutcome, outcome_code};

use super::{Buffers, Probe, Pump, PumpAddress, PumpSettings, StopReport};

/// Holds its batches until the test finishes them.
#[derive(Default)]
struct HeldPool(
    // Boxes, as in the trait's signature.
    #[allow(clippy::vec_box)] Mutex<Vec<Box<Batch>>>,
);

impl WorkerPool for HeldPool {
    fn submit(&self, batch: Box<Batch>, _home: &Arc<Inbox>) -> Result<(), Box<Batch>> {
        self.0.lock().unwrap().push(batch);
        Ok(())
    }

    fn workers(&self) -> u32 {
        1
    }

    fn state(&self) -> PoolState {
        PoolState::Active
    }
}

struct NoEmitter;

impl Emitter for NoEmitter {
    fn send(&self, _: &ProducerRecord<'_>, _: Way, _: Ticket) -> Sent {
        panic!("nothing is emitted here")
    }
}

pub(crate) struct Harness {
    pub(crate) kafka: MemoryKafka,
    pub(crate) pump: Pump,
    pool: Arc<HeldPool>,
}

pub(super) fn at() -> TopicPartition {
    TopicPartition {
        topic: "t".into(),
        partition: 0,
    }
}

impl Harness {
    /// A pump that owns t/0, with records 0 to 4 in flight.
    pub(crate) fn with_five_in_flight(offset_out_of_range: Option<StartAt>) -> Self {
        let kafka = MemoryKafka::new(1);
        let settings = PumpSettings {
            number: 0,
            engine: EngineSettings {
                flow: FlowSettings {
                    max_uncommitted: 100,
                    budget_bytes: 1 << 20,
                    stall_timeout_ms: 60_000,
                    commit_interval_ms: 0,
                    drain_timeout_ms: 60_000,
                    group: "g".into(),
                    seed: 1,
                },
                start: StartAt::Earliest,
                offset_out_of_range,
            },
            join_gate: Arc::default(),
            probe: Probe {
                ask: Arc::new(|| false),
                interval: Duration::from_secs(30),
            },
        };
        let cluster = kafka.clone();
        let make_source = move || -> Result<Box<dyn Source<Record = RecordBuf>>, SourceError> {
            Ok(Box::new(cluster.source()))
        };
        let mut pump = Pump::new(
            settings,
            Box::new(make_source),
            Arc::new(NoEmitter),
            PumpAddress::default(),
        )
        .unwrap();
        let pool = Arc::new(HeldPool::default());
        let route = Route {
            topics: vec![TopicPattern::Exact("t".into())],
            when: Predicate::always(),
        };
        let index = RoutingIndex::compile(1, vec![(HandlerIx(0), route)]).unwrap();
        let handlers = vec![(HandlerIx(0), handler(pool.clone()))];
        pump.engine.apply(index, handlers);
        let mut harness = Self { kafka, pump, pool };
        harness.produce(5);
        harness.kafka.assign("t", &[0]);
        harness.turn();
        assert_eq!(harness.run_all(false), [0, 1, 2, 3, 4]);
        harness
    }

    pub(crate) fn produce(&self, count: usize) {
        for _ in 0..count {
            self.kafka.produce("t", 0, None, Some(b"v"), &[]);
        }
    }

    /// Retention deletes the unread records up to offset 40; 10 records remain.
    pub(super) fn overtake(&self) {
        self.kafka.delete_before("t", 0, 40);
        self.produce(10);
    }

    /// Advances the pump's clock.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.pump.started -= by;
    }

    pub(crate) fn turn(&mut self) {
        for _ in 0..5 {
            if self.pump.closed {
                return;
            }
            self.pump.turn(&mut Buffers::default());
        }
    }

    /// Work that the pump's stop has left behind.
    pub(crate) fn left(&mut self) -> StopReport {
        self.pump.engine.left_behind()
    }

    pub(crate) fn stop(&mut self) {
        self.pump.stop();
        self.turn();
    }

    /// Runs a turn and returns the offsets that the pool held; with `finish`, acknowledges them first.
    pub(crate) fn run_all(&mut self, finish: bool) -> Vec<i64> {
        let pool = self.pool.clone();
        let mut held = pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        let batches = held.iter();
        let records = batches.flat_map(|batch| batch.records.iter().map(|record| record.offset));
        let offsets = records.collect();
        if finish {
            for mut batch in held.drain(..) {
                let done = RawOutcome {
                    code: outcome_code::ACK,
                    ..RawOutcome::default()
                };
                batch.outcomes = vec![done; batch.records.len()];
                self.pump.step(Event::Message(PumpMessage::Finished(batch)));
            }
        }
        drop(held);
        self.turn();
        offsets
    }

    pub(crate) fn committed(&self) -> Option<i64> {
        self.kafka.committed("t", 0).map(|(offset, _)| offset)
    }

    pub(super) fn report(&self) -> PartitionReport {
        self.pump.report().partitions.remove(0)
    }
}

fn handler(pool: Arc<HeldPool>) -> HandlerSettings {
    HandlerSettings {
        name: "h".into(),
        version: "1.0.0".into(),
        generation: 1,
        config_digest: 1,
        pool: Some(pool),
        gate_open: true,
        order: Order::Key,
        retry: RetryPolicy {
            max_attempts: 1,
            delay: Duration::ZERO,
            multiplier: 1.0,
            max_delay: Duration::ZERO,
            jitter: 0.0,
        },
        dead_letter_topic: "{topic}.dlt".into(),
        on_failure: OnFailure::Hold,
        max_in_flight_records: 1_000,
        max_in_flight_bytes: 1 << 20,
        keeps_key_state: false,
        takes_batches: false,
    }
}
