//! Situation: a batch has more records than its handler wishes for, or emits more than a call may. Property: what was not run, and what
//! stands behind it in its lane, is handled in order by the next call (G4).
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::json;
use sluicegate_sdk::testing::{Kit, Outcome as Seen, record};
use sluicegate_sdk::{Batch, BatchContext, BatchHandler, Emit, Outcome, Setup};

/// Emits as many bytes for each record as its value says.
struct EmitsBytes;

impl BatchHandler for EmitsBytes {
    type Config = ();

    fn new((): (), _setup: &mut Setup) -> sluicegate_sdk::Result<Self> {
        Ok(Self)
    }

    fn handle_batch(
        &mut self,
        batch: &Batch<'_>,
        ctx: &mut BatchContext<'_>,
    ) -> sluicegate_sdk::Result {
        for (index, record) in batch.iter().enumerate() {
            let bytes: usize = record.json()?;
            ctx.emit(index, Emit::to("out").value(&vec![b'x'; bytes]));
        }
        Ok(Outcome::Ack)
    }
}

/// G4: the last copy of a key in the output topic would be the older one.
#[test]
fn what_a_batch_emits_behind_a_record_that_found_no_room_is_not_taken_before_it() {
    let mut kit = Kit::of_batch::<EmitsBytes>(json!(null)).unwrap();
    let records = || {
        let sizes = [(1, 20 << 20), (2, 20 << 20), (2, 1_000)];
        let one = |(lane, bytes): (u64, u32)| record("t").lane(lane).value(bytes.to_string());
        sizes.map(one)
    };
    let run = kit.run(records());
    assert_eq!(
        run.outcomes,
        [Seen::Ack, Seen::NotRun, Seen::NotRun],
        "{} emitted",
        run.emits.len()
    );
    let run = kit.settle(records());
    assert_eq!(run.outcomes, [Seen::Ack, Seen::Ack, Seen::Ack]);
    let sizes = run
        .emits
        .iter()
        .map(|emit| emit.value.as_ref().map_or(0, Vec::len));
    assert_eq!(sizes.collect::<Vec<_>>(), [20 << 20, 20 << 20, 1_000]);
}

/// Emits the number of records of each call.
struct Pairs;

impl BatchHandler for Pairs {
    const MAX_RECORDS: u32 = 2;
    type Config = ();

    fn new((): (), _: &mut Setup) -> sluicegate_sdk::Result<Self> {
        Ok(Self)
    }

    fn handle_batch(
        &mut self,
        batch: &Batch<'_>,
        ctx: &mut BatchContext<'_>,
    ) -> sluicegate_sdk::Result {
        let records = batch.len().to_string();
        ctx.emit(0, Emit::to("sizes").value(records.as_bytes()));
        Ok(Outcome::Ack)
    }
}

#[test]
fn a_batch_has_at_most_as_many_records_as_its_handler_wishes_for() {
    let mut kit = Kit::of_batch::<Pairs>(json!({})).unwrap();
    let run = kit.settle((0..5).map(|offset| record("t").at(0, offset)));
    let sizes: Vec<_> = run.emits.iter().map(|emit| emit.value.as_deref()).collect();
    assert_eq!(sizes, [Some(&b"2"[..]), Some(b"2"), Some(b"1")]);
    let too_many = || kit.run((0..3).map(|offset| record("t").at(0, offset)));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(too_many)).is_err());
}
