//! Memory shared by partitions: which is paused, which continues, and what is reported.

use sluicegate_kit::log_capture::captured;

use super::*;
use crate::clock::WallClock;
use crate::partition::assignment::NewAssignment;
use crate::source::AssignmentId;
use crate::status::{PartitionReport, PauseReason};

/// Bytes per record value; with the overhead per record, about 2 KB.
const VALUE: usize = 1_600;

/// Two partitions with a budget of 1 MiB, read by one handler.
struct Two {
    bench: Bench,
    other: AssignmentId,
    next: [i64; 2],
}

impl Two {
    fn new() -> Self {
        let mut bench = Bench::with(1, 1_000_000);
        let at = TopicPartition {
            partition: 1,
            ..at()
        };
        let other = bench.flow.assign(NewAssignment::first(at, 0, 1));
        bench.apply(|_, handler| {
            handler.max_in_flight_records = 1_000_000;
            handler.max_in_flight_bytes = 1 << 30;
            true
        });
        Self {
            bench,
            other,
            next: [0, 0],
        }
    }

    /// Reads as much of one partition as the quota allows, as a pump does; returns the number of records.
    fn read(&mut self, partition: usize, most: usize) -> usize {
        let mut read = 0;
        while read < most {
            let quota = self.bench.flow.read_quota(most - read);
            if quota == 0 {
                break;
            }
            for _ in 0..quota {
                let slot = [self.bench.slot, self.other][partition];
                let offset = self.next[partition];
                self.next[partition] += 1;
                self.bench.flow.deliver(Delivery {
                    slot,
                    offset,
                    timestamp_ms: 0,
                    leader_epoch: -1,
                    lease: OwnedRecord::new(None, Some(&[0; VALUE]), &[]),
                });
            }
            read += quota;
        }
        self.bench.flow.dispatch();
        read
    }

    /// Advances time, with the steps of a pump's loop.
    fn pass(&mut self, from_ms: u64, to_ms: u64) -> Vec<(AssignmentId, bool)> {
        let mut due = Vec::new();
        for now_ms in (from_ms..to_ms).step_by(50) {
            self.bench.flow.tick(now_ms);
            due.extend(self.bench.flow.pauses_due());
        }
        due
    }

    fn report(&self, partition: usize) -> PartitionReport {
        let clock = WallClock { epoch_ms: 0 };
        let report = self.bench.flow.report(clock, |_| None);
        report.partitions[partition].clone()
    }
}

#[test]
fn the_largest_slow_partition_is_paused_and_the_other_gets_the_rest() {
    let mut two = Two::new();
    two.pass(0, 1_100);
    let filled = two.read(0, 10_000);
    assert!((300..600).contains(&filled), "{filled}");
    assert_eq!(two.bench.flow.read_quota(1), 0, "a quarter is reserved");
    let first = two.bench.slot;
    let log = captured(|| assert_eq!(two.pass(1_100, 2_200), vec![(first, true)]));
    assert_eq!(log.lines().count(), 1, "{log}");
    for said in [
        "partitions=1 pauses=1 largest=t/0",
        "`sluicegate explain t/0`",
        "processing.memory",
    ] {
        assert!(log.contains(said), "{log}");
    }
    let report = two.report(0);
    assert_eq!(report.paused_for, Some(PauseReason::Memory));
    assert!(report.reason.unwrap().starts_with("paused: memory; "));
    let more = two.read(1, 10_000);
    assert!(more > filled / 8, "{more} next to {filled}");
    assert!(two.bench.flow.charged() <= 1 << 20);
    assert_eq!(two.report(1).paused_for, None);
    // Whatever the other does, it is the last one that is read, and stays so.
    assert_eq!(two.pass(2_200, 9_000), vec![]);
    let explained = two.bench.flow.explain(
        &TopicPartition {
            partition: 1,
            ..at()
        },
        None,
        WallClock { epoch_ms: 0 },
    );
    let reason = explained.unwrap().reason.unwrap();
    assert!(
        reason.contains("reading is suspended") && reason.contains("t/0 holds"),
        "{reason}"
    );
    // Half of it settles, and reading resumes.
    let mut batches = std::mem::take(&mut *two.bench.pools[0].taken.lock().unwrap());
    let mut settled = 0;
    let mut resumed = Vec::new();
    while resumed.is_empty() {
        let batch = batches.remove(0);
        settled += batch.records.len();
        two.bench.pools[0].taken.lock().unwrap().push(batch);
        two.bench.finish(0, |_| ACK);
        resumed = two.bench.flow.pauses_due();
    }
    assert_eq!(resumed, vec![(first, false)]);
    assert!(settled * 2 >= filled, "{settled} of {filled}");
}

#[test]
fn a_burst_that_handlers_keep_up_with_pauses_nothing() {
    let mut two = Two::new();
    let mut records = 0;
    for now_ms in (0..20_000).step_by(100) {
        records += two.read(0, 200) + two.read(1, 200);
        two.bench.flow.tick(now_ms);
        assert_eq!(two.bench.flow.pauses_due(), vec![], "at {now_ms} ms");
        // A fifth of the budget per 100 ms: records stay for less than 1 s.
        let mut taken = std::mem::take(&mut *two.bench.pools[0].taken.lock().unwrap());
        let kept = taken.split_off(taken.len().min(4));
        *two.bench.pools[0].taken.lock().unwrap() = taken;
        two.bench.finish(0, |_| ACK);
        two.bench.pools[0].taken.lock().unwrap().splice(0..0, kept);
    }
    assert!(records > 10_000, "{records}");
}
