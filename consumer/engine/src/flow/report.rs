//! Reports for metrics and API, and explanations of what blocks a frontier (G8).

use std::collections::HashMap;

use super::Flow;
use super::flights::Flight;
use super::handler::HandlerFlow;
use super::refusals::ProduceKind;
use super::tasks::{Stage, Task};
use crate::clock::WallClock;
use crate::dispatch::{EntryKey, HandlerIx, PoolState};
use crate::partition::assignment::{Assignment, AssignmentState};
use crate::partition::usage::PausedFor;
use crate::record::Record;
use crate::source::{AssignmentId, TopicPartition};
use crate::status::{
    CommitCounts, HandlerFlowReport, OutcomeCounts, PartitionReport, PartitionState, PauseReason,
    PumpReport, TopicReport,
};
use crate::status::{Explanation, HeldBy, ProduceRefusal, RecordStatus, WaitsFor};
use crate::status::{ProblemKind, ServiceProblem};

/// Reports name the handler that holds a frontier once it has waited for this long.
const HELD_AFTER_MS: u64 = 1_000;

/// Why a partition's fetching is paused, as an API value.
fn pause_reason<R>(assignment: &Assignment<R>) -> Option<PauseReason> {
    match assignment.paused_for()? {
        _ if assignment.stopped.is_some() => None,
        PausedFor::Bound => Some(PauseReason::MaxUncommitted),
        PausedFor::Memory => Some(PauseReason::Memory),
    }
}

impl super::handler::OutcomeCounts {
    fn report(&self) -> OutcomeCounts {
        OutcomeCounts {
            ack: self.ack,
            retry: self.retry,
            dead_letter: self.dead_letter,
            drop: self.drop,
            skipped: self.skipped,
        }
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
        let mut topics: Vec<TopicReport> = self
            .topics
            .iter()
            .map(|(topic, counts)| TopicReport {
                topic: topic.to_string(),
                consumed: counts.consumed + self.of_topic(topic, |a| a.delivered),
                unrouted: counts.unrouted,
                repeats_dropped: counts.repeats + self.of_topic(topic, |a| a.repeats),
                recreated: counts.recreated,
                metadata_dropped: counts.metadata_dropped,
            })
            .collect();
        topics.sort_by(|a, b| a.topic.cmp(&b.topic));
        PumpReport {
            partitions,
            handlers: self.handler_reports(clock),
            topics,
            in_flight_bytes: self.charged + self.kept_bytes(),
            in_flight_records: self.slab.live() as u64,
            commits: CommitCounts {
                ok: self.committer.counts.ok,
                refused: self.committer.counts.refused,
                failed: self.committer.counts.failed,
            },
            problems: self
                .committer
                .problem(self.now_ms, clock)
                .into_iter()
                .collect(),
            ..PumpReport::default()
        }
    }

    fn of_topic(
        &self,
        topic: &str,
        value: impl Fn(&crate::partition::assignment::Assignment<R>) -> u64,
    ) -> u64 {
        let owned = self.partitions.each().map(|(_, assignment)| assignment);
        owned
            .filter(|assignment| &*assignment.at.topic == topic)
            .map(value)
            .sum()
    }

    fn handler_reports(&self, clock: WallClock) -> Vec<HandlerFlowReport> {
        let handlers = self.handlers.iter().enumerate();
        let handlers = handlers.filter_map(|(place, handler)| {
            let handler = handler.as_ref()?;
            Some((HandlerIx(place as u32), handler))
        });
        handlers
            .flat_map(|(ix, handler)| {
                let earlier = handler
                    .earlier
                    .iter()
                    .map(|(version, counts)| HandlerFlowReport {
                        name: handler.settings.name.to_string(),
                        version: version.to_string(),
                        outcomes: counts.report(),
                        ..HandlerFlowReport::default()
                    });
                earlier.chain([self.handler_report(ix, handler, clock)])
            })
            .collect()
    }

    fn handler_report(
        &self,
        ix: HandlerIx,
        handler: &HandlerFlow,
        clock: WallClock,
    ) -> HandlerFlowReport {
        let waiting = handler.backlog.len() + handler.lanes.waiters();
        HandlerFlowReport {
            name: handler.settings.name.to_string(),
            version: handler.settings.version.to_string(),
            in_flight: u64::from(handler.in_flight_records)
                + u64::from(handler.held)
                + waiting as u64,
            parked: self.tasks.parked(ix),
            outcomes: handler.counts.report(),
            refusals: self.refusals.total(ix),
            refused: self.refusals.of(ix).map(|held| held.records).sum(),
            problems: self.problems_of(ix, &handler.settings.name, clock),
            last_error: handler.last_error.as_deref().map(Into::into),
            held_since_ms: handler.closing.map(|closing| clock.at(closing.moved_ms)),
        }
    }

