//! Situation: handlers of all three kinds in the testing kit. Property: the lane rule, deadlines, cancellation, panics,
//! emits, logs and metrics are as documented by the traits.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use serde_json::json;
use sluicegate_sdk::testing::{Kit, Outcome as Seen, record};
use sluicegate_sdk::{
    Batch, BatchContext, BatchHandler, Classify, Context, Emit, Handler, HandlerError, Level,
    Outcome, Record, Result, Setup,
};

/// Obeys the instruction in the record's value.
struct Obeys {
    handled: u64,
}

impl Handler for Obeys {
    type Config = ();

    fn new((): (), setup: &mut Setup) -> Result<Self> {
        setup.services().log(
            Level::Info,
            &format!("{} of {}", setup.instance(), setup.handler()),
        );
        Ok(Self { handled: 0 })
    }

    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
        self.handled += 1;
        ctx.gauge("handled", self.handled as f64);
        Ok(match record.value_text() {
            Some("emit") => {
                ctx.emit(
                    Emit::to("out")
                        .key(b"k")
                        .header("attempt", ctx.attempt().to_string().as_bytes()),
                );
                Outcome::Ack
            }
            Some("retry") => Outcome::retry_after(Duration::from_micros(10), "later"),
            Some("dead") => Outcome::dead_letter("broken"),
            Some("drop") => Outcome::drop("unwanted"),
            Some("panic") => panic!("panic on request"),
            Some("parse") => "x".parse::<u32>().map(|_| Outcome::Ack).terminal()?,
            Some("io") => std::fs::read("/no/such/file").map(|_| Outcome::Ack)?,
            Some("token") => {
                let token = ctx.token();
                Outcome::drop(format!(
                    "{}/{}/{} of {}",
                    token.topic, token.partition, token.offset, token.epoch
                ))
            }
            Some("wait") => {
                let limit = Instant::now() + Duration::from_secs(20);
                while !ctx.cancelled() && ctx.remaining().is_none_or(|left| !left.is_zero()) {
                    assert!(
                        Instant::now() < limit,
                        "the wait is neither cancelled nor timed out"
                    );
                    std::thread::yield_now();
                }
                Outcome::drop(if ctx.cancelled() { "cancelled" } else { "late" })
            }
            Some("left") => {
                let left = ctx.remaining().expect("the call is limited");
                ctx.histogram("left_ms", left.as_secs_f64() * 1_000.0);
                Outcome::Ack
            }
            Some("trace") => {
                tracing::warn!(answer = 42, "seen {}", "it");
                tracing::debug!("not forwarded");
                Outcome::Ack
            }
            Some("nap") => {
                // Until most of its time is over.
                while ctx
                    .remaining()
                    .is_some_and(|left| left > Duration::from_millis(50))
                {
                    std::thread::yield_now();
                }
                Outcome::Ack
            }
            Some("second") => {
                ctx.emit(Emit::to("out").value(b"x"));
                match ctx.attempt() {
                    1 => return Err(HandlerError::retryable("not at once")),
                    _ => Outcome::Ack,
                }
            }
            Some("bad-name") => {
                ctx.counter("rows-written", 1);
                ctx.counter("rows", 2);
                Outcome::Ack
            }
            Some("nothing") => {
                ctx.emit(Emit::to(""));
                Outcome::Ack
            }
            _ => Outcome::Ack,
        })
    }

    fn health(&mut self) -> Result<()> {
        if self.handled > 100 {
            Err(HandlerError::retryable("tired"))
        } else {
            Ok(())
        }
    }

    fn drain(&mut self, deadline: Duration) -> Result<()> {
        assert!(!deadline.is_zero(), "no time to drain");
        Ok(())
    }
}

fn kit() -> Kit {
    Kit::of::<Obeys>(json!({})).unwrap()
}

