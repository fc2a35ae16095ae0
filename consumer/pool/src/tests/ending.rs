//! Pumps that end while their calls hang: records that the calls still read stay in memory, all others are freed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sluicegate_abi::lend::OwnedRecord;
use sluicegate_engine::dispatch::WorkerPool;
use sluicegate_engine::flow::Flow;
use sluicegate_engine::source::{AssignmentId, Delivery};
use sluicegate_kit::plugin_doubles::{Step, batch, until};

use crate::lock::relock;
use crate::tests::pool::PoolHarness;
use crate::tests::recall::Pump;

/// Values of two sizes; the allocator soon reuses the memory of a freed record, so that a read after free is noticed.
const VALUES: [&[u8]; 2] = [b"the first value", b"the second value, somewhat longer"];
const HEADERS: &[u8] = b"\x02\x02a\x021";

fn deliver(flow: &mut Flow<OwnedRecord>, slot: AssignmentId) {
    for (offset, value) in VALUES.iter().enumerate() {
        flow.deliver(Delivery {
            slot,
            offset: offset as i64,
            timestamp_ms: 0,
            leader_epoch: -1,
            lease: OwnedRecord::new(Some(b"key"), Some(value), HEADERS),
        });
        flow.dispatch();
    }
}

/// Ends a pump while a call hangs on one record and another batch is queued; then lets the call read its record.
fn ends(end: impl FnOnce(Flow<OwnedRecord>, AssignmentId)) {
    let harness = PoolHarness::new(&[(0, Step::HangAndRead("go"))]);
    let pool = harness.pool(1);
    let Pump {
        mut flow,
        mut replies,
        slots: [slot, _],
    } = Pump::new(&harness, pool.clone());
    deliver(&mut flow, slot);
    until("the first record runs", || {
        *relock(&harness.script.started) == [0]
    });
    end(flow, slot);
    harness.script.open("go");
    until("it has read", || relock(&harness.script.read).len() == 1);
    let (topic, key, value, headers) = relock(&harness.script.read).remove(0);
    assert_eq!(topic, "t");
    assert_eq!(key.as_deref(), Some(&b"key"[..]));
    assert_eq!(value.as_deref(), Some(VALUES[0]));
    assert_eq!(headers, HEADERS);
    assert_eq!(
        *relock(&harness.script.started),
        [0],
        "the queued batch never starts"
    );
    // The pool continues without that pump.
    let mut next = batch(9, &[7]);
    while let Err(refused) = pool.submit(next, &replies.inbox) {
        replies.pool_free();
        next = refused;
    }
    until("the pool runs other batches", || {
        relock(&harness.script.started).last() == Some(&7)
    });
}

#[test]
fn a_record_under_a_call_outlives_a_pump_that_stops_at_its_deadline() {
    ends(|mut flow, slot| {
        flow.start_drain(&[slot], 1_000);
        flow.tick(1_000);
        flow.commits_due();
        flow.release(&[slot]);
    });
}

#[test]
fn a_record_under_a_call_outlives_a_pump_that_fails() {
    ends(|flow, _| drop(flow));
}

#[test]
fn a_record_under_a_call_outlives_a_pump_that_panics() {
    ends(|flow, _| {
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _flow = flow;
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
    });
}
