//! Handlers that are switched off or removed: healthy ones finish, failed or hung ones release their records.

use super::*;

/// Ten records for two handlers; the first has acknowledged all, the second has failed.
fn half_done() -> Bench {
    let mut bench = Bench::new(2);
    bench.deliver(0..10, |offset| Some((offset % 3).to_string()));
    bench.finish(0, |_| ACK);
    bench.finish(1, |_| outcome_code::NOT_RUN);
    bench.fail(1, true);
    // The resubmitted batch is returned when the pool trips.
    bench.finish(1, |_| outcome_code::NOT_RUN);
    bench.deliver(10..20, |offset| Some((offset % 3).to_string()));
    bench.finish(0, |_| ACK);
    assert_eq!(bench.frontier(), 0);
    bench
}

#[test]
fn a_failed_handler_that_is_switched_off_releases_its_partition() {
    let mut bench = half_done();
    bench.apply(|place, handler| {
        handler.gate_open = place != 1;
        true
    });
    assert_eq!(bench.frontier(), 20, "at once: nothing runs its records");
    assert_eq!(bench.skipped(1), 20);
    assert_eq!((bench.flow.held_records(), bench.flow.charged()), (0, 0));
    bench.deliver(20..30, |_| None);
    bench.finish(0, |_| ACK);
    assert_eq!((bench.frontier(), bench.skipped(1)), (30, 30));
    // It is repaired and switched on again: its lanes are free.
    bench.fail(1, false);
    bench.apply(|_, _| true);
    bench.deliver(30..40, |offset| Some((offset % 3).to_string()));
    bench.finish(0, |_| ACK);
    assert_eq!(bench.finish(1, |_| ACK).len(), 10);
    assert_eq!((bench.frontier(), bench.skipped(1)), (40, 30));
}

#[test]
fn a_failed_handler_that_is_removed_releases_its_partition_and_is_dropped() {
    let mut bench = half_done();
    bench.apply(|place, _| place != 1);
    assert_eq!(bench.frontier(), 20);
    let report = bench
        .flow
        .report(crate::clock::WallClock { epoch_ms: 0 }, |_| None);
    assert_eq!(report.handlers.len(), 1, "{:?}", report.handlers);
}

#[test]
fn a_handler_that_fails_while_it_is_off_releases_its_partition_soon() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |offset| Some(offset.to_string()));
    bench.apply(|_, handler| {
        handler.gate_open = false;
        true
    });
    assert_eq!(
        bench
            .finish(0, |offset| if offset < 4 {
                ACK
            } else {
                outcome_code::RETRY
            })
            .len(),
        10
    );
    assert_eq!(bench.frontier(), 4, "started records may finish");
    bench.fail(0, true);
    bench.flow.tick(60);
    assert_eq!((bench.frontier(), bench.skipped(0)), (10, 6));
    assert_eq!(bench.flow.held_records(), 0);
}

#[test]
fn a_healthy_handler_that_is_switched_off_finishes_its_records() {
    let mut bench = Bench::new(1);
    bench.deliver(0..100, |_| Some("k".to_owned()));
    bench.apply(|_, handler| {
        handler.gate_open = false;
        true
    });
    // Slowly, but a record settles now and then.
    let mut ran = Vec::new();
    for turn in 1..200 {
        bench.flow.tick(turn * 4_000);
        let first = ran.len() as i64;
        ran.extend(bench.finish(0, |offset| {
            if offset == first {
                ACK
            } else {
                outcome_code::NOT_RUN
            }
        }));
    }
    assert_eq!(ran, (0..100).collect::<Vec<i64>>());
    assert_eq!((bench.frontier(), bench.skipped(0)), (100, 0));
}

#[test]
fn hung_calls_are_abandoned_after_the_drain_timeout_and_their_outcomes_discarded() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |offset| Some(offset.to_string()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    bench.apply(|_, _| false);
    bench.flow.tick(4_900);
    assert_eq!(bench.frontier(), 0, "the call may still end");
    bench.flow.tick(5_100);
    assert_eq!(bench.frontier(), 10);
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    assert!(bench.flow.report(clock, |_| None).handlers.is_empty());
    bench.pools[0].taken.lock().unwrap().push(hung);
    bench.finish(0, |_| outcome_code::RETRY);
    assert_eq!((bench.flow.held_records(), bench.flow.charged()), (0, 0));
    assert!(bench.flow.fault().is_none());
}

