//! What a handler's queue reports: its counters, its problems, and what each of its shares waits for (G8).

use super::HandlerQueue;
use super::batches::InFlightBatch;
use super::context::Context;
use super::deferred::{Share, ShareState};
use super::lane::{lane_of, lane_of_key};
use super::refusals::ProduceKind;
use crate::clock::WallClock;
use crate::dispatch::RecordId;
use crate::emit::outbox::Outbox;
use crate::emit::shipment::ShippedAt;
use crate::record::Record;
use crate::records::Records;
use crate::status::{
    HandlerFlowReport, HeldBy, ProblemKind, ProduceRefusal, ServiceProblem, WaitsFor,
};

/// The acknowledgement of some emits.
const EMITS: WaitsFor = WaitsFor::Emits {
    topics: Vec::new(),
    refused: None,
};
/// How long emits are unanswered before that is a problem: longer than the election of a leader takes.
const UNACKNOWLEDGED_MS: u64 = 10_000;

/// Times of a report: of the flow's clock, and as shown.
#[derive(Clone, Copy)]
pub(crate) struct ReportTime {
    /// The flow's clock.
    pub(crate) now_ms: u64,
    /// Shows a time of the flow's clock.
    pub(crate) clock: WallClock,
    /// Since when the record has been queued, on the flow's clock.
    pub(crate) queued_ms: u64,
}

impl HandlerQueue {
    /// Reports the handler, a row for each version of its plugin, the present one last.
    pub(crate) fn report(
        &self,
        outbox: &Outbox,
        clock: WallClock,
        now_ms: u64,
    ) -> impl Iterator<Item = HandlerFlowReport> {
        let name = &self.settings.name;
        let rows = self
            .counts
            .iter()
            .map(|(version, counts)| HandlerFlowReport {
                name: name.to_string(),
                version: version.to_string(),
                outcomes: *counts,
                ..HandlerFlowReport::default()
            });
        let mut rows: Vec<HandlerFlowReport> = rows.collect();
        let present = rows.pop().unwrap_or_default();
        rows.push(HandlerFlowReport {
            version: present.version,
            outcomes: present.outcomes,
            unacknowledged: u64::from(outbox.unanswered(self.ix)),
            ..self.report_now(outbox, clock, now_ms)
        });
        rows.into_iter()
    }

    fn report_now(&self, outbox: &Outbox, clock: WallClock, now_ms: u64) -> HandlerFlowReport {
        let waiting = self.backlog.len() + self.lanes.waiters();
        HandlerFlowReport {
            name: self.settings.name.to_string(),
            in_flight: u64::from(
                self.in_flight_records + self.held + self.passing - self.chains.troubles(),
            ) + waiting as u64,
            parked: self.deferred.parked(),
            refusals: self.refusals.total(),
            refused: self.refusals.held().map(|held| held.records).sum(),
            problems: self.problems(outbox, clock, now_ms),
            last_error: self.errors.last(clock),
            held_since_ms: self.closing.map(|closing| clock.at(closing.moved_ms)),
            ..HandlerFlowReport::default()
        }
    }

    /// That every attempt fails, and what keeps records of the handler from being produced, by topic.
    fn problems(&self, outbox: &Outbox, clock: WallClock, now_ms: u64) -> Vec<ServiceProblem> {
        let failing = self.errors.problem(&self.settings.name, clock, now_ms);
        let held = self.refusals.held();
        let refused = held.map(|held| {
            let (kind, what) = match held.what {
                ProduceKind::Emits => (ProblemKind::EmitsRefused, "emit to"),
                ProduceKind::DeadLetter => {
                    (ProblemKind::DeadLettersRefused, "write dead letters to")
                }
            };
            ServiceProblem {
                kind,
                what: format!(
                    "handler `{}` cannot {what} topic {}: {} records wait",
                    self.settings.name, held.topic, held.records
                ),
                since_ms: clock.at(held.since_ms),
                count: held.refused,
                cause: held.failure.error.to_string(),
                remedy: held.failure.remedy.to_string(),
            }
        });
        let unacknowledged = self.unacknowledged(outbox, clock, now_ms);
        let others = failing.into_iter().chain(unacknowledged);
        others.chain(refused).collect()
    }

