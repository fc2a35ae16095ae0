//! One key's way across: announce it in the note, write the other side, note what both sides hold. A store call a step.
//!
//! ```text
//!  Announce ──► Write ──► Note ──► done
//!     │           └─ conflict: the note forgets the announcement
//!     └─ conflict: another bridge is at it
//! ```
//!
//! Every write is compare-and-set with what was seen, so nothing is overwritten that was not read. A crossing that breaks
//! off leaves its announcement behind, for whoever comes next to find.

use std::sync::Arc;

use super::sync_state::{FORGET_MS, LATE_MS};
use super::{Ages, Pair, PairRecord, Pending, Side, SyncState, content_hash};
use crate::store::{ControlKey, Entry, Expected, KeyVersion, Store, StoreError};

/// What comes of a step.
#[derive(Debug)]
pub enum Progress {
    /// Another step is needed.
    Going,
    /// The value has crossed, or the note is written.
    Done,
    /// A key changed meanwhile: decide again.
    Overtaken,
    /// It was held up for too long: decide again.
    Late,
    /// A store failed: decide again later.
    Failed(StoreError),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Announce,
    Write,
    Note {
        note: Option<SyncState>,
        crossed: bool,
    },
}

/// What a crossing is to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// The note alone.
    Note,
    /// The value at this revision of the other side, or its delete.
    Value {
        /// The side that is written.
        to: Side,
        /// `None` for a delete.
        revision: Option<u64>,
        /// The revision of what it replaces; 0 for nothing. A value that changes there makes it another write.
        replaces: u64,
    },
}

/// What a crossing rests on.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// What is noted of the key.
    pub note: Option<&'a SyncState>,
    /// At which stamp.
    pub note_at: Option<KeyVersion>,
    /// How long that has been known.
    pub ages: &'a Ages,
    /// What is known of the pair.
    pub pair: &'a PairRecord,
}

/// A key on its way.
#[derive(Debug)]
pub struct Transfer {
    key: ControlKey,
    to: Side,
    value: Option<Arc<[u8]>>,
    hash: Option<String>,
    /// The revision of the value on the side where it is read.
    read_at: Option<u64>,
    expected: Expected,
    replaces: u64,
    base: SyncState,
    note_at: Option<KeyVersion>,
    /// The mark that stood in ZooKeeper.
    mark: u64,
    /// Whether a side holds neither what was seen of it nor anything later, or was taken over: until the note is renewed, it is
    /// of its old mark.
    behind: bool,
    by: String,
    /// When reading for it began; from the announcement on, when that was.
    began_ms: u64,
    /// Whether nothing but the note is written.
    of_note: bool,
    /// Why the side refused the write.
    refused: Option<StoreError>,
    /// Whether the store of the notes refused its write.
    note_refused: bool,
    /// Whether the other side has answered: then the note is brought up to date, however late.
    answered: bool,
    wrote: Option<Option<Entry>>,
    wrote_note: Option<Option<Entry>>,
    stage: Stage,
}

impl Transfer {
    /// Of what stands in `from`, if anything, to the side `to`, where `there` stands. `began_ms` is when the readings that it rests on began: a note that is not there must not have come and gone
    /// since then, which takes longer than a crossing may be held up.
    #[must_use]
    pub fn new(
        key: &ControlKey,
        to: Side,
        from: Option<&Entry>,
        there: Option<&Entry>,
        known: Known<'_>,
        by: &str,
        began_ms: u64,
    ) -> Self {
        let is_behind = |note: &SyncState, side: Side, entry: Option<&Entry>| {
            let revision = entry.map_or(0, |entry| entry.stamp.revision);
            revision < note.seen_at(side)
                || (revision > 0 && note.was_deleted_after(side, revision))
        };
        let unknown = |side| known.pair.unknown(side, known.note);
        let was_taken = Side::BOTH
            .into_iter()
            .any(|side| unknown(side).is_some_and(|taken| taken.yields || known.note.is_some()));
        let behind = known
            .note
            .is_some_and(|note| is_behind(note, to, there) || is_behind(note, to.other(), from));
        let value = from.map(|entry| Arc::clone(&entry.value));
        Self {
            key: key.clone(),
            to,
            hash: value.as_deref().map(content_hash),
            value,
            read_at: from.map(|entry| entry.stamp.revision),
            expected: there.map_or(Expected::Absent, |entry| Expected::At(entry.stamp)),
            replaces: there.map_or(0, |entry| entry.stamp.revision),
            base: known
                .note
                .map(|note| base(note, &known))
                .unwrap_or_default(),
            note_at: known.note_at,
            mark: known.pair.mark,
            behind: behind || was_taken,
            by: by.to_owned(),
            began_ms,
            of_note: false,
            refused: None,
            note_refused: false,
            answered: false,
            wrote: None,
            wrote_note: None,
            stage: Stage::Announce,
        }
    }

    /// What it writes.
    pub(super) fn writes(&self) -> Writes {
        match self.of_note {
            true => Writes::Note,
            false => Writes::Value {
                to: self.to,
                revision: self.read_at,
                replaces: self.replaces,
            },
        }
    }

    /// Whether the write that was refused was that of the note, not of the side's value.
    pub(super) fn was_note_refused(&self) -> bool {
        self.note_refused
    }