#[test]
fn an_abandoned_call_does_not_keep_its_partition_from_another_offset() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |offset| Some(offset.to_string()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    assert!(!bench.flow.is_unused(bench.slot));
    bench.apply(|_, _| false);
    bench.flow.tick(5_100);
    assert!(bench.flow.held_records() > 0, "the call has their memory");
    assert!(bench.flow.is_unused(bench.slot));
    bench.flow.restart(bench.slot, 5, 0, true);
    bench.apply(|_, _| true);
    bench.deliver(5..8, |offset| Some(offset.to_string()));
    let current = std::mem::take(&mut *bench.pools[0].taken.lock().unwrap());
    bench.pools[0].taken.lock().unwrap().push(hung);
    bench.finish(0, |_| ACK);
    assert_eq!(bench.frontier(), 5, "its outcomes are discarded");
    *bench.pools[0].taken.lock().unwrap() = current;
    assert_eq!(bench.finish(0, |_| ACK), [5, 6, 7]);
    assert_eq!((bench.frontier(), bench.flow.held_records()), (8, 0));
    assert!(bench.flow.fault().is_none());
}

#[test]
fn a_late_batch_of_a_removed_handler_is_not_taken_for_one_of_its_successor() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |offset| Some(offset.to_string()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    bench.apply(|_, _| false);
    bench.flow.tick(5_100);
    assert_eq!(bench.frontier(), 10, "the call is abandoned");
    // The handler is declared again under the same name, which has the same place.
    bench.apply(|_, _| true);
    bench.deliver(10..20, |offset| Some(offset.to_string()));
    let current = std::mem::take(&mut *bench.pools[0].taken.lock().unwrap());
    assert_ne!(hung.id, current[0].id);
    bench.pools[0].taken.lock().unwrap().push(hung);
    bench.finish(0, |_| ACK);
    assert_eq!(bench.frontier(), 10, "its outcomes are discarded");
    *bench.pools[0].taken.lock().unwrap() = current;
    assert_eq!(bench.finish(0, |_| ACK), (10..20).collect::<Vec<i64>>());
    assert_eq!((bench.frontier(), bench.flow.held_records()), (20, 0));
}

#[test]
fn a_failed_handler_with_a_dead_letter_policy_dead_letters_its_records_instead() {
    let mut bench = Bench::new(1);
    let dead_letters = |handler: &mut HandlerSettings| {
        handler.on_failure = OnFailure::DeadLetter;
        handler.retry.delay = Duration::from_secs(1_000);
        handler.retry.max_delay = Duration::from_secs(1_000);
        true
    };
    bench.apply(|_, handler| dead_letters(handler));
    bench.deliver(0..6, |offset| Some(offset.to_string()));
    bench.finish(0, |_| outcome_code::RETRY);
    bench.deliver(6..10, |offset| Some(offset.to_string()));
    bench.fail(0, true);
    bench.finish(0, |_| outcome_code::NOT_RUN);
    bench.apply(|_, handler| {
        handler.gate_open = false;
        dead_letters(handler)
    });
    assert_eq!(bench.frontier(), 0, "not before they are acknowledged");
    assert_eq!(bench.answer_producer().len(), 10);
    assert_eq!((bench.frontier(), bench.skipped(0)), (10, 0));
}

#[test]
fn records_that_no_handler_takes_are_delivered_once() {
    let mut bench = Bench::new(1);
    bench.apply(|_, handler| {
        handler.gate_open = false;
        true
    });
    bench.deliver(0..10, |_| None);
    assert_eq!((bench.frontier(), bench.skipped(0)), (10, 10));
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    let topics = bench.flow.report(clock, |_| None).topics;
    assert_eq!((topics[0].consumed, topics[0].repeats_dropped), (10, 0));
}