    /// That the cluster does not answer what the producer has of it.
    fn unacknowledged(
        &self,
        outbox: &Outbox,
        clock: WallClock,
        now_ms: u64,
    ) -> Option<ServiceProblem> {
        let count = outbox.unanswered(self.ix);
        if count == 0 {
            return None;
        }
        let (since_ms, topics) = outbox.oldest_unanswered(self.ix)?;
        if now_ms.saturating_sub(since_ms) < UNACKNOWLEDGED_MS {
            return None;
        }
        let oldest = match topics.is_empty() {
            true => "a dead letter".to_owned(),
            false => format!("to topic {}", topics.join(", ")),
        };
        Some(ServiceProblem {
            kind: ProblemKind::EmitsUnacknowledged,
            what: format!(
                "{count} emitted records and dead letters of handler `{}` are not acknowledged, the oldest {oldest}",
                self.settings.name
            ),
            since_ms: clock.at(since_ms),
            count: u64::from(count),
            cause: "the leader of a partition does not answer, or has too few in-sync replicas"
                .to_owned(),
            remedy: "check the brokers, and the topic's leaders and in-sync replicas (min.insync.replicas); the records are written once these are back"
                .to_owned(),
        })
    }

    /// What a record waits for in this handler, if the handler has not settled it.
    pub(crate) fn holds<R: Record>(
        &self,
        ctx: &Context<R>,
        key: RecordId,
        time: ReportTime,
    ) -> Option<HeldBy> {
        let records = &ctx.records;
        let offset = records.slab.get(key)?.offset();
        let held = |attempt, since_ms, waits_for| HeldBy {
            offset,
            handler: self.settings.name.to_string(),
            attempt,
            since_ms: time.clock.at(since_ms),
            waits_for,
        };
        let share = self.deferred.get(key);
        if let Some(share) = share
            && let Some((attempt, waits_for)) = waits_of(share, time.clock)
        {
            let is_due =
                matches!(share.state, ShareState::Parked { due_ms } if due_ms <= time.now_ms);
            let waits_for = match share.state {
                ShareState::Emitting if share.refusal.is_none() => match share.shipped {
                    Some(at) => self.waits_for_emits(ctx, at),
                    None => waits_for,
                },
                ShareState::Done => self.waits_for_first(records, share.lane),
                _ => waits_for,
            };
            let waits_for = match self.deferred.predecessor(key, share) {
                Some(behind) if is_due => WaitsFor::Lane { behind },
                None if is_due && self.changes_order() => WaitsFor::Order,
                None if is_due => self.waits_for_room(&ctx.outbox),
                _ => waits_for,
            };
            return Some(held(attempt, share.since_ms, waits_for));
        }
        let mut pending = ctx.outbox.pending(self.ix);
        if let Some((_, at, since_ms)) = pending.find(|(pending, ..)| *pending == key) {
            return Some(held(1, since_ms, self.waits_for_emits(ctx, at)));
        }
        let attempt = share.map_or(1, |share| share.attempt);
        if let Some((submitted_ms, waits_for)) = self.waits_in_call(ctx, key) {
            return Some(held(attempt, submitted_ms, waits_for));
        }
        let in_batch = |entry: &InFlightBatch| {
            let batch = entry.batch.as_ref();
            batch.is_some_and(|batch| batch.keys.contains(&key))
        };
        let in_backlog = self.backlog.contains(&key);
        if in_backlog || self.batches.iter().any(in_batch) {
            let waits_for = match !self.settings.targets.is_empty() && self.has_failed() {
                true => WaitsFor::FailedHandler,
                false if in_backlog && self.changes_order() => WaitsFor::Order,
                false => self.waits_for_room(&ctx.outbox),
            };
            return Some(held(attempt, time.queued_ms, waits_for));
        }
        if self.lanes.waiting().any(|waiting| waiting == key) {
            let waits_for = match self.lane_holder(records, key) {
                Some(behind) => WaitsFor::Lane { behind },
                None if self.changes_order() => WaitsFor::Order,
                None => self.waits_for_room(&ctx.outbox),
            };
            return Some(held(attempt, time.queued_ms, waits_for));
        }
        None
    }

