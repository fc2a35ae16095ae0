//! Many pumps and handlers on one crew: nobody starves, and whoever was refused is always told of room.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::pool::Rig;
use super::{Deed, Home, batch};
use crate::dispatch::{Batch, PumpMessage, WorkerPool};
use crate::handlers::HandlerPool;
use crate::handlers::pool::relock;

/// A pump with more work than room for several handlers, which always tries them in the same order: the worst case for
/// the last one.
struct GreedyPump {
    home: Home,
    pools: Vec<Arc<HandlerPool>>,
    left: Vec<u32>,
    refused: Vec<Option<Box<Batch>>>,
    in_flight: u32,
}

impl GreedyPump {
    fn new(pools: Vec<Arc<HandlerPool>>, each: u32) -> Self {
        Self {
            home: Home::new(),
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
                match pool.submit(next, &self.home.inbox) {
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

    /// Submits again only when it is told of room: one lost notice and it waits for ever.
    fn run(&mut self) {
        self.submit_all();
        while self.left.iter().any(|&left| left > 0) || self.in_flight > 0 {
            let free = self.home.next("outcome or room", |message| match message {
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
fn handlers_of_a_full_crew_take_turns() {
    let rig = Rig::new(&[(0, Deed::Hang("go"))]);
    let crew = rig.crew(1);
    let mut pools = vec![crew.found(rig.setup("a"))];
    for name in ["b", "c"] {
        pools.push(crew.join(rig.setup(name)).ok().unwrap());
    }
    let mut pump = GreedyPump::new(pools, 100);
    pump.submit_all();
    rig.script.open("go");
    pump.run();
    let calls = relock(&rig.script.calls);
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
fn a_handler_whose_turn_it_is_but_who_does_not_come_holds_nobody_for_long() {
    let rig = Rig::new(&[(1, Deed::Hang("go"))]);
    let crew = rig.crew(1);
    let mut setup = rig.setup("here");
    setup.timeout = Duration::from_millis(500);
    let here = crew.found(setup);
    let gone = crew.join(rig.setup("gone")).ok().unwrap();
    let (mut home, elsewhere) = (Home::new(), Home::new());
    for flight in 0..2 {
        assert!(here.submit(batch(flight, &[1]), &home.inbox).is_ok());
    }
    assert!(gone.submit(batch(9, &[1]), &elsewhere.inbox).is_err());
    let mut waiting = here.submit(batch(2, &[2]), &home.inbox).unwrap_err();
    rig.script.open("go");
    while let Err(refused) = here.submit(waiting, &home.inbox) {
        home.pool_free();
        waiting = refused;
    }
    for flight in 0..3 {
        assert_eq!(home.finished().flight.index, flight);
    }
}

#[test]
fn no_notice_of_room_is_lost_while_pumps_race_and_instances_die() {
    let rig = Rig::new(&[(1, Deed::Panic)]);
    rig.script.failing_creations.store(4, Ordering::SeqCst);
    let crew = rig.crew(3);
    let forgiving = |name: &str| {
        let mut setup = rig.setup(name);
        setup.restart.max_restarts = u32::MAX;
        setup.restart.restart_window = Duration::from_millis(1);
        setup
    };
    let good = crew.found(forgiving("good"));
    // Its second place in a pump's list makes it panic at every record: it rests, is refused, is told.
    let bad = crew.join(forgiving("bad")).ok().unwrap();
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
    assert_eq!(rig.stats.counts().in_flight, 0);
}
