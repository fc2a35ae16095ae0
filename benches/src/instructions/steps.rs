//! Single steps: routing a record, and tracking an offset in the ledger.

use std::hint::black_box;

use sluicegate_config::spec::{Predicate, Route, Test, TopicPattern};
use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::partition::ledger::Ledger;
use sluicegate_engine::routing::{Router, RoutingIndex};

use crate::{RECORDS, measured};

const CARRIERS: [&str; 10] = ["AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO"];

/// A block with one header `carrier` in Kafka's format: count, then name and value with their lengths, as zigzag varints.
pub(crate) fn headers(carrier: &str) -> Vec<u8> {
    let mut block = vec![2];
    for part in ["carrier", carrier] {
        block.push(2 * part.len() as u8);
        block.extend_from_slice(part.as_bytes());
    }
    block
}

/// Ten handlers, each matching the records of one carrier.
pub(crate) fn index() -> std::sync::Arc<RoutingIndex> {
    let routes = CARRIERS.iter().enumerate().map(|(place, carrier)| {
        let when = Predicate::Header {
            name: "carrier".to_owned(),
            test: Test::Equals((*carrier).into()),
        };
        let topics = vec![TopicPattern::Exact("flights".into())];
        (HandlerIx(place as u32), Route { topics, when })
    });
    RoutingIndex::compile(1, routes.collect()).expect("the routes are valid")
}

/// A record is routed by a header to one of ten handlers.
pub(crate) fn route() {
    let mut router = Router::new(index());
    let plan = router.plan("flights");
    let blocks: Vec<Vec<u8>> = CARRIERS.iter().map(|carrier| headers(carrier)).collect();
    let wanted = measured(|| {
        let mut wanted = 0;
        for record in 0..RECORDS as usize {
            let block = &blocks[record % blocks.len()];
            wanted += router
                .route(plan, 0, Some(b"key"), || black_box(block))
                .len();
        }
        wanted
    });
    assert_eq!(wanted as i64, RECORDS);
}

/// An offset is delivered, and settled out of order: the second half of each hundred before the first.
pub(crate) fn ledger() {
    let mut ledger = Ledger::new(0, Vec::new());
    measured(|| {
        for hundred in (0..RECORDS).step_by(100) {
            for offset in hundred..hundred + 100 {
                black_box(ledger.deliver(offset));
            }
            for offset in (hundred + 50..hundred + 100).chain(hundred..hundred + 50) {
                black_box(ledger.settle(offset));
            }
        }
    });
    assert_eq!(ledger.frontier(), RECORDS);
}
