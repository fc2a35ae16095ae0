//! Sends the records that a call emitted to the producer, for input records with a final outcome: ack, drop or dead letter. An
//! attempt that is followed by another one emits nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Batch, Inbox};
use sluicegate_engine::emit::{
    AckGroup, EmitCounts, EmitFailure, Emitter, ProducerRecord, Sent, Ticket, Way,
};
use sluicegate_runtime::{Emit, RawOutcome, outcome_code};

/// Delay before the first retry while the producer's queue is full; doubled from there on.
const INITIAL_RETRY_DELAY: Duration = Duration::from_micros(200);
/// Upper bound of the retry delay.
const MAX_RETRY_DELAY: Duration = Duration::from_millis(20);

/// Sends the emits of `batch` and marks the records that wait for their acks. The returned groups, which own the emitted
/// records, must be sealed after the batch is in `reply_to`. Blocks while the producer's queue is full, up to `timeout` without
/// progress; emits that still find no room are left to the pump, which sends them again.
pub(super) fn send(
    batch: &mut Batch,
    reply_to: &Arc<Inbox>,
    emitter: &dyn Emitter,
    counts: &Arc<EmitCounts>,
    timeout: Duration,
) -> Vec<Arc<AckGroup>> {
    let (mut by_record, order) = sort(batch);
    if order.is_empty() {
        return Vec::new();
    }
    batch.emits_pending.resize(batch.records.len(), false);
    let mut groups: Vec<Option<Sending>> = Vec::new();
    groups.resize_with(batch.records.len(), || None);
    let mut waiting = Waiting {
        timeout,
        since: None,
    };
    for (at, index) in order {
        let sending = groups[at].get_or_insert_with(|| {
            batch.emits_pending[at] = true;
            let (reply_to, counts) = (Arc::clone(reply_to), Arc::clone(counts));
            let emits = std::mem::take(&mut by_record[at]);
            Sending {
                group: AckGroup::new(reply_to, batch.handler, batch.keys[at], emits, Some(counts)),
                stopped: false,
            }
        });
        sending.send(index, emitter, &mut waiting);
    }
    let groups = groups.into_iter().flatten();
    groups.map(|sending| sending.group).collect()
}

/// The emits to send, by input record, and the order in which they were emitted: (record, index within the record).
fn sort(batch: &mut Batch) -> (Vec<Vec<Emit>>, Vec<(usize, u32)>) {
    let mut sizes = vec![0_usize; batch.records.len()];
    for emit in &batch.output.emits {
        if let Some(size) = sizes.get_mut(emit.record as usize) {
            *size += 1;
        }
    }
    let mut by_record: Vec<Vec<Emit>> = sizes.into_iter().map(Vec::with_capacity).collect();
    let mut order = Vec::with_capacity(batch.output.emits.len());
    for emit in batch.output.emits.drain(..) {
        let at = emit.record as usize;
        if batch.outcomes.get(at).is_some_and(is_final)
            && let Some(emits) = by_record.get_mut(at)
        {
            order.push((at, emits.len() as u32));
            emits.push(emit);
        }
    }
    (by_record, order)
}

/// A group while its records are being sent.
struct Sending {
    group: Arc<AckGroup>,
    /// A record of the group was refused, so the pump will send the rest again; sending it now would duplicate it.
    stopped: bool,
}

impl Sending {
    fn send(&mut self, index: u32, emitter: &dyn Emitter, waiting: &mut Waiting) {
        if self.stopped {
            return;
        }
        let emit = &self.group.records()[index as usize];
        let ticket = self.group.ticket(index);
        match waiting.send(emitter, &ProducerRecord::from(emit), ticket) {
            Sent::Queued => {}
            Sent::Refused => self.stopped = true,
            Sent::NoRoom(ticket) => {
                ticket.failed(EmitFailure::no_room(&emit.topic));
                self.stopped = true;
            }
        }
    }
}

/// Whether the outcome is final (no automatic retry follows), so that the attempt's emits are sent.
fn is_final(outcome: &RawOutcome) -> bool {
    matches!(
        outcome.code,
        outcome_code::ACK | outcome_code::DROP | outcome_code::DEAD_LETTER
    )
}

/// Retry time for a full producer, shared by all records of a batch; restored only when a record is accepted.
struct Waiting {
    timeout: Duration,
    since: Option<Instant>,
}

impl Waiting {
    fn send(
        &mut self,
        emitter: &dyn Emitter,
        record: &ProducerRecord<'_>,
        mut ticket: Ticket,
    ) -> Sent {
        let mut pause = INITIAL_RETRY_DELAY;
        loop {
            match emitter.send(record, Way::Batched, ticket) {
                Sent::NoRoom(back) => {
                    let since = *self.since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.timeout {
                        return Sent::NoRoom(back);
                    }
                    ticket = back;
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(MAX_RETRY_DELAY);
                }
                answer => {
                    self.since = None;
                    return answer;
                }
            }
        }
    }
}
