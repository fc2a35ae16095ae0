//! What must hold: a plain account of every record and every handler's share of it, checked at each event.
//!
//! The model learns of an event just before the flow does, so it never knows less than the flow may act on.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use sluicegate::commit::TopicUuid;
use sluicegate::commit::{CommitNote, Place};
use sluicegate::flow::handler::Order;
use sluicegate::routing::oracle::{self, RecordView};
use sluicegate::source::starts::Commit;
use sluicegate::source::{AssignmentId, CommitEntry, TopicPartition};
use sluicegate_config::spec::TopicPattern;

use super::met::Met;
use super::pools::Emitted;
use super::script::{Log, SimHandler};
use super::world::ShareKey;

/// A broken promise, in words.
pub type Check = Result<(), String>;

/// Where one handler stands with one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not begun, or taken back without an attempt.
    Queued,
    /// A worker has begun it.
    Running,
    /// The worker is done with it well; the pump has not heard.
    Acked,
    /// It waits for the producer.
    Producing,
    /// An attempt failed; another follows, or a dead letter.
    Failed,
    /// Final.
    Settled,
}

/// One handler's share of a record.
#[derive(Clone, Debug)]
pub struct Share {
    pub stage: Stage,
    pub failures: u32,
    /// It was given up: only a dead letter may follow.
    pub given_up: bool,
    /// Its handler dead-lettered it, and what it emitted before is not acknowledged: only then the letter may follow.
    pub owes_letter: bool,
    /// What it emitted was refused and is to be sent again.
    pub refused: bool,
    /// Records that the attempt emitted.
    pub emits: u32,
    /// What the producer took of them, in order, and whether it is acknowledged.
    pub written: Vec<(u32, bool)>,
    /// Some attempt was made.
    pub begun: bool,
    /// Its handler was switched off and has failed or hangs: it is settled without it.
    pub skipped: bool,
    pub order: Order,
}

impl Share {
    /// All that was emitted is acknowledged, and the last copies stand in order (G4).
    pub fn written_in_order(&self, offset: i64) -> Check {
        let copies = self
            .written
            .iter()
            .filter(|(_, acknowledged)| *acknowledged);
        let copies: Vec<u32> = copies.map(|(index, _)| *index).collect();
        let last = |index| copies.iter().rposition(|copy| *copy == index);
        let places: Option<Vec<usize>> = (0..self.emits).map(last).collect();
        match places {
            None => Err(format!(
                "an emit of {offset} is missing: {:?} (G1)",
                self.written
            )),
            Some(places) if !places.is_sorted() => {
                Err(format!("emits of {offset} are written as {copies:?} (G4)"))
            }
            Some(_) => Ok(()),
        }
    }
}

/// A record of an assignment.
#[derive(Clone, Debug, Default)]
pub struct Held {
    pub admitted: bool,
    /// It was finished under an earlier assignment.
    pub done: bool,
    pub shares: BTreeMap<u32, Share>,
}

impl Held {
    fn is_settled(&self) -> bool {
        self.done || (self.admitted && self.shares.values().all(|s| s.stage == Stage::Settled))
    }
}

/// A partition that is, or was, ours in this process.
pub struct Owned {
    pub log: usize,
    pub at: TopicPartition,
    pub slot: AssignmentId,
    pub finished: Vec<Range<i64>>,
    pub records: BTreeMap<i64, Held>,
    pub draining: bool,
    /// Its time to drain is over: nothing of it may start, though it is not released yet.
    pub fenced: bool,
    pub released: bool,
    /// Next offset that the client gives: what stands before `fetched` waits in its queue.
    pub position: i64,
    /// Next offset that the client fetches.
    pub fetched: i64,
    /// What the client says to have given, control records included; nothing before the first.
    pub consumed: Option<i64>,
    /// Where the client began, or was set to last.
    pub begun: i64,
    /// The offset that it is to read is gone: where the log begins.
    pub missing: Option<i64>,
    pub paused: bool,
    /// Highest offset that the flow let in, plus one.
    pub next: i64,
    /// Every record before it is known to be settled.
    pub settled_to: Cell<i64>,
}

/// What the group has committed for a partition.
#[derive(Clone)]
pub struct Committed {
    pub commit: Commit,
    /// The topic that it was made in.
    pub topic_id: TopicUuid,
}