#[test]
fn a_lane_waits_behind_a_record_that_did_not_succeed_and_not_behind_one_that_emitted() {
    for (value, blocks) in [
        ("ok", false),
        ("drop", false),
        ("emit", false),
        ("retry", true),
        ("dead", true),
    ] {
        let run = kit().run([
            record("t").lane(1).value(value),
            record("t").lane(2).value("ok"),
            record("t").lane(1).value("ok"),
            record("t").lane(2).value("ok"),
            record("t").lane(1).value("ok"),
        ]);
        let behind = if blocks { Seen::NotRun } else { Seen::Ack };
        assert_eq!(
            run.outcomes[1..],
            [Seen::Ack, behind.clone(), Seen::Ack, behind],
            "after `{value}`"
        );
        let unordered = kit().run([record("t").value(value), record("t").value("ok")]);
        assert_eq!(
            unordered.outcomes[1],
            Seen::Ack,
            "without a lane nothing waits"
        );
    }
}

#[test]
fn outcomes_and_errors_are_returned() {
    let run = kit().run(
        ["retry", "dead", "drop", "parse", "io", "token"]
            .map(|v| record("t").at(4, 9).epoch(3).value(v)),
    );
    assert_eq!(
        run.outcomes,
        [
            Seen::Retry(Some(Duration::from_millis(1)), "later".into()),
            Seen::DeadLetter("broken".into()),
            Seen::Drop("unwanted".into()),
            Seen::DeadLetter("invalid digit found in string".into()),
            Seen::Retry(None, "No such file or directory (os error 2)".into()),
            Seen::Drop("t/4/9 of 3".into()),
        ]
    );
}

#[test]
fn a_panic_leaves_the_rest_not_run_and_a_new_instance_continues() {
    let mut kit = kit();
    let run = kit.run(["ok", "panic", "ok"].map(|value| record("t").value(value)));
    let [Seen::Ack, Seen::Panicked(text), Seen::NotRun] = &run.outcomes[..] else {
        panic!("{run:?}")
    };
    assert!(
        text.starts_with("panic on request (") && text.contains("rules.rs:"),
        "{text}"
    );
    assert!(run.poisoned);
    assert_eq!(kit.run([record("t").value("ok")]).outcomes, [Seen::Ack]);
    assert_eq!(
        kit.gauge("handled"),
        Some(1.0),
        "the new instance counts from the start"
    );
    assert_eq!(
        kit.logs(),
        vec![(Level::Info, "test of handler".to_string()); 2]
    );
}

#[test]
fn a_deadline_and_a_cancellation_reach_the_handler() {
    let mut kit = kit();
    kit.set_timeout(Duration::from_millis(30));
    assert_eq!(
        kit.run([record("t").value("wait")]).outcomes,
        [Seen::Drop("late".into())]
    );
    kit.set_timeout(Duration::ZERO);
    let canceller = kit.canceller();
    let other = std::thread::spawn(move || canceller.cancel_running(Duration::from_secs(10)));
    let run = kit.run([record("t").value("wait"), record("t").value("ok")]);
    assert!(other.join().unwrap());
    assert_eq!(
        run.outcomes,
        [Seen::Drop("cancelled".into()), Seen::NotRun],
        "a cancelled call stops"
    );
}

#[test]
fn each_record_has_the_timeout_for_itself() {
    let mut kit = kit();
    kit.set_timeout(Duration::from_millis(200));
    kit.run(["left", "nap", "left", "nap", "left"].map(|value| record("t").value(value)));
    let left = kit.histogram("left_ms");
    assert_eq!(left.len(), 3);
    assert!(
        left.iter().all(|left| (100.0..=200.0).contains(left)),
        "{left:?}"
    );
    let mut batch = Kit::of_batch::<Sums>(json!({})).unwrap();
    batch.set_timeout(Duration::from_secs(60));
    batch.run([record("t").value("1")]);
    let left = batch.histogram("left_ms");
    assert!(left[0] > 50_000.0, "{left:?}");
}

#[test]
fn what_tracing_writes_is_logged_with_the_record_that_is_handled() {
    let mut kit = kit();
    kit.run(["ok", "trace"].map(|value| record("t").at(3, 7).value(value)));
    assert_eq!(
        kit.logs().last(),
        Some(&(Level::Warn, "seen it".to_owned()))
    );
    let fields: serde_json::Value = serde_json::from_str(kit.log_fields().last().unwrap()).unwrap();
    assert_eq!(fields, json!({ "answer": 42, "record": "t/3/7" }));
    assert_eq!(kit.logs().len(), 2, "and the start, but nothing below INFO");
}

