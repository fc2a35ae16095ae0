//! Situation: of many records that were read, a few wait for long: behind a retry of their key.
//! Property: none of them keeps a fetch buffer of the client alive, of which only their own bytes are charged (G8).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::member::settings;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluicegate_config::spec::{Predicate, Route, TopicPattern};
use sluicegate_engine::dispatch::{Batch, HandlerIx, Inbox, PoolState, PumpMessage, WorkerPool};
use sluicegate_engine::emit::{Emitter, ProducerRecord, Sent, Ticket, Way};
use sluicegate_engine::engine::{Engine, EngineSettings};
use sluicegate_engine::event::{Effect, Event};
use sluicegate_engine::flow::FlowSettings;
use sluicegate_engine::flow::handler::{HandlerSettings, OnFailure, Order};
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::settlement::RetryPolicy;
use sluicegate_engine::source::{Source, StartAt};
use sluicegate_kafka::mock::MockKafka;
use sluicegate_kafka::{KafkaSource, RecordBuf};
use sluicegate_runtime::{RawOutcome, outcome_code};

const RECORDS: i64 = 2_000;
/// Every so many records have the key that is retried.
const RARE: i64 = 100;

#[derive(Default)]
struct Pool {
    // Boxes, as in the trait's signature.
    #[allow(clippy::vec_box)]
    taken: Mutex<Vec<Box<Batch>>>,
    full: AtomicBool,
}

impl WorkerPool for Pool {
    fn submit(&self, batch: Box<Batch>, _home: &Arc<Inbox>) -> Result<(), Box<Batch>> {
        if self.full.load(Ordering::Relaxed) {
            return Err(batch);
        }
        self.taken.lock().expect("not poisoned").push(batch);
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

fn engine(pool: Arc<Pool>) -> Engine<RecordBuf> {
    let settings = EngineSettings {
        flow: FlowSettings {
            max_uncommitted: 1_000_000,
            budget_bytes: 1 << 30,
            stall_timeout_ms: 60_000,
            commit_interval_ms: 60_000,
            drain_timeout_ms: 1_000,
            group: "g".into(),
            seed: 1,
        },
        start: StartAt::Earliest,
        offset_out_of_range: None,
    };
    let handler = HandlerSettings {
        name: "h".into(),
        version: "1.0.0".into(),
        generation: 1,
        config_digest: 1,
        pool: Some(pool),
        gate_open: true,
        order: Order::Key,
        retry: RetryPolicy {
            max_attempts: 2,
            delay: Duration::from_secs(3_600),
            multiplier: 1.0,
            max_delay: Duration::from_secs(3_600),
            jitter: 0.0,
        },
        dead_letter_topic: "{topic}.dlt".into(),
        on_failure: OnFailure::Hold,
        max_in_flight_records: 4_096,
        max_in_flight_bytes: 1 << 30,
        keeps_key_state: false,
        takes_batches: false,
    };
    let route = Route {
        topics: vec![TopicPattern::Exact("t".into())],
        when: Predicate::always(),
    };
    let index = RoutingIndex::compile(1, vec![(HandlerIx(0), route)]).expect("a route");
    let mut engine = Engine::new(settings, Arc::new(NoEmitter), Arc::new(Inbox::new()));
    engine.apply(index, vec![(HandlerIx(0), handler)]);
    engine
}

fn produce(bootstrap: &str) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("a producer");
    let value = vec![b'v'; 1_000];
    for offset in 0..RECORDS {
        let key = match offset % RARE {
            0 => "rare".to_owned(),
            _ => format!("k{offset}"),
        };
        let record = BaseRecord::<String, Vec<u8>>::to("t")
            .key(&key)
            .payload(&value)
            .partition(0);
        producer.send(record).map_err(|(e, _)| e).expect("queued");
    }
    producer
        .flush(Duration::from_secs(10))
        .expect("acknowledged");
}

/// Finishes every batch: records with the rare key ask for a retry, the others succeed.
fn finish(engine: &mut Engine<RecordBuf>, pool: &Pool, effects: &mut VecDeque<Effect>) {
    for mut batch in std::mem::take(&mut *pool.taken.lock().expect("not poisoned")) {
        let code = |offset: i64| match offset % RARE {
            0 => outcome_code::RETRY,
            _ => outcome_code::ACK,
        };
        batch.outcomes = batch
            .records
            .iter()
            .map(|record| RawOutcome {
                code: code(record.offset),
                ..RawOutcome::default()
            })
            .collect();
        // A worker does not start later records of a lane that is retried.
        let mut retried = Vec::new();
        for (record, outcome) in batch.records.iter().zip(&mut batch.outcomes) {
            if retried.contains(&record.lane) {
                outcome.code = outcome_code::NOT_RUN;
            } else if outcome.code == outcome_code::RETRY {
                retried.push(record.lane);
            }
        }
        engine.step(Event::Message(PumpMessage::Finished(batch)), effects);
    }
    engine.dispatch();
}

/// Carries out what a start of partitions needs.
fn carry_out(source: &mut KafkaSource, effects: &mut VecDeque<Effect>) {
    for effect in effects.drain(..) {
        match effect {
            Effect::Find { partitions, start } => source.find(&partitions, start),
            Effect::Start(partitions) => source.start(&partitions).expect("a client"),
            // Nothing of this is settled or left here.
            _ => {}
        }
    }
}

/// A source and an engine that have read all records.
struct Harness {
    engine: Engine<RecordBuf>,
    pool: Arc<Pool>,
    source: KafkaSource,
    effects: VecDeque<Effect>,
    _kafka: MockKafka,
}

impl Harness {
    /// `full`: the pool accepts no batch.
    fn reading(full: bool) -> Self {
        let kafka = MockKafka::start(1).expect("a mock cluster starts");
        kafka.create_topic("t", 1).expect("a new topic");
        let bootstrap = kafka.bootstrap_servers();
        produce(&bootstrap);
        let pool = Arc::new(Pool::default());
        pool.full.store(full, Ordering::Relaxed);
        let mut harness = Self {
            engine: engine(pool.clone()),
            pool,
            source: KafkaSource::new(&settings(&bootstrap, &[])).expect("a client"),
            effects: VecDeque::new(),
            _kafka: kafka,
        };
        let subscribed = harness.source.subscribe(&["t".into()]);
        subscribed.expect("a subscription");
        harness.read();
        harness
    }

