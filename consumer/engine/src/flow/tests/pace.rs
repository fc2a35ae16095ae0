//! The pace of a topic next to one whose handler has failed, in simulated time and with the default settings.

use super::*;
use crate::clock::WallClock;
use crate::partition::assignment::NewAssignment;
use crate::status::{PartitionState, PauseReason, WaitsFor};

/// Of each record of the topic whose handler fails.
const LARGE: usize = 10_000;
/// Of each record of the topic whose pace is measured, of which so many arrive per turn: 25 MB/s.
const SMALL: usize = 1_000;
const PER_TURN: i64 = 250;
const TURN_MS: u64 = 10;
/// As a pump does.
const POLLS_PER_TURN: usize = 4;
const POLL_RECORDS: usize = 1_024;
/// Records of one partition that the client has fetched together.
const FETCHED: [i64; 2] = [100, 1_000];

/// A partition, and how a client reads it.
struct Read {
    slot: AssignmentId,
    value: usize,
    fetched: i64,
    next: i64,
    /// End of its log.
    end: i64,
    paused: bool,
}

/// Topic `large` with a handler that can fail, and topic `small` with one that handles everything within a turn.
struct Topics {
    flow: Flow<OwnedRecord>,
    pools: [Arc<ScriptedPool>; 2],
    /// Those of `large`, then the only one of `small`.
    reads: Vec<Read>,
    turn: usize,
    now_ms: u64,
}

fn partition(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition {
        topic: topic.into(),
        partition,
    }
}

impl Topics {
    /// `records` in each of as many partitions of `large`.
    fn new(partitions: i32, records: i64) -> Self {
        let settings = FlowSettings {
            max_uncommitted: 10_000,
            // Half of the default memory.
            budget_bytes: 128 << 20,
            stall_timeout_ms: 60_000,
            drain_timeout_ms: 20_000,
            commit_interval_ms: 1_000,
            group: "g".into(),
            seed: 1,
        };
        let inbox = Arc::new(Inbox::new());
        let mut flow = Flow::new(settings, Arc::new(ScriptedEmitter::default()), inbox);
        let pools = [Arc::default(), Arc::default()];
        let (mut routes, mut handlers) = (Vec::new(), Vec::new());
        for (at, topic) in ["large", "small"].into_iter().enumerate() {
            let ix = HandlerIx(at as u32);
            let route = Route {
                topics: vec![TopicPattern::Exact(topic.into())],
                when: Predicate::always(),
            };
            routes.push((ix, route));
            let settings = HandlerSettings {
                max_in_flight_records: 4_096,
                max_in_flight_bytes: 16 << 20,
                ..handler(ix, Arc::clone(&pools[at]))
            };
            handlers.push((ix, settings));
        }
        flow.apply(RoutingIndex::compile(1, routes).unwrap(), handlers);
        let large = (0..partitions).map(|number| (partition("large", number), LARGE, records));
        let all: Vec<_> = large.chain([(partition("small", 0), SMALL, 0)]).collect();
        let reads = all.into_iter().map(|(at, value, end)| Read {
            slot: flow.assign(NewAssignment::first(at, 0, 1)),
            value,
            fetched: FETCHED[usize::from(value == SMALL)],
            next: 0,
            end,
            paused: false,
        });
        Self {
            reads: reads.collect(),
            flow,
            pools,
            turn: 0,
            now_ms: 0,
        }
    }

    /// One turn of a pump: outcomes, polls, commits, pauses.
    fn pass(&mut self) {
        self.now_ms += TURN_MS;
        self.flow.tick(self.now_ms);
        for pool in &self.pools {
            let taken = std::mem::take(&mut *pool.taken.lock().unwrap());
            for mut batch in taken {
                batch.outcomes = vec![acked(); batch.records.len()];
                self.flow.receive(PumpMessage::Finished(batch));
            }
        }
        self.flow.dispatch();
        self.reads.last_mut().unwrap().end += PER_TURN;
        for _ in 0..POLLS_PER_TURN {
            let quota = self.flow.read_quota(POLL_RECORDS);
            self.poll(quota);
            self.flow.dispatch();
        }
        let commits = self.flow.commits_due();
        let accepted = commits
            .into_iter()
            .map(|entry| crate::source::CommitResult {
                at: entry.at,
                offset: entry.offset,
                error: None,
            });
        let accepted: Vec<_> = accepted.collect();
        if !accepted.is_empty() {
            self.flow.committed(&accepted, None);
        }
        for (slot, paused) in self.flow.pauses_due() {
            let read = self.reads.iter_mut().find(|read| read.slot == slot);
            read.unwrap().paused = paused;
        }
    }