    /// What keeps records of a handler from being produced, by topic.
    fn problems_of(&self, ix: HandlerIx, name: &str, clock: WallClock) -> Vec<ServiceProblem> {
        let held = self.refusals.of(ix);
        held.map(|held| {
            let (kind, what) = match held.what {
                ProduceKind::Emits => (ProblemKind::EmitsRefused, "emit to"),
                ProduceKind::DeadLetter => {
                    (ProblemKind::DeadLettersRefused, "write dead letters to")
                }
            };
            ServiceProblem {
                kind,
                what: format!(
                    "handler `{name}` cannot {what} topic {}: {} records wait",
                    held.topic, held.records
                ),
                since_ms: clock.at(held.since_ms),
                count: held.refused,
                cause: held.failure.error.to_string(),
                remedy: held.failure.remedy.to_string(),
            }
        })
        .collect()
    }

    fn partition_report(
        &self,
        at: &TopicPartition,
        slot: AssignmentId,
        clock: WallClock,
        end_offset: Option<i64>,
        at_frontier: Option<EntryKey>,
    ) -> PartitionReport {
        let assignment = self.assignment(slot);
        let frontier = assignment.ledger.frontier();
        let waits = !assignment.ledger.is_settled() || !assignment.overflow.is_empty();
        let parked = self.tasks.parked_of(slot);
        let state = if assignment.stopped.is_some() {
            PartitionState::Stopped
        } else if assignment.unreadable.is_some() {
            PartitionState::Unreadable
        } else if assignment.state != AssignmentState::Assigned {
            PartitionState::Draining
        } else if assignment.paused {
            PartitionState::Paused
        } else {
            PartitionState::Running
        };
        let trouble = assignment.trouble();
        let stalled = self.stalled(slot);
        PartitionReport {
            topic: at.topic.to_string(),
            partition: at.partition,
            epoch: assignment.epoch,
            frontier,
            delivered: assignment.ledger.next(),
            in_flight: assignment.ledger.unsettled(),
            parked,
            lag: end_offset
                .or(assignment.end)
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
            held_by: match waits {
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
        let frontier = assignment.ledger.frontier();
        let delivered = assignment.ledger.next();
        let asked = offset.unwrap_or(frontier);
        let held_by = self.held_by(slot, asked, clock);
        let awaited = self.awaited(slot);
        let status = if !held_by.is_empty() {
            RecordStatus::InFlight
        } else if assignment.stopped.is_some() {
            RecordStatus::Stopped
        } else if assignment.unreadable.is_some() && asked >= delivered {
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
                .chain(self.committer.why_not(slot, self.now_ms, clock))
                .reduce(|all, more| format!("{all}\n{more}")),
            held_by,
        })
    }

    /// Why no record of a partition is being read, if so.
    fn why_not_read(&self, slot: AssignmentId) -> Option<String> {
        let assignment = self.assignment(slot);
        if let Some(trouble) = assignment.trouble() {
            let seconds = self.now_ms.saturating_sub(trouble.since_ms) / 1_000;
            return Some(format!(
                "{}; {} (for {seconds} s, seen {} times)",
                trouble.cause, trouble.remedy, trouble.count
            ));
        }
        let (held, budget) = (assignment.held_bytes(), self.settings.budget_bytes);
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
        let largest = self
            .partitions()
            .max_by_key(|(at, slot)| (self.assignment(*slot).held_bytes(), std::cmp::Reverse(*at)));
        let (at, slot) = largest?;
        let (held, budget) = (
            self.assignment(slot).held_bytes(),
            self.settings.budget_bytes,
        );
        Some(format!(
            "reading is suspended: in-flight records fill the memory; {at} holds {held} of {budget} bytes; fix what \
             blocks them, or raise processing.memory"
        ))
    }

    /// The unsettled records at the frontiers of all partitions that have waited for 1 s: in one pass, and none while
    /// everything moves.
    fn records_at_frontiers(&self) -> HashMap<AssignmentId, EntryKey> {
        let waits = |(_, assignment): &(AssignmentId, &Assignment<R>)| {
            let waited_ms = self.now_ms.saturating_sub(assignment.waits_since_ms());
            !assignment.ledger.is_settled() && waited_ms >= HELD_AFTER_MS
        };
        let frontiers: HashMap<AssignmentId, i64> = self
            .partitions
            .each()
            .filter(waits)
            .map(|(slot, assignment)| (slot, assignment.ledger.frontier()))
            .collect();
        if frontiers.is_empty() {
            return HashMap::new();
        }
        let held = self.slab.iter().filter(|(_, entry)| entry.unsettled > 0);
        held.filter(|(_, entry)| frontiers.get(&entry.slot) == Some(&entry.offset()))
            .map(|(key, entry)| (entry.slot, key))
            .collect()
    }

    /// The first handler that has not settled a record.
    fn first_holder(&self, slot: AssignmentId, key: EntryKey, clock: WallClock) -> Option<HeldBy> {
        let offset = self.slab.get(key)?.offset();
        let queued_ms = self.assignment(slot).waits_since_ms();
        let mut places = 0..self.handlers.len();
        places.find_map(|place| self.share(HandlerIx(place as u32), key, offset, queued_ms, clock))
    }

    /// The handlers that have not settled the record at `offset`.
    fn held_by(&self, slot: AssignmentId, offset: i64, clock: WallClock) -> Vec<HeldBy> {
        let Some((key, _)) = self
            .entries_of(slot)
            .find(|(_, e)| e.offset() == offset && e.unsettled > 0)
        else {
            return Vec::new();
        };
        // Queueing times are not stored; the record at the frontier has waited since the frontier last moved.
        let queued_ms = self.assignment(slot).waits_since_ms();
        let places = 0..self.handlers.len();
        places
            .filter_map(|place| self.share(HandlerIx(place as u32), key, offset, queued_ms, clock))
            .collect()
    }

    fn share(
        &self,
        ix: HandlerIx,
        key: EntryKey,
        offset: i64,
        queued_ms: u64,
        clock: WallClock,
    ) -> Option<HeldBy> {
        let handler = self.handlers[ix.0 as usize].as_ref()?;
        let held = |attempt, since_ms, waits_for| HeldBy {
            offset,
            handler: handler.settings.name.to_string(),
            attempt,
            since_ms: clock.at(since_ms),
            waits_for,
        };
        let task = self.tasks.get(ix, key);
        if let Some(task) = task
            && let Some((attempt, waits_for)) = waits_of(task, clock)
        {
            let is_due = matches!(task.stage, Stage::Parked { due_ms } if due_ms <= self.now_ms);
            let waits_for = match self.tasks.predecessor(ix, key, task) {
                Some(behind) if is_due => WaitsFor::Lane { behind },
                None if is_due => WaitsFor::Worker,
                _ => waits_for,
            };
            return Some(held(attempt, task.since_ms, waits_for));
        }
        let attempt = task.map_or(1, |task| task.attempt);
        let mine = |flight: &&Flight| flight.handler == Some(ix);
        if let Some(flight) = self
            .flights
            .iter()
            .filter(mine)
            .find(|f| f.is_submitted() && f.keys.contains(&key))
        {
            return Some(held(attempt, flight.submitted_ms, WaitsFor::Handler));
        }
        let queued = handler.backlog.contains(&key)
            || self
                .flights
                .iter()
                .filter(mine)
                .any(|f| f.batch.as_ref().is_some_and(|b| b.keys.contains(&key)));
        if queued {
            let failed = handler
                .settings
                .pool
                .as_ref()
                .is_some_and(|pool| pool.state() == PoolState::Failed);
            let waits_for = match failed {
                true => WaitsFor::FailedHandler,
                false if handler.changes_order() && handler.backlog.contains(&key) => {
                    WaitsFor::Order
                }
                false => WaitsFor::Worker,
            };
            return Some(held(attempt, queued_ms, waits_for));
        }
        if handler.lanes.waiting().any(|waiting| waiting == key) {
            let behind = self.lane_holder(ix, key).unwrap_or(offset);
            return Some(held(attempt, queued_ms, WaitsFor::Lane { behind }));
        }
        None
    }

    /// The oldest unsettled record of the same lane in the handler.
    fn lane_holder(&self, ix: HandlerIx, key: EntryKey) -> Option<i64> {
        let handler = self.handlers[ix.0 as usize].as_ref()?;
        let order = handler.order;
        let lane = super::place::lane_of_key(&self.slab, order, key);
        self.slab
            .iter()
            .filter(|(_, entry)| entry.unsettled > 0 && super::place::lane_of(order, entry) == lane)
            .map(|(_, entry)| entry.offset())
            .min()
    }
}

/// What a record outside of batches and queues waits for, and in which attempt; `None` while it is in a batch.
fn waits_of(task: &Task, clock: WallClock) -> Option<(u32, WaitsFor)> {
    let refused = refusal_of(task, clock);
    match task.stage {
        Stage::Parked { due_ms } => {
            let at_ms = clock.at(due_ms);
            Some((task.attempt + 1, WaitsFor::Retry { at_ms }))
        }
        Stage::Emitting | Stage::EmitsDue { .. } => {
            Some((task.attempt, WaitsFor::Emits { refused }))
        }
        Stage::DeadLettering | Stage::DeadLetterDue { .. } => {
            Some((task.attempt, WaitsFor::DeadLetter { refused }))
        }
        Stage::Running => None,
    }
}

fn refusal_of(task: &Task, clock: WallClock) -> Option<ProduceRefusal> {
    let refusal = task.refusal.as_ref()?;
    let next_ms = match task.stage {
        Stage::EmitsDue { due_ms } | Stage::DeadLetterDue { due_ms } => Some(clock.at(due_ms)),
        _ => None,
    };
    Some(ProduceRefusal {
        topic: refusal.failure.topic.to_string(),
        error: refusal.failure.error.to_string(),
        remedy: refusal.failure.remedy.to_string(),
        since_ms: clock.at(refusal.since_ms),
        tries: refusal.tries,
        next_ms,
    })
}
