//! Plugin results that would make the loop spin: unbounded retry delays, and calls that run no record.

use super::*;

#[test]
fn an_unbounded_retry_delay_is_capped() {
    let mut bench = Bench::new(1);
    bench.flow.tick(1_000);
    bench.deliver(0..1, |_| None);
    let mut batch = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    batch.outcomes = vec![RawOutcome {
        code: outcome_code::RETRY,
        arg: u64::MAX,
        ..RawOutcome::default()
    }];
    bench.flow.receive(PumpMessage::Finished(batch));
    bench.flow.dispatch();
    let hour = 60 * 60 * 1_000;
    assert_eq!(bench.flow.next_due(), Some(1_000 + hour));
    bench.flow.tick(999 + hour);
    bench.flow.dispatch();
    assert!(bench.pools[0].taken.lock().unwrap().is_empty());
    bench.flow.tick(1_000 + hour);
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| ACK), vec![0]);
}

#[test]
fn a_handler_whose_calls_run_no_record_backs_off_exponentially() {
    let mut bench = Bench::new(1);
    bench.deliver(0..5, |offset| Some(offset.to_string()));
    let mut calls = 0;
    for now_ms in 0..10_000 {
        bench.flow.tick(now_ms);
        bench.flow.dispatch();
        let taken: Vec<_> = std::mem::take(&mut *bench.pools[0].taken.lock().unwrap());
        for mut batch in taken {
            calls += 1;
            batch.outcomes = vec![RawOutcome::default(); batch.records.len()];
            batch.elapsed_us = 1;
            bench.flow.receive(PumpMessage::Finished(batch));
        }
        bench.flow.dispatch();
    }
    assert!((10..30).contains(&calls), "{calls} calls in 10 s");
    bench.flow.tick(20_000);
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| ACK).len(), 1, "one finds out");
    assert_eq!(bench.finish(0, |_| ACK).len(), 4);
    assert_eq!(bench.frontier(), 5);
    bench.deliver(5..6, |_| None);
    assert_eq!(
        bench.finish(0, |_| ACK),
        vec![5],
        "a call that runs records ends the backoff"
    );
}