    /// Writes only the note: both sides hold the same already.
    #[must_use]
    pub fn of_note(
        key: &ControlKey,
        note: Option<SyncState>,
        note_at: Option<KeyVersion>,
        by: &str,
        began_ms: u64,
    ) -> Self {
        let known = Known {
            note: None,
            note_at,
            ages: &Ages::default(),
            pair: &PairRecord::default(),
        };
        let mut crossing = Self::new(key, Side::Etcd, None, None, known, by, began_ms);
        crossing.stage = Stage::Note {
            note,
            crossed: true,
        };
        crossing.of_note = true;
        crossing
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &ControlKey {
        &self.key
    }

    /// The side that is written.
    #[must_use]
    pub fn to(&self) -> Side {
        self.to
    }

    /// Whether it deletes.
    #[must_use]
    pub fn is_delete(&self) -> bool {
        self.value.is_none()
    }

    /// The revision of what it replaces; 0 for nothing.
    #[must_use]
    pub fn replaces(&self) -> u64 {
        self.replaces
    }

    /// Whether the next step writes the other side, not a note.
    #[must_use]
    pub fn writes_next(&self) -> bool {
        self.stage == Stage::Write
    }

    /// What it has written so far: to the other side, and as the note. `None` inside is a delete.
    #[must_use]
    pub fn written(&self) -> (Option<Option<Entry>>, Option<Option<Entry>>) {
        (self.wrote.clone(), self.wrote_note.clone())
    }

    /// Does the next step: one call of `side`, the store of [`Transfer::to`], or of `notes`.
    pub fn step(&mut self, side: &dyn Store, notes: &dyn Store, now_ms: u64) -> Progress {
        if now_ms.saturating_sub(self.began_ms) > LATE_MS && !self.answered {
            return Progress::Late;
        }
        match self.stage.clone() {
            Stage::Announce => self.announce(notes, now_ms),
            Stage::Write => self.write(side, now_ms),
            Stage::Note { note, crossed } => self.note(notes, note.as_ref(), crossed),
        }
    }

    fn announce(&mut self, notes: &dyn Store, now_ms: u64) -> Progress {
        let mut announced = self.base.clone();
        if !self.behind {
            announced.mark = self.mark;
        }
        announced.pending.push(Pending {
            to: self.to,
            value: self.hash.clone(),
            replaces: self.replaces,
            read_at: self.read_at.unwrap_or(0),
            by: self.by.clone(),
            at_ms: now_ms,
        });
        let bytes = announced.to_json();
        match notes.write(&self.key, Some(&bytes), self.note_expected()) {
            Ok(stamp) => {
                self.note_at = Some(stamp);
                self.wrote_note = Some(Some(Entry {
                    value: bytes.into(),
                    stamp,
                }));
                self.began_ms = now_ms;
                self.stage = Stage::Write;
                Progress::Going
            }
            Err(error) => self.note_failed(error),
        }
    }

    fn write(&mut self, side: &dyn Store, now_ms: u64) -> Progress {
        match side.write(&self.key, self.value.as_deref(), self.expected) {
            Ok(stamp) => {
                self.answered = true;
                let value = self.value.clone();
                self.wrote = Some(value.map(|value| Entry { value, stamp }));
                self.stage = Stage::Note {
                    note: Some(self.noted(stamp, now_ms)),
                    crossed: true,
                };
                Progress::Going
            }
            Err(error @ (StoreError::Conflict { .. } | StoreError::Refused { .. })) => {
                // It did not take place and never will: the announcement would only mislead.
                let empty = self.base == SyncState::default();
                self.stage = Stage::Note {
                    note: (!empty).then(|| self.base.clone()),
                    crossed: false,
                };
                self.answered = true;
                self.refused = matches!(error, StoreError::Refused { .. }).then_some(error);
                Progress::Going
            }
            Err(error) => Progress::Failed(error),
        }
    }

    /// The note after the write took place at `stamp`.
    fn noted(&self, stamp: KeyVersion, now_ms: u64) -> SyncState {
        let from = self.to.other();
        let mut note = self.base.clone();
        note.value.clone_from(&self.hash);
        note.mark = self.mark;
        let written = note.revisions.of_mut(self.to);
        *written = match self.value {
            Some(_) => stamp.revision,
            None => self.replaces.max(*written),
        };
        if let Some(revision) = self.read_at {
            *note.revisions.of_mut(from) = revision;
        }
        // What replaces another value than the one that stands there now cannot take place any more.
        let mut there = Pair::<u64>::default();
        if self.value.is_some() {
            *there.of_mut(self.to) = stamp.revision;
            *there.of_mut(from) = self.read_at.unwrap_or(0);
        }
        note.pending
            .retain(|pending| pending.replaces == *there.of(pending.to));
        note.at_ms = now_ms;
        note
    }

    fn note(&mut self, notes: &dyn Store, note: Option<&SyncState>, crossed: bool) -> Progress {
        let bytes = note.map(SyncState::to_json);
        let written = notes.write(&self.key, bytes.as_deref(), self.note_expected());
        let stamp = match written {
            Ok(stamp) => stamp,
            Err(error) => return self.note_failed(error),
        };
        self.wrote_note = Some(bytes.map(|bytes| Entry {
            value: bytes.into(),
            stamp,
        }));
        match self.refused.take() {
            Some(refused) => Progress::Failed(refused),
            None if crossed => Progress::Done,
            None => Progress::Overtaken,
        }
    }

    fn note_failed(&mut self, error: StoreError) -> Progress {
        match error {
            StoreError::Conflict { .. } => Progress::Overtaken,
            error => {
                self.note_refused = matches!(error, StoreError::Refused { .. });
                Progress::Failed(error)
            }
        }
    }

    fn note_expected(&self) -> Expected {
        self.note_at.map_or(Expected::Absent, Expected::At)
    }
}

/// The note without the announced writes that will not come any more, and without revisions of other stores.
fn base(note: &SyncState, known: &Known<'_>) -> SyncState {
    let pending = known.ages.of_pending(note);
    let pending = pending.filter(|(_, age)| *age < FORGET_MS);
    SyncState {
        pending: pending.map(|(pending, _)| pending.clone()).collect(),
        revisions: known.pair.known_revisions(note),
        ..note.clone()
    }
}