#[test]
fn the_kit_settles_as_the_service_does_and_refuses_what_it_refuses() {
    let mut kit = kit();
    let values = ["second", "ok", "retry", "panic", "dead", "second"];
    let run = kit.settle(values.map(|value| record("t").lane(1).value(value)));
    assert_eq!(
        run.outcomes[..3],
        [Seen::Ack, Seen::Ack, Seen::DeadLetter("later".into())]
    );
    assert!(matches!(&run.outcomes[3], Seen::DeadLetter(why) if why.contains("panic on request")));
    assert_eq!(
        run.outcomes[4..],
        [Seen::DeadLetter("broken".into()), Seen::Ack]
    );
    assert!(run.poisoned);
    let emitted: Vec<usize> = run.emits.iter().map(|emit| emit.record).collect();
    assert_eq!(
        emitted,
        [0, 5],
        "once each, although the first attempts emitted too"
    );
    let run = kit.run([record("t").value("second")]);
    assert!(run.emits.is_empty(), "another attempt follows");
    kit.run([record("t").value("bad-name"), record("t").value("bad-name")]);
    assert_eq!(
        (kit.counter("rows-written"), kit.counter("rows")),
        (0.0, 4.0)
    );
    let (level, why) = kit.logs().pop().unwrap();
    assert!(
        level == Level::Warn && why.contains("`rows-written`"),
        "{why}"
    );
}

#[test]
fn what_no_topic_can_take_is_dead_lettered_at_once() {
    let run = kit().run(["nothing", "ok"].map(|value| record("t").lane(1).value(value)));
    let [Seen::DeadLetter(why), Seen::NotRun] = &run.outcomes[..] else {
        panic!("{run:?}")
    };
    assert!(why.contains("has no topic"), "{why}");
}

#[test]
fn a_stopped_call_finishes_its_current_record() {
    let mut kit = kit();
    kit.set_timeout(Duration::from_millis(300));
    let canceller = kit.canceller();
    let other = std::thread::spawn(move || canceller.stop_running(Duration::from_secs(10)));
    let run = kit.run([record("t").value("wait"), record("t").value("ok")]);
    assert!(other.join().unwrap());
    assert_eq!(
        run.outcomes,
        [Seen::Drop("late".into()), Seen::NotRun],
        "the first is not cancelled, the second not started"
    );
}

#[test]
fn lifecycle_calls_reach_the_handler() {
    let mut kit = kit();
    kit.assigned("t", 0, 1).unwrap();
    assert_eq!(kit.health(), Ok(()));
    kit.run((0..101).map(|_| record("t").value("ok")));
    assert_eq!(kit.health(), Err("tired".into()));
    kit.revoked("t", 0, 1).unwrap();
    assert!(
        kit.drain(Duration::ZERO)
            .unwrap_err()
            .starts_with("no time to drain")
    );
    assert!(
        kit.health().is_err(),
        "an instance that panicked is not called again"
    );
    kit.end().unwrap();
    assert_eq!(
        Kit::of::<Obeys>(json!([])).err().unwrap(),
        "config refused: a config must be a map of keys and values"
    );
}

/// Sums numbers; settles other records individually and leaves the rest to the batch's outcome.
struct Sums;

impl BatchHandler for Sums {
    type Config = ();

    fn new((): (), _: &mut Setup) -> Result<Self> {
        Ok(Self)
    }

    fn handle_batch(&mut self, batch: &Batch<'_>, ctx: &mut BatchContext<'_>) -> Result {
        let mut sum = 0;
        if let Some(deadline) = ctx.deadline() {
            let left = deadline.saturating_duration_since(Instant::now());
            ctx.services()
                .histogram("left_ms", left.as_secs_f64() * 1_000.0);
        }
        for (index, record) in batch.iter().enumerate() {
            match record.json::<u64>() {
                Ok(number) => sum += number,
                Err(error) => ctx.settle(index, &error.into()),
            }
        }
        let text = sum.to_string();
        ctx.emit(batch.len() - 1, Emit::to("sums").value(text.as_bytes()));
        Ok(Outcome::Ack)
    }
}

