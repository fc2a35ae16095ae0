//! A stop during a rebalance: the member keeps processing until the rebalance completes, then drains and leaves.
//!
//! ```text
//!   stop ─┬─ no rebalance ─────────────────────────────────────────────────────────────► drain ─► last commit ─► leave
//!         └─ rebalance ─► keep processing ─► first records of new partitions ──────────►
//! ```
//!
//! A member cannot leave during a join: the broker answers no other request on its connection until the join completes. Until
//! then the group treats it as a member and may assign it partitions. If it stopped reading at once, its partitions would be
//! idle for the whole join; if it released new partitions unread, a partition could pass through several members that are all
//! stopping, and make no progress for a heartbeat interval at each of them.

use std::time::Duration;

use sluicegate_engine::source::TopicPartition;

use super::Pump;

/// Maximum wait of a stop for a rebalance; a quarter of the drain timeout if that is less.
const MAX_REBALANCE_WAIT: Duration = Duration::from_secs(3);
/// Maximum wait for the first record of a new partition: an idle one has none.
const FIRST_RECORD_TIMEOUT_MS: u64 = 500;

/// The rebalance that a stop waits for. Times are on the flow's clock.
pub(super) struct LastRebalance {
    /// When the stop was requested.
    requested_ms: u64,
    /// Deadline of the wait.
    until_ms: u64,
    /// When the rebalance was first seen completed.
    completed_ms: Option<u64>,
    /// Newly assigned partitions without a settled record.
    new: Vec<TopicPartition>,
}

impl LastRebalance {
    pub(super) fn new(requested_ms: u64, drain_timeout: Duration) -> Self {
        let max_wait = MAX_REBALANCE_WAIT.min(drain_timeout / 4);
        Self {
            requested_ms,
            until_ms: requested_ms + max_wait.as_millis() as u64,
            completed_ms: None,
            new: Vec::new(),
        }
    }

    /// When the stop was requested.
    pub(super) fn requested_ms(&self) -> u64 {
        self.requested_ms
    }

    /// Adds partitions that the rebalance has assigned.
    pub(super) fn add_assigned(&mut self, partitions: &[TopicPartition]) {
        self.new.extend_from_slice(partitions);
    }

    /// Whether the stop may proceed. `rebalancing`: the group has no agreed assignment yet. `is_served`: a new partition has
    /// settled a record, or will not receive one.
    fn is_over(
        &mut self,
        now_ms: u64,
        rebalancing: bool,
        is_served: impl Fn(&TopicPartition) -> bool,
    ) -> bool {
        if now_ms >= self.until_ms {
            return true;
        }
        if rebalancing {
            self.completed_ms = None;
            return false;
        }
        let completed_ms = *self.completed_ms.get_or_insert(now_ms);
        self.new.retain(|at| !is_served(at));
        self.new.is_empty() || now_ms >= completed_ms + FIRST_RECORD_TIMEOUT_MS
    }
}

