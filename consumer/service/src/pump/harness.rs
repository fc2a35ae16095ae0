//! A pump on a scripted source and a scripted clock, whose handler holds its batches.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_engine::dispatch::PumpMessage;
use sluicegate_engine::engine::EngineSettings;
use sluicegate_engine::flow::FlowSettings;
use sluicegate_engine::source::{Source, SourceError, StartAt, TopicPartition};
use sluicegate_engine::status::PartitionReport;
use sluicegate_kafka::RecordBuf;
use sluicegate_kit::engine_doubles::{HeldPool, NoEmitter, flow_settings, handler, plan};
use sluicegate_kit::memory_source::MemoryKafka;
use sluicegate_runtime::{RawOutcome, outcome_code};

use super::{Buffers, Probe, Pump, PumpAddress, PumpSettings, StopReport};

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
                    drain_timeout_ms: 60_000,
                    ..flow_settings()
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
        let (index, handlers) = plan("t", handler(pool.clone()));
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
        let offsets = self.pool.offsets();
        if finish {
            self.finish();
        }
        self.turn();
        offsets
    }

    /// Acknowledges the records that the pool holds; the pump learns of it in its next turn.
    pub(crate) fn finish(&mut self) {
        for mut batch in self.pool.take() {
            let done = RawOutcome {
                code: outcome_code::ACK,
                ..RawOutcome::default()
            };
            batch.outcomes = vec![done; batch.records.len()];
            self.pump.inbox.push(PumpMessage::Finished(batch));
        }
    }

    pub(crate) fn committed(&self) -> Option<i64> {
        self.kafka.committed("t", 0).map(|(offset, _)| offset)
    }

    pub(super) fn report(&self) -> PartitionReport {
        self.pump.report().partitions.remove(0)
    }
}
