//! A stop that is told while the group rebalances: the member serves until the rebalance is over, then drains and leaves.
//!
//! ```text
//!   stop ─┬─ no rebalance ─────────────────────────────────────────────────────────────► drain ─► last commit ─► leave
//!         └─ rebalance ─► go on with what is ours ─► first records of what is new ─────►
//! ```
//!
//! A member cannot leave during a join: the broker answers nothing else on its connection until the join is over. The
//! group counts on it until then and may give it partitions. If it stopped reading at once, its partitions would rest for
//! the whole join; if it gave back unread what the join brings, a partition could go through several members that are all
//! told to stop, and be without progress for a heartbeat interval each time.

use std::time::Duration;

use super::Pump;
use crate::source::TopicPartition;

/// Longest time that a stop waits for a rebalance, unless a quarter of the time to drain is less.
const LONGEST: Duration = Duration::from_secs(3);
/// Longest time that new partitions are given for a first record: an idle one has none.
const FIRST_RECORDS_MS: u64 = 500;

/// The rebalance that a stop waits for. Times are the flow's.
pub(super) struct LastRebalance {
    /// When the stop was told.
    told_ms: u64,
    /// It is not waited for beyond this.
    until_ms: u64,
    /// When it was seen to be over.
    over_ms: Option<u64>,
    /// What it has brought, until a record of it is handled.
    new: Vec<TopicPartition>,
}

impl LastRebalance {
    pub(super) fn new(told_ms: u64, drain_timeout: Duration) -> Self {
        let longest = LONGEST.min(drain_timeout / 4);
        Self {
            told_ms,
            until_ms: told_ms + longest.as_millis() as u64,
            over_ms: None,
            new: Vec::new(),
        }
    }

    /// When the stop was told.
    pub(super) fn told_ms(&self) -> u64 {
        self.told_ms
    }

    /// It has brought partitions.
    pub(super) fn brought(&mut self, partitions: &[TopicPartition]) {
        self.new.extend_from_slice(partitions);
    }

    /// Whether the stop may go on: `rebalancing` says whether the group still agrees on an assignment, `is_served` whether
    /// a new partition has had a record handled, or none is to be expected.
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
            self.over_ms = None;
            return false;
        }
        let over_ms = *self.over_ms.get_or_insert(now_ms);
        self.new.retain(|at| !is_served(at));
        self.new.is_empty() || now_ms >= over_ms + FIRST_RECORDS_MS
    }
}

impl Pump {
    /// Begins the stop that waited for a rebalance, once that is over.
    pub(super) fn finish_rebalance(&mut self) {
        let Some(mut last) = self.last_rebalance.take() else {
            return;
        };
        let is_served = |at: &TopicPartition| match self.flow.slot(at) {
            Some(slot) => {
                let assignment = self.flow.assignment(slot);
                assignment.moved_ms > assignment.assigned_ms || !assignment.admits()
            }
            None => !self.starting.looks_for(at),
        };
        let rebalancing = self.source.is_rebalancing();
        if last.is_over(self.now_ms(), rebalancing, is_served) {
            self.start_stop(last.told_ms());
        } else {
            self.last_rebalance = Some(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pump::missing::scripted::Harness;
    use crate::source::{SourceEvent, StartAt};

    const DRAIN: Duration = Duration::from_secs(20);

    fn at(partition: i32) -> TopicPartition {
        TopicPartition {
            topic: "t".into(),
            partition,
        }
    }

    #[test]
    fn a_stop_waits_for_the_rebalance_and_for_a_first_record_of_what_it_brings() {
        let mut last = LastRebalance::new(7_000, DRAIN);
        assert!(!last.is_over(7_000, true, |_| true));
        last.brought(&[at(0), at(1)]);
        assert!(!last.is_over(7_900, true, |_| true));
        assert!(!last.is_over(8_000, false, |_| false));
        assert!(!last.is_over(8_100, false, |new| new.partition == 0));
        assert!(last.is_over(8_200, false, |new| new.partition == 1));
    }

    #[test]
    fn a_stop_waits_for_no_idle_partition_and_no_endless_rebalance() {
        let mut idle = LastRebalance::new(0, DRAIN);
        idle.brought(&[at(0)]);
        assert!(!idle.is_over(100, false, |_| false));
        assert!(!idle.is_over(599, false, |_| false));
        // Another one begins before the time is up: it counts anew after that.
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
    fn records_are_handled_until_the_rebalance_is_over_and_all_of_them_are_committed() {
        let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
        harness.kafka.set_rebalancing(true);
        harness.stop();
        assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
        harness.produce(3);
        harness.turn();
        assert_eq!(harness.run_all(true), [5, 6, 7], "it is ours until then");
        assert!(!harness.kafka.is_closed());

        harness.kafka.set_rebalancing(false);
        harness.turn();
        harness.produce(2);
        harness.turn();
        assert_eq!(harness.run_all(true), [0; 0], "nothing begins any more");
        assert!(harness.kafka.is_closed());
        assert_eq!(harness.committed(), Some(8));
    }

    #[test]
    fn what_the_rebalance_brings_has_a_record_handled_before_it_is_given_back() {
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
        // That a record has come is not that it was handled.
        assert_eq!(harness.run_all(true), [0, 1]);
        harness.advance(Duration::from_millis(5));
        harness.turn();
        assert!(harness.kafka.is_closed());
        let (committed, _) = harness.kafka.committed("t", 1).expect("a commit");
        assert_eq!(committed, 2);
    }

    #[test]
    fn a_stop_whose_leaving_the_group_has_not_heard_of_leaves_a_member() {
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
    fn what_is_lost_during_a_stop_is_left_by_it() {
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
    fn a_stop_stays_one_if_the_client_is_given_up_meanwhile() {
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
        assert_eq!(harness.run_all(false), [0; 0], "it does not join again");
    }
}
