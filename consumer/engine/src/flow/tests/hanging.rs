//! Calls that hang: which records count, which have failed, and which run again.

use super::*;

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
    bench.flow.receive(PumpMessage::CallTimedOut {
        handler: HandlerIx(0),
        batch: hung.id,
        published: Published {
            outcomes: outcomes.into(),
            current: 2,
        },
    });
    bench.flow.dispatch();
    assert_eq!(bench.frontier(), 1);
    assert_eq!(
        bench.finish(0, |_| ACK),
        vec![1, 4],
        "without an attempt counted"
    );
    bench.flow.tick(100);
    bench.flow.dispatch();
    let parked = bench.pools[0].taken.lock().unwrap();
    let again = parked.iter().flat_map(|batch| &batch.records);
    let again: Vec<_> = again
        .map(|record| (record.offset, record.attempt))
        .collect();
    assert_eq!(again, [(2, 2)], "the one to blame");
}

#[test]
fn a_hang_of_a_batch_handler_fails_all_its_records_which_then_run_alone() {
    let mut bench = Bench::new(1);
    bench.apply(|_, settings| {
        generation_of(settings).takes_batches = true;
        true
    });
    bench.deliver(0..4, |offset| Some(offset.to_string()));
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    assert_eq!(hung.keys.len(), 4);
    bench.flow.receive(PumpMessage::CallTimedOut {
        handler: HandlerIx(0),
        batch: hung.id,
        published: Published {
            outcomes: vec![RawOutcome::default(); 4],
            current: 3,
        },
    });
    bench.flow.dispatch();
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
    bench.flow.receive(PumpMessage::CallTimedOut {
        handler: HandlerIx(0),
        batch: hung.id,
        published: Published::up_to(completed),
    });
    bench.flow.dispatch();
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
