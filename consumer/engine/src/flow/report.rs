//! Reports for metrics and API, and explanations of what blocks a frontier (G8).

use std::collections::HashMap;
use std::sync::Arc;

use super::{Flow, TopicCounts};
use crate::clock::WallClock;
use crate::dispatch::RecordId;
use crate::partition::assignment::Assignment;
use crate::partition::holdings::PausedFor;
use crate::queue::ReportTime;
use crate::record::Record;
use crate::source::{AssignmentId, TopicPartition};
use crate::status::{
    CommitCounts, Explanation, HeldBy, PartitionReport, PartitionState, PauseReason, PumpReport,
    RecordStatus, TopicReport,
};

/// Reports name the handler that holds a frontier once it has waited for this long.
const HELD_AFTER_MS: u64 = 1_000;

/// Why a partition's fetching is paused, as an API value.
fn pause_reason<R>(assignment: &Assignment<R>) -> Option<PauseReason> {
    match assignment.holdings().paused_for()? {
        _ if assignment.stopped().is_some() => None,
        PausedFor::Bound => Some(PauseReason::MaxUncommitted),
        PausedFor::Memory => Some(PauseReason::Memory),
    }
}

impl<R: Record> Flow<R> {
    /// Reports all partitions, handlers and topics. `end_offset` returns the log end offset that the client knows for a
    /// partition.
    pub fn report(
        &self,
        clock: WallClock,
        end_offset: impl Fn(AssignmentId) -> Option<i64>,
    ) -> PumpReport {
        let at_frontier = self.records_at_frontiers();
        let mut partitions: Vec<PartitionReport> = self
            .partitions()
            .map(|(at, slot)| {
                let key = at_frontier.get(&slot).copied();
                self.partition_report(at, slot, clock, end_offset(slot), key)
            })
            .collect();
        partitions.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        let topics = self.topic_reports();
        PumpReport {
            partitions,
            handlers: (self.queues.iter().flatten())
                .flat_map(|queue| queue.report(&self.ctx.outbox, clock, self.ctx.now_ms))
                .collect(),
            topics,
            in_flight_bytes: self.ctx.records.charged() + self.kept_bytes(),
            in_flight_records: self.ctx.records.slab.live() as u64,
            commits: CommitCounts {
                ok: self.committer.counts.ok,
                refused: self.committer.counts.refused,
                failed: self.committer.counts.failed,
            },
            problems: self
                .committer
                .problem(self.ctx.now_ms, clock)
                .into_iter()
                .collect(),
            ..PumpReport::default()
        }
    }

    fn topic_reports(&self) -> Vec<TopicReport> {
        // What present and draining assignments have counted: those before are in `topics`.
        let mut counted: HashMap<&str, (u64, u64)> = HashMap::new();
        for (_, assignment) in self.ctx.records.partitions.each() {
            let (delivered, repeats) = counted.entry(&assignment.at().topic).or_default();
            *delivered += assignment.delivered();
            *repeats += assignment.repeats();
        }
        let report = |(topic, counts): (&Arc<str>, &TopicCounts)| {
            let (delivered, repeats) = counted.get(&**topic).copied().unwrap_or_default();
            TopicReport {
                topic: topic.to_string(),
                consumed: counts.consumed + delivered,
                unrouted: counts.unrouted,
                repeats_dropped: counts.repeats + repeats,
                recreated: counts.recreated,
                metadata_dropped: counts.metadata_dropped,
            }
        };
        let mut topics: Vec<TopicReport> = self.topics.iter().map(report).collect();
        topics.sort_by(|a, b| a.topic.cmp(&b.topic));
        topics
    }

    fn partition_report(
        &self,
        at: &TopicPartition,
        slot: AssignmentId,
        clock: WallClock,
        end_offset: Option<i64>,
        at_frontier: Option<RecordId>,
    ) -> PartitionReport {
        let assignment = self.assignment(slot);
        let frontier = assignment.ledger().frontier();
        let state = if assignment.stopped().is_some() {
            PartitionState::Stopped
        } else if assignment.unreadable().is_some() {
            PartitionState::Unreadable
        } else if !assignment.is_assigned() {
            PartitionState::Draining
        } else if assignment.holdings().is_paused() {
            PartitionState::Paused
        } else {
            PartitionState::Running
        };
        let trouble = assignment.trouble();
        let stalled = self.stalled(slot);
        PartitionReport {
            topic: at.topic.to_string(),
            partition: at.partition,
            epoch: assignment.epoch(),
            frontier,
            delivered: assignment.ledger().next(),
            in_flight: assignment.ledger().unsettled(),
            parked: assignment.holdings().parked(),
            lag: end_offset
                .or(assignment.log_end())
                .map(|end| (end - frontier).max(0)),
            state,
            reason: trouble
                .map(|trouble| trouble.cause.to_string())
                .or_else(|| self.why_not_read(slot))
                .or_else(|| self.awaited(slot)),
            paused_for: pause_reason(assignment),
            remedy: trouble.map(|trouble| trouble.remedy.to_string()),
            since_ms: trouble.map(|trouble| clock.at(trouble.since_ms)),
            count: trouble.map_or(0, |trouble| trouble.count),
            gone: self.gone(at),
            stalled: stalled.is_some(),
            stalled_since_ms: stalled.map(|stalled| clock.at(stalled.since_ms)),
            held_by: match assignment.waits() {
                true => at_frontier.and_then(|key| self.first_holder(slot, key, clock)),
                false => None,
            },
        }
    }

