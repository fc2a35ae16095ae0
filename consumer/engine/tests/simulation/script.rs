//! What a seed determines: partition logs, bounds, handlers and fault rates.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_abi::header_block;
use sluicegate_config::spec::{PartitionTest, Predicate, Route, Test, TopicPattern};
use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::engine::EngineSettings;
use sluicegate_engine::flow::FlowSettings;
use sluicegate_engine::partition::commit::TopicUuid;
use sluicegate_engine::queue::{BUCKETS, GenerationId, HandlerSettings, OnFailure, Order, Target};
use sluicegate_engine::settlement::RetryPolicy;
use sluicegate_engine::source::{StartAt, TopicPartition};

use super::pools::SimPool;
use super::random::Random;

/// A record of a log.
pub struct Logged {
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: Vec<u8>,
}

/// A partition's log: offsets ascend, with gaps.
pub struct Log {
    pub at: TopicPartition,
    /// Identity of the topic; changes each time it is created.
    pub topic_id: TopicUuid,
    pub records: Vec<Logged>,
    /// Offsets of control records: the client reads but does not deliver them.
    pub controls: Vec<i64>,
}

impl Log {
    /// A log of this many records, without gaps.
    pub fn plain(random: &mut Random, topic: &str, partition: i32, records: i64) -> Self {
        Self {
            records: (0..records)
                .map(|offset| any_record(random, offset, 5))
                .collect(),
            controls: Vec::new(),
            at: TopicPartition {
                topic: topic.into(),
                partition,
            },
            topic_id: TopicUuid(1),
        }
    }

    /// The record at `offset`, if there is one.
    pub fn record(&self, offset: i64) -> Option<&Logged> {
        self.index_of(offset).ok().map(|index| &self.records[index])
    }

    /// Index of `offset`, or where it would be inserted.
    pub fn index_of(&self, offset: i64) -> Result<usize, usize> {
        self.records
            .binary_search_by_key(&offset, |record| record.offset)
    }

    /// The next offset at or beyond `from` that the client reads: of a record, or of a control record.
    pub fn next_read(&self, from: i64) -> Option<i64> {
        let record = self.index_of(from).unwrap_or_else(|next| next);
        let record = self.records.get(record).map(|record| record.offset);
        let control = self.controls.partition_point(|offset| *offset < from);
        let control = self.controls.get(control).copied();
        record.into_iter().chain(control).min()
    }

    /// One past the last record or control record.
    pub fn end(&self) -> i64 {
        let record = self.records.last().map(|record| record.offset);
        let last = record.max(self.controls.last().copied());
        last.map_or(0, |offset| offset + 1)
    }
}

/// Probability of each fault, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultRates {
    pub retry: u32,
    pub dead_letter: u32,
    pub drop: u32,
    pub panic: u32,
    pub hang: u32,
    pub not_run: u32,
    pub emit: u32,
    pub produce_fails: u32,
    pub commit_fails: u32,
    pub repeat: u32,
    pub rebalance: u32,
    pub swap: u32,
    /// Changes of a handler's order, in each step; 0 in most scripts.
    pub reorder: u32,
    /// Other generations of a handler, in each step; 0 in most scripts.
    pub renew: u32,
    /// Answers of the producer that come later; 0 in most scripts.
    pub produce_late: u32,
    /// At most this much time passes at once, in milliseconds.
    pub pause_ms: usize,
    pub crash: u32,
    pub recreate: u32,
    pub reset: u32,
    pub pool_fails: u32,
    pub retention: u32,
    /// Of lookups, log bounds and seeks.
    pub lookup_fails: u32,
    /// Read errors of a partition.
    pub read_fails: u32,
    /// Graceful stops, and replacements of the client.
    pub stop: u32,
}

/// A generation that gets some of a handler's keys.
#[derive(Clone)]
pub struct Canary {
    pub generation: u64,
    pub takes_batches: bool,
    pub buckets: u16,
    pub pool: Arc<SimPool>,
}

/// A handler as one snapshot has it.
#[derive(Clone)]
pub struct SimHandler {
    pub ix: HandlerIx,
    pub route: Route,
    pub gate_open: bool,
    pub order: Order,
    pub takes_batches: bool,
    pub keeps_key_state: bool,
    pub max_attempts: u32,
    pub on_failure: OnFailure,
    pub max_in_flight: u32,
    pub generation: u64,
    pub pool: Arc<SimPool>,
    /// Another target.
    pub canary: Option<Canary>,
}

impl SimHandler {
    /// The pools of its targets, and whether these take batches.
    pub fn pools(&self) -> impl Iterator<Item = (bool, &Arc<SimPool>)> {
        let canary = self.canary.as_ref();
        let canary = canary.map(|canary| (canary.takes_batches, &canary.pool));
        std::iter::once((self.takes_batches, &self.pool)).chain(canary)
    }

    /// The name derived from its index.
    pub fn name(ix: HandlerIx) -> String {
        format!("h{}", ix.0)
    }

