//! Changes of a handler's order while records are under way.

use super::*;
use crate::emit::FailureKind;
use crate::status::WaitsFor;

/// Settings with another order.
fn ordered(order: Order) -> impl Fn(usize, &mut HandlerSettings) -> bool {
    move |_, settings| {
        settings.order = order;
        true
    }
}

/// As [`ordered`], with another generation.
fn renewed(order: Order, number: u64) -> impl Fn(usize, &mut HandlerSettings) -> bool {
    move |_, settings| {
        settings.order = order;
        generation_of(settings).number = number;
        true
    }
}

#[test]
fn a_retry_comes_before_later_records_of_its_key_in_another_order() {
    for (before, after) in [
        (Order::Partition, Order::Key),
        (Order::Key, Order::Partition),
        (Order::Unordered, Order::Key),
    ] {
        let mut bench = Bench::new(1);
        bench.apply(ordered(before));
        bench.deliver(0..1, |_| Some("a".to_owned()));
        assert_eq!(bench.finish(0, |_| outcome_code::RETRY), [0]);
        bench.apply(|_, settings| {
            settings.order = after;
            generation_of(settings).number = 2;
            true
        });
        bench.deliver(1..3, |_| Some("a".to_owned()));
        assert_eq!(
            bench.finish(0, |_| ACK),
            [0; 0],
            "{before:?} to {after:?}: the first is parked"
        );
        bench.flow.tick(100);
        bench.flow.dispatch();
        assert_eq!(bench.finish(0, |_| ACK), [0]);
        assert_eq!(bench.finish(0, |_| ACK), [1, 2]);
        assert_eq!(bench.frontier(), 3);
    }
}

#[test]
fn another_order_does_not_wait_for_a_dead_letter() {
    let mut bench = Bench::new(1);
    bench.apply(ordered(Order::Unordered));
    bench.deliver(0..1, |_| Some("a".to_owned()));
    assert_eq!(bench.finish(0, |_| outcome_code::DEAD_LETTER), [0]);
    bench.apply(ordered(Order::Key));
    let key = |offset: i64| Some(if offset == 3 { "b" } else { "a" }.to_owned());
    bench.deliver(1..4, key);
    assert_eq!(bench.finish(0, |_| ACK), [3], "another key");
    assert_eq!(bench.waits_for(Some(1)), WaitsFor::Lane { behind: 0 });
    assert_eq!(bench.answer_producer(), ["t.dlt"]);
    assert_eq!(
        bench.finish(0, |_| ACK),
        [1, 2],
        "no other record has to arrive"
    );
    assert_eq!(bench.frontier(), 4);
}

#[test]
fn another_order_waits_for_the_calls_under_way() {
    let mut bench = Bench::new(1);
    bench.apply(ordered(Order::Key));
    bench.deliver(0..1, |_| Some("a".to_owned()));
    bench.apply(ordered(Order::Partition));
    bench.deliver(1..2, |_| Some("b".to_owned()));
    assert_eq!(bench.waits_for(Some(1)), WaitsFor::Order);
    assert_eq!(bench.finish(0, |_| outcome_code::RETRY), [0]);
    assert_eq!(
        bench.finish(0, |_| ACK),
        [0; 0],
        "it waits behind the first"
    );
    bench.flow.tick(100);
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| ACK), [0]);
    assert_eq!(bench.finish(0, |_| ACK), [1]);
    assert_eq!(bench.frontier(), 2);
}

#[test]
fn retries_do_not_delay_another_order() {
    let mut bench = Bench::new(1);
    bench.apply(ordered(Order::Key));
    // Two calls at once: the second is not over while the first is retried.
    bench.deliver(0..1, |_| Some("a".to_owned()));
    assert_eq!(bench.finish(0, |_| outcome_code::RETRY), [0]);
    bench.deliver(1..2, |_| Some("b".to_owned()));
    bench.apply(ordered(Order::Unordered));
    bench.deliver(2..3, |_| Some("c".to_owned()));
    bench.flow.tick(100);
    bench.flow.dispatch();
    assert_eq!(
        bench.finish(0, |_| ACK),
        [1],
        "the retry is due, but not started under the order before"
    );
    let mut ran = bench.finish(0, |_| ACK);
    ran.sort_unstable();
    assert_eq!(ran, [0, 2]);
    assert_eq!(bench.frontier(), 3);
}

#[test]
fn shares_of_several_lanes_follow_one_another_in_their_new_lane() {
    let mut bench = Bench::new(1);
    bench.apply(ordered(Order::Key));
    bench.deliver(0..3, |offset| Some(offset.to_string()));
    assert_eq!(bench.finish(0, |_| outcome_code::RETRY), [0, 1, 2]);
    bench.apply(ordered(Order::Partition));
    bench.deliver(3..4, |_| Some("d".to_owned()));
    let mut ran = Vec::new();
    for now_ms in 100..104 {
        bench.flow.tick(now_ms);
        bench.flow.dispatch();
        ran.push(bench.finish(0, |_| ACK));
    }
    assert_eq!(ran, [[0], [1], [2], [3]]);
    assert_eq!(bench.frontier(), 4);
}

