//! Retries of many records, and changes of a handler's workers and versions while records are under way.

use std::time::Instant;

use super::*;
use crate::status::WaitsFor;

/// A bench whose handler takes batches, with room for `room` records.
fn batches(room: u32) -> Bench {
    let mut bench = Bench::with(1, 1_000_000);
    bench.flow.settings.budget_bytes = 1 << 40;
    bench.apply(|_, settings| {
        generation_of(settings).takes_batches = true;
        settings.max_in_flight_records = room;
        settings.max_in_flight_bytes = 1 << 40;
        true
    });
    bench
}

/// Lets every record fail once; all are parked then.
fn park(bench: &mut Bench, records: i64) {
    bench.deliver(0..records, |offset| Some(offset.to_string()));
    let mut failed = 0;
    while failed < records {
        failed += bench.finish(0, |_| outcome_code::RETRY).len() as i64;
    }
}

#[test]
fn the_cost_of_a_tick_is_linear_in_the_records_that_are_due() {
    let once = |records: i64| {
        let mut bench = batches(100_000);
        park(&mut bench, records);
        let start = Instant::now();
        bench.flow.tick(100);
        bench.flow.dispatch();
        let cost = start.elapsed();
        assert_eq!(bench.finish(0, |_| ACK).len() as i64, records);
        assert_eq!(bench.frontier(), records);
        cost
    };
    // The least of several times: a busy machine interrupts some.
    let cost = |records| (0..5).map(|_| once(records)).min().expect("five times");
    let (few, many) = (cost(1_000), cost(16_000));
    // The square would be 256 times as much.
    assert!(
        many < few * 100,
        "16 times the records take {many:?} instead of {few:?}"
    );
}

#[test]
fn the_cost_of_a_report_does_not_grow_with_parked_records() {
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    let cost = |records: i64| {
        let mut bench = batches(100_000);
        bench.apply(|_, settings| {
            generation_of(settings).takes_batches = true;
            settings.max_in_flight_records = 100_000;
            settings.max_in_flight_bytes = 1 << 40;
            settings.retry.delay = Duration::from_hours(1);
            settings.retry.max_delay = Duration::from_hours(1);
            true
        });
        park(&mut bench, records);
        bench.flow.tick(10_000);
        let reports = (0..20).map(|_| {
            let start = Instant::now();
            let report = bench.flow.report(clock, |_| None);
            let cost = start.elapsed();
            let partition = &report.partitions[0];
            assert_eq!(partition.parked, records as u64);
            let held_by = partition.held_by.as_ref().map(|held| held.offset);
            assert_eq!(held_by, Some(0));
            cost
        });
        // The least of several times: a busy machine interrupts some.
        reports.min().expect("twenty times")
    };
    let (few, many) = (cost(500), cost(64_000));
    assert!(
        many < few * 16,
        "128 times the parked records take {many:?} instead of {few:?}"
    );
}

#[test]
fn records_that_failed_in_one_call_run_again_in_order_one_after_the_other() {
    let mut bench = batches(1_000);
    bench.deliver(0..4, |_| Some("a".to_owned()));
    assert_eq!(
        bench.finish(0, |_| outcome_code::RETRY),
        [0, 1, 2, 3],
        "one call has them all"
    );
    let mut ran = Vec::new();
    for now_ms in [100, 101, 102, 103] {
        bench.flow.tick(now_ms);
        bench.flow.dispatch();
        assert!(
            bench.flow.next_due().is_none_or(|due_ms| due_ms > now_ms),
            "nothing is polled while one runs"
        );
        ran.push(bench.finish(0, |_| ACK));
    }
    assert_eq!(ran, [[0], [1], [2], [3]]);
    assert_eq!(bench.frontier(), 4);
}

#[test]
fn records_that_are_due_wait_for_room() {
    let mut bench = batches(3);
    park(&mut bench, 10);
    bench.flow.tick(100);
    bench.flow.dispatch();
    let mut ran = Vec::new();
    loop {
        let of_turn = bench.finish(0, |_| ACK);
        assert!(of_turn.len() <= 3, "{of_turn:?}");
        if of_turn.is_empty() {
            break;
        }
        ran.extend(of_turn);
    }
    assert_eq!(ran, (0..10).collect::<Vec<_>>());
    assert_eq!(bench.frontier(), 10);
}

