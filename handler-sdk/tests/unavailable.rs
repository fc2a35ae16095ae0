//! Situation: what a handler needs is away for a while. Property: records that were not run have made no attempt, those that
//! were keep their outcomes, and the instance is built again, once it can be.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::Cell;

use serde_json::json;
use sluicegate_sdk::testing::{Kit, Outcome as Seen, Run, TestRecord, record};
use sluicegate_sdk::{
    Batch, BatchContext, BatchHandler, Classify, Context, Emit, Handler, Outcome, Record, Result,
    Setup,
};

thread_local! {
    /// Kits call their handlers on the thread of the test.
    static IS_AWAY: Cell<bool> = const { Cell::new(false) };
}

fn reach() -> Result<(), &'static str> {
    match IS_AWAY.get() {
        true => Err("no database"),
        false => Ok(()),
    }
}

/// Writes each record; the database goes away at the record "cut".
struct Writes;

impl Handler for Writes {
    type Config = ();

    fn new((): (), _: &mut Setup) -> Result<Self> {
        reach().unavailable()?;
        Ok(Self)
    }

    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
        ctx.emit(Emit::to("written").value(b"x"));
        ctx.counter("tried", 1);
        if record.value_text() == Some("cut") {
            IS_AWAY.set(true);
        }
        reach().unavailable()?;
        Ok(Outcome::Ack)
    }
}

/// Decides about the first record, and finds the database away then.
struct WritesAll;

impl BatchHandler for WritesAll {
    type Config = ();

    fn new((): (), _: &mut Setup) -> Result<Self> {
        reach().unavailable()?;
        Ok(Self)
    }

    fn handle_batch(&mut self, batch: &Batch<'_>, ctx: &mut BatchContext<'_>) -> Result {
        if batch.len() > 1 {
            let is_last = batch.record(0).value_text() == Some("last");
            let decided = if is_last { batch.len() - 1 } else { 0 };
            ctx.settle(decided, &Outcome::drop("not wanted"));
            IS_AWAY.set(true);
        }
        reach().unavailable()?;
        Ok(Outcome::Ack)
    }
}

fn four() -> [TestRecord; 4] {
    [(0, "a"), (1, "b"), (2, "cut"), (3, "d")]
        .map(|(offset, value)| record("t").at(0, offset).value(value))
}

fn is_away(run: &Run) {
    assert_eq!(run.unavailable.as_deref(), Some("no database"));
    assert!(!run.poisoned);
}

#[test]
fn records_that_find_a_dependency_away_make_no_attempt() {
    let mut kit = Kit::of::<Writes>(json!({})).unwrap();
    let run = kit.run(four());
    is_away(&run);
    let expected = [Seen::Ack, Seen::Ack, Seen::NotRun, Seen::NotRun];
    assert_eq!(run.outcomes, expected);
    let emitted: Vec<usize> = run.emits.iter().map(|emit| emit.record).collect();
    assert_eq!(emitted, [0, 1], "what was not run has emitted nothing");
    assert_eq!(kit.counter("tried"), 3.0);
    // Another instance cannot be built until it is there again.
    let run = kit.run(four());
    assert!(run.unavailable.unwrap().contains("no database"));
    assert_eq!(run.outcomes, vec![Seen::NotRun; 4]);
    assert!(kit.health().unwrap_err().contains("no database"));
    IS_AWAY.set(false);
    let run = kit.settle([record("t").at(0, 9).value("e")]);
    assert_eq!((run.outcomes, run.unavailable), (vec![Seen::Ack], None));
    assert_eq!(kit.health(), Ok(()));
}

#[test]
fn a_batch_keeps_the_outcomes_that_it_has() {
    let mut kit = Kit::of_batch::<WritesAll>(json!({})).unwrap();
    let run = kit.settle(four());
    is_away(&run);
    let dropped = Seen::Drop("not wanted".into());
    assert_eq!(run.outcomes[0], dropped);
    assert_eq!(run.outcomes[1..], vec![Seen::NotRun; 3]);
    IS_AWAY.set(false);
    // Those behind a record of their lane that was not run are not run either.
    let of_lanes = [1, 2, 2].map(|lane| record("t").lane(lane).value("last"));
    assert_eq!(kit.run(of_lanes).outcomes, vec![Seen::NotRun; 3]);
    IS_AWAY.set(false);
    let run = kit.run([record("t").value("b")]);
    assert_eq!((run.outcomes, run.unavailable), (vec![Seen::Ack], None));
}

#[cfg(feature = "async")]
mod overlapping {
    use std::time::Duration;

    use sluicegate_sdk::AsyncHandler;

    use super::*;

    struct Waits;

    impl AsyncHandler for Waits {
        type Config = ();
        const CONCURRENCY: usize = 2;

        async fn new((): (), _: &mut Setup) -> Result<Self> {
            reach().unavailable()?;
            Ok(Self)
        }

        async fn handle(&self, record: &Record<'_>, _: &mut Context<'_>) -> Result {
            if record.value_text() == Some("a") {
                // Until the other record has found it away.
                let away = async {
                    while !IS_AWAY.get() {
                        sluicegate_sdk::tokio::task::yield_now().await;
                    }
                };
                let waited = sluicegate_sdk::tokio::time::timeout(Duration::from_secs(4), away);
                return waited.await.map(|()| Outcome::Ack).retryable();
            }
            IS_AWAY.set(true);
            reach().unavailable()?;
            Ok(Outcome::Ack)
        }
    }

    #[test]
    fn records_that_are_running_are_finished() {
        let mut kit = Kit::of_async::<Waits>(json!({})).unwrap();
        let run = kit.run(four());
        is_away(&run);
        assert_eq!(run.outcomes[0], Seen::Ack);
        assert_eq!(run.outcomes[1..], vec![Seen::NotRun; 3]);
        IS_AWAY.set(false);
    }
}
