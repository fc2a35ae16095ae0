//! What a bridge would do now, without doing it.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::decide::{Decision, KeyState, decide};
use super::halt::{Absences, Halt};
use super::pair::{PairCheck, PairRecord, check_pair};
use super::{Ages, BridgeStores, Pair, Side, SyncState};
use crate::store::{ControlKey, StoreError, Tree};

/// What would happen to one key; keys that would be left as they are have none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DryRun {
    /// The key.
    pub key: String,
    /// The side that would be written, or where a refused value stands.
    pub side: Side,
    /// Where, for people.
    pub place: String,
    /// What would happen there.
    pub step: DryRunStep,
    /// Whether this overrules a change of that side.
    pub conflict: bool,
    /// Why a value is refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What would happen to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DryRunStep {
    /// The other side's value would be written.
    Write,
    /// The key would be deleted.
    Delete,
    /// The value is not valid, and would not cross.
    Refuse,
}

/// What a bridge would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// What it would do to each key, by key. Where `halt` says why it would not: what it would do with `--allow-mass-delete`.
    pub steps: Vec<DryRun>,
    /// Why it would carry nothing across.
    pub halt: Option<Halt>,
}

/// Reads both sides and says what a bridge would do that may take over the sides `accepted`, if they are foreign.
///
/// # Errors
/// [`StoreError`] when a store does not answer.
pub fn dry_run(
    stores: &BridgeStores,
    preferred_side: Side,
    accepted: Pair<bool>,
) -> Result<Rehearsal, StoreError> {
    let notes = stores.notes.list()?;
    let sides = Pair {
        etcd: stores.sides.etcd.list()?,
        zookeeper: stores.sides.zookeeper.list()?,
    };
    let both = Pair::from_fn(|side| sides.of(side));
    let pair = match check_pair(&stores.name, &notes, &both, false, accepted, 0) {
        PairCheck::Fits(record) => record,
        PairCheck::Renew(renewal) => renewal.record().clone(),
        foreign @ PairCheck::Foreign(_) => {
            let address = |side| stores.sides.of(side).address();
            return Ok(Rehearsal {
                steps: Vec::new(),
                halt: Halt::of(&foreign, address),
            });
        }
    };
    let rehearsing = Rehearsing {
        stores,
        preferred_side,
        notes,
        sides,
        pair,
    };
    Ok(rehearsing.run())
}

struct Rehearsing<'a> {
    stores: &'a BridgeStores,
    preferred_side: Side,
    notes: Tree,
    sides: Pair<Tree>,
    pair: PairRecord,
}

impl Rehearsing<'_> {
    fn run(&self) -> Rehearsal {
        let keys: BTreeSet<&ControlKey> = Side::BOTH
            .iter()
            .flat_map(|side| self.sides.of(*side).entries.keys())
            .filter(|key| **key != ControlKey::Bridge)
            .collect();
        let mut steps = Vec::new();
        let mut absences = Pair::<Absences>::default();
        for key in keys {
            let note = self.note(key);
            let was_held = note.as_ref().is_some_and(|note| note.value.is_some());
            if was_held {
                absences.etcd.known += 1;
                absences.zookeeper.known += 1;
            }
            let step = self.step(key, note.as_ref());
            if let Some(step) = &step
                && step.step == DryRunStep::Delete
                && was_held
            {
                absences.of_mut(step.side.other()).absent += 1;
            }
            steps.extend(step);
        }
        let braked = Side::BOTH
            .into_iter()
            .find(|side| absences.of(*side).are_many());
        let halt = braked.map(|side| Halt::MassDelete {
            side,
            store: self.stores.sides.of(side).address(),
            absent: absences.of(side).absent,
            known: absences.of(side).known,
        });
        Rehearsal { steps, halt }
    }

    fn note(&self, key: &ControlKey) -> Option<SyncState> {
        let note = self.notes.get(key);
        note.and_then(|entry| SyncState::from_json(&entry.value))
    }

    fn step(&self, key: &ControlKey, note: Option<&SyncState>) -> Option<DryRun> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let places = Pair::from_fn(|side| self.stores.sides.of(side).locate(key));
        let decision = decide(&KeyState {
            key,
            places: &places,
            entries: Pair::from_fn(|side| self.sides.of(side).get(key)),
            revisions: Pair::from_fn(|side| self.sides.of(side).revision),
            deleted: Pair::default(),
            note,
            ages: &Ages::as_told(note, now_ms),
            forget: false,
            pair: &self.pair,
            fresh: true,
            preferred_side: self.preferred_side,
            own: "",
            now_ms,
        });
        let (side, step, conflict, problems) = match decision {
            Decision::Copy { to, conflict } => match self.sides.of(to.other()).get(key) {
                Some(_) => (to, DryRunStep::Write, conflict, Vec::new()),
                None => (to, DryRunStep::Delete, conflict, Vec::new()),
            },
            Decision::Refuse(refusal) => {
                let problems = refusal.problems.iter().map(ToString::to_string);
                let problems = problems.collect();
                (refusal.side, DryRunStep::Refuse, false, problems)
            }
            // Another bridge is at the key, or both sides are equal.
            _ => return None,
        };
        Some(DryRun {
            key: key.to_string(),
            side,
            place: places.of(side).clone(),
            step,
            conflict,
            problems,
        })
    }
}