    /// What blocks the frontier of a partition, or the record at `offset`. `None`: the partition is not owned.
    pub fn explain(
        &self,
        at: &TopicPartition,
        offset: Option<i64>,
        clock: WallClock,
    ) -> Option<Explanation> {
        let slot = self.slot(at)?;
        let assignment = self.assignment(slot);
        let frontier = assignment.ledger().frontier();
        let delivered = assignment.ledger().next();
        let asked = offset.unwrap_or(frontier);
        let held_by = self.held_by(slot, asked, clock);
        let awaited = self.awaited(slot);
        let status = if !held_by.is_empty() {
            RecordStatus::InFlight
        } else if assignment.stopped().is_some() {
            RecordStatus::Stopped
        } else if assignment.unreadable().is_some() && asked >= delivered {
            RecordStatus::Unreadable
        } else if asked >= delivered {
            if offset.is_some() || awaited.is_some() {
                RecordStatus::NotDelivered
            } else {
                RecordStatus::Idle
            }
        } else {
            RecordStatus::Settled
        };
        Some(Explanation {
            topic: at.topic.to_string(),
            partition: at.partition,
            offset: asked,
            frontier,
            delivered,
            status,
            reason: self
                .why_not_read(slot)
                .or_else(|| self.why_nothing_is_read())
                .or(awaited)
                .into_iter()
                .chain(self.committer.why_not(slot, self.ctx.now_ms, clock))
                .reduce(|all, more| format!("{all}\n{more}")),
            held_by,
        })
    }

    /// Why no record of a partition is being read, if so.
    fn why_not_read(&self, slot: AssignmentId) -> Option<String> {
        let assignment = self.assignment(slot);
        if let Some(trouble) = assignment.trouble() {
            let seconds = self.ctx.now_ms.saturating_sub(trouble.since_ms) / 1_000;
            return Some(format!(
                "{}; {} (for {seconds} s, seen {} times)",
                trouble.cause, trouble.remedy, trouble.count
            ));
        }
        let (held, budget) = (assignment.holdings().bytes(), self.settings.budget_bytes);
        match pause_reason(assignment) {
            Some(PauseReason::MaxUncommitted) => {
                let uncommitted = assignment.uncommitted();
                Some(format!(
                    "paused: max_uncommitted; {uncommitted} records are delivered beyond the committed offset; fix what blocks \
                     the frontier, or raise processing.max_uncommitted"
                ))
            }
            Some(PauseReason::Memory) => Some(format!(
                "paused: memory; its records settle slowly and hold {held} of {budget} bytes; it resumes once half of \
                 them have settled; fix what blocks them, or raise processing.memory"
            )),
            None => None,
        }
    }

    /// Why no record of any partition is being read, if memory is the reason.
    fn why_nothing_is_read(&self) -> Option<String> {
        if !self.is_out_of_memory() {
            return None;
        }
        // Ties are broken by partition order.
        let largest = self.partitions().max_by_key(|(at, slot)| {
            (
                self.assignment(*slot).holdings().bytes(),
                std::cmp::Reverse(*at),
            )
        });
        let (at, slot) = largest?;
        let (held, budget) = (
            self.assignment(slot).holdings().bytes(),
            self.settings.budget_bytes,
        );
        Some(format!(
            "reading is suspended: in-flight records fill the memory; {at} holds {held} of {budget} bytes; fix what \
             blocks them, or raise processing.memory"
        ))
    }

    /// The unsettled records at the frontiers of all partitions that have waited for 1 s: none while everything moves. All are
    /// searched for in one pass, each once while its frontier stands.
    fn records_at_frontiers(&self) -> HashMap<AssignmentId, RecordId> {
        let records = &self.ctx.records;
        let (mut found, mut sought) = (HashMap::new(), HashMap::new());
        for (slot, assignment) in records.partitions.each() {
            let waited_ms = self.ctx.now_ms.saturating_sub(assignment.waits_since_ms());
            if assignment.ledger().is_settled() || waited_ms < HELD_AFTER_MS {
                continue;
            }
            let frontier = assignment.ledger().frontier();
            match assignment.record_at(frontier) {
                Some(key) if !records.is_over(key) => {
                    found.insert(slot, key);
                }
                _ => {
                    sought.insert(slot, frontier);
                }
            }
        }
        if sought.is_empty() {
            return found;
        }
        let held = records.slab.iter().filter(|(_, entry)| entry.unsettled > 0);
        for (key, entry) in held {
            let (slot, offset) = (entry.slot, entry.offset());
            if sought.get(&slot) == Some(&offset) {
                records.partitions[slot].keep_record_at(offset, key);
                found.insert(slot, key);
            }
        }
        found
    }

    /// The first handler that has not settled a record.
    fn first_holder(&self, slot: AssignmentId, key: RecordId, clock: WallClock) -> Option<HeldBy> {
        let time = self.report_time(slot, clock);
        let mut queues = self.queues.iter().flatten();
        queues.find_map(|queue| queue.holds(&self.ctx, key, time))
    }

    /// The handlers that have not settled the record at `offset`.
    fn held_by(&self, slot: AssignmentId, offset: i64, clock: WallClock) -> Vec<HeldBy> {
        let records = &self.ctx.records;
        let Some((key, _)) = records
            .entries_of(slot)
            .find(|(_, entry)| entry.offset() == offset && entry.unsettled > 0)
        else {
            return Vec::new();
        };
        let time = self.report_time(slot, clock);
        let queues = self.queues.iter().flatten();
        queues
            .filter_map(|queue| queue.holds(&self.ctx, key, time))
            .collect()
    }

    fn report_time(&self, slot: AssignmentId, clock: WallClock) -> ReportTime {
        ReportTime {
            now_ms: self.ctx.now_ms,
            clock,
            // Queueing times are not stored; the record at the frontier has waited since the frontier last moved.
            queued_ms: self.assignment(slot).waits_since_ms(),
        }
    }
}
