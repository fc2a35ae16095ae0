//! Records that wait for the producer: emits and dead letters, their acknowledgements, and the resending of refused
//! ones.
//!
//! ```text
//!  emits ──► Emitting ──► acknowledged ──► ack, drop: settle · dead letter: write it
//!               ▲  └────► refused because of the record ──► dead-letter it, no attempt counted
//!               │              because of the cluster ──► EmitsDue ──┐ back-off, or at once and alone after a batch was refused
//!               └──────────────────────────────────────────────────┘
//!  dead letter ──► DeadLettering ──► acknowledged ──► settle
//!                    ▲  └────► refused, for any reason ──► DeadLetterDue ──┐ back-off
//!                    └──────────────────────────────────────────────────────┘
//! ```
//!
//! A refusal by the cluster is not the record's fault (ADR 0020): the record's lane stays held, `explain` shows why,
//! and no attempt is counted.

use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::spec::dead_letter_topic;

use super::Flow;
use super::handler::HandlerSettings;
use super::refusals::ProduceKind;
use super::tasks::{Ending, Refusal, Stage, Task};
use crate::dispatch::{EntryKey, HandlerIx};
use crate::emit::{AckGroup, EmitFailure, FailureKind, RefusedEmits, Way, send_from};
use crate::record::Record;
use crate::settlement::{RetryPolicy, dead_letter};

/// The handler dead-lettered the record.
pub(super) const REASON_TERMINAL: &str = "terminal";
/// A record that the handler emitted can never be produced.
const REASON_EMIT_REFUSED: &str = "emit_refused";

/// Delays between resends of refused records.
const RESEND: RetryPolicy = RetryPolicy {
    max_attempts: u32::MAX,
    delay: Duration::from_millis(100),
    multiplier: 2.0,
    max_delay: Duration::from_secs(25),
    jitter: 0.2,
};

impl<R: Record> Flow<R> {
    /// The producer has answered for all emits of a record that were sent, or for its dead letter.
    pub(super) fn produced(
        &mut self,
        ix: HandlerIx,
        key: EntryKey,
        refused: Option<Box<RefusedEmits>>,
    ) {
        let Some(task) = self.tasks.get(ix, key).cloned() else {
            return;
        };
        match (task.stage, refused) {
            (Stage::Emitting, None) => self.emits_acknowledged(ix, key, &task),
            (Stage::Emitting, Some(refused)) => self.emits_refused(ix, key, task, *refused),
            (Stage::DeadLettering, None) => {
                self.count(ix, |counts| counts.dead_letter += 1);
                self.log_dead_letter(ix, key, &task);
                self.finish_task(ix, key, &task);
            }
            (Stage::DeadLettering, Some(refused)) => {
                self.schedule_resend(ix, key, task, refused.failure, None);
            }
            (
                Stage::Parked { .. }
                | Stage::Running
                | Stage::EmitsDue { .. }
                | Stage::DeadLetterDue { .. },
                _,
            ) => {}
        }
    }

    fn emits_acknowledged(&mut self, ix: HandlerIx, key: EntryKey, task: &Task) {
        match task.ending {
            Ending::Ack => self.count(ix, |counts| counts.ack += 1),
            Ending::Drop => self.count(ix, |counts| counts.drop += 1),
            Ending::DeadLetter => {
                self.end_refusal(ix, task);
                let reason = task.reason.clone().unwrap_or_else(terminal_error);
                self.dead_letter(ix, key, task.lane, task.attempt, REASON_TERMINAL, reason);
                return;
            }
        }
        self.finish_task(ix, key, task);
    }

    /// Settles a record that waited for the producer.
    fn finish_task(&mut self, ix: HandlerIx, key: EntryKey, task: &Task) {
        self.end_refusal(ix, task);
        self.tasks.remove(ix, key);
        self.settle_share(key);
        self.unhold(ix, task.lane);
        self.release_lane(ix, task.lane);
        self.drop_if_retired(ix);
    }

