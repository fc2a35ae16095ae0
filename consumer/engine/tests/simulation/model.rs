//! The reference model: the state of every record and every handler's share of it, checked at each event.
//!
//! The model receives an event just before the flow does, so it always knows everything that the flow may act on.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use sluicegate_config::spec::TopicPattern;
use sluicegate_engine::partition::commit::{CommitMetadata, CommitTarget, TopicUuid};
use sluicegate_engine::queue::Order;
use sluicegate_engine::routing::oracle;
use sluicegate_engine::routing::oracle::RecordView;
use sluicegate_engine::source::starts::Commit;
use sluicegate_engine::source::{AssignmentId, CommitEntry, TopicPartition};

use super::coverage::Coverage;
use super::pools::SimPool;
use super::script::{Log, SimHandler};
use super::share::{Share, Stage};
use super::world::ShareKey;

/// A violated guarantee, as text.
pub type Check = Result<(), String>;

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

/// A partition that is or was assigned to this process.
pub struct Owned {
    pub log: usize,
    pub at: TopicPartition,
    pub slot: AssignmentId,
    pub finished: Vec<Range<i64>>,
    pub records: BTreeMap<i64, Held>,
    pub draining: bool,
    /// Its drain deadline has passed: no record may start, although it is not released yet.
    pub fenced: bool,
    pub released: bool,
    /// Next offset that the client delivers; offsets up to `fetched` are in its queue.
    pub position: i64,
    /// Next offset that the client fetches.
    pub fetched: i64,
    /// Consumed position reported by the client, including control records; `None` before the first record.
    pub consumed: Option<i64>,
    /// Where the client started, or its last seek.
    pub seeked_to: i64,
    /// Its next offset has been deleted: the start of the log.
    pub missing: Option<i64>,
    pub paused: bool,
    /// Highest offset admitted by the flow, plus one.
    pub next: i64,
    /// Every record before it is known to be settled.
    pub settled_to: Cell<i64>,
}

impl Owned {
    /// Whether two records are in one lane of a handler with this order.
    pub fn in_one_lane(&self, logs: &[Log], order: Order, (one, other): (i64, i64)) -> bool {
        let key = |offset: i64| {
            let record = logs[self.log].record(offset);
            record.and_then(|record| record.key.as_deref())
        };
        match order {
            Order::Key => key(one).is_some() && key(one) == key(other),
            Order::Partition => true,
            Order::Unordered => false,
        }
    }
}

/// What the group has committed for a partition.
#[derive(Clone)]
pub struct Committed {
    pub commit: Commit,
    /// Identity of the topic at the commit.
    pub topic_id: TopicUuid,
}

/// The reference model.
#[derive(Default)]
pub struct Model {
    /// By epoch; of the running process only.
    pub owned: BTreeMap<u64, Owned>,
    /// What the group has committed.
    pub committed: HashMap<TopicPartition, Committed>,
    /// The highest token under which a record of a log was started, in any process (G4).
    pub started_under: HashMap<usize, u64>,
    /// Shares settled before a clean release, by log, offset and handler: they must never run again (G3).
    pub settled_cleanly: BTreeSet<(usize, i64, u32)>,
    /// Emitted records in the output topic.
    pub written: u64,
    /// Records that were settled by all handlers at some time, by log and offset.
    pub settled_ever: BTreeSet<(usize, i64)>,
    /// Records deleted by retention before they were read, by log and offset.
    pub gone: BTreeSet<(usize, i64)>,
    /// The log start offset, by log.
    pub log_start: HashMap<usize, i64>,
    /// Coverage of rare situations.
    pub coverage: Coverage,
    /// Cache of the oracle's topic matches.
    pub topics_named: HashMap<(TopicPattern, Arc<str>), bool>,
    /// Whether events are printed.
    pub verbose: bool,
}

impl Model {
    /// Prints an event in verbose mode.
    pub fn trace(&self, event: impl FnOnce() -> String) {
        if self.verbose {
            println!("{}", event());
        }
    }

    /// The current assignment of a partition.
    pub fn current(&self, at: &TopicPartition) -> Option<&Owned> {
        self.owned
            .values()
            .find(|owned| !owned.released && owned.at == *at)
    }

