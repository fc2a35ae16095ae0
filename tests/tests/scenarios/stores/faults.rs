//! Faults of the way between a watch and its store, the same for every store.

use std::time::{Duration, Instant};

use e2e::long;
use e2e::proxy::{Proxy, Traffic};
use e2e::wait::stays;
use sluicegate_config::store::{Cause, Store};

use crate::stores::{HEALED, NOTICED, assert_healed, change_meanwhile, delete, gate, put, watched};

/// The re-list of a reader whose events are swallowed.
pub(crate) const RELIST: Duration = Duration::from_secs(3);
/// How soon a swallowed change must be seen: the longest time to the next re-list, the grace behind it, and its reading.
const REPAIRED: Duration = Duration::from_secs(6);
/// Notices that must have been swallowed: a change that falls between a new watch and its reading makes none.
const SWALLOWED: u64 = 3;

/// Stalls the connections of `reader`, then cuts them; for a minute each in the long form.
pub(crate) fn cut_the_network(proxy: &Proxy, reader: &dyn Store, writer: &dyn Store) {
    let key = gate("auditor");
    let (record, _watch) = watched(reader, &key);
    for (traffic, last) in [(Traffic::Stalled, "false"), (Traffic::Cut, "true")] {
        proxy.set(traffic);
        put(writer, &gate("went-meanwhile"), "true");
        record.until_away(NOTICED);
        change_meanwhile(writer, &key, last);
        if long() {
            stays("the outage", Duration::from_secs(60), || {
                match record.value(&key) {
                    Some(value) if value != last => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
        proxy.set(Traffic::Flowing);
        assert_healed(&record, &key, last);
    }
}

/// Lets the connections of `reader`, whose re-list is [`RELIST`], live and swallows its notices.
pub(crate) fn swallow_events(proxy: &Proxy, reader: &dyn Store, writer: &dyn Store) {
    let key = gate("auditor");
    let (record, _watch) = watched(reader, &key);
    proxy.set(Traffic::Swallowing);
    let heard = record.count(Cause::Event);
    let end = Instant::now() + Duration::from_secs(60);
    for value in [Some("false"), Some("true"), None].iter().cycle() {
        match value {
            Some(value) => put(writer, &key, value),
            None => delete(writer, &key),
        };
        record.until_value(&key, *value, REPAIRED);
        if proxy.swallowed() >= SWALLOWED {
            break;
        }
        assert!(Instant::now() < end, "swallowed: {}", proxy.swallowed());
    }
    assert!(
        record.count(Cause::MissedUpdate) >= 1,
        "nothing was repaired"
    );
    assert_eq!(record.count(Cause::Event), heard, "nothing was heard");
    proxy.set(Traffic::Flowing);
    put(writer, &key, "false");
    record.until_value(&key, Some("false"), HEALED);
    record.assert_never_backwards();
}

/// A watch that has nothing to tell keeps its connection, and then tells at once.
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
    record.until_value(&key, Some("false"), HEALED);
}
