//! Situation: of many records that were read, a few wait for long: behind a retry of their key.
//! Property: none of them keeps a fetch buffer of the client alive, of which only their own bytes are charged (G8).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::member::settings;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluicegate_engine::dispatch::{Inbox, PumpMessage};
use sluicegate_engine::engine::{Engine, EngineSettings};
use sluicegate_engine::event::{Effect, Event};
use sluicegate_engine::queue::HandlerSettings;
use sluicegate_engine::source::{Source, StartAt};
use sluicegate_kafka::mock::MockKafka;
use sluicegate_kafka::{KafkaSource, RecordBuf};
use sluicegate_kit::engine_doubles::{HeldPool, NoEmitter, flow_settings, handler, plan, retry};
use sluicegate_runtime::{RawOutcome, outcome_code};

const RECORDS: i64 = 2_000;
/// Every so many records have the key that is retried.
const RARE: i64 = 100;

fn engine(pool: Arc<HeldPool>) -> Engine<RecordBuf> {
    let settings = EngineSettings {
        flow: flow_settings(),
        start: StartAt::Earliest,
        offset_out_of_range: None,
    };
    let handler = HandlerSettings {
        retry: retry(2, Duration::from_hours(1)),
        ..handler(pool)
    };
    let (index, handlers) = plan("t", handler);
    let mut engine = Engine::new(settings, Arc::new(NoEmitter), Arc::new(Inbox::new()));
    engine.apply(index, handlers);
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
fn finish(engine: &mut Engine<RecordBuf>, pool: &HeldPool, effects: &mut VecDeque<Effect>) {
    for mut batch in pool.take() {
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
    pool: Arc<HeldPool>,
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
        let pool = Arc::new(HeldPool::default());
        pool.set_full(full);
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
    harness.pool.set_full(false);
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
