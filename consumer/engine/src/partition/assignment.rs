//! The assignment of one partition to this process: `Assigned → Draining → Released`, under one epoch (G5).
//!
//! ```text
//!  Assigned ── revoked, or stop ──► Draining ── last commit accepted, or no longer possible ──► Released
//!     └───────────────── lost, topic re-created, group forgotten ─────────────────────────────────┘
//! ```
//!
//! An [`Assignment`] owns what must not outlive an ownership: its progress (the ledger, the leader epochs of its records, the
//! last accepted commit), the records that wait for room, what it holds, and the fencing token. A partition that is assigned
//! again gets a new one under a new [`AssignmentId`]. A late outcome thus finds the released assignment; with a shared
//! ledger it would settle an offset that the new ownership has not handled.
//!
//! `fenced` is separate from the state: at the drain deadline nothing starts or counts any more, while the last commit
//! may still be on its way. A token that the group's generation does not imply has to be committed before the first
//! record runs (`token_first`, ADR 0021), because the next owner learns it only from that commit (G4).

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sluicegate_abi::{Fence, TopicName};
use sluicegate_runtime::RecordPlace;

use crate::dispatch::RecordId;
use crate::partition::commit::{CommitMetadata, CommitTarget, TopicUuid};
use crate::partition::holdings::Holdings;
use crate::partition::ledger::{Delivered, Ledger};
use crate::partition::overflow::Overflow;
use crate::partition::progress::Progress;
use crate::partition::trouble::Trouble;
use crate::routing::TopicPlanId;
use crate::source::{AssignmentId, CommitEntry, TopicPartition};

/// State of an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignmentState {
    /// Records are admitted.
    Assigned,
    /// Being revoked: no record starts, in-flight records may finish until the deadline.
    Draining {
        /// On the flow's clock, in milliseconds.
        deadline_ms: u64,
    },
    /// Revoked: late outcomes are discarded.
    Released,
}

/// Initial state of an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAssignment {
    /// The partition.
    pub at: TopicPartition,
    /// Id of its topic.
    pub topic_id: TopicUuid,
    /// First offset to read.
    pub start: i64,
    /// Fencing token.
    pub epoch: u64,
    /// Whether the token must be committed before the first record runs (see [`crate::partition::commit::next_epoch`]).
    pub token_first: bool,
    /// Leader epoch of the record before `start`, as committed.
    pub leader_epoch: Option<i32>,
    /// Commit metadata of the previous owner: finished offsets and their leader epoch.
    pub inherited: CommitMetadata,
}

impl NewAssignment {
    /// A partition without a previous owner.
    pub fn first(at: TopicPartition, start: i64, epoch: u64) -> Self {
        Self {
            at,
            topic_id: TopicUuid::default(),
            start,
            epoch,
            token_first: false,
            leader_epoch: None,
            inherited: CommitMetadata::default(),
        }
    }
}

/// A partition that this process owns or has owned. Only it writes its fields: each change is a method.
pub struct Assignment<R> {
    id: AssignmentId,
    at: TopicPartition,
    /// Its topic's name; records lent to calls point to it.
    topic: TopicName<'static>,
    topic_id: TopicUuid,
    epoch: u64,
    fence: &'static Fence,
    start: i64,
    lost: Arc<AtomicBool>,
    token_first: bool,
    /// Whether a commit with our token was accepted.
    token_kept: bool,
    state: AssignmentState,
    /// Revoked or about to be: no record starts, and outcomes of running calls no longer count (G5).
    fenced: bool,
    assigned_ms: u64,
    /// Which routes can match its topic.
    plan: TopicPlanId,
    progress: Progress,
    holdings: Holdings<R>,
    stopped: Option<Trouble>,
    unreadable: Option<Trouble>,
    /// Last known end of its log: one past the last offset.
    end: Option<i64>,
    /// The next offset expected, and the time since which the log contains it without its being delivered.
    awaited: Option<(i64, u64)>,
    /// The record that a report last found at this frontier, so that the next report does not search for it.
    at_frontier: Cell<Option<(i64, RecordId)>>,
}

