//! A failed handler holds its records while other topics keep progressing: memory is shared and bounded (G8, G14).

use std::sync::Arc;

use sluicegate_config::spec::{Predicate, Route, TopicPattern};
use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::queue::{OnFailure, Order};

use super::model::Check;
use super::pools::SimPool;
use super::random::Random;
use super::script::{FaultRates, Log, Script, SimHandler};
use super::world::World;

const SEEDS: u64 = 20;
/// Rounds after which a topic whose handler works counts as starved.
const MAX_ROUNDS: usize = 600;

/// A plain handler of one topic.
fn handler(ix: u32, topic: &str) -> SimHandler {
    SimHandler {
        ix: HandlerIx(ix),
        route: Route {
            topics: vec![TopicPattern::Exact(topic.into())],
            when: Predicate::always(),
        },
        gate_open: true,
        order: Order::Key,
        takes_batches: false,
        keeps_key_state: false,
        max_attempts: 1,
        on_failure: OnFailure::Hold,
        max_in_flight: 50,
        generation: 1,
        pool: Arc::new(SimPool::new(2)),
        canary: None,
    }
}

/// A world limited by memory, not by uncommitted records: `held` topics whose handlers have failed, and the topic
/// `clicks` whose handler works.
fn world(seed: u64, held: usize) -> World {
    let mut random = Random::new(seed);
    let mut script = Script::new(&mut random);
    script.faults = FaultRates::default();
    script.flow.max_uncommitted = 100_000;
    script.flow.budget_bytes = *random.pick(&[20_000, 60_000]);
    script.logs.clear();
    let topics = (0..held).map(|n| format!("held{n}"));
    for topic in topics.chain(["clicks".to_owned()]) {
        for partition in 0..random.between(1, 3) as i32 {
            let log = Log::plain(&mut random, &topic, partition, 120);
            script.logs.push(log);
        }
    }
    let mut world = World::without_handlers(random, script);
    for n in 0..held {
        let handler = handler(n as u32, &format!("held{n}"));
        handler.pool.set_failed(true);
        world.add(handler);
    }
    world.add(handler(held as u32, "clicks"));
    world.apply();
    world
}

fn run(seed: u64, held: usize) -> Check {
    let mut world = world(seed, held);
    let clicks: Vec<_> = (world.script.logs.iter())
        .filter(|log| &*log.at.topic == "clicks")
        .map(|log| (log.at.clone(), log.end()))
        .collect();
    let mut rounds = 0;
    loop {
        world.round()?;
        let open = clicks.iter().find(|(at, end)| {
            let committed = world.model.committed.get(at);
            committed.is_none_or(|committed| committed.commit.offset < *end)
        });
        let Some((at, _)) = open else { break };
        rounds += 1;
        if rounds == MAX_ROUNDS {
            return Err(format!(
                "{at} is starved by {held} topics with failed handlers (G14): {} bytes are held",
                world.flow().charged()
            ));
        }
    }
    // The failed handlers are restarted: all records are handled, and nothing stays paused.
    world.finish()
}

#[test]
fn a_held_handler_starves_no_other_topic() {
    let seeds = super::number("SLUICEGATE_SIM_SEEDS").unwrap_or(SEEDS);
    let failures: Vec<String> = (0..seeds)
        .flat_map(|seed| [(seed, 1), (seed, 3)])
        .filter_map(|(seed, held)| {
            let broken = run(seed, held).err()?;
            Some(format!("seed {seed}, {held} held: {broken}"))
        })
        .take(10)
        .collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
