//! Assignments that end, while some of their records are still in a call.

use super::*;

#[test]
fn a_process_does_not_grow_with_the_number_of_its_rebalances() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |_| None);
    let hung = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    let mut ids = std::collections::BTreeSet::from([bench.slot]);
    for epoch in 2..1_000 {
        bench.flow.release(&[bench.slot]);
        bench.slot = bench.flow.assign(NewAssignment::first(at(), 0, epoch));
        assert!(ids.insert(bench.slot), "an id has two assignments");
        bench.deliver(0..3, |_| None);
        assert_eq!(bench.finish(0, |_| ACK), [0, 1, 2]);
    }
    assert_eq!(
        bench.flow.ctx.records.partitions.places(),
        2,
        "one has records in a call"
    );
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    let topics = bench.flow.report(clock, |_| None).topics;
    assert_eq!(topics[0].consumed, 10 + 998 * 3, "the counts stay");
    bench.pools[0].taken.lock().unwrap().push(hung);
    bench.finish(0, |_| ACK);
    assert_eq!(bench.frontier(), 3, "a late outcome settles nothing");
    let (mut used, mut more) = (0, bench.flow.assign(NewAssignment::first(other(), 0, 1)));
    for epoch in 2..10 {
        used = used.max(more.index());
        bench.flow.release(&[more]);
        more = bench.flow.assign(NewAssignment::first(other(), 0, epoch));
    }
    assert_eq!((used, bench.flow.ctx.records.partitions.places()), (0, 2));
}

fn other() -> TopicPartition {
    TopicPartition {
        partition: 1,
        ..at()
    }
}

#[test]
fn what_is_delivered_or_released_after_the_end_of_an_assignment_changes_nothing() {
    let mut bench = Bench::new(1);
    bench.flow.release(&[bench.slot]);
    // The source is not told of every release.
    bench.deliver(0..3, |_| None);
    assert_eq!(bench.flow.held_records(), 0);
    bench.flow.release(&[bench.slot, bench.slot]);
    let [one, two] = [at(), other()].map(|at| bench.flow.assign(NewAssignment::first(at, 0, 2)));
    assert_ne!(one.index(), two.index(), "two partitions share a place");
    bench.flow.release(&[bench.slot]);
    assert_eq!(bench.flow.slot(&at()), Some(one));
    bench.slot = one;
    bench.deliver(0..3, |_| None);
    assert_eq!(bench.finish(0, |_| ACK), [0, 1, 2]);
}

/// Otherwise records for a handler that is off would keep a held partition from ever being reported.
#[test]
fn an_unrouted_record_moves_no_held_frontier() {
    let mut bench = Bench::new(1);
    bench.deliver(0..1, |_| None);
    bench.apply(|_, handler| {
        handler.gate_open = false;
        true
    });
    for now_ms in [500, 900] {
        bench.flow.tick(now_ms);
        let next = 1 + now_ms as i64 / 900;
        bench.deliver(next..next + 1, |_| None);
    }
    bench.flow.tick(1_000);
    let stalled = bench.flow.stalled(bench.slot);
    assert_eq!(stalled.expect("its bound is one second").since_ms, 0);
}
