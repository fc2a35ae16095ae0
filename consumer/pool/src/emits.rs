//! Sends the records that a call emitted to the producer. They are those of input records with a final outcome
//! ([`sluicegate_runtime::call()`]): an attempt that is followed by another one emits nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Batch, Inbox};
use sluicegate_engine::emit::{EmitCounts, EmitToken, Emitter, Sent, Way, answer_unsent};
use sluicegate_runtime::Emit;

/// Delay before the first retry while the producer's queue is full; doubled from there on.
const INITIAL_RETRY_DELAY: Duration = Duration::from_micros(200);
/// Upper bound of the retry delay.
const MAX_RETRY_DELAY: Duration = Duration::from_millis(20);

/// Sends the emits of `batch`, in the order of its records; the answers arrive at `reply_to`. Blocks while the producer's queue
/// is full, up to `timeout` without progress; emits that still find no room are left to the pump, which sends them again.
pub(super) fn send(
    batch: &mut Batch,
    reply_to: &Arc<Inbox>,
    emitter: &dyn Emitter,
    counts: &Arc<EmitCounts>,
    timeout: Duration,
) {
    let emits = &mut batch.output.emits;
    // A batch handler may emit in any order; within a record, the order of emitting stays.
    emits.sort_by_record();
    if emits.is_empty() {
        return;
    }
    batch.emitted = Some(Arc::clone(counts));
    let mut sending = Sending {
        emitter,
        reply_to,
        timeout,
        full_since: None,
        stopped: None,
    };
    for (place, emit) in emits.iter().enumerate() {
        let token = batch.shipment.at(place);
        if !token.is_some_and(|token| sending.send(&emit, token)) {
            batch.unsent.push(place as u32);
        }
    }
}

/// The emits of a call while they are being sent.
struct Sending<'s> {
    emitter: &'s dyn Emitter,
    reply_to: &'s Arc<Inbox>,
    /// Retry time for a full producer, shared by all records of a batch; restored only when a record is accepted.
    timeout: Duration,
    full_since: Option<Instant>,
    /// The record of which an emit was refused: the pump sends its later ones again, and sending them now would duplicate them.
    stopped: Option<u32>,
}

impl Sending<'_> {
    /// Sends a record or has its refusal answered; `false`: neither, because one before it was refused.
    fn send(&mut self, emit: &Emit<'_>, token: EmitToken) -> bool {
        if self.stopped == Some(emit.record) {
            return false;
        }
        let sent = self.send_in_time(emit, token);
        if !answer_unsent(sent, emit.to.topic, self.reply_to, token) {
            self.stopped = Some(emit.record);
        }
        true
    }

    fn send_in_time(&mut self, emit: &Emit<'_>, token: EmitToken) -> Sent {
        let mut pause = INITIAL_RETRY_DELAY;
        loop {
            let record = emit.to;
            match (self.emitter).send(&record, Way::Batched, self.reply_to, token) {
                Sent::NoRoom => {
                    let since = *self.full_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.timeout {
                        return Sent::NoRoom;
                    }
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(MAX_RETRY_DELAY);
                }
                answer => {
                    self.full_since = None;
                    return answer;
                }
            }
        }
    }
}
