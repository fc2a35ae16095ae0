//! A new mark on its way: announced in the record, written to the sides, noted. A store call a step, each compared and set.
//!
//! ```text
//!  Announce ──► Mark ZooKeeper ──┬────────────────────► Settle ──► done
//!                                └─► Join: etcd's id ───┘
//! ```
//!
//! One that breaks off leaves its announcement in the record; whoever comes next begins anew with that.

use super::mark::{Mark, Membership};
use super::pair::MARKED;
use super::sync_state::LATE_MS;
use super::transfer::Progress;
use super::{Pair, PairRecord, Side};
use crate::store::{ControlKey, Expected, KeyVersion, Store, StoreError, Tree};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Announce,
    Mark,
    Join,
    Settle,
}

/// A new mark on its way.
#[derive(Debug)]
pub struct Renewal {
    record: PairRecord,
    record_at: Option<KeyVersion>,
    /// What stands at the marks' places on both sides.
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
    /// Of the pair `name` to `record`, from what was read of `notes` and `sides`.
    pub(super) fn new(
        name: &str,
        record: PairRecord,
        notes: &Tree,
        sides: &Pair<&Tree>,
        began_ms: u64,
    ) -> Self {
        let at = |tree: &Tree| tree.get(&ControlKey::Bridge).map(|entry| entry.stamp);
        let mut others = Membership::all_of(sides.of(MARKED.other()));
        let before = PairRecord::of(notes).unwrap_or_default();
        let own = [before.id, before.next_id, record.id.clone()];
        others.retain(|other| !own.iter().flatten().any(|own| *own == other.id));
        Self {
            stage: match record.next {
                Some(_) => Stage::Announce,
                None => Stage::Settle,
            },
            record,
            record_at: at(notes),
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

    /// Why it is needed, as far as it is for that.
    pub(super) fn because(self, went_back: Pair<bool>, taken_over: Pair<bool>) -> Self {
        Self {
            went_back,
            taken_over,
            ..self
        }
    }

    /// The sides that went back to an earlier state, if that is why it is needed.
    pub fn went_back(&self) -> impl Iterator<Item = Side> {
        let sides = Side::BOTH.into_iter();
        sides.filter(|side| *self.went_back.of(*side))
    }

    /// The sides that are taken over for foreign ones, as an operator wants it.
    pub fn taken_over(&self) -> impl Iterator<Item = Side> {
        let sides = Side::BOTH.into_iter();
        sides.filter(|side| *self.taken_over.of(*side))
    }

    /// The record as it is to be.
    pub(super) fn record(&self) -> &PairRecord {
        &self.record
    }

    /// Does the next step. One that was held up since the readings begins nothing: the store that it has read may not be
    /// there any more.
    pub fn step(&mut self, sides: Pair<&dyn Store>, notes: &dyn Store, now_ms: u64) -> Progress {
        if now_ms.saturating_sub(self.began_ms) > LATE_MS {
            return Progress::Late;
        }
        let done = match self.stage {
            Stage::Announce => self.write_record(notes).map(|()| Stage::Mark),
            Stage::Mark => self.mark(*sides.of(MARKED)),
            Stage::Join => self.join(*sides.of(MARKED.other())).map(|()| Stage::Settle),
            Stage::Settle => {
                if self.record.next.is_some() {
                    self.record.mark = self.record.next.take().unwrap_or_default();
                    let next_id = self.record.next_id.take();
                    self.record.id = next_id.or_else(|| self.record.id.take());
                }
                match self.write_record(notes) {
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

    fn write_record(&mut self, notes: &dyn Store) -> Result<(), StoreError> {
        let expected = self.record_at.map_or(Expected::Absent, Expected::At);
        let json = self.record.to_json();
        self.record_at = Some(notes.write(&ControlKey::Bridge, Some(&json), expected)?);
        Ok(())
    }
}
