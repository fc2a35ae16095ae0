//! Writes a new mark: announced in the record, written to the sides, then recorded. One compare-and-set store call per
//! step.
//!
//! ```text
//!  Announce ──► Mark ZooKeeper ──┬────────────────────► Settle ──► done
//!                                └─► Join: etcd's id ───┘
//! ```
//!
//! An interrupted renewal leaves its announcement in the record; the next bridge starts over from there.

use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::{Expected, KeyVersion, Store, StoreError, Tree};

use super::mark::{Mark, Membership};
use super::pair_record::{MARKED, PairRecord};
use super::sync_state::LATE_MS;
use super::transfer::Progress;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Announce,
    Mark,
    Join,
    Settle,
}

/// A new mark being written.
#[derive(Debug)]
pub struct Renewal {
    record: PairRecord,
    record_at: Option<KeyVersion>,
    /// The versions at the marks' places on both sides.
    marks_at: Pair<Expected>,
    /// The other pairs that etcd is a side of.
    others: Vec<Membership>,
    /// This pair's name.
    name: String,
    stage: Stage,
    went_back: Pair<bool>,
    taken_over: Pair<bool>,
    began_ms: u64,
}

impl Renewal {
    /// Creates the renewal of the pair `name` to `record`, from readings of the state store and both sides.
    pub(super) fn new(
        name: &str,
        record: PairRecord,
        state: &Tree,
        sides: &Pair<&Tree>,
        began_ms: u64,
    ) -> Self {
        let at = |tree: &Tree| tree.get(&ControlKey::Bridge).map(|entry| entry.stamp);
        let mut others = Membership::all_of(sides.of(MARKED.other()));
        let before = PairRecord::of(state).unwrap_or_default();
        let own = [before.id, before.next_id, record.id.clone()];
        others.retain(|other| !own.iter().flatten().any(|own| *own == other.id));
        Self {
            stage: match record.next {
                Some(_) => Stage::Announce,
                None => Stage::Settle,
            },
            record,
            record_at: at(state),
            marks_at: Pair::from_fn(|side| {
                at(sides.of(side)).map_or(Expected::Absent, Expected::At)
            }),
            others,
            name: name.to_owned(),
            went_back: Pair::default(),
            taken_over: Pair::default(),
            began_ms,
        }
    }

    /// Adds the reasons, as far as they are reverted or accepted sides.
    pub(super) fn with_reasons(self, went_back: Pair<bool>, taken_over: Pair<bool>) -> Self {
        Self {
            went_back,
            taken_over,
            ..self
        }
    }

    /// The sides that reverted to an earlier state, if that is the reason.
    pub fn went_back(&self) -> impl Iterator<Item = Side> {
        let sides = Side::BOTH.into_iter();
        sides.filter(|side| *self.went_back.of(*side))
    }

    /// The foreign sides that are taken over by the operator's choice.
    pub fn taken_over(&self) -> impl Iterator<Item = Side> {
        let sides = Side::BOTH.into_iter();
        sides.filter(|side| *self.taken_over.of(*side))
    }

    /// The new record.
    pub(super) fn record(&self) -> &PairRecord {
        &self.record
    }

    /// Runs the next step. A renewal that is delayed for more than `LATE_MS` after the readings starts nothing: the
    /// store that it read may have changed.
    pub fn step(&mut self, sides: Pair<&dyn Store>, state: &dyn Store, now_ms: u64) -> Progress {
        if now_ms.saturating_sub(self.began_ms) > LATE_MS {
            return Progress::Late;
        }
        let done = match self.stage {
            Stage::Announce => self.write_record(state).map(|()| Stage::Mark),
            Stage::Mark => self.mark(*sides.of(MARKED)),
            Stage::Join => self.join(*sides.of(MARKED.other())).map(|()| Stage::Settle),
            Stage::Settle => {
                if self.record.next.is_some() {
                    self.record.mark = self.record.next.take().unwrap_or_default();
                    let next_id = self.record.next_id.take();
                    self.record.id = next_id.or_else(|| self.record.id.take());
                }
                match self.write_record(state) {
                    Ok(()) => return Progress::Done,
                    Err(error) => Err(error),
                }
            }
        };
        match done {
            Ok(stage) => {
                self.stage = stage;
                Progress::Going
            }
            Err(StoreError::Conflict { .. }) => Progress::Overtaken,
            Err(error) => Progress::Failed(error),
        }
    }

    fn mark(&self, side: &dyn Store) -> Result<Stage, StoreError> {
        let joins = self.record.next_id.is_some();
        let pair = self.record.next_id.as_ref().or(self.record.id.as_ref());
        let mark = Mark {
            number: self.record.next.unwrap_or_default(),
            since: *self.record.trusted_from.of(MARKED),
            pair: pair.cloned(),
        };
        let text = mark.to_text();
        let at = *self.marks_at.of(MARKED);
        side.write(&ControlKey::Bridge, Some(text.as_bytes()), at)?;
        Ok(match joins {
            true => Stage::Join,
            false => Stage::Settle,
        })
    }

    fn join(&self, side: &dyn Store) -> Result<(), StoreError> {
        let own = self.record.next_id.clone().map(|id| Membership {
            id,
            name: Some(self.name.clone()),
        });
        let pairs = self.others.iter().chain(&own);
        let lines: Vec<String> = pairs.map(Membership::to_text).collect();
        let text = lines.join("\n");
        let at = *self.marks_at.of(MARKED.other());
        side.write(&ControlKey::Bridge, Some(text.as_bytes()), at)?;
        Ok(())
    }

    fn write_record(&mut self, state: &dyn Store) -> Result<(), StoreError> {
        let expected = self.record_at.map_or(Expected::Absent, Expected::At);
        let json = self.record.to_json();
        self.record_at = Some(state.write(&ControlKey::Bridge, Some(&json), expected)?);
        Ok(())
    }
}