/// Its life.
impl<R> Assignment<R> {
    /// An assignment that begins now, and admits its records. `topic`: its name as records lent to calls refer to it.
    pub(crate) fn new(
        id: AssignmentId,
        new: NewAssignment,
        (topic, fence): (TopicName<'static>, &'static Fence),
        plan: TopicPlanId,
        now_ms: u64,
    ) -> Self {
        fence.admit(new.epoch);
        Self {
            id,
            at: new.at,
            topic,
            topic_id: new.topic_id,
            epoch: new.epoch,
            fence,
            start: new.start,
            lost: Arc::default(),
            token_first: new.token_first,
            token_kept: false,
            state: AssignmentState::Assigned,
            fenced: false,
            assigned_ms: now_ms,
            plan,
            progress: Progress::new(new.start, new.leader_epoch, new.inherited, now_ms),
            holdings: Holdings::default(),
            stopped: None,
            unreadable: None,
            end: None,
            awaited: None,
            at_frontier: Cell::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> AssignmentId {
        self.id
    }

    /// The partition.
    pub fn at(&self) -> &TopicPartition {
        &self.at
    }

    /// Id of its topic: offsets are meaningless in a re-created topic (G2).
    pub fn topic_id(&self) -> TopicUuid {
        self.topic_id
    }

    /// Fencing token: higher than that of every earlier owner of the partition, while the group exists (G4). Tokens of
    /// different partitions are not comparable.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the token must be committed before the first record runs.
    pub fn token_first(&self) -> bool {
        self.token_first
    }

    /// Whether a commit with its token was accepted.
    pub fn token_kept(&self) -> bool {
        self.token_kept
    }

    /// Its state.
    pub fn state(&self) -> AssignmentState {
        self.state
    }

    /// Whether it is owned and not being revoked.
    #[inline]
    pub fn is_assigned(&self) -> bool {
        self.state == AssignmentState::Assigned
    }

    /// When its drain ends at the latest, if it is being revoked; on the flow's clock, in milliseconds.
    pub fn drains_until_ms(&self) -> Option<u64> {
        match self.state {
            AssignmentState::Draining { deadline_ms } => Some(deadline_ms),
            AssignmentState::Assigned | AssignmentState::Released => None,
        }
    }

    /// Whether it is being revoked.
    pub fn is_draining(&self) -> bool {
        self.drains_until_ms().is_some()
    }

    /// Whether it was revoked.
    #[inline]
    pub fn is_released(&self) -> bool {
        self.state == AssignmentState::Released
    }

    /// Whether none of its records starts, and outcomes of running calls no longer count (G5).
    #[inline]
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Whether its records may start: assigned and not stopped.
    #[inline]
    pub fn admits(&self) -> bool {
        self.is_assigned() && self.stopped.is_none()
    }

    /// It is being revoked. An earlier deadline stays.
    pub(crate) fn start_drain(&mut self, deadline_ms: u64) {
        let earlier_ms = self.drains_until_ms().unwrap_or(u64::MAX);
        self.state = AssignmentState::Draining {
            deadline_ms: deadline_ms.min(earlier_ms),
        };
    }

    /// From now on none of its records starts, and no outcome counts.
    pub(crate) fn fence(&mut self) {
        self.fenced = true;
        self.fence.close(self.epoch);
    }

    /// It is lost: another member may have it already.
    pub(crate) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// Set once it is lost.
    pub(crate) fn lost(&self) -> &Arc<AtomicBool> {
        &self.lost
    }

    /// Offset of its first record.
    pub(crate) fn start(&self) -> i64 {
        self.start
    }

    /// It is revoked. Frees what only an owned partition needs; its records may still be held.
    pub(super) fn release(&mut self) {
        self.state = AssignmentState::Released;
        self.progress.forget();
        self.holdings.forget_overflow();
    }

    /// Nothing refers to it any more: its place has this id from now on.
    pub(super) fn end(&mut self, next: AssignmentId) {
        self.id = next;
    }

    /// Stops it: its records are not handled any more (G12, G13). Returns whether it was not stopped before.
    pub(crate) fn stop(&mut self, cause: &str, remedy: &str, now_ms: u64) -> bool {
        if self.stopped.is_some() {
            return false;
        }
        self.stopped = Some(Trouble::new(cause, remedy, now_ms));
        self.unreadable = None;
        true
    }

    /// It cannot be read at present. Returns whether that is new or has another cause than before.
    pub(crate) fn set_unreadable(&mut self, cause: &str, remedy: &str, now_ms: u64) -> bool {
        Trouble::record(&mut self.unreadable, cause, remedy, now_ms)
    }

    /// It can be read again. Returns the previous trouble, if there was any.
    pub(crate) fn set_readable(&mut self) -> Option<Trouble> {
        self.unreadable.take()
    }

    /// Why its records are not handled any more, if it is stopped (G12, G13).
    pub fn stopped(&self) -> Option<&Trouble> {
        self.stopped.as_ref()
    }

    /// Why it currently cannot be read, if so.
    pub fn unreadable(&self) -> Option<&Trouble> {
        self.unreadable.as_ref()
    }

    /// Why its records are not handled or cannot be read, if so.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.stopped.as_ref().or(self.unreadable.as_ref())
    }

    /// Which routes can match its topic.
    #[inline]
    pub fn plan(&self) -> TopicPlanId {
        self.plan
    }

    /// Other routes apply.
    pub(crate) fn replan(&mut self, plan: TopicPlanId) {
        self.plan = plan;
    }

    /// Origin of one of its records, as handlers see it.
    #[inline]
    pub fn place_of(&self, offset: i64, timestamp_ms: i64) -> RecordPlace<'static> {
        RecordPlace {
            topic: self.topic,
            partition: self.at.partition,
            offset,
            timestamp_ms,
            epoch: self.epoch,
            fence: Some(self.fence),
        }
    }
}

