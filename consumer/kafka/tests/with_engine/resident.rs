//! What 512 kept records of 256,000 cost in resident memory, wherever they wait.
//!
//! Each case runs in a process of its own, whose allocator caches nothing and returns freed pages at once: what is resident
//! is what is still allocated.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_engine::event::Event;
use sluicegate_engine::flow::FlowSettings;
use sluicegate_engine::queue::{HandlerSettings, Order};
use sluicegate_kafka::mock::MockKafka;
use sluicegate_kit::engine_doubles::{HeldPool, flow_settings, handler, retry};

use crate::reading::{Reader, by_rarity, produce};

/// The mock cluster keeps 5 MiB per partition.
const PARTITIONS: i32 = 64;
const PER_PARTITION: i64 = 4_000;
const RECORDS: i64 = PARTITIONS as i64 * PER_PARTITION;
/// Every so many records are kept.
const EVERY: i64 = 500;
const KEPT: usize = (RECORDS / EVERY) as usize;

/// Half of the memory of a service with 256 MiB.
const BUDGET: u64 = 128 << 20;
/// An eighth of it may be pinned, and an eighth more before that is noticed; with what the allocator rounds up.
const TRANSIENT: u64 = BUDGET * 3 / 8;

/// Set in the process of a case.
const CHILD: &str = "SLUICEGATE_TEST_RESIDENT";

/// Where the kept records wait.
#[derive(Clone, Copy)]
enum Kept {
    /// Nowhere: they are handled.
    Nowhere,
    /// Behind a retry of their key, but for the first of each lane, which is parked.
    InLanes,
    /// In a full pool's queue.
    ForAWorker,
    /// Nowhere either: calls that do not return have them.
    InCalls,
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).expect("two numbers");
    pages.parse::<u64>().expect("a number") * 4_096
}

/// Runs one test of this file again, in a process of its own.
fn alone(test: &str, case: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return case();
    }
    let this = std::env::current_exe().expect("a program");
    let name = format!("resident::{test}");
    let ran = Command::new(this)
        .args(["--exact", &name, "--nocapture"])
        .env(CHILD, "1")
        .env(
            "MALLOC_CONF",
            "dirty_decay_ms:0,muzzy_decay_ms:0,tcache:false",
        )
        .status();
    assert!(ran.expect("it starts").success());
}

/// A reader with a handler of the rare records, and one of all others.
fn reader(bootstrap: &str, group: &str, order: Order, pools: [&Arc<HeldPool>; 2]) -> Reader {
    let handlers = pools.map(|pool| HandlerSettings {
        order,
        retry: retry(2, Duration::from_hours(1)),
        ..handler(pool.clone())
    });
    let flow = FlowSettings {
        budget_bytes: BUDGET,
        ..flow_settings()
    };
    Reader::new(bootstrap, group, flow, by_rarity(handlers), &["t"], &[])
}

/// Figures of one reading.
struct Figures {
    charged: u64,
    held: usize,
    /// Resident memory afterwards, and its maximum until then.
    after: u64,
    peak: u64,
}

/// Reads everything once, and lets 1 s pass on the flow's clock.
fn read(bootstrap: &str, group: &str, kept: Kept) -> Figures {
    let [rare, others] = [Arc::new(HeldPool::default()), Arc::new(HeldPool::default())];
    rare.set_full(matches!(kept, Kept::ForAWorker));
    let order = match kept {
        Kept::InLanes => Order::Key,
        _ => Order::Unordered,
    };
    let mut reader = reader(bootstrap, group, order, [&rare, &others]);
    let mut peak = 0;
    reader.read(RECORDS, |reader| {
        // As fast as a client that reads a gigabyte per second.
        let now_ms = reader.turns;
        reader.step(Event::Tick(now_ms));
        reader.finish(&others, |_| false);
        match kept {
            Kept::Nowhere => reader.finish(&rare, |_| false),
            Kept::InLanes => reader.finish(&rare, |_| true),
            Kept::ForAWorker | Kept::InCalls => {}
        }
        if now_ms % 8 == 0 {
            peak = peak.max(resident());
        }
    });
    reader.finish(&others, |_| false);
    for more_ms in [250, 500, 750, 1_000] {
        let now_ms = reader.turns + more_ms;
        reader.step(Event::Tick(now_ms));
    }
    let figures = Figures {
        charged: reader.engine.flow().charged(),
        held: reader.engine.flow().held_records(),
        after: resident(),
        peak: peak.max(resident()),
    };
    reader.close();
    figures
}

fn kept_records_cost_little(kept: Kept) {
    let kafka = MockKafka::start(1).expect("a mock cluster starts");
    kafka.create_topic("t", PARTITIONS).expect("a new topic");
    let bootstrap = kafka.bootstrap_servers();
    produce(&bootstrap, "t", PARTITIONS, PER_PARTITION, EVERY);
    // Warms the client and the allocator; the records themselves are in the cluster, which is part of this process.
    read(&bootstrap, "warm", Kept::Nowhere);
    let before = read(&bootstrap, "before", Kept::Nowhere);
    let after = read(&bootstrap, "after", kept);
    let growth = after.after.saturating_sub(before.after);
    println!(
        "{RECORDS} records of 1 KB read, {} held: {} KiB charged, {} KiB growth ({:.1} times that); peak {} KiB above usual",
        after.held,
        after.charged >> 10,
        growth >> 10,
        growth as f64 / after.charged as f64,
        after.peak.saturating_sub(before.peak) >> 10,
    );
    assert_eq!(after.held, KEPT);
    let bound = match kept {
        Kept::Nowhere | Kept::InLanes | Kept::ForAWorker => 4 * after.charged,
        // What calls have cannot be copied: only later records are.
        Kept::InCalls => TRANSIENT,
    };
    assert!(growth <= bound, "{growth} bytes");
    let peak = after.peak.saturating_sub(before.peak);
    assert!(peak <= TRANSIENT, "{peak} bytes for a moment");
}

#[test]
fn records_in_lanes() {
    alone("records_in_lanes", || {
        kept_records_cost_little(Kept::InLanes)
    });
}

#[test]
fn records_for_a_worker() {
    alone("records_for_a_worker", || {
        kept_records_cost_little(Kept::ForAWorker);
    });
}

#[test]
fn records_in_calls() {
    alone("records_in_calls", || {
        kept_records_cost_little(Kept::InCalls)
    });
}
