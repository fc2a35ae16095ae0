//! The transfer of one key: announce it in the sync state, write the other side, record what both sides hold. One store
//! call per step.
//!
//! ```text
//!  Announce ──► Write ──► Record ──► done
//!     │           └─ conflict: the announcement is removed from the sync state
//!     └─ conflict: another bridge is writing the key
//! ```
//!
//! Every write is compare-and-set with the version that was read, so nothing is overwritten unseen. An interrupted
//! transfer leaves its announcement behind for the next bridge.

use std::sync::Arc;

use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::{Entry, Expected, KeyVersion, Store, StoreError};

use super::pair_record::PairRecord;
use super::sync_state::{Ages, FORGET_MS, LATE_MS, Pending, SyncState, content_hash};

/// Result of a step.
#[derive(Debug)]
pub enum Progress {
    /// Another step is needed.
    Going,
    /// The value is copied, or the sync state is recorded.
    Done,
    /// A key changed concurrently: decide again.
    Overtaken,
    /// It was delayed for too long: decide again.
    Late,
    /// A store failed: decide again later.
    Failed(StoreError),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Announce,
    Write,
    Record {
        sync: Option<SyncState>,
        completed: bool,
    },
}

/// What a transfer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// The sync state alone.
    State,
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

/// The basis of a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The sync state of the key.
    pub sync: Option<&'a SyncState>,
    /// The version of the sync state in its store.
    pub sync_at: Option<KeyVersion>,
    /// How long this bridge has known it.
    pub ages: &'a Ages,
    /// The record of the pair.
    pub pair: &'a PairRecord,
}

/// A transfer under way.
#[derive(Debug)]
pub struct Transfer {
    key: ControlKey,
    to: Side,
    value: Option<Arc<[u8]>>,
    hash: Option<String>,
    /// The revision of the value on the source side; `None` for a delete.
    read_at: Option<u64>,
    expected: Expected,
    replaces: u64,
    base: SyncState,
    sync_at: Option<KeyVersion>,
    /// The mark in ZooKeeper when it began.
    mark: u64,
    /// Whether a side holds less than what was seen of it, or joined as an unknown store: until the sync state is
    /// renewed, it keeps its old mark.
    behind: bool,
    by: String,
    /// When its readings began; after the announcement, the time of that.
    began_ms: u64,
    /// Whether only the sync state is written.
    state_only: bool,
    /// Why the side refused the write.
    refused: Option<StoreError>,
    /// Whether the store of the sync state refused its write.
    state_refused: bool,
    /// Whether the other side has answered: then the sync state is updated however late it is.
    answered: bool,
    wrote: Option<Option<Entry>>,
    wrote_sync: Option<Option<Entry>>,
    stage: Stage,
}