#[test]
fn a_key_has_one_worker_after_their_number_has_changed() {
    let mut bench = Bench::new(1);
    let workers = |number: u32| {
        move |_: usize, settings: &mut HandlerSettings| {
            settings.targets[0].keeps_key_state = true;
            generation_of(settings).number = u64::from(number);
            true
        }
    };
    bench.apply(workers(2));
    bench.pools[0]
        .full
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let key = |offset: i64| Some(format!("k{}", offset % 16));
    bench.deliver(0..32, key);
    let more = ScriptedPool {
        workers: std::sync::atomic::AtomicU32::new(5),
        ..ScriptedPool::default()
    };
    bench.pools[0] = Arc::new(more);
    bench.apply(workers(5));
    bench.deliver(32..64, key);
    let mut worker_of = std::collections::BTreeMap::new();
    let mut records = 0;
    loop {
        for batch in &*bench.pools[0].taken.lock().unwrap() {
            for record in &batch.records {
                let worker = batch.worker.expect("the handler keeps state");
                let first = *worker_of.entry(record.offset % 16).or_insert(worker);
                assert_eq!(worker, first, "key {}", record.offset % 16);
            }
        }
        match bench.finish(0, |_| ACK).len() {
            0 => break,
            more => records += more,
        }
    }
    assert_eq!((records, bench.frontier()), (64, 64));
}

#[test]
fn records_of_a_call_follow_one_another_also_when_their_generation_was_replaced() {
    let mut bench = batches(1_000);
    bench.deliver(0..8, |_| Some("a".to_owned()));
    bench.apply(|_, settings| {
        generation_of(settings).number = 2;
        settings.retry.max_attempts = 5;
        settings.retry.jitter = 0.9;
        true
    });
    let all: Vec<i64> = (0..8).collect();
    assert_eq!(bench.finish(0, |_| outcome_code::RETRY), all);
    let mut ran = Vec::new();
    for now_ms in 1..400 {
        bench.flow.tick(now_ms);
        bench.flow.dispatch();
        ran.extend(bench.finish(0, |_| ACK));
    }
    assert_eq!(ran, all);
}

#[test]
fn records_follow_one_another_also_when_batches_are_not_taken_any_more() {
    let mut bench = batches(1_000);
    bench.deliver(0..3, |_| Some("a".to_owned()));
    assert_eq!(bench.finish(0, |_| outcome_code::RETRY), [0, 1, 2]);
    bench.apply(|_, settings| {
        settings.retry.max_attempts = 3;
        generation_of(settings).number = 2;
        true
    });
    bench.flow.tick(100);
    bench.flow.dispatch();
    assert_eq!(bench.finish(0, |_| outcome_code::RETRY), [0]);
    bench.flow.tick(150);
    bench.flow.dispatch();
    assert_eq!(
        bench.finish(0, |_| ACK),
        [0; 0],
        "the first is parked again"
    );
    assert_eq!(bench.waits_for(Some(1)), WaitsFor::Lane { behind: 0 });
    let mut ran = Vec::new();
    for now_ms in [200, 201, 202] {
        bench.flow.tick(now_ms);
        bench.flow.dispatch();
        ran.extend(bench.finish(0, |_| ACK));
    }
    assert_eq!(ran, [0, 1, 2]);
}

#[test]
fn a_counter_belongs_to_the_version_that_ran() {
    let mut bench = Bench::new(1);
    let version = |name: &'static str| {
        move |_: usize, settings: &mut HandlerSettings| {
            generation_of(settings).version = name.into();
            true
        }
    };
    let acked = |bench: &Bench| -> Vec<(String, u64)> {
        let clock = crate::clock::WallClock { epoch_ms: 0 };
        let handlers = bench.flow.report(clock, |_| None).handlers.into_iter();
        let counts = handlers.map(|one| (one.version, one.outcomes.ack));
        counts.filter(|(_, acked)| *acked > 0).collect()
    };
    for (offsets, of) in [(0..3, "1.0.0"), (3..5, "2.0.0"), (5..6, "1.0.0")] {
        bench.apply(version(of));
        bench.deliver(offsets, |_| None);
        bench.finish(0, |_| ACK);
    }
    let of = |version: &str, acked| (version.to_owned(), acked);
    assert_eq!(acked(&bench), [of("2.0.0", 2), of("1.0.0", 4)]);
    for n in 0..100 {
        let name: &'static str = Box::leak(format!("3.0.{n}").into_boxed_str());
        bench.apply(version(name));
    }
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    let kept = bench.flow.report(clock, |_| None).handlers.len();
    assert_eq!(kept, 17, "they do not grow with every release");
}

#[test]
fn a_record_without_a_worker_says_why_an_instance_is_missing() {
    let mut bench = Bench::new(1);
    bench.pools[0]
        .full
        .store(true, std::sync::atomic::Ordering::Relaxed);
    bench.deliver(0..1, |_| None);
    bench.flow.dispatch();
    assert_eq!(
        bench.waits_for(Some(0)),
        WaitsFor::Worker { unhealthy: None }
    );
    let why = "instance failed to start: no database";
    *bench.pools[0].unhealthy.lock().unwrap() = Some(why.into());
    let waits = bench.waits_for(Some(0));
    assert_eq!(
        waits.sentence(0),
        format!("a free worker; not every worker has a healthy instance: {why}")
    );
}
