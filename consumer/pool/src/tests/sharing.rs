//! Many pumps and handlers on one threads: none starves, and no notice of room is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluicegate_engine::dispatch::{Batch, PumpMessage, WorkerPool};
use sluicegate_kit::plugin_doubles::{Replies, Step, batch};

use crate::lock::relock;
use crate::pool::HandlerPool;
use crate::tests::pool::PoolHarness;

/// A pump with more work than room for several handlers, which it always tries in the same order: the worst case for the
/// last one.
struct GreedyPump {
    replies: Replies,
    pools: Vec<Arc<HandlerPool>>,
    left: Vec<u32>,
    refused: Vec<Option<Box<Batch>>>,
    in_flight: u32,
}

impl GreedyPump {
    fn new(pools: Vec<Arc<HandlerPool>>, each: u32) -> Self {
        Self {
            replies: Replies::new(),
            left: vec![each; pools.len()],
            refused: pools.iter().map(|_| None).collect(),
            pools,
            in_flight: 0,
        }
    }

    fn submit_all(&mut self) {
        for (at, pool) in self.pools.iter().enumerate() {
            while self.left[at] > 0 {
                let next = self.refused[at]
                    .take()
                    .unwrap_or_else(|| batch(at as u32, &[at as i64]));
                match pool.submit(next, &self.replies.inbox) {
                    Ok(()) => {
                        self.left[at] -= 1;
                        self.in_flight += 1;
                    }
                    Err(batch) => {
                        self.refused[at] = Some(batch);
                        break;
                    }
                }
            }
        }
    }

    /// Submits again only after a notice of room, so that it waits forever if one is lost.
    fn run(&mut self) {
        self.submit_all();
        while self.left.iter().any(|&left| left > 0) || self.in_flight > 0 {
            let free = self
                .replies
                .next("outcome or room", |message| match message {
                    PumpMessage::PoolFree => Ok(true),
                    PumpMessage::Finished(_) => Ok(false),
                    other => Err(other),
                });
            match free {
                true => self.submit_all(),
                false => self.in_flight -= 1,
            }
        }
    }
}

#[test]
fn handlers_of_a_full_thread_pool_get_equal_shares() {
    let harness = PoolHarness::new(&[(0, Step::Hang("go"))]);
    let threads = harness.threads(1);
    let mut pools = vec![threads.join_first(harness.setup("a"))];
    for name in ["b", "c"] {
        pools.push(threads.join(harness.setup(name)).ok().unwrap());
    }
    let mut pump = GreedyPump::new(pools, 100);
    pump.submit_all();
    harness.script.open("go");
    pump.run();
    let calls = relock(&harness.script.calls);
    let place = |name: &str, nth: usize| {
        let of = |(at, (who, _)): (usize, &(String, usize))| (who == name).then_some(at);
        calls.iter().enumerate().filter_map(of).nth(nth).unwrap()
    };
    for nth in [10, 50, 90] {
        let places = ["a", "b", "c"].map(|name| place(name, nth));
        let spread = places.iter().max().unwrap() - places.iter().min().unwrap();
        assert!(spread <= 9, "call {nth} of each came at {places:?}");
    }
}

#[test]
fn a_handler_that_does_not_use_its_turn_blocks_no_other_for_long() {
    let harness = PoolHarness::new(&[(1, Step::Hang("go"))]);
    let threads = harness.threads(1);
    let mut setup = harness.setup("here");
    setup.timeout = Duration::from_millis(500);
    let here = threads.join_first(setup);
    let gone = threads.join(harness.setup("gone")).ok().unwrap();
    let (mut replies, elsewhere) = (Replies::new(), Replies::new());
    for number in 0..2 {
        assert!(here.submit(batch(number, &[1]), &replies.inbox).is_ok());
    }
    assert!(gone.submit(batch(9, &[1]), &elsewhere.inbox).is_err());
    let mut waiting = here.submit(batch(2, &[2]), &replies.inbox).unwrap_err();
    harness.script.open("go");
    while let Err(refused) = here.submit(waiting, &replies.inbox) {
        replies.pool_free();
        waiting = refused;
    }
    for number in 0..3 {
        assert_eq!(replies.finished().id.index, number);
    }
}

#[test]
fn no_notice_of_room_is_lost_while_pumps_race_and_instances_fail() {
    let harness = PoolHarness::new(&[(1, Step::Panic)]);
    harness.script.failing_creations.store(4, Ordering::SeqCst);
    let threads = harness.threads(3);
    let forgiving = |name: &str| {
        let mut setup = harness.setup(name);
        setup.restart.max_restarts = u32::MAX;
        setup.restart.restart_window = Duration::from_millis(1);
        setup
    };
    let good = threads.join_first(forgiving("good"));
    // As second in a pump's list it panics on every record (offset 1): it backs off, is refused, is notified.
    let bad = threads.join(forgiving("bad")).ok().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let pools = vec![Arc::clone(&good), Arc::clone(&bad)];
            scope.spawn(move || {
                let mut pump = GreedyPump::new(pools, 2_000);
                pump.left[1] = 1;
                pump.run();
                assert_eq!((pump.in_flight, &*pump.left), (0, &[0, 0][..]));
            });
        }
    });
    assert_eq!(harness.stats.counts().in_flight, 0);
}