/// The account.
#[derive(Default)]
pub struct Model {
    /// By epoch; of the running process only.
    pub owned: BTreeMap<u32, Owned>,
    /// What the group has committed.
    pub committed: HashMap<TopicPartition, Committed>,
    /// The highest token under which a record of a log was begun, in any process (G4).
    pub begun_under: HashMap<usize, u32>,
    /// Shares that were settled before a clean release, by log, offset and handler: they never run again (G3).
    pub settled_cleanly: BTreeSet<(usize, i64, u32)>,
    /// Records that were settled whole at some time, by log and offset.
    pub settled_ever: BTreeSet<(usize, i64)>,
    /// Records that retention took before they were read, by log and offset.
    pub gone: BTreeSet<(usize, i64)>,
    /// The first offset that is left, by log.
    pub log_start: HashMap<usize, i64>,
    /// What the script brought about.
    pub met: Met,
    /// Which patterns name which topics, as the oracle says.
    pub topics_named: HashMap<(TopicPattern, Arc<str>), bool>,
    /// Whether events are printed.
    pub told: bool,
}

impl Model {
    /// Prints an event when the run is to be told.
    pub fn tell(&self, event: impl FnOnce() -> String) {
        if self.told {
            println!("{}", event());
        }
    }

    /// The assignment of a partition that is ours just now.
    pub fn current(&self, at: &TopicPartition) -> Option<&Owned> {
        self.owned
            .values()
            .find(|owned| !owned.released && owned.at == *at)
    }

    /// The flow let `offset` in: from now on the handlers of this snapshot owe it an outcome.
    pub fn admitted(&mut self, epoch: u32, offset: i64, logs: &[Log], handlers: &[SimHandler]) {
        let Some(owned) = self.owned.get_mut(&epoch) else {
            return;
        };
        owned.next = owned.next.max(offset + 1);
        let Some(record) = logs[owned.log].record(offset) else {
            return;
        };
        let view = RecordView {
            topic: &owned.at.topic,
            partition: owned.at.partition,
            key: record.key.as_deref(),
            headers: &record.headers,
        };
        let done = owned.finished.iter().any(|range| range.contains(&offset));
        let held = owned.records.entry(offset).or_default();
        held.admitted = true;
        held.done = done;
        if done {
            return;
        }
        for handler in handlers.iter().filter(|handler| handler.gate_open) {
            let topic_named = handler.route.topics.iter().any(|pattern| {
                *self
                    .topics_named
                    .entry((pattern.clone(), owned.at.topic.clone()))
                    .or_insert_with_key(|(pattern, topic)| oracle::topic_matches(pattern, topic))
            });
            if topic_named && oracle::holds(&handler.route.when, &view) {
                let share = Share {
                    stage: Stage::Queued,
                    failures: 0,
                    given_up: false,
                    owes_letter: false,
                    refused: false,
                    emits: 0,
                    written: Vec::new(),
                    begun: false,
                    skipped: false,
                    order: handler.order,
                };
                held.shares.insert(handler.ix.0, share);
            }
        }
        if held.is_settled() {
            self.settled_ever.insert((owned.log, offset));
        }
        let wanted: Vec<u32> = held.shares.keys().copied().collect();
        self.tell(|| format!("admitted {offset} of epoch {epoch} for {wanted:?}"));
    }

    /// A handler's share of a record, while its assignment lasts.
    pub fn share(&mut self, epoch: u32, offset: i64, handler: u32) -> Option<&mut Share> {
        let owned = self.owned.get_mut(&epoch)?;
        if owned.released {
            return None;
        }
        owned.records.get_mut(&offset)?.shares.get_mut(&handler)
    }

    /// A handler has emitted `count` records for a record.
    pub fn emits(&mut self, of: &ShareKey, count: u32) {
        if let Some(share) = self.share(of.epoch, of.offset, of.handler) {
            share.emits = count;
            share.written.clear();
        }
    }

    /// An emitted record was given to the producer; gives its place in the account of what was `taken`.
    pub fn emitted(
        &mut self,
        emitted: &Emitted,
        taken: bool,
        by_worker: bool,
    ) -> Result<Option<usize>, String> {
        let Emitted {
            epoch,
            offset,
            handler,
            index,
        } = *emitted;
        let Some(share) = self.share(epoch, offset, handler) else {
            return match by_worker {
                true => Ok(None),
                false => Err(format!(
                    "emits of {offset} are sent again after its release (G5)"
                )),
            };
        };
        if share.given_up {
            return Err(format!("emits of {offset} are sent after it was given up"));
        }
        if !taken {
            return Ok(None);
        }
        share.written.push((index, false));
        Ok(Some(share.written.len() - 1))
    }

    /// The broker has an emitted record.
    pub fn acknowledged(&mut self, of: &ShareKey, written: Option<usize>) {
        if let Some(share) = self.share(of.epoch, of.offset, of.handler)
            && let Some(copy) = written.and_then(|at| share.written.get_mut(at))
        {
            copy.1 = true;
        }
    }