impl Transfer {
    /// Copies the value `from`, or its absence, to the side `to`, which holds `there`. `began_ms` is when the
    /// underlying readings began: an absent sync state must not have come and gone since, which takes longer than the
    /// permitted delay of a transfer.
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
        let is_behind = |sync: &SyncState, side: Side, entry: Option<&Entry>| {
            let revision = entry.map_or(0, |entry| entry.stamp.revision);
            revision < sync.seen_at(side)
                || (revision > 0 && sync.was_deleted_after(side, revision))
        };
        let unknown = |side| known.pair.unknown(side, known.sync);
        let was_taken = Side::BOTH
            .into_iter()
            .any(|side| unknown(side).is_some_and(|taken| taken.yields || known.sync.is_some()));
        let behind = known
            .sync
            .is_some_and(|sync| is_behind(sync, to, there) || is_behind(sync, to.other(), from));
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
                .sync
                .map(|sync| base(sync, &known))
                .unwrap_or_default(),
            sync_at: known.sync_at,
            mark: known.pair.mark,
            behind: behind || was_taken,
            by: by.to_owned(),
            began_ms,
            state_only: false,
            refused: None,
            state_refused: false,
            answered: false,
            wrote: None,
            wrote_sync: None,
            stage: Stage::Announce,
        }
    }

    /// What it writes.
    pub(super) fn writes(&self) -> Writes {
        match self.state_only {
            true => Writes::State,
            false => Writes::Value {
                to: self.to,
                revision: self.read_at,
                replaces: self.replaces,
            },
        }
    }

    /// Whether the refused write was that of the sync state, not of the side's value.
    pub(super) fn was_state_refused(&self) -> bool {
        self.state_refused
    }

    /// Writes only the sync state: both sides hold the same value already.
    #[must_use]
    pub fn state_only(
        key: &ControlKey,
        sync: Option<SyncState>,
        sync_at: Option<KeyVersion>,
        by: &str,
        began_ms: u64,
    ) -> Self {
        let known = Known {
            sync: None,
            sync_at,
            ages: &Ages::default(),
            pair: &PairRecord::default(),
        };
        let mut transfer = Self::new(key, Side::Etcd, None, None, known, by, began_ms);
        transfer.stage = Stage::Record {
            sync,
            completed: true,
        };
        transfer.state_only = true;
        transfer
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

    /// The revision that it replaces; 0 for no value.
    #[must_use]
    pub fn replaces(&self) -> u64 {
        self.replaces
    }

    /// Whether the next step writes the other side rather than the sync state.
    #[must_use]
    pub fn writes_next(&self) -> bool {
        self.stage == Stage::Write
    }

    /// What it has written so far: the value to the other side, and the sync state. An inner `None` is a delete.
    #[must_use]
    pub fn written(&self) -> (Option<Option<Entry>>, Option<Option<Entry>>) {
        (self.wrote.clone(), self.wrote_sync.clone())
    }

    /// Runs the next step: one call of `side`, the store of [`Transfer::to`], or of the state store.
    pub fn step(&mut self, side: &dyn Store, state: &dyn Store, now_ms: u64) -> Progress {
        if now_ms.saturating_sub(self.began_ms) > LATE_MS && !self.answered {
            return Progress::Late;
        }
        match self.stage.clone() {
            Stage::Announce => self.announce(state, now_ms),
            Stage::Write => self.write(side, now_ms),
            Stage::Record { sync, completed } => self.record(state, sync.as_ref(), completed),
        }
    }

    fn announce(&mut self, state: &dyn Store, now_ms: u64) -> Progress {
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
        match state.write(&self.key, Some(&bytes), self.sync_expected()) {
            Ok(stamp) => {
                self.sync_at = Some(stamp);
                self.wrote_sync = Some(Some(Entry {
                    value: bytes.into(),
                    stamp,
                }));
                self.began_ms = now_ms;
                self.stage = Stage::Write;
                Progress::Going
            }
            Err(error) => self.state_failed(error),
        }
    }

    fn write(&mut self, side: &dyn Store, now_ms: u64) -> Progress {
        match side.write(&self.key, self.value.as_deref(), self.expected) {
            Ok(stamp) => {
                self.answered = true;
                let value = self.value.clone();
                self.wrote = Some(value.map(|value| Entry { value, stamp }));
                self.stage = Stage::Record {
                    sync: Some(self.state_after(stamp, now_ms)),
                    completed: true,
                };
                Progress::Going
            }
            Err(error @ (StoreError::Conflict { .. } | StoreError::Refused { .. })) => {
                // The write did not take place and never will: the announcement would mislead other bridges.
                let empty = self.base == SyncState::default();
                self.stage = Stage::Record {
                    sync: (!empty).then(|| self.base.clone()),
                    completed: false,
                };
                self.answered = true;
                self.refused = matches!(error, StoreError::Refused { .. }).then_some(error);
                Progress::Going
            }
            Err(error) => Progress::Failed(error),
        }
    }

    /// The sync state after the write took place at `stamp`.
    fn state_after(&self, stamp: KeyVersion, now_ms: u64) -> SyncState {
        let from = self.to.other();
        let mut sync = self.base.clone();
        sync.value.clone_from(&self.hash);
        sync.mark = self.mark;
        let written = sync.revisions.of_mut(self.to);
        *written = match self.value {
            Some(_) => stamp.revision,
            None => self.replaces.max(*written),
        };
        if let Some(revision) = self.read_at {
            *sync.revisions.of_mut(from) = revision;
        }
        // Pending writes that replace a different value can no longer take place.
        let mut there = Pair::<u64>::default();
        if self.value.is_some() {
            *there.of_mut(self.to) = stamp.revision;
            *there.of_mut(from) = self.read_at.unwrap_or(0);
        }
        sync.pending
            .retain(|pending| pending.replaces == *there.of(pending.to));
        sync.at_ms = now_ms;
        sync
    }

    fn record(&mut self, state: &dyn Store, sync: Option<&SyncState>, completed: bool) -> Progress {
        let bytes = sync.map(SyncState::to_json);
        let written = state.write(&self.key, bytes.as_deref(), self.sync_expected());
        let stamp = match written {
            Ok(stamp) => stamp,
            Err(error) => return self.state_failed(error),
        };
        self.wrote_sync = Some(bytes.map(|bytes| Entry {
            value: bytes.into(),
            stamp,
        }));
        match self.refused.take() {
            Some(refused) => Progress::Failed(refused),
            None if completed => Progress::Done,
            None => Progress::Overtaken,
        }
    }

    fn state_failed(&mut self, error: StoreError) -> Progress {
        match error {
            StoreError::Conflict { .. } => Progress::Overtaken,
            error => {
                self.state_refused = matches!(error, StoreError::Refused { .. });
                Progress::Failed(error)
            }
        }
    }

    fn sync_expected(&self) -> Expected {
        self.sync_at.map_or(Expected::Absent, Expected::At)
    }
}

/// The sync state without expired announcements and without revisions of other stores.
fn base(sync: &SyncState, known: &Known<'_>) -> SyncState {
    let pending = known.ages.of_pending(sync);
    let pending = pending.filter(|(_, age)| *age < FORGET_MS);
    SyncState {
        pending: pending.map(|(pending, _)| pending.clone()).collect(),
        revisions: known.pair.known_revisions(sync),
        ..sync.clone()
    }
}