    /// Its settings for the flow.
    pub fn settings(&self) -> HandlerSettings {
        HandlerSettings {
            name: Self::name(self.ix).into(),
            targets: self.targets(),
            gate_open: self.gate_open,
            order: self.order,
            retry: RetryPolicy {
                max_attempts: self.max_attempts,
                delay: Duration::from_millis(20),
                multiplier: 2.0,
                max_delay: Duration::from_millis(100),
                jitter: 0.2,
            },
            dead_letter_topic: "{topic}.dlt".into(),
            on_failure: self.on_failure,
            first_call: [1, 4, 32][self.max_in_flight as usize % 3],
            max_in_flight_records: self.max_in_flight,
            max_in_flight_bytes: 1 << 20,
        }
    }

    fn targets(&self) -> Vec<Target> {
        let target = |number, takes_batches, pool: &Arc<SimPool>| {
            let generation = GenerationId {
                takes_batches,
                ..GenerationId::new("1.0.0", number)
            };
            Target {
                keeps_key_state: self.keeps_key_state,
                ..Target::only(generation, pool.clone())
            }
        };
        let mut first = target(self.generation, self.takes_batches, &self.pool);
        let second = self.canary.as_ref().map(|canary| {
            first.buckets = BUCKETS - canary.buckets;
            Target {
                buckets: canary.buckets,
                ..target(canary.generation, canary.takes_batches, &canary.pool)
            }
        });
        std::iter::once(first).chain(second).collect()
    }
}

/// Everything that is fixed at the start of a simulation.
pub struct Script {
    pub logs: Vec<Log>,
    pub flow: FlowSettings,
    pub faults: FaultRates,
    pub steps: usize,
    pub drain_ms: u64,
    /// Where a partition continues whose offset is out of range.
    pub offset_out_of_range: StartAt,
    /// Whether members are static: after a restart they reclaim their partitions in the same generation.
    pub is_static: bool,
}

const TOPICS: [&str; 3] = ["orders", "orders.eu", "clicks"];

impl Script {
    /// Settings of an engine.
    pub fn engine(&self) -> EngineSettings {
        EngineSettings {
            flow: self.flow.clone(),
            start: StartAt::Earliest,
            offset_out_of_range: Some(self.offset_out_of_range),
        }
    }

    /// Generates a script from random numbers.
    pub fn new(random: &mut Random) -> Self {
        // Long chains: few keys, whose records emit.
        let relays = random.chance(25);
        let mut logs = Vec::new();
        for topic in &TOPICS[..random.between(1, 3)] {
            for partition in 0..random.between(1, 3) as i32 {
                logs.push(any_log(random, topic, partition, relays));
            }
        }
        let seed = random.next();
        let drain_ms = *random.pick(&[0, 100, 2_000]);
        Self {
            logs,
            flow: FlowSettings {
                max_uncommitted: *random.pick(&[1, 2, 5, 20, 100]),
                budget_bytes: *random.pick(&[500, 4_000, 1 << 20]),
                stall_timeout_ms: 1_000,
                drain_timeout_ms: drain_ms,
                commit_interval_ms: *random.pick(&[0, 10, 100]),
                group: "g".into(),
                seed,
            },
            faults: match relays {
                true => relaying(random),
                false => any_fault_rates(random),
            },
            steps: random.between(50, 400),
            drain_ms,
            offset_out_of_range: *random.pick(&[
                StartAt::Earliest,
                StartAt::Earliest,
                StartAt::Latest,
            ]),
            is_static: random.chance(30),
        }
    }
}

fn any_log(random: &mut Random, topic: &str, partition: i32, relays: bool) -> Log {
    let mut offset = if random.chance(30) { 7 } else { 0 };
    let gaps = *random.pick(&[0, 10, 40]);
    let keys = random.between(1, if relays { 2 } else { 5 });
    let transactional = random.chance(50);
    let mut controls = Vec::new();
    let mut records = Vec::new();
    for _ in 0..random.below(60) {
        if random.chance(gaps) {
            // Records removed by compaction or an abort, ending with the transaction's control record.
            offset += random.between(1, 100) as i64;
            if transactional {
                controls.push(offset - 1);
            }
        }
        records.push(any_record(random, offset, keys));
        offset += 1;
    }
    if transactional && !(records.is_empty() && random.chance(50)) {
        controls.push(offset + random.below(20) as i64);
    }
    Log {
        controls,
        at: TopicPartition {
            topic: topic.into(),
            partition,
        },
        topic_id: TopicUuid(1),
        records,
    }
}

/// The log of a recreated topic: other records, another identity.
pub fn recreated(random: &mut Random, log: &Log) -> Log {
    let topic_id = TopicUuid(log.topic_id.0 + 1);
    Log {
        topic_id,
        ..any_log(random, &log.at.topic, log.at.partition, false)
    }
}

