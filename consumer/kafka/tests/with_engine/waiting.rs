//! Which records keep a fetch buffer alive, by count, and what is known about it: records that wait behind a retry of their
//! key, for a worker, or that calls have.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_engine::dispatch::PumpMessage;
use sluicegate_engine::event::Event;
use sluicegate_engine::flow::FlowSettings;
use sluicegate_engine::queue::{HandlerSettings, Order};
use sluicegate_kafka::mock::MockKafka;
use sluicegate_kit::engine_doubles::{HeldPool, flow_settings, handler, plan, retry};

use crate::reading::{Reader, by_rarity, produce};

const RECORDS: i64 = 2_000;
/// Every so many records have the key that is retried.
const RARE: i64 = 100;
const BUDGET: u64 = 1_250_000;

/// A reader that has read all records.
struct Harness {
    reader: Reader,
    pool: Arc<HeldPool>,
    _kafka: MockKafka,
}

impl Harness {
    /// `full`: the pool accepts no batch.
    fn reading(full: bool) -> Self {
        let kafka = MockKafka::start(1).expect("a mock cluster starts");
        kafka.create_topic("t", 1).expect("a new topic");
        let bootstrap = kafka.bootstrap_servers();
        produce(&bootstrap, "t", 1, RECORDS, RARE);
        let pool = Arc::new(HeldPool::default());
        pool.set_full(full);
        let handler = HandlerSettings {
            retry: retry(2, Duration::from_hours(1)),
            ..handler(pool.clone())
        };
        let reader = Reader::new(
            &bootstrap,
            "g",
            flow_settings(),
            plan("t", handler),
            &["t"],
            &[],
        );
        let mut harness = Self {
            reader,
            pool,
            _kafka: kafka,
        };
        let pool = harness.pool.clone();
        let reader = &mut harness.reader;
        reader.read(RECORDS, |reader| reader.finish(&pool, is_rare));
        harness.finish();
        harness
    }

    fn finish(&mut self) {
        self.reader.finish(&self.pool, is_rare);
    }

    /// How many records pin a fetch buffer at a time.
    fn pinning_at(&mut self, now_ms: u64) -> usize {
        self.reader.step(Event::Tick(now_ms));
        self.reader.engine.flow().pinning_records()
    }

    fn held(&self) -> usize {
        self.reader.engine.flow().held_records()
    }
}

fn is_rare(offset: i64) -> bool {
    offset % RARE == 0
}

/// Calls that do not return have the rare records; nothing else is held.
#[test]
fn what_calls_pin_is_known_and_counts_as_used_memory() {
    let kafka = MockKafka::start(1).expect("a mock cluster starts");
    kafka.create_topic("t", 1).expect("a new topic");
    let bootstrap = kafka.bootstrap_servers();
    produce(&bootstrap, "t", 1, RECORDS, RARE);
    let [rare, others] = [Arc::new(HeldPool::default()), Arc::new(HeldPool::default())];
    let flow = FlowSettings {
        budget_bytes: BUDGET,
        ..flow_settings()
    };
    let unordered = |pool: &Arc<HeldPool>| HandlerSettings {
        order: Order::Unordered,
        ..handler(pool.clone())
    };
    let plan = by_rarity([unordered(&rare), unordered(&others)]);
    let mut reader = Reader::new(&bootstrap, "g", flow, plan, &["t"], &[]);
    reader.read(RECORDS, |reader| {
        reader.step(Event::Tick(reader.turns));
        reader.finish(&others, |_| false);
    });
    reader.finish(&others, |_| false);
    let now_ms = reader.turns + 1_000;
    reader.step(Event::Tick(now_ms));
    let flow = reader.engine.flow();
    let (charged, pinned) = (flow.charged(), flow.pinned_bytes());
    println!("{charged} bytes charged, {pinned} pinned by calls");
    // One or two fetch buffers of a megabyte.
    assert!(pinned > 900_000, "{pinned}");
    let while_held = reader.engine.read_quota(usize::MAX);
    reader.finish(&rare, |_| false);
    reader.step(Event::Tick(now_ms));
    assert_eq!(reader.engine.flow().pinned_bytes(), 0);
    let afterwards = reader.engine.read_quota(usize::MAX);
    assert!(while_held > 0, "half of the memory is for what others read");
    assert!(while_held * 3 < afterwards * 2, "{while_held} {afterwards}");
    reader.close();
}

#[test]
fn records_that_wait_in_their_lane_keep_no_fetch_buffer_alive() {
    let mut harness = Harness::reading(false);
    let waiting = (RECORDS / RARE) as usize;
    assert_eq!(harness.held(), waiting);
    // The first is parked, and was copied then.
    assert_eq!(harness.pinning_at(0), waiting - 1);
    assert_eq!(
        harness.pinning_at(250),
        waiting - 1,
        "a record that waits for a moment is not copied"
    );
    assert_eq!(harness.pinning_at(500), 0);
    assert_eq!(harness.held(), waiting);
    harness.reader.close();
}

#[test]
fn records_that_wait_for_a_worker_keep_no_fetch_buffer_alive() {
    let mut harness = Harness::reading(true);
    let pinning = [0, 250, 500].map(|now_ms| harness.pinning_at(now_ms));
    assert_eq!(pinning, [RECORDS as usize, RECORDS as usize, 0]);
    harness.pool.set_full(false);
    harness.reader.step(Event::Message(PumpMessage::PoolFree));
    harness.reader.engine.dispatch();
    for _ in 0..RECORDS {
        harness.finish();
    }
    let waiting = (RECORDS / RARE) as usize;
    assert_eq!(
        harness.held(),
        waiting,
        "they were handled from their copies"
    );
    harness.reader.close();
}