    /// A handler is done with a record for good.
    pub fn settle(&mut self, epoch: u32, offset: i64, handler: u32) {
        if let Some(share) = self.share(epoch, offset, handler) {
            share.stage = Stage::Settled;
        }
        if let Some(owned) = self.owned.get(&epoch)
            && !owned.released
            && owned.records.get(&offset).is_some_and(Held::is_settled)
        {
            self.settled_ever.insert((owned.log, offset));
        }
    }

    /// A worker got a record.
    pub fn submitted(&mut self, epoch: u32, offset: i64, handler: u32) -> Check {
        let owned = self.owned.get(&epoch).ok_or("a batch of no assignment")?;
        if owned.released {
            return Err(format!(
                "{}/{offset} starts in h{handler} after its release (G5)",
                owned.at
            ));
        }
        match self.share(epoch, offset, handler) {
            Some(_) => Ok(()),
            None => Err(format!(
                "offset {offset} went to h{handler}, which does not want it"
            )),
        }
    }

    /// A worker begins a record. `in_batch` are offsets that stand before it in the same call of a batch handler.
    pub fn start(
        &mut self,
        epoch: u32,
        offset: i64,
        handler: u32,
        attempt: u32,
        logs: &[Log],
        in_batch: Option<&[i64]>,
    ) -> Check {
        self.met.starts += 1;
        let Some(owned) = self.owned.get(&epoch) else {
            return Err("a start in no assignment".into());
        };
        let what = format!("{}/{offset} in h{handler}, attempt {attempt}", owned.at);
        if owned.released || owned.fenced {
            return Err(format!(
                "{what}: started after its release or its drain's deadline (G5)"
            ));
        }
        self.tell(|| format!("start {what}, epoch {epoch}"));
        if self.settled_cleanly.contains(&(owned.log, offset, handler)) {
            return Err(format!("{what}: run again after a clean release (G3)"));
        }
        let held = &owned.records[&offset];
        let share = &held.shares[&handler];
        if share.skipped {
            // Its call was abandoned; what it still does means nothing any more.
            return Ok(());
        }
        // What a newer generation need not emit is run again instead of sent again.
        let instead = share.stage == Stage::Producing && share.refused;
        if !matches!(share.stage, Stage::Queued | Stage::Failed) && !instead {
            return Err(format!("{what}: started while {:?}", share.stage));
        }
        if share.given_up || attempt != share.failures + 1 {
            return Err(format!("{what}: {} attempts failed before", share.failures));
        }
        let key = |offset: i64| {
            logs[owned.log]
                .record(offset)
                .and_then(|r| r.key.as_deref())
        };
        let same_lane = |other: i64| match share.order {
            Order::Key => key(offset).is_some() && key(offset) == key(other),
            Order::Partition => true,
            Order::Unordered => false,
        };
        for (&earlier, other) in owned
            .records
            .range(owned.settled_to.get().min(offset)..offset)
        {
            if let Some(before) = other.shares.get(&handler)
                && !matches!(before.stage, Stage::Settled | Stage::Acked)
                && same_lane(earlier)
                && !in_batch.is_some_and(|offsets| offsets.contains(&earlier))
            {
                return Err(format!(
                    "{what}: started while {earlier} of its lane is {:?} (G4)",
                    before.stage
                ));
            }
        }
        for (&later, other) in owned.records.range(offset + 1..) {
            // A batch handler may have seen both in one call, and only the earlier one failed.
            if in_batch.is_none()
                && let Some(after) = other.shares.get(&handler)
                && after.begun
                && same_lane(later)
            {
                return Err(format!("{what}: started after {later} of its lane (G4)"));
            }
        }
        if let Some(share) = self.share(epoch, offset, handler) {
            share.stage = Stage::Running;
            share.refused = false;
            share.owes_letter = false;
            share.begun = true;
        }
        let log = self.owned[&epoch].log;
        let begun_under = self.begun_under.entry(log).or_default();
        *begun_under = epoch.max(*begun_under);
        Ok(())
    }