#[test]
fn a_batch_outcome_applies_to_records_without_their_own() {
    let mut kit = Kit::of_batch::<Sums>(json!({})).unwrap();
    let run = kit.run(["1", "x", "41"].map(|value| record("t").lane(1).value(value)));
    assert!(
        matches!(
            run.outcomes[..],
            [Seen::Ack, Seen::DeadLetter(_), Seen::Ack]
        ),
        "{run:?}"
    );
    assert_eq!(
        (run.emits[0].record, run.emits[0].value.as_deref()),
        (2, Some(&b"42"[..]))
    );
    assert!(
        kit.run([]).outcomes.is_empty(),
        "an empty call does not reach the handler"
    );
}

#[cfg(feature = "async")]
mod overlapping {
    use std::cell::Cell;

    use super::*;
    use sluicegate_sdk::AsyncHandler;

    /// Waits for the value's number of milliseconds, and counts concurrent waits.
    struct Waits {
        now: Cell<u32>,
        most: Cell<u32>,
    }

    impl AsyncHandler for Waits {
        type Config = ();
        const CONCURRENCY: usize = 4;

        async fn new((): (), _: &mut Setup) -> Result<Self> {
            Ok(Self {
                now: Cell::new(0),
                most: Cell::new(0),
            })
        }

        async fn handle(&self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
            self.now.set(self.now.get() + 1);
            self.most.set(self.most.get().max(self.now.get()));
            ctx.gauge("most", f64::from(self.most.get()));
            let millis = record.json();
            if let Ok(millis) = millis {
                assert!(millis > 0, "no wait");
                sluicegate_sdk::tokio::time::sleep(Duration::from_millis(millis)).await;
                ctx.emit(Emit::to("out").value(record.offset().to_string().as_bytes()));
            }
            self.now.set(self.now.get() - 1);
            millis.map(|_| Outcome::Ack)
        }
    }

    #[test]
    fn waits_overlap_up_to_the_limit_and_finish_in_any_order() {
        let mut kit = Kit::of_async::<Waits>(json!({})).unwrap();
        let run =
            kit.run((0..10).map(|i| record("t").at(0, i).value(if i == 0 { "60" } else { "5" })));
        assert_eq!(run.outcomes, vec![Seen::Ack; 10]);
        assert_eq!(kit.gauge("most"), Some(4.0));
        assert_eq!(run.emits.len(), 10);
        assert_ne!(run.emits[0].record, 0, "the first record waits longest");
    }

    #[test]
    fn a_lane_runs_one_record_at_a_time_and_waits_behind_an_open_one() {
        let mut kit = Kit::of_async::<Waits>(json!({})).unwrap();
        let run = kit.run(["x", "5", "5", "5"].map(|value| record("t").lane(1).value(value)));
        assert!(matches!(run.outcomes[0], Seen::DeadLetter(_)));
        assert_eq!(
            run.outcomes[1..],
            [Seen::NotRun, Seen::NotRun, Seen::NotRun]
        );
        assert_eq!(kit.gauge("most"), Some(1.0));
    }

    #[test]
    fn a_panic_lets_running_records_finish_and_starts_no_more() {
        let mut kit = Kit::of_async::<Waits>(json!({})).unwrap();
        let run =
            kit.run(["20", "0", "20", "20", "20", "20"].map(|value| record("t").value(value)));
        assert!(run.poisoned);
        assert!(matches!(&run.outcomes[1], Seen::Panicked(text) if text.starts_with("no wait (")));
        assert_eq!(
            (&run.outcomes[0], &run.outcomes[2]),
            (&Seen::Ack, &Seen::Ack)
        );
        assert_eq!(run.outcomes[5], Seen::NotRun);
    }

    #[test]
    fn a_cancelled_wait_ends_long_before_it_would_be_over() {
        let mut kit = Kit::of_async::<Waits>(json!({})).unwrap();
        kit.set_timeout(Duration::ZERO);
        let canceller = kit.canceller();
        let other = std::thread::spawn(move || canceller.cancel_running(Duration::from_secs(10)));
        let begun = Instant::now();
        let run = kit.run([record("t").value("60000")]);
        assert!(other.join().unwrap());
        assert_ne!(run.outcomes, [Seen::Ack]);
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_wait_beyond_the_timeout_is_retried() {
        let mut kit = Kit::of_async::<Waits>(json!({})).unwrap();
        kit.set_timeout(Duration::from_millis(100));
        let run = kit.run(["1", "60000"].map(|value| record("t").value(value)));
        assert_eq!(
            run.outcomes,
            [
                Seen::Ack,
                Seen::Retry(None, "not finished within the timeout".into())
            ]
        );
    }
}

/// Emits once its call is cancelled.
struct Late;

impl Handler for Late {
    type Config = ();