impl Pump {
    /// Begins the pending stop once its rebalance has completed.
    pub(super) fn finish_rebalance(&mut self) {
        let Some(mut last) = self.last_rebalance.take() else {
            return;
        };
        let is_served = |at: &TopicPartition| match self.flow.slot(at) {
            Some(slot) => {
                let assignment = self.flow.assignment(slot);
                assignment.moved_ms > assignment.assigned_ms || !assignment.admits()
            }
            None => !self.starting.is_pending(at),
        };
        let rebalancing = self.source.is_rebalancing();
        if last.is_over(self.now_ms(), rebalancing, is_served) {
            self.start_stop(last.requested_ms());
        } else {
            self.last_rebalance = Some(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_engine::source::{SourceEvent, StartAt};

    use super::*;
    use crate::pump::missing::scripted::Harness;

    const DRAIN: Duration = Duration::from_secs(20);

    fn at(partition: i32) -> TopicPartition {
        TopicPartition {
            topic: "t".into(),
            partition,
        }
    }

    #[test]
    fn a_stop_waits_for_the_rebalance_and_for_the_first_record_of_each_new_partition() {
        let mut last = LastRebalance::new(7_000, DRAIN);
        assert!(!last.is_over(7_000, true, |_| true));
        last.add_assigned(&[at(0), at(1)]);
        assert!(!last.is_over(7_900, true, |_| true));
        assert!(!last.is_over(8_000, false, |_| false));
        assert!(!last.is_over(8_100, false, |new| new.partition == 0));
        assert!(last.is_over(8_200, false, |new| new.partition == 1));
    }

    #[test]
    fn a_stop_does_not_wait_for_an_idle_partition_or_an_endless_rebalance() {
        let mut idle = LastRebalance::new(0, DRAIN);
        idle.add_assigned(&[at(0)]);
        assert!(!idle.is_over(100, false, |_| false));
        assert!(!idle.is_over(599, false, |_| false));
        // Another rebalance begins before the time is up: the wait for a first record starts again after it.
        assert!(!idle.is_over(599, true, |_| false));
        assert!(!idle.is_over(700, false, |_| false));
        assert!(idle.is_over(1_200, false, |_| false));

        let mut endless = LastRebalance::new(0, DRAIN);
        assert!(!endless.is_over(2_999, true, |_| false));
        assert!(endless.is_over(3_000, true, |_| false));
        let mut short = LastRebalance::new(0, Duration::from_secs(1));
        assert!(short.is_over(250, true, |_| false));
    }

    #[test]
    fn records_are_processed_until_the_rebalance_completes_and_all_are_committed() {
        let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
        harness.kafka.set_rebalancing(true);
        harness.stop();
        assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
        harness.produce(3);
        harness.turn();
        assert_eq!(
            harness.run_all(true),
            [5, 6, 7],
            "the partition is owned until then"
        );
        assert!(!harness.kafka.is_closed());

        harness.kafka.set_rebalancing(false);
        harness.turn();
        harness.produce(2);
        harness.turn();
        assert_eq!(harness.run_all(true), [0; 0], "no record starts after that");
        assert!(harness.kafka.is_closed());
        assert_eq!(harness.committed(), Some(8));
    }

    #[test]
    fn a_new_partition_settles_a_record_before_it_is_released() {
        let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
        assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
        harness.kafka.set_rebalancing(true);
        harness.stop();
        harness.kafka.assign("t", &[1]);
        harness.turn();
        harness.kafka.set_rebalancing(false);
        for _ in 0..2 {
            harness.advance(Duration::from_millis(5));
            harness.kafka.produce("t", 1, None, Some(b"v"), &[]);
            harness.turn();
            assert!(!harness.kafka.is_closed());
        }
        // A delivered record is not a settled one.
        assert_eq!(harness.run_all(true), [0, 1]);
        harness.advance(Duration::from_millis(5));
        harness.turn();
        assert!(harness.kafka.is_closed());
        let (committed, _) = harness.kafka.committed("t", 1).expect("a commit");
        assert_eq!(committed, 2);
    }

    #[test]
    fn a_stop_whose_leave_request_failed_reports_a_remaining_member() {
        for refused in [false, true] {
            let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
            if refused {
                harness.kafka.refuse_leave();
            }
            harness.run_all(true);
            harness.stop();
            assert!(harness.kafka.is_closed());
            assert_eq!(harness.left().members, u64::from(refused));
            assert_eq!(harness.left().is_graceful(), !refused);
        }
    }

    #[test]
    fn partitions_lost_during_a_stop_count_as_unfinished() {
        for rebalancing in [false, true] {
            let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
            harness.kafka.set_rebalancing(rebalancing);
            harness.stop();
            harness.turn();
            harness.kafka.revoke("t", &[0], true);
            harness.turn();
            harness.kafka.set_rebalancing(false);
            harness.advance(Duration::from_secs(1));
            harness.run_all(true);
            assert!(harness.kafka.is_closed());
            assert_eq!(harness.left().unfinished, 5);
            assert!(!harness.left().is_graceful());
        }
    }

    #[test]
    fn a_requested_stop_survives_a_client_renewal() {
        let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
        harness.kafka.set_rebalancing(true);
        harness.stop();
        harness.kafka.recreate_topic("t");
        harness
            .kafka
            .tell(SourceEvent::TopicRecreated { topic: "t".into() });
        harness.turn();
        harness.run_all(true);
        assert!(harness.kafka.is_closed());
        harness.kafka.assign("t", &[0]);
        harness.produce(1);
        harness.turn();
        assert_eq!(harness.run_all(false), [0; 0], "it does not rejoin");
    }
}
