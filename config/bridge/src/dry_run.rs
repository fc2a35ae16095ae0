//! Computes what a bridge would do now, without doing it.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::{StoreError, Tree};

use super::decide::{Decision, KeyState, decide};
use super::halt::{Absences, Halt};
use super::pair::{PairCheck, check_pair};
use super::pair_record::PairRecord;
use super::{Ages, BridgeStores, SyncState};

/// What would happen to one key. Keys that would stay unchanged have no entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DryRun {
    /// The key.
    pub key: String,
    /// The side that would be written, or that holds a refused value.
    pub side: Side,
    /// The place there, for messages.
    pub place: String,
    /// What would happen there.
    pub step: DryRunStep,
    /// Whether this overrules a change of that side.
    pub conflict: bool,
    /// Why the value is refused; empty otherwise.
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
    /// The value is invalid and would not be copied.
    Refuse,
}

/// Result of a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRunReport {
    /// One step per key that would change, sorted by key. If `halt` is set, the steps are those of a run with
    /// `--allow-mass-delete`.
    pub steps: Vec<DryRun>,
    /// Why the bridge would halt; `None` if it would run.
    pub halt: Option<Halt>,
}

/// Reads both sides and computes what a bridge would do. `accepted` names the sides that may be taken over if they are
/// foreign.
///
/// # Errors
/// [`StoreError`] when a store does not answer.
pub fn dry_run(
    stores: &BridgeStores,
    preferred_side: Side,
    accepted: Pair<bool>,
) -> Result<DryRunReport, StoreError> {
    let state = stores.state.list()?;
    let sides = Pair {
        etcd: stores.sides.etcd.list()?,
        zookeeper: stores.sides.zookeeper.list()?,
    };
    let both = Pair::from_fn(|side| sides.of(side));
    let pair = match check_pair(&stores.name, &state, &both, false, accepted, 0) {
        PairCheck::Fits(record) => record,
        PairCheck::Renew(renewal) => renewal.record().clone(),
        foreign @ PairCheck::Foreign(_) => {
            let address = |side| stores.sides.of(side).address();
            return Ok(DryRunReport {
                steps: Vec::new(),
                halt: Halt::of(&foreign, address),
            });
        }
    };
    let context = DryRunContext {
        stores,
        preferred_side,
        state,
        sides,
        pair,
    };
    Ok(context.run())
}

struct DryRunContext<'a> {
    stores: &'a BridgeStores,
    preferred_side: Side,
    state: Tree,
    sides: Pair<Tree>,
    pair: PairRecord,
}

impl DryRunContext<'_> {
    fn run(&self) -> DryRunReport {
        let keys: BTreeSet<&ControlKey> = Side::BOTH
            .iter()
            .flat_map(|side| self.sides.of(*side).entries.keys())
            .filter(|key| **key != ControlKey::Bridge)
            .collect();
        let mut steps = Vec::new();
        let mut absences = Pair::<Absences>::default();
        for key in keys {
            let sync = self.sync(key);
            let was_held = sync.as_ref().is_some_and(|sync| sync.value.is_some());
            if was_held {
                absences.etcd.known += 1;
                absences.zookeeper.known += 1;
            }
            let step = self.step(key, sync.as_ref());
            if let Some(step) = &step
                && step.step == DryRunStep::Delete
                && was_held
            {
                absences.of_mut(step.side.other()).absent += 1;
            }
            steps.extend(step);
        }
        let halted_side = Side::BOTH
            .into_iter()
            .find(|side| absences.of(*side).are_many());
        let halt = halted_side.map(|side| Halt::MassDelete {
            side,
            store: self.stores.sides.of(side).address(),
            absent: absences.of(side).absent,
            known: absences.of(side).known,
        });
        DryRunReport { steps, halt }
    }

    fn sync(&self, key: &ControlKey) -> Option<SyncState> {
        let sync = self.state.get(key);
        sync.and_then(|entry| SyncState::from_json(&entry.value))
    }

    fn step(&self, key: &ControlKey, sync: Option<&SyncState>) -> Option<DryRun> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let places = Pair::from_fn(|side| self.stores.sides.of(side).locate(key));
        let decision = decide(&KeyState {
            key,
            places: &places,
            entries: Pair::from_fn(|side| self.sides.of(side).get(key)),
            revisions: Pair::from_fn(|side| self.sides.of(side).revision),
            deleted: Pair::default(),
            sync,
            ages: &Ages::as_recorded(sync, now_ms),
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
            // Another bridge is writing the key, or both sides are equal.
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
