//! Hands what a call emitted to the producer, for the records whose outcome stands: an ack, a drop or a dead letter. An
//! attempt that is followed by another emits nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_runtime::{RawOutcome, outcome_code};

use crate::dispatch::{Batch, Inbox};
use crate::emit::{EmitCounts, EmitError, EmitGroup, Emitter, Outgoing};

/// First pause when the producer's queue is full.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Sends the emits of `batch` and marks the records that wait for them. The groups are to be armed once the batch is
/// in `home`. Blocks while the producer's queue is full, up to `patience` without progress; what finds no room then has
/// failed.
pub(super) fn send(
    batch: &mut Batch,
    home: &Arc<Inbox>,
    emitter: &dyn Emitter,
    counts: &Arc<EmitCounts>,
    patience: Duration,
) -> Vec<Arc<EmitGroup>> {
    let mut groups: Vec<Option<Arc<EmitGroup>>> = Vec::new();
    let mut waiting = Waiting {
        patience,
        since: None,
    };
    let emits = std::mem::take(&mut batch.output.emits);
    for emit in &emits {
        let at = emit.record as usize;
        if !batch.outcomes.get(at).is_some_and(stands) {
            continue;
        }
        if groups.is_empty() {
            groups.resize(batch.records.len(), None);
            batch.emits_pending.resize(batch.records.len(), false);
        }
        let group = groups[at].get_or_insert_with(|| {
            let counts = Arc::clone(counts);
            EmitGroup::counted(Arc::clone(home), batch.handler, batch.keys[at], counts)
        });
        batch.emits_pending[at] = true;
        let record = Outgoing {
            topic: &emit.topic,
            partition: emit.partition,
            timestamp_ms: emit.timestamp_ms,
            key: emit.key.as_deref(),
            value: emit.value.as_deref(),
            headers: &emit.headers,
        };
        group.expect_one();
        if let Err(error) = waiting.send(emitter, &record, group) {
            group.answered(Some(&error.to_string()));
        }
    }
    batch.output.emits = emits;
    batch.output.emits.clear();
    groups.into_iter().flatten().collect()
}

/// Whether no other attempt follows this outcome by itself, so that what the attempt emitted counts.
fn stands(outcome: &RawOutcome) -> bool {
    matches!(
        outcome.code,
        outcome_code::ACK | outcome_code::DROP | outcome_code::DEAD_LETTER
    )
}

/// Patience with a full producer: spent once, it comes back only when a record gets through.
struct Waiting {
    patience: Duration,
    since: Option<Instant>,
}

impl Waiting {
    fn send(
        &mut self,
        emitter: &dyn Emitter,
        record: &Outgoing<'_>,
        group: &Arc<EmitGroup>,
    ) -> Result<(), EmitError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match emitter.send(record, group) {
                Err(EmitError::QueueFull) => {
                    let since = *self.since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.patience {
                        return Err(EmitError::QueueFull);
                    }
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                answer => {
                    self.since = None;
                    return answer;
                }
            }
        }
    }
}