/// Its offsets.
impl<R> Assignment<R> {
    /// Which offsets are delivered and settled.
    #[inline]
    pub fn ledger(&self) -> &Ledger {
        self.progress.ledger()
    }

    /// The last acknowledged committed offset.
    #[inline]
    pub fn committed(&self) -> i64 {
        self.progress.committed()
    }

    /// Number of records delivered.
    pub fn delivered(&self) -> u64 {
        self.progress.delivered()
    }

    /// Number of repeated deliveries dropped.
    pub fn repeats(&self) -> u64 {
        self.progress.repeats()
    }

    /// Takes the numbers of records delivered and of repeated deliveries.
    pub(crate) fn take_counts(&mut self) -> (u64, u64) {
        self.progress.take_counts()
    }

    /// Whether its frontier has advanced since the assignment.
    pub(crate) fn has_moved(&self) -> bool {
        self.progress.moved_ms() > self.assigned_ms
    }

    /// Time since which the frontier has been waiting, on the flow's clock; meaningful only while a record is unsettled.
    pub fn waits_since_ms(&self) -> u64 {
        self.progress.waits_since_ms()
    }

    /// Whether a record is unsettled or waits for room.
    pub fn waits(&self) -> bool {
        !self.ledger().is_settled() || !self.overflow().is_empty()
    }

    /// Uncommitted offsets: what is reprocessed if this process dies (G3).
    #[inline]
    pub fn uncommitted(&self) -> i64 {
        self.ledger().next() - self.committed()
    }

    /// Whether a record may be admitted: the fencing token is committed if required (G4) and the limit is not reached (G3).
    #[inline]
    pub fn has_room(&self, max_uncommitted: i64) -> bool {
        (self.token_kept || !self.token_first) && self.uncommitted() < max_uncommitted
    }

    /// Delivers a run of records from `first` on, appended by one leader; `false`: not all of them are new, and nothing has
    /// changed.
    #[inline]
    pub(crate) fn deliver_run(
        &mut self,
        first: i64,
        count: usize,
        leader_epoch: i32,
        now_ms: u64,
    ) -> bool {
        self.progress
            .deliver_run(first, count, leader_epoch, now_ms)
    }

    /// Delivers one record.
    pub(crate) fn deliver(&mut self, offset: i64, leader_epoch: i32, now_ms: u64) -> Delivered {
        self.progress.deliver(offset, leader_epoch, now_ms)
    }

    /// Called before the record at `offset` is delivered. Drops the finished offsets that the previous owner has left if its
    /// leader epoch contradicts them; returns whether there were any.
    pub(crate) fn check_inherited(&mut self, offset: i64, leader_epoch: i32) -> bool {
        let forgets = self.progress.check_inherited(offset, leader_epoch);
        if forgets {
            tracing::warn!(
                at = %self.at,
                offset,
                "the log was truncated and rewritten from this offset on: its records are handled again, also at offsets \
                 that were finished before"
            );
        }
        forgets
    }

    /// Settles records that no route selects. The frontier advances only if no earlier record is unsettled.
    #[inline]
    pub(crate) fn pass_by(&mut self, offsets: Range<i64>, now_ms: u64) {
        let twice = self.progress.settle_run(offsets, now_ms);
        debug_assert_eq!(twice, None, "they were just delivered");
    }

    /// The client has read everything before `position`, and has delivered all records of it.
    pub(crate) fn consumed(&mut self, position: i64, now_ms: u64) {
        // Records that are dropped or queued before admission are not in the ledger.
        if self.admits() && self.overflow().is_empty() {
            self.progress.pass(position, now_ms);
        }
    }

    /// Continues at `to`; nothing of it may be in flight. Returns whether that is a new beginning, so that earlier commits
    /// say nothing about it.
    pub(crate) fn restart(&mut self, to: i64, another_log: bool, now_ms: u64) -> bool {
        self.unreadable = None;
        self.progress.restart(to, another_log, now_ms)
    }

    /// A commit of it was accepted.
    pub(super) fn accepted(&mut self, entry: &CommitEntry) {
        if !self.is_released() && entry.offset >= self.committed() {
            self.progress.accepted(entry.offset, &entry.metadata);
            self.token_kept = true;
        }
    }