    fn emits_refused(&mut self, ix: HandlerIx, key: EntryKey, task: Task, refused: RefusedEmits) {
        if refused.failure.kind != FailureKind::Record {
            let emits = (refused.group, refused.first);
            self.schedule_resend(ix, key, task, refused.failure, Some(emits));
            return;
        }
        self.end_refusal(ix, &task);
        self.refusals.count(ix);
        let mut reason = format!(
            "an emitted record is permanently rejected: {}",
            refused.failure
        );
        if let (Ending::DeadLetter, Some(given)) = (task.ending, &task.reason) {
            reason.push_str(&format!(
                "; the handler had dead-lettered the record: {given}"
            ));
        }
        let reason = reason.into();
        self.dead_letter(
            ix,
            key,
            task.lane,
            task.attempt,
            REASON_EMIT_REFUSED,
            reason,
        );
    }

    /// Holds a record until its refused part is resent.
    fn schedule_resend(
        &mut self,
        ix: HandlerIx,
        key: EntryKey,
        task: Task,
        failure: EmitFailure,
        emits: Option<(Arc<AckGroup>, u32)>,
    ) {
        let random = self.random.unit();
        self.detach(key);
        let now_ms = self.now_ms;
        self.end_refusal(ix, &task);
        let before = task.refusal.as_deref();
        let tries = before.map_or(0, |before| before.tries) + 1;
        let alone_before = before.is_some_and(|before| before.way == Way::Alone);
        let by_batch = failure.kind == FailureKind::Batch && !alone_before;
        let due_ms = match by_batch {
            // The refusal of the batch says nothing about this record: resend it alone, at once.
            true => now_ms,
            false => now_ms + RESEND.delay_ms(tries, random),
        };
        let what = match emits {
            Some(_) => ProduceKind::Emits,
            None => ProduceKind::DeadLetter,
        };
        // A deleted dead-letter topic is recreated by topic maintenance, if it may be created.
        self.missed_target |=
            what == ProduceKind::DeadLetter && failure.kind == FailureKind::Target;
        let handler = self.handlers[ix.0 as usize].as_mut();
        let Some(handler) = handler else { return };
        if !by_batch {
            handler.last_error = Some(format!("{what} refused: {failure}").into());
        }
        let mut refusal = Refusal {
            since_ms: before.map_or(now_ms, |before| before.since_ms),
            tries,
            way: if by_batch || alone_before {
                Way::Alone
            } else {
                Way::Batched
            },
            held_bytes: emits.as_ref().map_or(0, |(group, _)| group.bytes()),
            made_by: before.map_or(made_by(&handler.settings), |before| before.made_by),
            counted_as: failure.topic.clone(),
            failure,
            emits,
        };
        let name = handler.settings.name.clone();
        self.refusals.begin(ix, &name, what, &mut refusal, now_ms);
        let stage = match what {
            ProduceKind::Emits => Stage::EmitsDue { due_ms },
            ProduceKind::DeadLetter => Stage::DeadLetterDue { due_ms },
        };
        let refusal = Some(Box::new(refusal));
        self.tasks.set(
            ix,
            key,
            Task {
                stage,
                refusal,
                ..task
            },
        );
    }

    /// Whether a dead-letter topic was found missing or not writable since the last call.
    pub fn take_missed_target(&mut self) -> bool {
        std::mem::take(&mut self.missed_target)
    }

    /// Resends emits from the first refused record on. If a newer generation or config is active and the topic was the
    /// reason, the record is run again instead, as the same attempt: the newer one may not emit to that topic.
    pub(super) fn send_emits_again(&mut self, ix: HandlerIx, key: EntryKey, task: Task) {
        let Some(handler) = self.handlers[ix.0 as usize].as_ref() else {
            return;
        };
        let Some(refusal) = &task.refusal else { return };
        let outdated = refusal.made_by != made_by(&handler.settings);
        if outdated && refusal.failure.kind == FailureKind::Target {
            self.run_again(ix, key, &task);
            return;
        }
        let Some((group, first)) = refusal.emits.clone() else {
            return;
        };
        let way = refusal.way;
        let stage = Stage::Emitting;
        self.tasks.set(ix, key, Task { stage, ..task });
        group.reopen();
        send_from(&group, first, way, &*self.emitter);
        group.seal();
    }

