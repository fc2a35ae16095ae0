//! A call: what goes into it, and what comes out of it besides outcomes, within bounds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sluicegate_abi::host::CallSink;
use sluicegate_abi::limits::{MAX_DETAIL, MAX_DETAILS, MAX_EMITTED, MAX_TOPIC};
use sluicegate_abi::plugin::EmitResult;
use sluicegate_abi::record::ProducerRecord;
use sluicegate_abi::{RawOutcome, RawRecord, outcome_flag};

use crate::{CancelFlag, Emit, Emits, HandlerInstance};

/// The input of a call.
#[derive(Clone, Copy, Debug)]
pub struct CallRequest<'a> {
    /// The records, in order. Their memory outlives them: it is lent until the batch is returned, and leaked if the batch
    /// is lost ([`sluicegate_abi::lend`]).
    pub records: &'a [RawRecord],
    /// Timeout of the whole call in milliseconds, as reported to the handler; 0 means no limit.
    pub timeout_ms: u64,
    /// Timeout of each record in milliseconds, from when it starts, as reported to the handler; 0 means no limit of its own.
    pub record_timeout_ms: u64,
    /// Set from any thread once the result is not needed any more: the call timed out, or a partition of its records is
    /// not assigned any more. Visible to the handler through its context.
    pub cancel: &'a CancelFlag,
}

/// Whether the instance is usable after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStatus {
    /// Ready for the next call.
    Usable,
    /// It panicked or violated the contract: drop it and build another.
    Poisoned,
    /// What it needs is away: drop it and build another, with a growing delay. Records without an outcome were not run, as no attempt; the
    /// detail of one of them is the reason.
    Unavailable,
}

/// Output of a call besides outcomes; reused between calls.
#[derive(Debug, Default)]
pub struct CallOutput {
    /// Texts referenced by outcomes as index + 1.
    pub details: Vec<String>,
    /// Records to produce, in emit order.
    pub emits: Emits,
}

impl CallOutput {
    /// Clears it, keeping the allocations.
    pub fn clear(&mut self) {
        self.details.clear();
        self.emits.clear();
    }
}

/// What a running call may hand to the service. It bounds that for every kind of plugin: emits to [`MAX_EMITTED`], texts to
/// [`MAX_DETAIL`] each and [`MAX_DETAILS`] in total.
pub struct CallHost<'a> {
    output: &'a mut CallOutput,
    records: u32,
    cancel: &'a CancelFlag,
    /// Bytes of the texts so far.
    detail_bytes: usize,
}

impl<'a> CallHost<'a> {
    /// Of a call that writes to `output`.
    pub fn new(call: &CallRequest<'a>, output: &'a mut CallOutput) -> Self {
        Self {
            output,
            records: call.records.len() as u32,
            cancel: call.cancel,
            detail_bytes: 0,
        }
    }

    /// The texts so far.
    pub fn details_mut(&mut self) -> &mut [String] {
        &mut self.output.details
    }

    /// Discards the emits of records that ended in a retry, a panic or an unknown code, or were not run.
    fn end(self, outcomes: &mut [RawOutcome]) {
        let emits = &mut self.output.emits;
        if emits.is_empty() || outcomes.iter().all(RawOutcome::is_final) {
            return;
        }
        let outcome_of = |record: u32| outcomes.get(record as usize);
        emits.retain(|record| outcome_of(record).is_some_and(RawOutcome::is_final));
        for outcome in outcomes.iter_mut().filter(|outcome| !outcome.is_final()) {
            outcome.flags &= !outcome_flag::EMITTED;
        }
    }
}

impl CallSink for CallHost<'_> {
    fn emit(&mut self, record: u32, emitted: &ProducerRecord<'_>) -> EmitResult {
        let is_topic = (1..=MAX_TOPIC).contains(&emitted.topic.len());
        if record >= self.records || !is_topic {
            return EmitResult::Denied;
        }
        if self.cancel.is_cancelled() {
            return EmitResult::Cancelled;
        }
        let emit = Emit {
            record,
            to: *emitted,
        };
        if self.output.emits.held() + emit.size() > MAX_EMITTED {
            return EmitResult::Full;
        }
        match self.output.emits.push(&emit) {
            true => EmitResult::Taken,
            false => EmitResult::Denied,
        }
    }

    fn detail(&mut self, text: &str) -> u32 {
        let text = &text[..text.floor_char_boundary(MAX_DETAIL)];
        if self.detail_bytes + text.len() > MAX_DETAILS {
            return 0;
        }
        self.detail_bytes += text.len();
        self.output.details.push(text.to_string());
        u32::try_from(self.output.details.len()).unwrap_or(0)
    }
}

