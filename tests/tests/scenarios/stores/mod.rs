//! What the scenarios `stores_*` share: keys, writes, and the bound that a healed store is held to.

pub(crate) mod faults;
mod put;

use std::time::{Duration, Instant};

pub(crate) use put::put;
use sluicegate_config::MemberReport;
use sluicegate_config::store::conformance::Record;
use sluicegate_config::store::{ControlKey, Expected, KeyVersion, Store, StoreWatch};

/// How soon what changed meanwhile must be seen after a store has healed (G10).
pub(crate) const HEALED: Duration = Duration::from_secs(5);
/// How soon a loss must be noticed.
pub(crate) const NOTICED: Duration = Duration::from_secs(15);

pub(crate) fn gate(name: &str) -> ControlKey {
    ControlKey::enabled(name).expect("a handler's name")
}

/// What a member tells that has applied `revision`.
pub(crate) fn report(id: &str, revision: u64) -> MemberReport {
    MemberReport {
        id: id.to_owned(),
        instance: "0123abcd".to_owned(),
        applied_revision: revision,
        ..MemberReport::default()
    }
}

pub(crate) fn delete(store: &dyn Store, key: &ControlKey) -> KeyVersion {
    store
        .write(key, None, Expected::Any)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Toggles `key` so that `last` is what stands there in the end, and leaves a key and takes one away.
pub(crate) fn change_meanwhile(store: &dyn Store, key: &ControlKey, last: &str) {
    for round in 0..5 {
        put(store, key, if round % 2 == 0 { "true" } else { "false" });
    }
    put(store, key, last);
    put(store, &gate("came-meanwhile"), "true");
    delete(store, &gate("went-meanwhile"));
}

/// Everything that [`change_meanwhile`] did is seen in time, and nothing went backwards.
pub(crate) fn assert_healed(record: &Record, key: &ControlKey, last: &str) {
    let healed = Instant::now();
    record.until("what changed meanwhile", HEALED, |record| {
        record.value(key).as_deref() == Some(last)
            && record.value(&gate("came-meanwhile")).is_some()
            && record.value(&gate("went-meanwhile")).is_none()
    });
    println!(
        "    seen {:.2} s after healing",
        healed.elapsed().as_secs_f32()
    );
    record.assert_never_backwards();
}

/// A watch of `store` that knows the keys which every fault begins with.
pub(crate) fn watched(store: &dyn Store, key: &ControlKey) -> (Record, Box<dyn StoreWatch>) {
    put(store, key, "true");
    put(store, &gate("went-meanwhile"), "true");
    let (record, watch) = Record::watch(store);
    record.until_value(key, Some("true"), NOTICED);
    record.until_value(&gate("went-meanwhile"), Some("true"), NOTICED);
    (record, watch)
}
