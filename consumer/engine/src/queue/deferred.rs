//! Deferred shares: records that a handler neither runs nor has settled, parked for a retry or waiting for the producer.
//!
//! Only these have an entry here. Where any other share is follows from who has it: the backlog, a lane, or a batch. A record
//! that succeeds at its first attempt is never written down here, unless it emits.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use rapidhash::fast::RapidHasher;

use super::HandlerQueue;
use super::targets::GenerationId;
use crate::dispatch::RecordId;
use crate::emit::shipment::ShippedAt;
use crate::emit::{EmitFailure, FailureKind, Way};
use crate::source::AssignmentId;

/// What a deferred share waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShareState {
    /// Its next attempt, at this time.
    Parked {
        /// On the flow's clock.
        due_ms: u64,
    },
    /// It is in a batch, for the second time or later.
    Running,
    /// The acknowledgement of its emits.
    Emitting,
    /// The records before it in its lane: it is done, and settles after them.
    Done,
    /// The next resend of its emits, at this time.
    EmitsDue {
        /// On the flow's clock.
        due_ms: u64,
    },
    /// The acknowledgement of its dead letter.
    DeadLettering,
    /// The next resend of its dead letter, at this time.
    DeadLetterDue {
        /// On the flow's clock.
        due_ms: u64,
    },
}

impl ShareState {
    /// When it is due, if it waits for a time.
    pub(super) fn due_ms(self) -> Option<u64> {
        match self {
            Self::Parked { due_ms }
            | Self::EmitsDue { due_ms }
            | Self::DeadLetterDue { due_ms } => Some(due_ms),
            Self::Running | Self::Emitting | Self::Done | Self::DeadLettering => None,
        }
    }

    /// Whether it waits for its next attempt.
    pub(crate) fn is_parked(self) -> bool {
        matches!(self, Self::Parked { .. })
    }
}

/// The handler's outcome of the attempt whose emits are awaited: it takes effect once they are acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ending {
    /// The record succeeded.
    #[default]
    Ack,
    /// The record is dropped.
    Drop,
    /// The record goes to the dead-letter topic.
    DeadLetter,
    /// It is in the dead-letter topic.
    Written,
}

/// What the producer refused of a record, and how it is retried.
#[derive(Clone)]
pub(super) struct Refusal {
    /// The last refusal.
    pub(super) failure: EmitFailure,
    /// When the first one arrived, on the flow's clock.
    pub(super) since_ms: u64,
    /// Refusals so far.
    pub(super) tries: u32,
    /// How it is resent.
    pub(super) way: Way,
    /// Where they are kept; `None` for a dead letter, which is built from the record.
    pub(super) emits: Option<ShippedAt>,
    /// It is resent at once: the refusal of a batch says nothing about this record.
    pub(super) at_once: bool,
    /// The topic under which it is counted.
    pub(super) counted_as: Arc<str>,
}

/// An attempt of a record: the number, its lane, and what ran it.
#[derive(Clone)]
pub(super) struct Attempt {
    pub(super) key: RecordId,
    /// 0 for none.
    pub(super) lane: u64,
    /// From 1.
    pub(super) number: u32,
    /// The present generation, if it was not run.
    pub(super) ran_by: Arc<GenerationId>,
}

impl Attempt {
    pub(super) fn new(key: RecordId, lane: u64, number: u32, ran_by: &Arc<GenerationId>) -> Self {
        let ran_by = ran_by.clone();
        Self {
            key,
            lane,
            number,
            ran_by,
        }
    }

    /// The current or last attempt of a deferred share.
    pub(super) fn of(key: RecordId, share: &Share) -> Self {
        Self::new(key, share.lane, share.attempt, &share.ran_by)
    }
}

/// A handler's deferred share of a record.
#[derive(Clone)]
pub(crate) struct Share {
    /// The current or last attempt, from 1.
    pub(crate) attempt: u32,
    /// What it waits for.
    pub(crate) state: ShareState,
    /// Since when, on the flow's clock.
    pub(crate) since_ms: u64,
    /// Its lane, 0 for none.
    pub(crate) lane: u64,
    /// The assignment of its record.
    pub(crate) slot: AssignmentId,
    /// What ran the last attempt: it is counted for that, and what it emitted is that one's.
    pub(super) ran_by: Arc<GenerationId>,
    /// Why the last attempt failed.
    pub(super) reason: Option<Arc<str>>,
    /// The reason class for the dead letter.
    pub(super) class: &'static str,
    /// What follows once its emits are acknowledged.
    pub(super) ending: Ending,
    /// Records behind it in its lane may run: it does not hold the lane.
    pub(super) passes: bool,
    /// Its number in the chain of its lane (see [`super::chains`]), if it is linked.
    pub(super) linked: Option<u64>,
    /// What it has emitted.
    pub(super) shipped: Option<ShippedAt>,
    /// The refusal that is not resolved yet.
    pub(super) refusal: Option<Box<Refusal>>,
    /// Its offset, if it has to wait for the deferred records before it in its lane: several records of a lane can fail in
    /// one call of a batch handler, or those before it run again with the lane, and are run in order (G4).
    pub(super) follows: Option<i64>,
}

impl Share {
    /// Whether it keeps the records behind it in its lane from running.
    pub(super) fn holds(&self) -> bool {
        self.state != ShareState::Running && !self.passes
    }

    /// Whether the cluster has refused what it has emitted, and may still take it.
    pub(super) fn waits_for_resend(&self) -> bool {
        let failure = self.refusal.as_ref().map(|refusal| refusal.failure.kind);
        failure.is_some_and(|kind| kind != FailureKind::Record)
    }

