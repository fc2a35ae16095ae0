//! Two generations that run one handler's records, each those of its keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::queue::{BUCKETS, Target};

const KEYS: i64 = 64;

fn key(offset: i64) -> Option<String> {
    Some(format!("k{}", offset % KEYS))
}

/// A handler with a spare pool, which a plan can give keys.
fn bench() -> Bench {
    let mut bench = Bench::with(1, 1_000);
    bench.pools.push(Arc::default());
    bench
}

/// Applies a plan in which the spare pool's generation, 2.0.0, gets this number of buckets.
fn give(bench: &mut Bench, buckets: u16, change: impl Fn(&mut HandlerSettings)) {
    let pool = bench.pools[1].clone();
    bench.apply(|ix, settings| {
        if ix > 0 {
            return false;
        }
        settings.targets[0].buckets = BUCKETS - buckets;
        if buckets > 0 {
            let generation = GenerationId::new("2.0.0", 2);
            settings.targets.push(Target {
                buckets,
                ..Target::only(generation, pool.clone())
            });
        }
        change(settings);
        true
    });
}

/// The records that pools have, and the pool of each.
fn taken(bench: &Bench) -> BTreeMap<i64, usize> {
    let mut taken = BTreeMap::new();
    for (number, pool) in bench.pools.iter().enumerate() {
        for batch in &*pool.taken.lock().unwrap() {
            taken.extend(batch.records.iter().map(|record| (record.offset, number)));
        }
    }
    taken
}

/// Finishes what the pools have until they get nothing more.
fn finish_all(bench: &mut Bench) {
    loop {
        let ran = bench.finish(0, |_| ACK).len() + bench.finish(1, |_| ACK).len();
        if ran == 0 {
            return;
        }
    }
}

#[test]
fn a_key_has_one_target_and_each_target_gets_its_share_of_them() {
    for order in [Order::Key, Order::Unordered] {
        let mut bench = bench();
        give(&mut bench, BUCKETS / 2, |settings| settings.order = order);
        bench.deliver(0..4 * KEYS, key);
        let mut pools: BTreeMap<i64, BTreeSet<usize>> = BTreeMap::new();
        for _ in 0..8 {
            for (offset, pool) in taken(&bench) {
                pools.entry(offset % KEYS).or_default().insert(pool);
            }
            bench.finish(0, |_| ACK);
            bench.finish(1, |_| ACK);
        }
        assert_eq!(bench.frontier(), 4 * KEYS);
        assert!(pools.values().all(|pools| pools.len() == 1), "{order:?}");
        let second = pools.values().filter(|pools| pools.contains(&1)).count();
        assert!((16..=48).contains(&second), "{second} of {KEYS} keys");
    }
}

#[test]
fn records_without_a_key_are_spread_and_a_partition_in_order_is_not() {
    let mut bench = bench();
    give(&mut bench, BUCKETS / 2, |_| {});
    bench.deliver(0..KEYS, |_| None);
    let second = taken(&bench).values().filter(|pool| **pool == 1).count();
    assert!((16..=48).contains(&second), "{second} of {KEYS} records");
    finish_all(&mut bench);
    give(&mut bench, BUCKETS / 2, |settings| {
        settings.order = Order::Partition;
    });
    bench.deliver(KEYS..2 * KEYS, key);
    let pools: BTreeSet<usize> = taken(&bench).into_values().collect();
    assert_eq!(pools.len(), 1);
    finish_all(&mut bench);
    assert_eq!(bench.frontier(), 2 * KEYS);
}