    fn run_again(&mut self, ix: HandlerIx, key: EntryKey, task: &Task) {
        if self.tasks.predecessor(ix, key, task).is_some() {
            // It is due again when that one is over; with the same attempt, since none was made.
            self.end_refusal(ix, task);
            let stage = Stage::Parked {
                due_ms: self.now_ms,
            };
            let task = Task {
                attempt: task.attempt - 1,
                stage,
                since_ms: self.now_ms,
                refusal: None,
                ..task.clone()
            };
            self.tasks.set(ix, key, task);
            return;
        }
        self.end_refusal(ix, task);
        self.held_less(ix);
        if task.attempt == 1 && task.follows.is_none() {
            self.tasks.remove(ix, key);
        } else {
            let task = Task {
                stage: Stage::Running,
                since_ms: self.now_ms,
                refusal: None,
                ..task.clone()
            };
            self.tasks.set(ix, key, task);
        }
        self.requeue(ix, key, task.lane, task.attempt);
        // Other records may have waited in the lane since before this batch.
        if task.lane != 0
            && let Some(handler) = self.handlers[ix.0 as usize].as_ref()
            && let Some(flight) = handler.lanes.waited_for(task.lane)
            && let Some(flight) = self.flights.get(flight)
        {
            flight.contended.push(task.lane);
        }
    }

    /// Writes the dead letter; the record settles when it is acknowledged (G7). The caller holds its lane.
    pub(super) fn dead_letter(
        &mut self,
        ix: HandlerIx,
        key: EntryKey,
        lane: u64,
        attempt: u32,
        class: &'static str,
        reason: Arc<str>,
    ) {
        let Some(handler) = self.handlers[ix.0 as usize].as_mut() else {
            return;
        };
        handler.last_error = Some(reason.clone());
        let task = Task {
            attempt,
            stage: Stage::DeadLettering,
            since_ms: self.now_ms,
            lane,
            reason: Some(reason),
            class,
            ending: Ending::DeadLetter,
            refusal: None,
            slot: self.slot_of(key),
            follows: self.follows(ix, key, lane),
        };
        self.send_dead_letter(ix, key, task);
    }

    /// Sends or resends a record's dead letter.
    pub(super) fn send_dead_letter(&mut self, ix: HandlerIx, key: EntryKey, task: Task) {
        let Some(handler) = self.handlers[ix.0 as usize].as_ref() else {
            return;
        };
        let way = task.refusal.as_ref().map_or(Way::Batched, |r| r.way);
        let (attempts, class, message) = (task.attempt, task.class, task.reason.clone());
        let stage = Stage::DeadLettering;
        self.tasks.set(ix, key, Task { stage, ..task });
        let Some(entry) = self.slab.get(key) else {
            return;
        };
        let Some(lease) = entry.lease() else { return };
        let at = &self.partitions[entry.slot].at;
        let target = dead_letter_topic(&handler.settings.dead_letter_topic, &at.topic);
        let provenance = dead_letter::Provenance {
            topic: &at.topic,
            partition: at.partition,
            offset: entry.offset(),
            timestamp_ms: entry.timestamp_ms(),
            group: &self.settings.group,
            handler: &handler.settings.name,
            version: &handler.settings.version,
            attempts,
            reason: class,
            message: message.as_deref().unwrap_or("unknown"),
            target: &target,
        };
        let group = AckGroup::new(self.inbox.clone(), ix, key, Vec::new(), None);
        dead_letter::send(lease, &provenance, &*self.emitter, way, group.ticket(0));
        group.seal();
    }

    /// Ends a refusal: the record is produced, dead-lettered, or about to be resent.
    pub(super) fn end_refusal(&mut self, ix: HandlerIx, task: &Task) {
        if let Some(refusal) = &task.refusal {
            self.refusals.end(ix, refusal);
        }
    }
}

/// What determines a handler's emits: generation and config.
fn made_by(settings: &HandlerSettings) -> (u64, u64) {
    (settings.generation, settings.config_digest)
}

pub(super) fn terminal_error() -> Arc<str> {
    "terminal error".into()
}