    fn new((): (), _setup: &mut Setup) -> sluicegate_sdk::Result<Self> {
        Ok(Self)
    }

    fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> sluicegate_sdk::Result {
        while !ctx.cancelled() {
            std::thread::yield_now();
        }
        ctx.emit(Emit::copy_of(record, "out"));
        Ok(Outcome::Ack)
    }
}

#[test]
fn a_record_that_emits_after_its_time_is_over_has_failed_an_attempt() {
    let mut kit = Kit::of::<Late>(json!(null)).unwrap();
    let canceller = kit.canceller();
    let other = std::thread::spawn(move || canceller.cancel_running(Duration::from_secs(10)));
    let run = kit.run([record("t").value("a")]);
    assert!(other.join().unwrap());
    assert!(
        matches!(&run.outcomes[..], [Seen::Retry(None, why)] if why.contains("after its timeout")),
        "{:?}",
        run.outcomes
    );
    assert!(run.emits.is_empty());
}

/// Emits 2 MB for each record, in passes over all of them.
struct Passes;

impl BatchHandler for Passes {
    type Config = ();

    fn new((): (), _setup: &mut Setup) -> sluicegate_sdk::Result<Self> {
        Ok(Self)
    }

    fn handle_batch(
        &mut self,
        batch: &Batch<'_>,
        ctx: &mut BatchContext<'_>,
    ) -> sluicegate_sdk::Result {
        let large = vec![b'x'; 100_000];
        for _ in 0..20 {
            for (index, record) in batch.iter().enumerate() {
                ctx.emit(index, Emit::copy_of(&record, "out").value(&large));
            }
        }
        Ok(Outcome::Ack)
    }
}

#[test]
fn records_that_emit_more_together_than_a_call_may_are_settled_alone() {
    let mut kit = Kit::of_batch::<Passes>(json!(null)).unwrap();
    let run = kit.settle((0..40).map(|offset| record("t").at(0, offset)));
    assert!(run.outcomes.iter().all(|outcome| *outcome == Seen::Ack));
    assert_eq!(run.emits.len(), 40 * 20);
}

/// Settles each record, then emits for it once the call is cancelled.
struct EmitsAfterwards;

impl BatchHandler for EmitsAfterwards {
    type Config = ();

    fn new((): (), _setup: &mut Setup) -> sluicegate_sdk::Result<Self> {
        Ok(Self)
    }

    fn handle_batch(
        &mut self,
        batch: &Batch<'_>,
        ctx: &mut BatchContext<'_>,
    ) -> sluicegate_sdk::Result {
        ctx.settle(0, &Outcome::Ack);
        ctx.settle(1, &Outcome::retry("on purpose"));
        ctx.settle(2, &Outcome::Ack);
        ctx.emit(2, Emit::copy_of(&batch.record(2), ""));
        while !ctx.cancelled() {
            std::thread::yield_now();
        }
        ctx.emit(0, Emit::copy_of(&batch.record(0), "out"));
        ctx.emit(1, Emit::copy_of(&batch.record(1), "out"));
        Ok(Outcome::Ack)
    }
}

#[test]
fn what_a_batch_emits_for_a_settled_record_changes_its_outcome_unless_it_is_a_retry() {
    let mut kit = Kit::of_batch::<EmitsAfterwards>(json!(null)).unwrap();
    kit.set_timeout(Duration::ZERO);
    let canceller = kit.canceller();
    let other = std::thread::spawn(move || canceller.cancel_running(Duration::from_secs(10)));
    let run = kit.run((0..3).map(|offset| record("t").at(0, offset)));
    assert!(other.join().unwrap());
    let [
        Seen::Retry(None, late),
        Seen::Retry(None, own),
        Seen::DeadLetter(denied),
    ] = &run.outcomes[..]
    else {
        panic!("{:?}", run.outcomes);
    };
    assert!(late.contains("after its timeout"), "{late}");
    assert_eq!(own, "on purpose");
    assert!(denied.contains("cannot be produced"), "{denied}");
}