    /// What a record waits for that may start, but for the handler's bounds.
    fn waits_for_room(&self, outbox: &Outbox) -> WaitsFor {
        match self.backed_up {
            true => WaitsFor::Producer {
                unacknowledged: outbox.unanswered(self.ix),
            },
            false => WaitsFor::Worker {
                unhealthy: self.unhealthy(),
            },
        }
    }

    /// Why not every worker that runs it has a healthy instance.
    fn unhealthy(&self) -> Option<String> {
        let targets = self.settings.targets.iter();
        let mut reasons = targets.filter_map(|target| target.pool.unhealthy_reason());
        reasons.next().map(|why| why.to_string())
    }

    /// A record that is done waits for the first one of its lane.
    fn waits_for_first<R: Record>(&self, records: &Records<R>, lane: u64) -> WaitsFor {
        let first = self.chains.first_key(lane);
        let entry = first.and_then(|first| records.slab.get(first));
        match entry {
            Some(entry) => WaitsFor::Lane {
                behind: entry.offset(),
            },
            None => EMITS,
        }
    }

    /// A record waits for the acknowledgement of these emits.
    fn waits_for_emits<R: Record>(&self, ctx: &Context<R>, at: ShippedAt) -> WaitsFor {
        let topics = ctx.outbox.unacknowledged_topics(at).into_iter();
        WaitsFor::Emits {
            topics: topics.map(|topic| topic.to_string()).collect(),
            refused: None,
        }
    }

    /// The oldest record of the same lane that is in a batch or deferred, and keeps others from running.
    fn lane_holder<R: Record>(&self, records: &Records<R>, key: RecordId) -> Option<i64> {
        let lane = lane_of_key(&records.slab, self.order, key);
        let blocks = |share: &Share| share.holds() || share.refusal.is_some();
        let deferred = self.deferred.iter().filter(|(_, share)| blocks(share));
        let deferred = deferred.map(|(key, _)| key);
        let batches = self.batches.iter();
        let in_batches = batches.flat_map(|one| one.batch.as_ref().map_or(&one.keys, |b| &b.keys));
        let holders = deferred.chain(in_batches.copied());
        let entries = holders.filter_map(|key| records.slab.get(key));
        let of_lane = entries.filter(|entry| lane_of(self.order, entry) == lane);
        of_lane.map(|entry| entry.offset()).min()
    }
}

/// What a record outside of batches and queues waits for, and in which attempt; `None` while it is in a batch.
fn waits_of(share: &Share, clock: WallClock) -> Option<(u32, WaitsFor)> {
    let refused = refusal_of(share, clock);
    match share.state {
        ShareState::Parked { due_ms } => {
            let at_ms = clock.at(due_ms);
            Some((share.attempt + 1, WaitsFor::Retry { at_ms }))
        }
        ShareState::Emitting | ShareState::EmitsDue { .. } => {
            let topics = Vec::new();
            Some((share.attempt, WaitsFor::Emits { topics, refused }))
        }
        ShareState::DeadLettering | ShareState::DeadLetterDue { .. } => {
            Some((share.attempt, WaitsFor::DeadLetter { refused }))
        }
        ShareState::Done => Some((share.attempt, EMITS)),
        ShareState::Running => None,
    }
}

fn refusal_of(share: &Share, clock: WallClock) -> Option<ProduceRefusal> {
    let refusal = share.refusal.as_ref()?;
    let next_ms = match share.state {
        ShareState::EmitsDue { due_ms } | ShareState::DeadLetterDue { due_ms } => {
            Some(clock.at(due_ms))
        }
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
