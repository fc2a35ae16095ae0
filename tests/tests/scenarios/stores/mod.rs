//! Shared by the scenarios `stores_*`: keys, writes, and the time limits after an outage.

pub(crate) mod faults;
mod put;

use std::time::{Duration, Instant};

use sluicegate_config::control::{ControlKey, MemberReport};
use sluicegate_kit::store_conformance::Record;
use sluicegate_store::{Expected, KeyVersion, Store, StoreWatch};

pub(crate) use put::put;

/// Time limit for seeing changes made during an outage, from the recovery of the store (G10).
pub(crate) const RECOVERY_DEADLINE: Duration = Duration::from_secs(5);
/// Time limit for detecting the loss of a store.
pub(crate) const DETECTION_DEADLINE: Duration = Duration::from_secs(15);

pub(crate) fn gate(name: &str) -> ControlKey {
    ControlKey::enabled(name).expect("a handler's name")
}

/// The report of a member that has applied `revision`.
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

/// Toggles `key` several times, ending with `last`, adds a key and removes one.
pub(crate) fn change_during_outage(store: &dyn Store, key: &ControlKey, last: &str) {
    for round in 0..5 {
        put(store, key, if round % 2 == 0 { "true" } else { "false" });
    }
    put(store, key, last);
    put(store, &gate("added"), "true");
    delete(store, &gate("removed"));
}

/// Checks that everything that [`change_during_outage`] did is seen in time, and that nothing went backwards.
pub(crate) fn assert_recovered(record: &Record, key: &ControlKey, last: &str) {
    let recovered = Instant::now();
    record.until(
        "the changes during the outage",
        RECOVERY_DEADLINE,
        |record| {
            record.value(key).as_deref() == Some(last)
                && record.value(&gate("added")).is_some()
                && record.value(&gate("removed")).is_none()
        },
    );
    println!(
        "    seen {:.2} s after recovery",
        recovered.elapsed().as_secs_f32()
    );
    record.assert_never_backwards();
}

/// A watch of `store` with the initial keys of every fault.
pub(crate) fn watched(store: &dyn Store, key: &ControlKey) -> (Record, Box<dyn StoreWatch>) {
    put(store, key, "true");
    put(store, &gate("removed"), "true");
    let (record, watch) = Record::watch(store);
    record.until_value(key, Some("true"), DETECTION_DEADLINE);
    record.until_value(&gate("removed"), Some("true"), DETECTION_DEADLINE);
    (record, watch)
}