    /// The flow wants to commit.
    pub fn check_commit(&self, entry: &CommitEntry, logs: &[Log]) -> Check {
        let what = format!("commit of {} at {}", entry.at, entry.offset);
        let owned = self
            .current(&entry.at)
            .ok_or_else(|| format!("{what}: not ours (G5)"))?;
        let before = self
            .committed
            .get(&entry.at)
            .filter(|committed| committed.topic_id == logs[owned.log].topic_id)
            .map_or(0, |committed| committed.commit.offset);
        if entry.offset < before {
            return Err(format!("{what}: goes back from {before}"));
        }
        let read = owned.next.max(owned.consumed.unwrap_or(0));
        if entry.offset > read {
            return Err(format!("{what}: nothing was read beyond {read} (G2)"));
        }
        let log = &logs[owned.log];
        let settled = |offset: i64| {
            let finished = owned.finished.iter().any(|range| range.contains(&offset));
            let gone = self.gone.contains(&(owned.log, offset));
            let held = owned.records.get(&offset);
            finished || held.map_or(gone, Held::is_settled)
        };
        let covered = |range: Range<i64>| {
            let from = log.index_of(range.start).unwrap_or_else(|index| index);
            log.records[from..]
                .iter()
                .map(|record| record.offset)
                .take_while(move |offset| *offset < range.end)
        };
        let unchecked = owned.settled_to.get()..entry.offset;
        if let Some(open) = covered(unchecked).find(|&offset| !settled(offset)) {
            return Err(format!("{what}: passes {open}, which is not settled (G1)"));
        }
        owned.settled_to.set(entry.offset);
        let place = Place {
            group: "g",
            at: &entry.at,
            offset: entry.offset,
        };
        let read = CommitNote::decode(&entry.metadata, place);
        let Some(note) = read.note.filter(|_| read.dropped.is_none()) else {
            return Err(format!("{what}: its metadata cannot be read (G3)"));
        };
        for range in note.finished {
            if let Some(open) = covered(range.clone()).find(|&offset| !settled(offset)) {
                return Err(format!(
                    "{what}: says that {open} is finished, it is not (G1)"
                ));
            }
            let beyond = range.start.max(owned.next)..range.end;
            let inherited = |offset: i64| owned.finished.iter().any(|f| f.contains(&offset));
            if covered(beyond).any(|offset| !inherited(offset)) {
                return Err(format!("{what}: {range:?} lies beyond what came (G2)"));
            }
        }
        Ok(())
    }

    /// The time to drain is over.
    pub fn fence(&mut self, slots: &[AssignmentId]) {
        for owned in self.owned.values_mut() {
            owned.fenced |= slots.contains(&owned.slot);
        }
    }

    /// A partition goes on where its log begins: what was read of it must be settled, and the rest is gone.
    pub fn restart(&mut self, epoch: u32, logs: &[Log]) -> Check {
        let Some(owned) = self.owned.get_mut(&epoch) else {
            return Ok(());
        };
        let Some(to) = owned.missing.take() else {
            return Ok(());
        };
        if let Some((open, _)) = owned.records.iter().find(|(_, held)| !held.is_settled()) {
            return Err(format!(
                "{} goes on at {to} over {open}, which is in flight",
                owned.at
            ));
        }
        for record in &logs[owned.log].records {
            if (owned.begun..to).contains(&record.offset)
                && !owned.records.contains_key(&record.offset)
            {
                self.gone.insert((owned.log, record.offset));
            }
        }
        owned.position = to;
        owned.fetched = to;
        owned.consumed = None;
        owned.begun = to;
        owned.next = owned.next.max(to);
        self.met.restarts += 1;
        Ok(())
    }

    /// A record of an assignment that some handler has finished (`whole`: all that want it) and that the next owner would run
    /// again, if there is one.
    pub fn uncommitted(&self, slot: AssignmentId, whole: bool) -> Option<i64> {
        let mut ours = self.owned.values();
        let owned = ours.find(|owned| owned.slot == slot && !owned.released)?;
        let commit = self
            .committed
            .get(&owned.at)
            .map(|committed| &committed.commit);
        let committed = commit.map_or(0, |commit| commit.offset);
        let place = Place {
            group: "g",
            at: &owned.at,
            offset: committed,
        };
        let note = commit.and_then(|commit| CommitNote::decode(&commit.metadata, place).note);
        let finished = note.map(|note| note.finished).unwrap_or_default();
        let covered = |offset: i64| {
            offset < committed || finished.iter().any(|range| range.contains(&offset))
        };
        let is_settled = |share: &Share| share.stage == Stage::Settled;
        let ran = |share: &Share| is_settled(share) && !share.skipped;
        let mut records = owned.records.iter();
        let left = records.find(|(offset, held)| {
            let finished = match whole {
                true => held.shares.values().any(ran) && held.shares.values().all(is_settled),
                false => held.shares.values().any(ran),
            };
            finished && !covered(**offset)
        });
        left.map(|(offset, _)| *offset)
    }

    /// The assignment ends. `clean`: everything begun was finished and the last commit was accepted.
    pub fn release(&mut self, slot: AssignmentId, clean: bool) {
        let Some(owned) = self
            .owned
            .values_mut()
            .find(|owned| owned.slot == slot && !owned.released)
        else {
            return;
        };
        owned.released = true;
        if self.told {
            println!("released {} clean: {clean}", owned.at);
        }
        if clean {
            for (&offset, held) in &owned.records {
                for (&handler, share) in &held.shares {
                    if share.stage == Stage::Settled && !share.skipped {
                        self.settled_cleanly.insert((owned.log, offset, handler));
                    }
                }
            }
        }
    }
}
