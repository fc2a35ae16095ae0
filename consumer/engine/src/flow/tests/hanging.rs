//! Calls that hang: which records count, which have failed, and which run again.

use super::*;

/// The call is abandoned; this is what it has published.
fn time_out(bench: &mut Bench, hung: &Batch, published: Published) {
    bench.flow.receive(PumpMessage::CallTimedOut {
        handler: HandlerIx(0),
        batch: hung.id,
        published,
    });
    bench.flow.dispatch();
}

#[test]
fn records_that_an_overlapping_call_has_finished_count_wherever_it_hangs() {
    let mut bench = Bench::new(1);
    bench.deliver(0..5, |offset| Some(offset.to_string()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    let codes = [
        ACK,
        outcome_code::NOT_RUN,
        outcome_code::NOT_RUN,
        ACK,
        outcome_code::NOT_RUN,
    ];
    let outcomes = codes.map(|code| RawOutcome {
        code,
        ..RawOutcome::default()
    });
    time_out(
        &mut bench,
        &hung,
        Published {
            outcomes: outcomes.into(),
            current: 2,
        },
    );
    assert_eq!(bench.frontier(), 1);
    assert_eq!(
        bench.finish(0, |_| ACK),
        vec![1, 4],
        "without an attempt counted"
    );
    assert_eq!(attempts_later(&mut bench), [(2, 2)], "the one to blame");
}

#[test]
fn a_hang_of_a_batch_handler_fails_all_its_records_which_then_run_alone() {
    let mut bench = Bench::of_batches();
    bench.deliver(0..4, |offset| Some(offset.to_string()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    assert_eq!(hung.keys.len(), 4);
    time_out(
        &mut bench,
        &hung,
        Published {
            outcomes: vec![RawOutcome::default(); 4],
            current: 3,
        },
    );
    assert_eq!(bench.finish(0, |_| ACK), [0_i64; 0], "after a backoff");
    bench.flow.tick(1_000);
    bench.flow.dispatch();
    let taken = bench.pools[0].taken.lock().unwrap();
    let calls: Vec<Vec<_>> = (taken.iter())
        .map(|batch| {
            let records = batch.records.iter();
            records
                .map(|record| (record.offset, record.attempt))
                .collect()
        })
        .collect();
    assert!(calls.iter().all(|call| call.len() == 1), "{calls:?}");
    assert!(
        calls.concat().iter().all(|(_, attempt)| *attempt == 2),
        "{calls:?}"
    );
}

#[test]
fn a_hung_call_fails_only_the_record_it_hangs_on() {
    let mut bench = Bench::new(1);
    bench.deliver(0..5, |offset| Some(offset.to_string()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    let completed = vec![
        RawOutcome {
            code: ACK,
            ..RawOutcome::default()
        };
        2
    ];
    time_out(&mut bench, &hung, Published::up_to(completed));
    assert_eq!(bench.frontier(), 2);
    assert_eq!(bench.finish(0, |_| ACK), vec![3, 4]);
    bench.flow.tick(100);
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| ACK), vec![2]);
    assert_eq!(bench.frontier(), 5);
    assert!(
        bench.flow.held_records() > 0,
        "the hung call still points to its records"
    );
    bench.flow.receive(PumpMessage::Finished(hung));
    assert_eq!((bench.flow.held_records(), bench.flow.charged()), (0, 0));
    assert_eq!(bench.frontier(), 5, "its late outcomes change nothing");
}

#[test]
fn a_batch_handler_that_hangs_after_its_last_outcome_has_failed_all_its_records() {
    let mut bench = Bench::of_batches();
    bench.deliver(0..3, |offset| Some(offset.to_string()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    time_out(
        &mut bench,
        &hung,
        Published {
            outcomes: vec![acked(); 3],
            current: 2,
        },
    );
    assert_eq!(bench.finish(0, |_| ACK), [0_i64; 0], "after a backoff");
    assert_eq!(attempts_later(&mut bench), [(0, 2), (1, 2), (2, 2)]);
}

#[test]
fn a_retry_counts_in_a_call_that_hangs_later_although_the_attempt_has_emitted() {
    let mut bench = Bench::new(1);
    bench.deliver(0..2, |offset| Some(offset.to_string()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    let retry = RawOutcome {
        code: outcome_code::RETRY,
        flags: sluicegate_runtime::outcome_flag::EMITTED,
        ..RawOutcome::default()
    };
    time_out(&mut bench, &hung, Published::up_to(vec![retry]));
    assert_eq!(attempts_later(&mut bench), [(0, 2), (1, 2)]);
}

/// Offsets and attempts of what is called 1 s later, in order.
fn attempts_later(bench: &mut Bench) -> Vec<(i64, u32)> {
    bench.flow.tick(1_000);
    bench.flow.dispatch();
    let taken = bench.pools[0].taken.lock().unwrap();
    let records = taken.iter().flat_map(|batch| &batch.records);
    let mut all: Vec<_> = records
        .map(|record| (record.offset, record.attempt))
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn after_a_call_that_ran_nothing_each_record_is_called_alone() {
    let mut bench = Bench::new(1);
    bench.deliver(0..40, |offset| Some(offset.to_string()));
    let sizes = |bench: &Bench| -> Vec<usize> {
        let taken = bench.pools[0].taken.lock().unwrap();
        taken.iter().map(|batch| batch.keys.len()).collect()
    };
    assert!(
        sizes(&bench).iter().any(|size| *size > 1),
        "{:?}",
        sizes(&bench)
    );
    let taken = std::mem::take(&mut *bench.pools[0].taken.lock().unwrap());
    for mut batch in taken {
        batch.outcomes = vec![RawOutcome::default(); batch.keys.len()];
        batch.elapsed_us = 1;
        bench.flow.receive(PumpMessage::Finished(batch));
    }
    bench.flow.tick(60_000);
    bench.flow.dispatch();
    assert_eq!(sizes(&bench), [1], "one call finds out");
    bench.finish(0, |_| ACK);
    assert!(sizes(&bench).iter().sum::<usize>() > 1, "it continues");
    for _ in 0..40 {
        bench.finish(0, |_| ACK);
    }
    assert_eq!(bench.frontier(), 40);
}

/// G4: what a batch handler has settled in a call that hangs runs again, and before the failed records of its key.
#[test]
fn a_batch_handler_that_hangs_runs_the_records_of_a_key_again_in_order() {
    let mut bench = Bench::of_batches();
    bench.deliver(0..3, |_| Some("a".to_owned()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    time_out(
        &mut bench,
        &hung,
        Published {
            outcomes: vec![acked(), RawOutcome::default(), RawOutcome::default()],
            current: 0,
        },
    );
    assert_eq!(finish_all(&mut bench), [0, 1, 2]);
    assert_eq!(bench.frontier(), 3);
}

/// G4, the same for a call that returns: a record that found no room in it comes before a failed one of its key.
#[test]
fn a_record_of_a_batch_that_was_not_run_comes_before_a_failed_one_behind_it() {
    let mut bench = Bench::of_batches();
    bench.deliver(0..2, |_| Some("a".to_owned()));
    let fails = |offset: i64| match offset {
        0 => outcome_code::NOT_RUN,
        _ => outcome_code::RETRY,
    };
    assert_eq!(bench.finish(0, fails), [1]);
    assert_eq!(finish_all(&mut bench), [0, 1]);
    assert_eq!(bench.frontier(), 2);
}
