//! Network faults between a watch and its store, the same for every store.

use std::time::{Duration, Instant};

use e2e::long;
use e2e::proxy::{Proxy, Traffic};
use e2e::wait::stays;
use sluicegate_store::{Cause, Store};

use crate::stores::{
    DETECTION_DEADLINE, RECOVERY_DEADLINE, assert_recovered, change_during_outage, delete, gate,
    put, watched,
};

/// The re-list interval of a reader whose events are swallowed.
pub(crate) const RELIST_INTERVAL: Duration = Duration::from_secs(3);
/// Time limit for seeing a swallowed change: the longest time to the next re-list, its grace period, and the read.
const REPAIR_DEADLINE: Duration = Duration::from_secs(6);
/// Number of notifications to swallow: a change between a new watch and its read causes none.
const SWALLOWED: u64 = 3;

/// Stalls the connections of `reader`, then cuts them; each for a minute in the long form.
pub(crate) fn cut_the_network(proxy: &Proxy, reader: &dyn Store, writer: &dyn Store) {
    let key = gate("auditor");
    let (record, _watch) = watched(reader, &key);
    for (traffic, last) in [(Traffic::Stalled, "false"), (Traffic::Cut, "true")] {
        proxy.set(traffic);
        put(writer, &gate("removed"), "true");
        record.until_away(DETECTION_DEADLINE);
        change_during_outage(writer, &key, last);
        if long() {
            stays("the outage", Duration::from_secs(60), || {
                match record.value(&key) {
                    Some(value) if value != last => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
        proxy.set(Traffic::Flowing);
        assert_recovered(&record, &key, last);
    }
}

/// Swallows the notifications of `reader`, whose re-list interval is [`RELIST_INTERVAL`], on live connections.
pub(crate) fn swallow_events(proxy: &Proxy, reader: &dyn Store, writer: &dyn Store) {
    let key = gate("auditor");
    let (record, _watch) = watched(reader, &key);
    proxy.set(Traffic::Swallowing);
    let events = record.count(Cause::Event);
    let end = Instant::now() + Duration::from_secs(60);
    for value in [Some("false"), Some("true"), None].iter().cycle() {
        match value {
            Some(value) => put(writer, &key, value),
            None => delete(writer, &key),
        };
        record.until_value(&key, *value, REPAIR_DEADLINE);
        if proxy.swallowed() >= SWALLOWED {
            break;
        }
        assert!(Instant::now() < end, "swallowed: {}", proxy.swallowed());
    }
    assert!(
        record.count(Cause::MissedUpdate) >= 1,
        "no missed update was found"
    );
    assert_eq!(record.count(Cause::Event), events, "no event arrived");
    proxy.set(Traffic::Flowing);
    put(writer, &key, "false");
    record.until_value(&key, Some("false"), RECOVERY_DEADLINE);
    record.assert_never_backwards();
}

/// An idle watch keeps its connection, and then delivers an event at once.
pub(crate) fn stay_idle(proxy: &Proxy, reader: &dyn Store, writer: &dyn Store) {
    let key = gate("auditor");
    let (record, _watch) = watched(reader, &key);
    let connections = proxy.accepted();
    stays("the connection", Duration::from_secs(20), || {
        match proxy.accepted() {
            same if same == connections => Ok(()),
            more => Err(format!("{more} connections after {connections}")),
        }
    });
    put(writer, &key, "false");
    record.until_value(&key, Some("false"), RECOVERY_DEADLINE);
}