    fn read(&mut self) {
        let (mut events, mut records) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut read = 0;
        while read < RECORDS {
            assert!(Instant::now() < deadline, "{read} records were read");
            self.source.events(&mut events);
            for event in events.drain(..) {
                let membership = self.source.membership();
                let event = Event::Source(event, membership);
                self.engine.step(event, &mut self.effects);
                carry_out(&mut self.source, &mut self.effects);
            }
            self.source.poll(1_000, &mut records);
            read += records.len() as i64;
            self.engine
                .step(Event::Records(&mut records), &mut self.effects);
            finish(&mut self.engine, &self.pool, &mut self.effects);
            self.source.wait(Duration::from_millis(10));
        }
        finish(&mut self.engine, &self.pool, &mut self.effects);
    }

    /// How many records pin a fetch buffer at a time.
    fn pinning_at(&mut self, now_ms: u64) -> usize {
        self.engine.step(Event::Tick(now_ms), &mut self.effects);
        self.engine.flow().pinning_records()
    }

    fn close(mut self) {
        drop(self.engine);
        let _ = self.source.close(Instant::now() + Duration::from_secs(5));
    }
}

#[test]
fn records_that_wait_in_their_lane_keep_no_fetch_buffer_alive() {
    let mut harness = Harness::reading(false);
    let waiting = (RECORDS / RARE) as usize;
    assert_eq!(harness.engine.flow().held_records(), waiting);
    // The first is parked, and was copied then.
    assert_eq!(harness.pinning_at(0), waiting - 1);
    assert_eq!(
        harness.pinning_at(250),
        waiting - 1,
        "a record that waits for a moment is not copied"
    );
    assert_eq!(harness.pinning_at(500), 0);
    assert_eq!(harness.engine.flow().held_records(), waiting);
    harness.close();
}

#[test]
fn records_that_wait_for_a_worker_keep_no_fetch_buffer_alive() {
    let mut harness = Harness::reading(true);
    let pinning = [0, 250, 500].map(|now_ms| harness.pinning_at(now_ms));
    assert_eq!(pinning, [RECORDS as usize, RECORDS as usize, 0]);
    harness.pool.full.store(false, Ordering::Relaxed);
    let free = Event::Message(PumpMessage::PoolFree);
    harness.engine.step(free, &mut harness.effects);
    harness.engine.dispatch();
    for _ in 0..RECORDS {
        finish(&mut harness.engine, &harness.pool, &mut harness.effects);
    }
    let waiting = (RECORDS / RARE) as usize;
    assert_eq!(
        harness.engine.flow().held_records(),
        waiting,
        "they were handled from their copies"
    );
    harness.close();
}