    /// Whether what it has emitted can never be produced.
    pub(super) fn is_rejected(&self) -> bool {
        self.refusal.as_ref().is_some_and(|refusal| {
            refusal.emits.is_some() && refusal.failure.kind == FailureKind::Record
        })
    }

    /// Whether it is under way although it holds no lane.
    pub(super) fn is_passing(&self) -> bool {
        self.state != ShareState::Running && self.passes
    }
}

/// Without a random seed: shares must be iterated in the same order in every run.
type Hasher = BuildHasherDefault<RapidHasher<'static>>;

/// A handler's deferred shares, by record and, those that follow one another, by lane.
#[derive(Default)]
pub(crate) struct DeferredShares {
    by_key: HashMap<RecordId, Share, Hasher>,
    /// Per lane, the shares that follow one another, by offset.
    lanes: HashMap<u64, BTreeSet<(i64, RecordId)>, Hasher>,
    parked: u64,
}

impl DeferredShares {
    /// The share of a record, if it is deferred.
    #[inline]
    pub(crate) fn get(&self, key: RecordId) -> Option<&Share> {
        // Most handlers have none: not even a hash is computed then.
        if self.by_key.is_empty() {
            return None;
        }
        self.by_key.get(&key)
    }

    /// Number of parked shares.
    pub(crate) fn parked(&self) -> u64 {
        self.parked
    }

    /// Puts a share in its new state; returns the one before.
    pub(super) fn insert(&mut self, key: RecordId, share: Share) -> Replaced {
        let (lane, follows) = (share.lane, share.follows);
        self.parked += u64::from(share.state.is_parked());
        let before = self.by_key.insert(key, share);
        self.parked -= u64::from(before.as_ref().is_some_and(|share| share.state.is_parked()));
        let mut next = None;
        if before.as_ref().and_then(|share| share.follows) != follows {
            if let Some(before) = &before {
                next = self.leave_lane(key, before);
            }
            if let Some(offset) = follows {
                self.lanes.entry(lane).or_default().insert((offset, key));
            }
        }
        Replaced { before, next }
    }

    /// Removes a share; the next one of its lane may run then.
    pub(super) fn remove(&mut self, key: RecordId) -> Replaced {
        let before = self.by_key.remove(&key);
        let mut next = None;
        if let Some(share) = &before {
            self.parked -= u64::from(share.state.is_parked());
            next = self.leave_lane(key, share);
        }
        Replaced { before, next }
    }

    fn leave_lane(&mut self, key: RecordId, share: &Share) -> Option<(RecordId, u64)> {
        let offset = share.follows?;
        let Entry::Occupied(mut lane) = self.lanes.entry(share.lane) else {
            return None;
        };
        lane.get_mut().remove(&(offset, key));
        let Some(&(_, next)) = lane.get().first() else {
            lane.remove();
            return None;
        };
        // It is due now if it was before.
        let due_ms = self.by_key.get(&next)?.state.due_ms()?;
        Some((next, due_ms))
    }

    /// The offset of the deferred record that a share has to follow in its lane, if one is unsettled. It becomes due again
    /// when that one is over.
    pub(crate) fn predecessor(&self, key: RecordId, share: &Share) -> Option<i64> {
        share.follows?;
        let first = self.lanes.get(&share.lane).and_then(BTreeSet::first);
        first
            .filter(|(_, first)| *first != key)
            .map(|(offset, _)| *offset)
    }

    /// Whether a deferred record that follows others in this lane stands behind this offset.
    pub(super) fn has_behind(&self, lane: u64, offset: i64) -> bool {
        let last = self.lanes.get(&lane).and_then(BTreeSet::last);
        last.is_some_and(|(last, _)| *last > offset)
    }

    /// Moves all shares to other lanes, in which they follow one another; `place` is the lane and offset of a record. Returns
    /// each with its lane and when it is due, in the order of records.
    pub(super) fn move_to_lanes(
        &mut self,
        place: impl Fn(RecordId) -> (u64, i64),
    ) -> Vec<(RecordId, u64, Option<u64>)> {
        self.lanes.clear();
        let mut moved = Vec::with_capacity(self.by_key.len());
        for (&key, share) in &mut self.by_key {
            let (lane, offset) = place(key);
            share.lane = lane;
            share.follows = (lane != 0).then_some(offset);
            if lane != 0 {
                self.lanes.entry(lane).or_default().insert((offset, key));
            }
            moved.push((offset, key, lane, share.state.due_ms()));
        }
        moved.sort_unstable_by_key(|(offset, key, ..)| (*offset, *key));
        let moved = moved.into_iter();
        moved
            .map(|(_, key, lane, due_ms)| (key, lane, due_ms))
            .collect()
    }

    /// Whether no share is deferred.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The shares of a lane that follow one another, in order.
    pub(super) fn following(&self, lane: u64) -> Vec<RecordId> {
        let shares = self.lanes.get(&lane).into_iter().flatten();
        shares.map(|(_, key)| *key).collect()
    }

    /// All deferred shares.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RecordId, &Share)> {
        self.by_key.iter().map(|(key, share)| (*key, share))
    }
}

/// What a change of a share has left behind.
pub(super) struct Replaced {
    /// The share before.
    pub(super) before: Option<Share>,
    /// The share that is first in its lane now, and when it is due.
    pub(super) next: Option<(RecordId, u64)>,
}

impl HandlerQueue {
    /// Counts a share as deferred and closes its lane, until [`Self::unhold`] or its next attempt.
    pub(super) fn hold(&mut self, lane: u64) {
        self.held += 1;
        if lane != 0 {
            let batches = &self.batches;
            self.lanes.hold(lane, |id| batches.is_live(id));
        }
    }

    /// A deferred share is over.
    pub(super) fn unhold(&mut self, lane: u64) {
        self.held -= 1;
        if lane != 0 {
            self.lanes.unhold(lane);
        }
    }
}