    /// The flow admitted `offset`: the matching handlers of this snapshot must now settle it.
    pub fn admitted(&mut self, epoch: u64, offset: i64, logs: &[Log], handlers: &[SimHandler]) {
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
                held.shares.insert(handler.ix.0, Share::new(handler.order));
            }
        }
        if held.is_settled() {
            self.settled_ever.insert((owned.log, offset));
        }
        let wanted: Vec<u32> = held.shares.keys().copied().collect();
        self.trace(|| format!("admitted {offset} of epoch {epoch} for {wanted:?}"));
    }

    /// A handler's share of a record; `None` once the assignment is released.
    pub fn share(&mut self, epoch: u64, offset: i64, handler: u32) -> Option<&mut Share> {
        let owned = self.owned.get_mut(&epoch)?;
        if owned.released {
            return None;
        }
        owned.records.get_mut(&offset)?.shares.get_mut(&handler)
    }

    /// A handler has settled a record.
    pub fn settle(&mut self, epoch: u64, offset: i64, handler: u32) {
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

    /// A plan gives these pools to the handlers.
    pub fn see_pools(&mut self, pools: &BTreeMap<u32, Vec<Arc<SimPool>>>) {
        for owned in self.owned.values_mut().filter(|owned| !owned.released) {
            for (_, held) in owned.records.range_mut(owned.settled_to.get()..) {
                for (handler, share) in &mut held.shares {
                    share.see_pools(&pools[handler]);
                }
            }
        }
    }

    /// A plan gives this order to a handler.
    pub fn see_order(&mut self, handler: u32, order: Order) {
        for owned in self.owned.values_mut().filter(|owned| !owned.released) {
            for held in owned.records.values_mut() {
                let share = held.shares.get_mut(&handler);
                if let Some(share) = share.filter(|share| !share.claimed) {
                    share.see_order(order);
                }
            }
        }
    }

    /// A worker got a record; `order` is that of its handler's records under way.
    pub fn submitted(
        &mut self,
        of: &ShareKey,
        order: Option<Order>,
        pool: &Arc<SimPool>,
        pools: &[Arc<SimPool>],
        logs: &[Log],
    ) -> Check {
        let ShareKey {
            epoch,
            offset,
            handler,
        } = *of;
        let owned = self
            .owned
            .get(&epoch)
            .ok_or("a batch without an assignment")?;
        if owned.released {
            return Err(format!(
                "{}/{offset} starts in h{handler} after its release (G5)",
                owned.at
            ));
        }
        let log = owned.log;
        let again = self.may_follow_again(of, logs);
        match self.share(epoch, offset, handler) {
            Some(share) => {
                share.order = order.unwrap_or(share.order);
                if again {
                    share.run_again();
                }
                share.submitted(pool, pools);
                if again {
                    self.coverage.lanes_again += 1;
                    self.settled_ever.remove(&(log, offset));
                }
                Ok(())
            }
            None => Err(format!(
                "offset {offset} went to h{handler}, which does not match it"
            )),
        }
    }

    /// A worker starts a record. `in_batch` are the offsets before it in the same call of a batch handler.
    pub fn start(
        &mut self,
        epoch: u64,
        offset: i64,
        handler: u32,
        attempt: u32,
        logs: &[Log],
        in_batch: Option<&[i64]>,
    ) -> Check {
        self.coverage.starts += 1;
        let starts = self.coverage.starts;
        let Some(owned) = self.owned.get(&epoch) else {
            return Err("a start without an assignment".into());
        };
        let what = format!("{}/{offset} in h{handler}, attempt {attempt}", owned.at);
        if owned.released || owned.fenced {
            return Err(format!(
                "{what}: started after its release or its drain's deadline (G5)"
            ));
        }
        self.trace(|| format!("start {what}, epoch {epoch}"));
        if self.settled_cleanly.contains(&(owned.log, offset, handler)) {
            return Err(format!("{what}: run again after a clean release (G3)"));
        }
        let held = &owned.records[&offset];
        let share = &held.shares[&handler];
        if share.skipped {
            // Its call was abandoned, so its effects no longer count.
            return Ok(());
        }
        if !matches!(share.stage, Stage::Queued | Stage::Failed) {
            return Err(format!("{what}: started while {:?}", share.stage));
        }
        if share.dead_lettered || attempt != share.failures + 1 {
            return Err(format!("{what}: {} attempts failed before", share.failures));
        }
        check_order(owned, offset, handler, logs, in_batch)
            .map_err(|broken| format!("{what}: {broken} (G4)"))?;
        if let Some(share) = self.share(epoch, offset, handler) {
            share.stage = Stage::Running;
            share.started = starts;
            share.first_order.get_or_insert(share.order);
            share.with.extend(in_batch.unwrap_or_default());
        }
        let log = self.owned[&epoch].log;
        let started_under = self.started_under.entry(log).or_default();
        *started_under = epoch.max(*started_under);
        Ok(())
    }

    /// Checks a commit of the flow.
    pub fn check_commit(&self, entry: &CommitEntry, logs: &[Log]) -> Check {
        let what = format!("commit of {} at {}", entry.at, entry.offset);
        let owned = self
            .current(&entry.at)
            .ok_or_else(|| format!("{what}: not assigned (G5)"))?;
        let before = self
            .committed
            .get(&entry.at)
            .filter(|committed| committed.topic_id == logs[owned.log].topic_id)
            .map_or(0, |committed| committed.commit.offset);
        if entry.offset < before {
            return Err(format!("{what}: regresses from {before}"));
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
        let target = CommitTarget {
            group: "g",
            at: &entry.at,
            offset: entry.offset,
        };
        let read = CommitMetadata::decode(&entry.metadata, target);
        let Some(metadata) = read.metadata.filter(|_| read.dropped.is_none()) else {
            return Err(format!("{what}: its metadata cannot be read (G3)"));
        };
        for range in metadata.finished {
            if let Some(open) = covered(range.clone()).find(|&offset| !settled(offset)) {
                return Err(format!(
                    "{what}: lists {open} as finished, but it is not (G1)"
                ));
            }
            let beyond = range.start.max(owned.next)..range.end;
            let inherited = |offset: i64| owned.finished.iter().any(|f| f.contains(&offset));
            if covered(beyond).any(|offset| !inherited(offset)) {
                return Err(format!(
                    "{what}: {range:?} lies beyond the delivered offsets (G2)"
                ));
            }
        }
        Ok(())
    }

    /// The drain deadline has passed.
    pub fn fence(&mut self, slots: &[AssignmentId]) {
        for owned in self.owned.values_mut() {
            owned.fenced |= slots.contains(&owned.slot);
        }
    }

    /// A partition whose offset was out of range resumes at `to`: all records read must be settled, the others are lost.
    pub fn restart(&mut self, epoch: u64, to: i64, logs: &[Log]) -> Check {
        let Some(owned) = self.owned.get_mut(&epoch) else {
            return Ok(());
        };
        owned.missing = None;
        if let Some((open, _)) = owned.records.iter().find(|(_, held)| !held.is_settled()) {
            return Err(format!(
                "{} resumes at {to} past {open}, which is in flight",
                owned.at
            ));
        }
        for record in &logs[owned.log].records {
            if (owned.seeked_to..to).contains(&record.offset)
                && !owned.records.contains_key(&record.offset)
            {
                self.gone.insert((owned.log, record.offset));
            }
        }
        owned.position = to;
        owned.fetched = to;
        owned.consumed = None;
        owned.seeked_to = to;
        owned.next = owned.next.max(to);
        self.coverage.restarts += 1;
        Ok(())
    }

    /// A record of an assignment that some handler (`by_all`: every matching handler) has finished and that the next owner
    /// would run again; `None` if there is none.
    pub fn uncommitted(&self, slot: AssignmentId, by_all: bool) -> Option<i64> {
        let mut ours = self.owned.values();
        let owned = ours.find(|owned| owned.slot == slot && !owned.released)?;
        let commit = self
            .committed
            .get(&owned.at)
            .map(|committed| &committed.commit);
        let committed = commit.map_or(0, |commit| commit.offset);
        let target = CommitTarget {
            group: "g",
            at: &owned.at,
            offset: committed,
        };
        let metadata =
            commit.and_then(|commit| CommitMetadata::decode(&commit.metadata, target).metadata);
        let finished = metadata
            .map(|metadata| metadata.finished)
            .unwrap_or_default();
        let covered = |offset: i64| {
            offset < committed || finished.iter().any(|range| range.contains(&offset))
        };
        let is_settled = |share: &Share| share.stage == Stage::Settled;
        let ran = |share: &Share| is_settled(share) && !share.skipped;
        let mut records = owned.records.iter();
        let left = records.find(|(offset, held)| {
            let finished = match by_all {
                true => held.shares.values().any(ran) && held.shares.values().all(is_settled),
                false => held.shares.values().any(ran),
            };
            finished && !covered(**offset)
        });
        left.map(|(offset, _)| *offset)
    }

    /// The assignment ends. `clean`: all started records were finished and the last commit was accepted.
    pub fn release(&mut self, slot: AssignmentId, clean: bool) {
        let Some(owned) = self
            .owned
            .values_mut()
            .find(|owned| owned.slot == slot && !owned.released)
        else {
            return;
        };
        owned.released = true;
        if self.verbose {
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

/// A record may start in a handler: no record of its lane is under way before it, or has started after it (G4).
fn check_order(
    owned: &Owned,
    offset: i64,
    handler: u32,
    logs: &[Log],
    in_batch: Option<&[i64]>,
) -> Check {
    let share = &owned.records[&offset].shares[&handler];
    let same_lane = |order: Order, other: i64| owned.in_one_lane(logs, order, (offset, other));
    for (&earlier, other) in owned
        .records
        .range(owned.settled_to.get().min(offset)..offset)
    {
        if let Some(before) = other.shares.get(&handler)
            && !matches!(before.stage, Stage::Settled | Stage::Acked)
            && !before.passes()
            // A call under way still has the lanes of the order under which it was started.
            && (same_lane(share.order, earlier)
                || before.stage == Stage::Running && same_lane(before.order, earlier))
            // One that was started under an order without this lane is ahead of those that have not been started yet.
            && !(before.stage == Stage::Queued
                && share.first_order.is_some_and(|first| !same_lane(first, earlier)))
            && !in_batch.is_some_and(|offsets| offsets.contains(&earlier))
        {
            return Err(format!(
                "started while {earlier} of its lane is {:?}",
                before.stage
            ));
        }
    }
    for (&later, other) in owned.records.range(offset + 1..) {
        // A batch handler may have seen both in one call, where the earlier one failed.
        if let Some(after) = other.shares.get(&handler)
            && let Some(first_order) = after.first_order
            && same_lane(share.order, later)
            && same_lane(first_order, later)
            && !after.with.contains(&offset)
            // It is run again instead of having its emits produced again.
            && !share.has_passed
        {
            return Err(format!("started after {later} of its lane"));
        }
    }
    Ok(())
}
