//! Status of a bridge, for its admin HTTP server, its metrics and `bridge status`.

use serde::{Deserialize, Serialize};
use sluicegate_config::control::{Pair, Side};
use sluicegate_config::problem::Problems;

/// The status of a bridge at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BridgeReport {
    /// This bridge's id.
    pub id: String,
    /// The side whose value wins a conflict.
    pub preferred_side: Side,
    /// The two stores.
    pub sides: Pair<StoreReport>,
    /// The store of the sync state.
    pub sync_state: StoreReport,
    /// Why it copies nothing although both stores answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<HaltReport>,
    /// Why it has stopped for good; it must be restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<HaltReport>,
    /// Keys that exist on either side.
    pub keys: usize,
    /// Keys that are not known to be equal yet, without those whose value is refused.
    pub unsettled: usize,
    /// How long the oldest of them has been waiting, in seconds.
    pub lag_seconds: f64,
    /// Counters since its start.
    pub counts: Counts,
    /// Values that are not copied, with the reasons; sorted by key.
    pub refused: Vec<RefusedValue>,
    /// The latest conflicts, newest last; at most 32.
    pub conflicts: Vec<Conflict>,
}

impl BridgeReport {
    /// Everything that keeps it from copying keys, with the remedies; empty when it is ready.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let stores = [&self.sides.etcd, &self.sides.zookeeper, &self.sync_state];
        let unreachable = stores.iter().filter(|store| !store.reachable).map(|store| {
            let reason = store.reason.as_deref().unwrap_or("no answer");
            format!("{}: {reason}", store.store)
        });
        let halts = [&self.failed, &self.halted].into_iter().flatten();
        let halts = halts.map(|halt| halt.reason.clone());
        halts.chain(unreachable).collect()
    }
}

/// Why a bridge is halted, with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaltReport {
    /// The cause and the remedy.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
}

/// One store of a bridge.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StoreReport {
    /// The store's address, for messages; never with credentials.
    pub store: String,
    /// Whether it has been read and answers.
    pub reachable: bool,
    /// Why it does not; `None` when reachable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its latest known revision.
    pub revision: u64,
    /// Number of its keys.
    pub keys: usize,
    /// Number of paths below its prefix that are not control keys; they are ignored.
    pub unrecognized_keys: usize,
}

/// Counters of a bridge since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Values written, by the side that was written.
    pub writes: Pair<u64>,
    /// Keys deleted, by the side that they were deleted from.
    pub deletes: Pair<u64>,
    /// Changes overruled, by the side that lost its change.
    pub conflicts: Pair<u64>,
    /// Values refused, by the side that holds them, and writes refused, by the side that refused them. Each counts
    /// once.
    pub refusals: Pair<u64>,
    /// Changes that a store's watch missed and its re-list found.
    pub repairs: Pair<u64>,
    /// Store calls that failed.
    pub failures: u64,
    /// Transfers overtaken by another bridge or by a new edit.
    pub overtaken: u64,
}

/// A value that is not copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedValue {
    /// The key.
    pub key: String,
    /// The side that holds the value.
    pub side: Side,
    /// Its place there, for messages.
    pub place: String,
    /// The problems and their remedies.
    pub problems: Vec<String>,
}

impl RefusedValue {
    pub(super) fn new(key: String, side: Side, place: String, problems: &Problems) -> Self {
        Self {
            key,
            side,
            place,
            problems: problems.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A resolved conflict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The key.
    pub key: String,
    /// The side whose value won.
    pub winner: Side,
    /// The revision of the overruled value on the other side; 0 for a delete. etcd keeps it in its history.
    pub overruled_revision: u64,
    /// When, RFC 3339.
    pub at: String,
}