/// Calls an instance ([`HandlerInstance::handle`]), whatever its kind; the outcomes are those of a new batch. Of the emits, only those of
/// records with a final outcome are left, and no other outcome says that its record has emitted.
///
/// # Errors
/// The runtime itself panicked, which breaks its first promise; the instance must not be used again.
pub fn call(
    instance: &mut dyn HandlerInstance,
    request: &CallRequest<'_>,
    outcomes: &mut [RawOutcome],
    output: &mut CallOutput,
) -> std::thread::Result<CallStatus> {
    debug_assert_eq!(
        request.records.len(),
        outcomes.len(),
        "one outcome per record"
    );
    let mut host = CallHost::new(request, output);
    let status = catch_unwind(AssertUnwindSafe(|| {
        instance.handle(request, outcomes, &mut host)
    }));
    host.end(outcomes);
    status
}

#[cfg(test)]
mod tests {
    use sluicegate_abi::outcome_code;

    use super::*;

    const RECORD: ProducerRecord<'static> = ProducerRecord {
        topic: "copies",
        partition: None,
        timestamp_ms: None,
        key: None,
        value: None,
        headers: &[],
    };

    fn request<'a>(records: &'a [RawRecord], cancel: &'a CancelFlag) -> CallRequest<'a> {
        CallRequest {
            records,
            timeout_ms: 0,
            record_timeout_ms: 0,
            cancel,
        }
    }

    fn host<'a>(records: u32, cancel: &'a CancelFlag, output: &'a mut CallOutput) -> CallHost<'a> {
        CallHost {
            records,
            ..CallHost::new(&request(&[], cancel), output)
        }
    }

    #[test]
    fn a_call_emits_no_more_than_its_bound_and_nothing_that_cannot_be_produced() {
        let (cancel, mut output) = (CancelFlag::default(), CallOutput::default());
        let mut host = host(2, &cancel, &mut output);
        let without_topic = ProducerRecord {
            topic: "",
            ..RECORD
        };
        assert_eq!(host.emit(0, &without_topic), EmitResult::Denied);
        let longest = "t".repeat(MAX_TOPIC + 1);
        let beyond = ProducerRecord {
            topic: &longest,
            ..RECORD
        };
        assert_eq!(host.emit(0, &beyond), EmitResult::Denied);
        assert_eq!(host.emit(2, &RECORD), EmitResult::Denied);
        let value = vec![0; 1 << 20];
        let large = ProducerRecord {
            value: Some(&value),
            ..RECORD
        };
        let taken = (0..40).filter(|_| host.emit(1, &large) == EmitResult::Taken);
        assert_eq!(taken.count(), 31);
        assert_eq!(host.emit(1, &large), EmitResult::Full);
        assert_eq!(host.emit(1, &RECORD), EmitResult::Taken);
        cancel.set();
        assert_eq!(host.emit(1, &RECORD), EmitResult::Cancelled);
        assert_eq!(output.emits.iter().count(), 32);
    }

    #[test]
    fn texts_of_a_call_are_bounded_each_and_in_total() {
        let (cancel, mut output) = (CancelFlag::default(), CallOutput::default());
        let mut host = host(1, &cancel, &mut output);
        let text = "é".repeat(8_000);
        let kept = (0..1_000).filter(|_| host.detail(&text) != 0).count();
        assert_eq!(kept, MAX_DETAILS / MAX_DETAIL);
        assert_eq!(host.detail("no room"), 0);
        assert!(output.details.iter().all(|one| one.len() == MAX_DETAIL));
    }

    #[test]
    fn emits_of_records_without_a_final_outcome_are_discarded() {
        let codes = [
            outcome_code::ACK,
            outcome_code::RETRY,
            outcome_code::DROP,
            outcome_code::PANICKED,
            outcome_code::NOT_RUN,
            outcome_code::DEAD_LETTER,
            999,
        ];
        let (cancel, mut output) = (CancelFlag::default(), CallOutput::default());
        let mut host = host(codes.len() as u32, &cancel, &mut output);
        let mut outcomes: Vec<RawOutcome> = codes
            .iter()
            .zip(0..)
            .map(|(code, record)| {
                assert_eq!(host.emit(record, &RECORD), EmitResult::Taken);
                RawOutcome {
                    code: *code,
                    flags: outcome_flag::EMITTED,
                    ..RawOutcome::default()
                }
            })
            .collect();
        host.end(&mut outcomes);
        let left: Vec<u32> = output.emits.iter().map(|emit| emit.record).collect();
        assert_eq!(left, [0, 2, 5]);
        let emitted = |outcome: &RawOutcome| outcome.flags & outcome_flag::EMITTED != 0;
        let flagged: Vec<bool> = outcomes.iter().map(emitted).collect();
        assert_eq!(flagged, [true, false, true, false, false, true, false]);
    }
}