#[test]
fn keys_that_move_to_another_target_keep_their_order() {
    for (before, after) in [(0, BUCKETS), (BUCKETS, 0), (0, BUCKETS / 2)] {
        let mut bench = bench();
        give(&mut bench, before, |_| {});
        bench.deliver(0..KEYS, key);
        let begun = taken(&bench);
        assert_eq!(begun.len() as i64, KEYS);
        // These wait behind the calls, in batches and lanes.
        bench.deliver(KEYS..3 * KEYS, key);
        give(&mut bench, after, |_| {});
        assert_eq!(taken(&bench), begun, "no key is in two calls");
        let mut ran: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for _ in 0..16 {
            for pool in [0, 1] {
                for offset in bench.finish(pool, |_| ACK) {
                    ran.entry(offset % KEYS).or_default().push(offset);
                }
            }
        }
        for (key, offsets) in ran {
            assert_eq!(offsets, [key, key + KEYS, key + 2 * KEYS]);
        }
        assert_eq!(bench.frontier(), 3 * KEYS);
    }
}

#[test]
fn a_full_or_failed_target_holds_only_its_keys() {
    for failed in [false, true] {
        let mut bench = bench();
        give(&mut bench, BUCKETS / 2, |_| {});
        bench.pools[1].full.store(!failed, Relaxed);
        bench.fail(1, failed);
        bench.deliver(0..KEYS, key);
        let first = taken(&bench).len() as i64;
        assert!((16..=48).contains(&first), "{first} of {KEYS}");
        assert_eq!(bench.finish(0, |_| ACK).len() as i64, first);
        bench.deliver(KEYS..2 * KEYS, key);
        assert_eq!(bench.finish(0, |_| ACK).len() as i64, first);
        bench.pools[1].full.store(false, Relaxed);
        bench.fail(1, false);
        bench.flow.receive(PumpMessage::PoolFree);
        bench.flow.dispatch();
        finish_all(&mut bench);
        assert_eq!(bench.frontier(), 2 * KEYS);
    }
}

#[test]
fn a_record_counts_for_the_target_that_ran_it_also_after_a_plan_without_it() {
    let mut bench = bench();
    give(&mut bench, BUCKETS / 2, |_| {});
    bench.deliver(0..KEYS, key);
    let pools = taken(&bench);
    give(&mut bench, 0, |_| {});
    let retry = |offset| match offset % 4 {
        0 => outcome_code::RETRY,
        1 => outcome_code::DROP,
        _ => ACK,
    };
    bench.finish(0, retry);
    bench.finish(1, retry);
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    let rows = bench.flow.report(clock, |_| None).handlers;
    for (version, pool) in [("1.0.0", 0), ("2.0.0", 1)] {
        let row = rows.iter().find(|row| row.version == version).unwrap();
        let count = |code| {
            let mine = pools.iter().filter(|(_, one)| **one == pool);
            mine.filter(|(offset, _)| retry(**offset) == code).count() as u64
        };
        let of = [row.outcomes.ack, row.outcomes.drop, row.outcomes.retry];
        let wanted = [ACK, outcome_code::DROP, outcome_code::RETRY].map(count);
        assert_eq!(of, wanted, "{version}");
    }
    assert_eq!(rows.last().unwrap().version, "1.0.0", "the present one");
}

#[test]
fn queued_records_go_where_a_plan_sends_their_keys() {
    let shares = [0, BUCKETS / 4, BUCKETS / 2, BUCKETS];
    for (before, after) in shares.iter().flat_map(|b| shares.map(|after| (*b, after))) {
        let mut wanted = bench();
        give(&mut wanted, after, |_| {});
        wanted.deliver(0..KEYS, key);
        let mut bench = bench();
        give(&mut bench, before, |_| {});
        let full = |bench: &Bench, full| {
            let pools = bench.pools.iter();
            pools.for_each(|pool| pool.full.store(full, Relaxed));
        };
        full(&bench, true);
        bench.deliver(0..KEYS, key);
        give(&mut bench, after, |_| {});
        assert_eq!(taken(&bench).len(), 0);
        full(&bench, false);
        bench.flow.receive(PumpMessage::PoolFree);
        bench.flow.dispatch();
        assert_eq!(taken(&bench), taken(&wanted), "{before} to {after}");
    }
}