#[test]
fn an_order_that_is_reverted_leaves_no_lane_closed() {
    let mut bench = Bench::new(1);
    bench.apply(ordered(Order::Key));
    bench.deliver(0..3, |_| Some("a".to_owned()));
    bench.apply(ordered(Order::Partition));
    let mut batch = bench.pools[0].taken.lock().unwrap().remove(0);
    batch.not_run();
    bench.flow.receive(PumpMessage::Finished(batch));
    bench.apply(ordered(Order::Key));
    bench.deliver(3..4, |_| Some("a".to_owned()));
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| ACK), [0, 1, 2]);
    assert_eq!(bench.finish(0, |_| ACK), [3]);
    assert_eq!(bench.frontier(), 4);
}

#[test]
fn a_record_that_runs_again_behind_another_one_leaves_no_lane_closed() {
    let mut bench = Bench::new(1);
    bench.deliver(0..1, |_| Some("a".to_owned()));
    assert_eq!(bench.finish(0, |_| outcome_code::DEAD_LETTER), [0]);
    bench.deliver(1..2, |_| Some("b".to_owned()));
    bench.finish_emitting(ACK, 1);
    // The dead letter and the emits: both are refused.
    bench.answer(|_, _| Some(FailureKind::Target));
    bench.apply(renewed(Order::Partition, 2));
    bench.deliver(2..3, |_| Some("c".to_owned()));
    bench.flow.tick(1_000);
    bench.flow.dispatch();
    bench.answer(|_, _| None);
    assert_eq!(finish_all(&mut bench), [1, 2]);
    assert_eq!(bench.frontier(), 3);
}

#[test]
fn a_record_that_runs_again_and_is_returned_unrun_leaves_no_lane_closed() {
    let moved: fn(&mut Bench) = |bench| bench.apply(renewed(Order::Partition, 2));
    let batches: fn(&mut Bench) = |bench| {
        bench.apply(|_, settings| {
            generation_of(settings).number = 2;
            generation_of(settings).takes_batches = true;
            true
        });
    };
    for (what, changes) in [("another order", moved), ("batches", batches)] {
        let mut bench = Bench::new(1);
        bench.apply(|_, settings| {
            generation_of(settings).takes_batches = what == "batches";
            true
        });
        bench.deliver(0..1, |_| Some("a".to_owned()));
        bench.finish_emitting(ACK, 1);
        bench.answer(|_, _| Some(FailureKind::Target));
        changes(&mut bench);
        bench.deliver(1..2, |_| Some("a".to_owned()));
        bench.flow.tick(1_000);
        bench.flow.dispatch();
        assert_eq!(bench.finish(0, |_| outcome_code::NOT_RUN), [0; 0], "{what}");
        assert_eq!(finish_all(&mut bench), [0, 1], "{what}");
        assert_eq!(bench.frontier(), 2, "{what}");
    }
}

#[test]
fn a_record_that_was_returned_unrun_waits_for_the_change_of_order() {
    let mut bench = Bench::new(1);
    bench.deliver(0..1, |_| Some("a".to_owned()));
    bench.deliver(1..2, |_| Some("b".to_owned()));
    bench.apply(ordered(Order::Partition));
    let mut batch = bench.pools[0].taken.lock().unwrap().remove(1);
    batch.not_run();
    bench.flow.receive(PumpMessage::Finished(batch));
    bench.flow.dispatch();
    assert_eq!(bench.waits_for(Some(1)), WaitsFor::Order);
}

#[test]
fn a_record_that_has_not_run_comes_before_a_parked_one_behind_it_in_another_order() {
    let mut bench = Bench::new(1);
    bench.apply(ordered(Order::Unordered));
    bench.deliver(0..1, |_| Some("a".to_owned()));
    bench.deliver(1..2, |_| Some("a".to_owned()));
    let fails = |offset: i64| match offset {
        1 => outcome_code::RETRY,
        _ => outcome_code::NOT_RUN,
    };
    assert_eq!(bench.finish(0, fails), [1]);
    bench.apply(ordered(Order::Key));
    bench.flow.tick(10_000);
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| outcome_code::NOT_RUN), [0; 0]);
    assert_eq!(bench.waits_for(Some(1)), WaitsFor::Lane { behind: 0 });
    assert_eq!(
        finish_all(&mut bench),
        [0, 1],
        "also after a call that did not run it"
    );
    assert_eq!(bench.frontier(), 2);
}

#[test]
fn a_record_that_has_not_run_comes_before_one_that_runs_again_in_another_order() {
    let mut bench = Bench::new(1);
    bench.apply(ordered(Order::Unordered));
    bench.deliver(0..1, |_| Some("a".to_owned()));
    bench.deliver(1..2, |_| Some("a".to_owned()));
    let mut first = bench.pools[0].taken.lock().unwrap().remove(0);
    bench.finish_emitting(ACK, 1);
    bench.answer(|_, _| Some(FailureKind::Target));
    first.not_run();
    bench.flow.receive(PumpMessage::Finished(first));
    bench.apply(renewed(Order::Key, 2));
    assert_eq!(finish_all(&mut bench), [0, 1]);
    assert_eq!(bench.frontier(), 2);
}
