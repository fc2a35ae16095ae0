//! What a bridge says of itself: to its admin HTTP, its metrics and `bridge status`.

use serde::{Deserialize, Serialize};

use super::{Pair, Side};
use crate::problem::Problems;

/// A bridge at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BridgeReport {
    /// This bridge's id.
    pub id: String,
    /// Whose value wins a conflict.
    pub preferred_side: Side,
    /// The two stores.
    pub sides: Pair<StoreReport>,
    /// Where the notes stand.
    pub notes: StoreReport,
    /// Why it carries nothing across although both stores answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<HaltReport>,
    /// Why it will never carry anything across again: it has to be started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<HaltReport>,
    /// Keys that stand on either side.
    pub keys: usize,
    /// Keys that are not known to be equal yet; those whose value is refused are not counted.
    pub unsettled: usize,
    /// How long the oldest of them has been waiting, in seconds.
    pub lag_seconds: f64,
    /// What it has done since it started.
    pub counts: Counts,
    /// Values that do not cross, and why; sorted by key.
    pub refused: Vec<RefusedValue>,
    /// The newest conflicts, newest last.
    pub conflicts: Vec<Conflict>,
}

impl BridgeReport {
    /// Everything that keeps it from carrying keys across, with what to do; none of a bridge that is ready.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let stores = [&self.sides.etcd, &self.sides.zookeeper, &self.notes];
        let away = stores.iter().filter(|store| !store.reachable).map(|store| {
            let reason = store.reason.as_deref().unwrap_or("it does not answer");
            format!("{}: {reason}", store.store)
        });
        let halts = [&self.failed, &self.halted].into_iter().flatten();
        let halts = halts.map(|halt| halt.reason.clone());
        halts.chain(away).collect()
    }
}

/// Why a bridge stands still, with what to do.
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
    /// The store, for people; never with credentials.
    pub store: String,
    /// Whether it has been read and answers.
    pub reachable: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its revision, as far as it is known.
    pub revision: u64,
    /// Its keys.
    pub keys: usize,
    /// Paths below its prefix that are no control keys: left alone.
    pub strangers: usize,
}

/// What a bridge has done since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Values written, by the side that was written.
    pub writes: Pair<u64>,
    /// Keys deleted, by the side that they were deleted from.
    pub deletes: Pair<u64>,
    /// Changes overruled, by the side that lost its change.
    pub conflicts: Pair<u64>,
    /// Values that were refused, by the side where they stand, and writes, by the side that refused them; each counts once.
    pub refusals: Pair<u64>,
    /// Changes that a store's watch had missed and its re-list found.
    pub repairs: Pair<u64>,
    /// Store calls that failed.
    pub failures: u64,
    /// Crossings that another bridge or a new edit overtook.
    pub overtaken: u64,
}

/// A value that does not cross.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedValue {
    /// The key.
    pub key: String,
    /// The side where the value stands.
    pub side: Side,
    /// Where, for people.
    pub place: String,
    /// What is wrong and what to do.
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

/// A conflict that was settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The key.
    pub key: String,
    /// The side whose value stands now.
    pub winner: Side,
    /// The revision of the value that was overruled, on the other side; 0 for a delete. etcd keeps it in its history.
    pub overruled_revision: u64,
    /// When, RFC 3339.
    pub at: String,
}