    /// Contents of the metadata for a commit of the frontier.
    pub fn commit_metadata(&self) -> CommitMetadata {
        let (finished, leader_epoch) = self.progress.finished();
        CommitMetadata {
            topic_id: self.topic_id,
            epoch: self.epoch,
            leader_epoch,
            finished,
        }
    }

    /// The encoded metadata for a commit of the frontier.
    pub fn metadata(&self, group: &str) -> String {
        let target = self.target(group, self.ledger().frontier());
        self.commit_metadata().encode(target)
    }

    fn target<'t>(&'t self, group: &'t str, offset: i64) -> CommitTarget<'t> {
        CommitTarget {
            group,
            at: &self.at,
            offset,
        }
    }

    /// The commit of its frontier, if it differs from the last accepted one. `short` omits which records are finished beyond
    /// the frontier.
    pub fn commit(&self, group: &str, short: bool) -> Option<CommitEntry> {
        let offset = self.ledger().frontier();
        let mut metadata = self.commit_metadata();
        if short {
            metadata.finished.clear();
        }
        let metadata = metadata.encode(self.target(group, offset));
        let changed = self.progress.differs(offset, &metadata);
        changed.then(|| CommitEntry {
            at: self.at.clone(),
            offset,
            leader_epoch: self.progress.leader_epoch(offset - 1),
            metadata,
        })
    }

    /// The record at `frontier`, if the last report found it there.
    pub(crate) fn record_at(&self, frontier: i64) -> Option<RecordId> {
        let (offset, key) = self.at_frontier.get()?;
        (offset == frontier).then_some(key)
    }

    /// A report has found the record at `frontier`.
    pub(crate) fn keep_record_at(&self, frontier: i64, key: RecordId) {
        self.at_frontier.set(Some((frontier, key)));
    }
}

/// What it holds.
impl<R> Assignment<R> {
    /// The records and bytes that it holds.
    #[inline]
    pub fn holdings(&self) -> &Holdings<R> {
        &self.holdings
    }

    /// The same, for what concerns nothing else of it.
    #[inline]
    pub(crate) fn holdings_mut(&mut self) -> &mut Holdings<R> {
        &mut self.holdings
    }

    /// The records that wait for room.
    #[inline]
    pub fn overflow(&self) -> &Overflow<R> {
        self.holdings.overflow()
    }

    /// All handlers have settled a record; `false`: its offset was settled before.
    #[inline]
    pub(crate) fn settle(&mut self, offset: i64, now_ms: u64) -> bool {
        self.holdings.settle();
        self.is_released() || self.progress.settle(offset, now_ms)
    }

    /// All handlers have settled consecutive records, which are freed. Returns an offset that was settled before, if there
    /// is any.
    #[inline]
    pub(crate) fn settle_run(
        &mut self,
        offsets: Range<i64>,
        bytes: u64,
        now_ms: u64,
    ) -> Option<i64> {
        self.holdings
            .settle_run((offsets.end - offsets.start) as u32, bytes);
        if self.is_released() {
            return None;
        }
        self.progress.settle_run(offsets, now_ms)
    }

    /// Ends a measuring window that began at `began_ms`: how fast it frees what it holds.
    pub(crate) fn end_window(&mut self, began_ms: u64) {
        // A partition assigned within this window has no complete window yet.
        self.holdings.end_window(self.assigned_ms >= began_ms);
    }

    /// Decides whether its fetching is paused now; `Some` if that changes.
    pub(crate) fn update_pause(&mut self, max_uncommitted: i64, now_ms: u64) -> Option<bool> {
        if !self.is_assigned() {
            return None;
        }
        let has_room = self.uncommitted() <= max_uncommitted / 2;
        self.holdings
            .update_pause(self.stopped.is_some(), has_room, now_ms)
    }

    /// Whether the client fetches it.
    pub(crate) fn is_read(&self) -> bool {
        self.admits() && !self.holdings.is_paused()
    }

    /// Last known end of its log: one past the last offset.
    pub fn log_end(&self) -> Option<i64> {
        self.end
    }

    /// Records the end of its log that the client knows.
    pub(crate) fn record_end(&mut self, end: Option<i64>, now_ms: u64) {
        self.end = end.or(self.end);
        let due = self.ledger().next();
        let awaits = self.is_read()
            && self.unreadable.is_none()
            && !self.waits()
            && self.end.is_some_and(|end| end > due);
        let since_ms = match self.awaited {
            Some((known, since_ms)) if known == due => since_ms,
            _ => now_ms,
        };
        self.awaited = awaits.then_some((due, since_ms));
    }

    /// The next offset, and the time since which the log has it although it is not delivered.
    pub fn awaited(&self) -> Option<(i64, u64)> {
        self.awaited
    }
}
