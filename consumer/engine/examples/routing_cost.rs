//! What routing costs a record with 1 to 10,000 handlers: `cargo run --release --example routing_cost`.
//!
//! Each handler wants a tenant or a few of them, and a quarter of them one region besides; a record has three headers
//! and about three handlers want it. Medians of nine rounds, in nanoseconds a record.

use std::hint::black_box;
use std::time::Instant;

use sluicegate_abi::header_block;
use sluicegate_config::spec::{Predicate, Route, Test, TopicPattern};
use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::routing::{Router, RoutingIndex, TopicPlanId};

const RECORDS: usize = 20_000;
const ROUNDS: usize = 9;

fn main() {
    println!(
        "{:>9} {:>10} {:>10} {:>10} {:>9}",
        "handlers", "no headers", "headers", "regex", "matches"
    );
    for handlers in [1, 10, 100, 1_000, 10_000] {
        let tenants = (handlers as u64 * 3 / 4).max(2);
        let records = records(tenants);
        let plain = median(Router::new(index(1, |_| Predicate::always())), &records);
        let by_header = median(
            Router::new(index(handlers, |n| wants(n, tenants))),
            &records,
        );
        let by_regex = median(
            Router::new(index(handlers, |n| wants_by_regex(n, tenants))),
            &records,
        );
        println!(
            "{handlers:>9} {:>10.1} {:>10.1} {:>10.1} {:>9.2}",
            plain.0, by_header.0, by_regex.0, by_header.1
        );
    }
}

fn index(handlers: u32, when: impl Fn(u64) -> Predicate) -> std::sync::Arc<RoutingIndex> {
    let routes = (0..handlers).map(|n| {
        let route = Route {
            topics: vec![TopicPattern::Exact("orders".into())],
            when: when(u64::from(n)),
        };
        (HandlerIx(n), route)
    });
    RoutingIndex::compile(1, routes.collect()).expect("the routes are well formed")
}

fn header(name: &str, test: Test) -> Predicate {
    Predicate::Header {
        name: name.into(),
        test,
    }
}

fn tenant(n: u64) -> Vec<u8> {
    format!("tenant-{n}").into_bytes()
}

fn wants(n: u64, tenants: u64) -> Predicate {
    let some = (0..1 + n % 3).map(|i| tenant(mix(n * 3 + i) % tenants));
    let by_tenant = header("tenant", Test::In(some.collect()));
    if n.is_multiple_of(4) {
        let region = format!("region-{}", n % 5).into_bytes();
        Predicate::All(vec![by_tenant, header("region", Test::Equals(region))])
    } else {
        by_tenant
    }
}

fn wants_by_regex(n: u64, tenants: u64) -> Predicate {
    header(
        "tenant",
        Test::Regex(format!("^tenant-{}$", mix(n) % tenants)),
    )
}

fn records(tenants: u64) -> Vec<Vec<u8>> {
    (0..RECORDS as u64)
        .map(|n| {
            let trace = format!("{:032x}", mix(n));
            let tenant = tenant(mix(n ^ 77) % tenants);
            let region = format!("region-{}", n % 7);
            let headers: [(&[u8], Option<&[u8]>); 3] = [
                (b"traceparent", Some(trace.as_bytes())),
                (b"tenant", Some(&tenant)),
                (b"region", Some(region.as_bytes())),
            ];
            let mut block = Vec::new();
            header_block::write(&mut block, headers.into_iter());
            block
        })
        .collect()
}

/// Nanoseconds and matches a record.
fn median(mut router: Router, records: &[Vec<u8>]) -> (f64, f64) {
    let plan = router.plan("orders");
    route_all(&mut router, plan, records);
    let mut matches = 0;
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            matches = route_all(&mut router, plan, records);
            start.elapsed().as_secs_f64() * 1e9 / records.len() as f64
        })
        .collect();
    rounds.sort_unstable_by(f64::total_cmp);
    (rounds[ROUNDS / 2], matches as f64 / records.len() as f64)
}

fn route_all(router: &mut Router, plan: TopicPlanId, records: &[Vec<u8>]) -> usize {
    records
        .iter()
        .map(|block| {
            router
                .route(plan, 0, Some(b"key"), || black_box(block))
                .len()
        })
        .sum()
}

/// Spreads consecutive numbers.
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 11
}