fn any_record(random: &mut Random, offset: i64, keys: usize) -> Logged {
    let kinds: [&[u8]; 3] = [b"a", b"b", b"\xff"];
    let headers: Vec<(&[u8], Option<&[u8]>)> = (0..random.below(3))
        .map(|_| {
            let value = random.chance(90).then(|| *random.pick(&kinds));
            (b"kind".as_slice(), value)
        })
        .collect();
    let mut block = Vec::new();
    header_block::write(&mut block, headers.into_iter());
    Logged {
        offset,
        key: random
            .chance(85)
            .then(|| format!("k{}", random.below(keys)).into_bytes()),
        value: vec![b'v'; random.below(40)],
        headers: block,
    }
}

fn any_fault_rates(random: &mut Random) -> FaultRates {
    let mut some = |most: usize| match random.below(3) {
        0 => 0,
        _ => random.below(most + 1) as u32,
    };
    let rates = FaultRates {
        retry: some(20),
        dead_letter: some(10),
        drop: some(10),
        panic: some(8),
        hang: some(5),
        not_run: some(10),
        emit: some(30),
        produce_fails: some(30),
        commit_fails: some(40),
        repeat: some(30),
        rebalance: some(8),
        swap: some(6),
        reorder: 0,
        renew: 0,
        produce_late: 0,
        pause_ms: 60,
        crash: some(2),
        recreate: some(3),
        reset: some(12),
        pool_fails: some(5),
        retention: some(4),
        lookup_fails: some(40),
        read_fails: some(6),
        stop: some(2),
    };
    let reorder = match random.chance(15) {
        true => random.between(3, 40) as u32,
        false => 0,
    };
    FaultRates { reorder, ..rates }
}

/// Most records emit, and some of it is refused; other faults are rare.
fn relaying(random: &mut Random) -> FaultRates {
    let others = any_fault_rates(random);
    FaultRates {
        retry: others.retry / 4,
        dead_letter: others.dead_letter / 4,
        drop: others.drop / 4,
        panic: others.panic / 4,
        emit: random.between(40, 100) as u32,
        produce_fails: random.between(1, 25) as u32,
        swap: random.between(1, 10) as u32,
        renew: random.between(2, 10) as u32,
        produce_late: random.below(40) as u32,
        pause_ms: 300,
        rebalance: others.rebalance,
        ..others
    }
}

/// A random route over the scripts' topics and records.
pub fn any_route(random: &mut Random) -> Route {
    let mut topics = vec![match random.below(4) {
        0 => TopicPattern::Glob("orders*".into()),
        1 => TopicPattern::Regex("s$".into()),
        _ => TopicPattern::Exact((*random.pick(&TOPICS)).into()),
    }];
    if random.chance(30) {
        topics.push(TopicPattern::Exact("orders".into()));
    }
    Route {
        topics,
        when: any_predicate(random, 2),
    }
}

fn any_predicate(random: &mut Random, depth: usize) -> Predicate {
    let header = |test| Predicate::Header {
        name: "kind".into(),
        test,
    };
    match random.below(if depth == 0 { 6 } else { 9 }) {
        0 | 1 => Predicate::always(),
        2 => header(Test::Equals(b"a".to_vec())),
        3 => header(Test::Exists(random.chance(50))),
        4 => Predicate::Key(Test::In(vec![b"k0".to_vec(), b"k1".to_vec()])),
        5 => Predicate::Partition(PartitionTest::Lt(2)),
        6 => Predicate::Not(any_predicate(random, depth - 1).into()),
        7 => Predicate::All(vec![
            any_predicate(random, depth - 1),
            any_predicate(random, depth - 1),
        ]),
        _ => Predicate::Any(vec![
            any_predicate(random, depth - 1),
            any_predicate(random, depth - 1),
        ]),
    }
}

/// A random order.
pub fn any_order(random: &mut Random) -> Order {
    *random.pick(&[Order::Key, Order::Key, Order::Partition, Order::Unordered])
}

/// A random handler with the given index.
pub fn any_handler(random: &mut Random, ix: HandlerIx, generation: u64) -> SimHandler {
    let keeps_key_state = random.chance(25);
    SimHandler {
        ix,
        route: any_route(random),
        gate_open: random.chance(90),
        order: any_order(random),
        takes_batches: random.chance(20),
        keeps_key_state,
        max_attempts: random.between(1, 4) as u32,
        on_failure: *random.pick(&[OnFailure::Hold, OnFailure::DeadLetter]),
        max_in_flight: *random.pick(&[1, 3, 50]),
        generation,
        pool: Arc::new(SimPool::new(random.between(1, 3))),
        canary: None,
    }
}

/// Another target, which gets some keys, or none.
pub fn any_canary(random: &mut Random, generation: u64) -> Canary {
    Canary {
        generation,
        takes_batches: random.chance(20),
        buckets: *random.pick(&[0, BUCKETS / 10, BUCKETS / 2, BUCKETS]),
        pool: Arc::new(SimPool::new(random.between(1, 3))),
    }
}
