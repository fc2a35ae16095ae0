//! A handler that is slower than its input: which records wait.

use super::*;

/// Takes one batch per worker.
#[derive(Default)]
struct Busy {
    // Boxes, because the trait passes them that way.
    #[allow(clippy::vec_box)]
    taken: Mutex<Vec<Box<Batch>>>,
}

impl WorkerPool for Busy {
    fn submit(&self, batch: Box<Batch>, _: &Arc<Inbox>) -> Result<(), Box<Batch>> {
        let mut taken = self.taken.lock().unwrap();
        if taken.len() == 4 {
            return Err(batch);
        }
        taken.push(batch);
        Ok(())
    }

    fn workers(&self) -> u32 {
        4
    }

    fn state(&self) -> PoolState {
        PoolState::Active
    }
}

struct Slow {
    flow: Flow<OwnedRecord>,
    pool: Arc<Busy>,
    in_flight: u32,
    now_ms: u64,
    /// Time that a call of so many records takes.
    call_us: fn(usize) -> u64,
    /// Records of the largest call so far.
    largest: usize,
}

impl Slow {
    fn new(max_uncommitted: i64, in_flight: u32) -> Self {
        let settings = FlowSettings {
            max_uncommitted,
            budget_bytes: 1 << 40,
            stall_timeout_ms: 60_000,
            drain_timeout_ms: 5_000,
            commit_interval_ms: 1_000,
            group: "g".into(),
            seed: 1,
        };
        let emitter = Arc::new(ScriptedEmitter::default());
        let flow = Flow::new(settings, emitter, Arc::new(Inbox::new()));
        let mut slow = Self {
            flow,
            pool: Arc::default(),
            in_flight,
            now_ms: 0,
            call_us: |records| 150_000 * records as u64,
            largest: 0,
        };
        slow.apply(false);
        slow
    }

    /// Applies a plan; with another one, batches that no worker has are filled again.
    fn apply(&mut self, keeps_key_state: bool) {
        let route = Route {
            topics: vec![TopicPattern::Exact("t".into())],
            when: Predicate::always(),
        };
        let target = Target {
            keeps_key_state,
            ..Target::only(GenerationId::new("1.0.0", 1), self.pool.clone())
        };
        let settings = HandlerSettings {
            targets: vec![target],
            first_call: 1,
            max_in_flight_records: self.in_flight,
            max_in_flight_bytes: 1 << 40,
            ..handler(HandlerIx(0), Arc::default())
        };
        let index = RoutingIndex::compile(1, vec![(HandlerIx(0), route)]).unwrap();
        self.flow.apply(index, vec![(HandlerIx(0), settings)]);
    }

    fn assign(&mut self, partition: i32, start: i64) -> AssignmentId {
        let at = TopicPartition {
            topic: "t".into(),
            partition,
        };
        self.flow.assign(NewAssignment::first(at, start, 1))
    }

    fn deliver(&mut self, slot: AssignmentId, offsets: std::ops::Range<i64>) {
        let one = |offset: i64| Delivery {
            slot,
            offset,
            timestamp_ms: 0,
            leader_epoch: -1,
            lease: OwnedRecord::new(Some(offset.to_string().as_bytes()), Some(b"v"), &[]),
        };
        self.flow.deliver_all(&mut offsets.map(one).collect());
        self.flow.dispatch();
    }

    /// All running calls end.
    fn turn(&mut self) -> usize {
        self.now_ms += 150;
        self.flow.tick(self.now_ms);
        let taken = std::mem::take(&mut *self.pool.taken.lock().unwrap());
        let mut ran = 0;
        for mut batch in taken {
            ran += batch.records.len();
            self.largest = self.largest.max(batch.records.len());
            batch.outcomes = vec![acked(); batch.records.len()];
            batch.elapsed_us = (self.call_us)(batch.records.len());
            self.flow.receive(PumpMessage::Finished(batch));
        }
        self.flow.receive(PumpMessage::PoolFree);
        self.flow.dispatch();
        let due = self.flow.commits_due().into_iter();
        let accepted: Vec<_> = due
            .map(|entry| crate::source::CommitResult {
                at: entry.at,
                offset: entry.offset,
                error: None,
            })
            .collect();
        if !accepted.is_empty() {
            self.flow.committed(&accepted, None);
        }
        ran
    }

    fn frontier(&self, slot: AssignmentId) -> i64 {
        self.flow.assignment(slot).ledger().frontier()
    }
}

#[test]
fn partitions_of_a_slow_handler_take_turns_whatever_their_offsets() {
    let mut slow = Slow::new(2_000, 256);
    let (low, high) = (slow.assign(0, 0), slow.assign(1, 1_000_000));
    // What was there first comes first; then there is always more of `low`.
    slow.deliver(low, 0..1_000);
    slow.deliver(high, 1_000_000..1_000_100);
    let (mut next, mut ran) = (1_000, 0);
    while ran < 3_000 {
        slow.apply(ran % 3 == 0);
        let some = slow.turn() as i64;
        slow.deliver(low, next..next + some);
        next += some;
        ran += some;
    }
    assert_eq!(slow.frontier(high), 1_000_100, "of {ran} records that ran");
}

#[test]
fn a_call_takes_no_more_of_what_may_be_in_flight_than_leaves_some_for_each_worker() {
    let mut slow = Slow::new(2_000, 100);
    slow.call_us = |_| 5_000;
    let slot = slow.assign(0, 0);
    slow.deliver(slot, 0..1_000);
    let mut turns = 0;
    while slow.frontier(slot) < 1_000 {
        turns += 1;
        assert!(turns < 1_000, "at {}", slow.frontier(slot));
        slow.turn();
    }
    // A share for each of the four workers, and one that waits.
    assert_eq!(slow.largest, 100 / 5);
}
