//! Deferred records, which a handler neither runs nor has settled: parked for a retry, or waiting for the producer.
//!
//! Only these have an entry here; a record that succeeds at its first attempt has none, unless it emits.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use rapidhash::fast::RapidHasher;

use crate::dispatch::{EntryKey, HandlerIx};
use crate::emit::{AckGroup, EmitFailure, Way};
use crate::source::AssignmentId;

/// What a record waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its next attempt, at this time.
    Parked {
        /// On the flow's clock.
        due_ms: u64,
    },
    /// It is in a batch, for the second time or later.
    Running,
    /// The acknowledgement of its emits.
    Emitting,
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
}

impl Stage {
    /// When it is due, if it waits for a time.
    fn due_ms(self) -> Option<u64> {
        match self {
            Self::Parked { due_ms }
            | Self::EmitsDue { due_ms }
            | Self::DeadLetterDue { due_ms } => Some(due_ms),
            Self::Running | Self::Emitting | Self::DeadLettering => None,
        }
    }
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
    /// The records kept, and the index of the first to resend; `None` for a dead letter, which is built from the
    /// record.
    pub(super) emits: Option<(Arc<AckGroup>, u32)>,
    /// Bytes kept.
    pub(super) held_bytes: u64,
    /// The generation and config with which the handler emitted it.
    pub(super) made_by: (u64, u64),
    /// The topic under which it is counted.
    pub(super) counted_as: Arc<str>,
}

/// A deferred record of a handler.
#[derive(Clone)]
pub(super) struct Task {
    /// The current or last attempt, from 1.
    pub(super) attempt: u32,
    /// What it waits for.
    pub(super) stage: Stage,
    /// Since when, on the flow's clock.
    pub(super) since_ms: u64,
    /// Its lane, 0 for none.
    pub(super) lane: u64,
    /// The assignment of its record.
    pub(super) slot: AssignmentId,
    /// Why the last attempt failed.
    pub(super) reason: Option<Arc<str>>,
    /// The reason class for the dead letter.
    pub(super) class: &'static str,
    /// What follows once its emits are acknowledged.
    pub(super) ending: Ending,
    /// The refusal that is not resolved yet.
    pub(super) refusal: Option<Box<Refusal>>,
    /// Its offset, if it has to wait for the deferred records before it in its lane: several records of a lane can fail in
    /// one call of a batch handler, and are run again in order (G4).
    pub(super) follows: Option<i64>,
}

/// Without a random seed: tasks must be iterated in the same order in every run.
type Hasher = BuildHasherDefault<RapidHasher<'static>>;

/// All tasks of a pump, and a timer queue for those with a due time.
#[derive(Default)]
pub(super) struct Tasks {
    by_key: HashMap<(HandlerIx, EntryKey), Task, Hasher>,
    due: BinaryHeap<Reverse<(u64, u64, HandlerIx, EntryKey)>>,
    /// Per lane, the tasks that follow one another, by offset.
    lanes: HashMap<(HandlerIx, u64), BTreeSet<(i64, EntryKey)>, Hasher>,
    count: u64,
    /// Parked records, by handler and by assignment.
    parked: HashMap<HandlerIx, u64, Hasher>,
    parked_of: HashMap<AssignmentId, u64, Hasher>,
}

impl Tasks {
    /// The task of a record, if it has one.
    pub(super) fn get(&self, ix: HandlerIx, key: EntryKey) -> Option<&Task> {
        self.by_key.get(&(ix, key))
    }

