//! What a bridge would do now, without doing it.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::decide::{Decision, Look, decide};
use super::{BridgeStores, Note, Pair, Side};
use crate::store::{ControlKey, StoreError};

/// What would happen to one key; keys that would be left as they are have none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rehearsed {
    /// The key.
    pub key: String,
    /// The side that would be written, or where a refused value stands.
    pub side: Side,
    /// Where, for people.
    pub place: String,
    /// What would happen there.
    pub step: RehearsedStep,
    /// Whether this overrules a change of that side.
    pub conflict: bool,
    /// Why a value is refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What would happen to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RehearsedStep {
    /// The other side's value would be written.
    Write,
    /// The key would be deleted.
    Delete,
    /// The value is not valid, and would not cross.
    Refuse,
}

/// Reads both sides and says what a bridge would write, by key.
///
/// # Errors
/// [`StoreError`] when a store does not answer.
pub fn rehearse(stores: &BridgeStores, authority: Side) -> Result<Vec<Rehearsed>, StoreError> {
    let notes = stores.notes.list()?;
    let sides = Pair {
        etcd: stores.sides.etcd.list()?,
        zookeeper: stores.sides.zookeeper.list()?,
    };
    let keys: BTreeSet<&ControlKey> = Side::BOTH
        .iter()
        .flat_map(|side| sides.of(*side).entries.keys())
        .collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    let mut steps = Vec::new();
    for key in keys {
        let note = notes.get(key);
        let note = note.and_then(|entry| Note::from_json(&entry.value));
        let places = Pair::from_fn(|side| stores.sides.of(side).locate(key));
        let decision = decide(&Look {
            key,
            places: &places,
            entries: Pair::from_fn(|side| sides.of(side).get(key)),
            note: note.as_ref(),
            fresh: true,
            authority,
            own: "",
            now_ms,
        });
        let (side, step, conflict, problems) = match decision {
            Decision::Cross { to, conflict } => match sides.of(to.other()).get(key) {
                Some(_) => (to, RehearsedStep::Write, conflict, Vec::new()),
                None => (to, RehearsedStep::Delete, conflict, Vec::new()),
            },
            Decision::Refuse(refusal) => {
                let problems = refusal.problems.iter().map(ToString::to_string);
                let problems = problems.collect();
                (refusal.side, RehearsedStep::Refuse, false, problems)
            }
            // Another bridge is at the key, or both sides are equal.
            _ => continue,
        };
        steps.push(Rehearsed {
            key: key.to_string(),
            side,
            place: places.of(side).clone(),
            step,
            conflict,
            problems,
        });
    }
    Ok(steps)
}