    /// Takes records as the client has queued them: some of each partition in turn.
    fn poll(&mut self, mut quota: usize) {
        let mut empty = 0;
        while quota > 0 && empty < self.reads.len() {
            let place = self.turn % self.reads.len();
            let read = &mut self.reads[place];
            // A poll can end between records that were fetched together.
            let left = read.fetched - read.next % read.fetched;
            let some = left.min(read.end - read.next).min(quota as i64);
            if read.paused || some == 0 {
                self.turn += 1;
                empty += 1;
                continue;
            }
            empty = 0;
            for offset in read.next..read.next + some {
                let key = offset.to_string();
                self.flow.deliver(Delivery {
                    slot: read.slot,
                    offset,
                    timestamp_ms: 0,
                    leader_epoch: -1,
                    lease: OwnedRecord::new(Some(key.as_bytes()), Some(&vec![0; read.value]), &[]),
                });
            }
            read.next += some;
            quota -= some as usize;
            if read.next % read.fetched == 0 {
                self.turn += 1;
            }
        }
    }

    fn settled(&self) -> i64 {
        let small = self.reads.last().unwrap();
        self.flow.assignment(small.slot).ledger().frontier()
    }

    /// Records of `small` settled in each of the next seconds.
    fn seconds(&mut self, seconds: usize) -> Vec<i64> {
        let second = |_| {
            let before = self.settled();
            for _ in 0..1_000 / TURN_MS {
                self.pass();
            }
            self.settled() - before
        };
        (0..seconds).map(second).collect()
    }

    fn fail(&self, failed: bool) {
        let flag = &self.pools[0].failed;
        flag.store(failed, std::sync::atomic::Ordering::Relaxed);
    }
}

/// How long the pace is measured.
const SECONDS: usize = 6;
const FULL_PACE: i64 = PER_TURN * 1_000 / TURN_MS as i64;

/// Topics of which `small` keeps its pace while the handler of the other has failed, at first or after `healthy` seconds.
fn next_to_a_failed_handler(partitions: i32, healthy: usize) -> Topics {
    let mut topics = Topics::new(partitions, 100_000);
    topics.seconds(healthy);
    topics.fail(true);
    let pace = topics.seconds(SECONDS);
    println!("{partitions} partitions: {pace:?} records per second of {FULL_PACE}");
    let sum: i64 = pace.iter().sum();
    assert!(sum * 10 >= 8 * SECONDS as i64 * FULL_PACE, "{pace:?}");
    // How fast partitions settle is known after 1 s.
    assert!(
        pace[1..]
            .iter()
            .all(|&settled| settled * 10 >= 8 * FULL_PACE),
        "{pace:?}"
    );
    topics
}

#[test]
fn a_failed_handler_of_large_records_leaves_other_topics_at_full_pace() {
    let mut topics = next_to_a_failed_handler(2, 1);
    let clock = WallClock { epoch_ms: 0 };
    let report = topics.flow.report(clock, |_| None);
    for row in &report.partitions {
        let (state, paused_for) = match row.topic.as_str() {
            "large" => (PartitionState::Paused, Some(PauseReason::Memory)),
            _ => (PartitionState::Running, None),
        };
        assert_eq!((row.state, row.paused_for), (state, paused_for), "{row:?}");
    }
    let at = partition("large", 0);
    let why = topics.flow.explain(&at, None, clock).unwrap();
    let reason = why.reason.unwrap();
    let paused = "paused: memory; its records settle slowly and hold ";
    assert!(reason.starts_with(paused), "{reason}");
    assert_eq!(why.held_by[0].handler, "h0");
    assert_eq!(why.held_by[0].waits_for, WaitsFor::FailedHandler);
    assert!(topics.flow.charged() <= 128 << 20);

    topics.fail(false);
    topics.flow.receive(PumpMessage::PoolFree);
    let before = topics.reads[0].next;
    let pace = topics.seconds(3);
    println!("once it is healed: {pace:?}");
    assert!(topics.reads.iter().all(|read| !read.paused));
    let report = topics.flow.report(clock, |_| None);
    assert!(report.partitions.iter().all(|row| row.paused_for.is_none()));
    for read in &topics.reads[..2] {
        let frontier = topics.flow.assignment(read.slot).ledger().frontier();
        assert!(frontier > before, "{frontier} of {before}");
    }
}

#[test]
fn so_does_one_with_many_partitions() {
    next_to_a_failed_handler(24, 0);
}