    /// Sets a record's task; one with a due time is returned by [`Tasks::take_due`].
    pub(super) fn set(&mut self, ix: HandlerIx, key: EntryKey, task: Task) {
        if let Some(due_ms) = task.stage.due_ms() {
            self.time(ix, key, due_ms);
        }
        let (lane, follows) = (task.lane, task.follows);
        self.count_parked(ix, &task, 1);
        let before = self.by_key.insert((ix, key), task);
        if let Some(before) = &before {
            self.count_parked(ix, before, -1);
        }
        let known = before.as_ref().and_then(|task| task.follows);
        if known == follows {
            return;
        }
        if let Some(before) = before {
            self.leave_lane(ix, key, &before);
        }
        if let Some(offset) = follows {
            let lane = self.lanes.entry((ix, lane)).or_default();
            lane.insert((offset, key));
        }
    }

    fn time(&mut self, ix: HandlerIx, key: EntryKey, due_ms: u64) {
        self.count += 1;
        self.due.push(Reverse((due_ms, self.count, ix, key)));
    }

    /// Removes a task. The next one of its lane may run then.
    pub(super) fn remove(&mut self, ix: HandlerIx, key: EntryKey) -> Option<Task> {
        let task = self.by_key.remove(&(ix, key))?;
        self.count_parked(ix, &task, -1);
        self.leave_lane(ix, key, &task);
        Some(task)
    }

    fn count_parked(&mut self, ix: HandlerIx, task: &Task, by: i64) {
        if !matches!(task.stage, Stage::Parked { .. }) {
            return;
        }
        let of_handler = self.parked.entry(ix).or_default();
        *of_handler = of_handler.saturating_add_signed(by);
        let of_slot = self.parked_of.entry(task.slot).or_default();
        *of_slot = of_slot.saturating_add_signed(by);
        if *of_slot == 0 {
            self.parked_of.remove(&task.slot);
        }
    }

    /// Number of a handler's parked records.
    pub(super) fn parked(&self, ix: HandlerIx) -> u64 {
        self.parked.get(&ix).copied().unwrap_or(0)
    }

    /// Number of parked records of an assignment, over all handlers.
    pub(super) fn parked_of(&self, slot: AssignmentId) -> u64 {
        self.parked_of.get(&slot).copied().unwrap_or(0)
    }

    fn leave_lane(&mut self, ix: HandlerIx, key: EntryKey, task: &Task) {
        let Some(offset) = task.follows else {
            return;
        };
        let Entry::Occupied(mut lane) = self.lanes.entry((ix, task.lane)) else {
            return;
        };
        lane.get_mut().remove(&(offset, key));
        let Some(&(_, next)) = lane.get().first() else {
            lane.remove();
            return;
        };
        // It has no timer if it was due before.
        let due_ms = self
            .by_key
            .get(&(ix, next))
            .and_then(|task| task.stage.due_ms());
        if let Some(due_ms) = due_ms {
            self.time(ix, next, due_ms);
        }
    }

    /// The offset of the deferred record that it has to follow in its lane, if one is unsettled. It becomes due again when
    /// that one is over.
    pub(super) fn predecessor(&self, ix: HandlerIx, key: EntryKey, task: &Task) -> Option<i64> {
        task.follows?;
        let first = self.lanes.get(&(ix, task.lane)).and_then(BTreeSet::first);
        first
            .filter(|(_, first)| *first != key)
            .map(|(offset, _)| *offset)
    }

    /// The next task that is due.
    pub(super) fn take_due(&mut self, now_ms: u64) -> Option<(HandlerIx, EntryKey)> {
        while let Some(&Reverse((due_ms, _, ix, key))) = self.due.peek() {
            if due_ms > now_ms {
                return None;
            }
            self.due.pop();
            let task = self.by_key.get(&(ix, key));
            let wanted = task.is_some_and(|task| task.stage.due_ms() == Some(due_ms));
            if wanted {
                return Some((ix, key));
            }
        }
        None
    }

    /// When the next task is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((due_ms, ..))| *due_ms)
    }

    /// All tasks.
    pub(super) fn iter(&self) -> impl Iterator<Item = (HandlerIx, EntryKey, &Task)> {
        self.by_key
            .iter()
            .map(|((ix, key), task)| (*ix, *key, task))
    }
}
