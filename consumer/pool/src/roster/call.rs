//! A running call, and when it is abandoned.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{BatchId, HandlerIx, Inbox, Published};
use sluicegate_runtime::{CallMonitor, CancelFlag};

use crate::member::PoolMember;
use crate::roster::items::WorkItem;

/// Upper bound of the grace period between cancelling a call and abandoning it.
const MAX_CANCEL_GRACE: Duration = Duration::from_secs(1);

/// A call of records that run one by one is asked to return after so long, with the others not run: how long they take was misjudged,
/// and other workers may be idle. One of records that overlap is after the timeout of a record, if that is longer.
const LONG_CALL: Duration = Duration::from_millis(500);

/// Time in which a killed call must return.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// A running call. Its progress is read through the monitor, from memory that the plugin writes through atomics (ADR
/// 0011).
pub(crate) struct Call {
    pub(super) member: Arc<PoolMember>,
    reply_to: Arc<Inbox>,
    handler: HandlerIx,
    batch_id: BatchId,
    records: u64,
    monitor: Arc<dyn CallMonitor>,
    cancel: CancelFlag,
    started: Instant,
    /// It was asked to return after the current record.
    stopped: bool,
    /// When the current record was first seen; the timeout counts from here.
    since: Instant,
    /// Progress (call serial, record index) at the last check.
    seen: Option<(u64, u32)>,
    /// When the call was asked to abandon its current record.
    cancelled: Option<Instant>,
    /// When it was killed.
    killed: Option<Instant>,
}

/// A call that was abandoned together with its thread.
pub(crate) struct TimedOutCall {
    pub(crate) member: Arc<PoolMember>,
    pub(crate) reply_to: Arc<Inbox>,
    pub(crate) handler: HandlerIx,
    pub(crate) batch_id: BatchId,
    /// Number of records of the batch.
    pub(crate) records: u64,
    /// What it has published.
    pub(crate) published: Published,
}

/// Result of a check.
pub(super) enum CallCheck {
    InTime,
    /// It must be asked to abandon its current record.
    Cancel(CancelFlag),
    /// It must be asked to return after its current record.
    Stop(CancelFlag),
    /// The call with this serial number must be killed.
    Kill(Arc<dyn CallMonitor>, u64),
    /// It must be abandoned; this is what it has published.
    Abandon(Published),
}

impl Call {
    pub(super) fn of(item: &WorkItem, monitor: Arc<dyn CallMonitor>, now: Instant) -> Self {
        Self {
            member: Arc::clone(&item.member),
            reply_to: Arc::clone(&item.reply_to),
            handler: item.batch.handler,
            batch_id: item.batch.id,
            records: item.batch.records.len() as u64,
            monitor,
            cancel: item.batch.cancel.clone(),
            started: now,
            stopped: false,
            since: now,
            seen: None,
            cancelled: None,
            killed: None,
        }
    }

    /// Updates the call's progress.
    pub(super) fn check(&mut self, now: Instant) -> CallCheck {
        let at = self.progress();
        if at.is_some() && at != self.seen {
            // The first check does not know when the record was reached: the time counts from the start of the batch.
            if self.seen.is_some() {
                self.since = now;
                self.cancelled = None;
            }
            self.seen = at;
        }
        if at.is_none() && self.seen.is_some() {
            // The call has just returned; its worker reports that.
            return CallCheck::InTime;
        }
        let timeout = self.member.setup.timeout;
        if now.saturating_duration_since(self.since) < timeout {
            return self.check_length(now);
        }
        let Some(cancelled) = self.cancelled else {
            self.cancelled = Some(now);
            return CallCheck::Cancel(self.cancel.clone());
        };
        let grace = (timeout / 10).min(MAX_CANCEL_GRACE);
        if now.saturating_duration_since(cancelled) < grace {
            return CallCheck::InTime;
        }
        match (self.killed, self.seen) {
            (None, Some((serial, _))) if self.monitor.can_kill() => {
                self.killed = Some(now);
                return CallCheck::Kill(Arc::clone(&self.monitor), serial);
            }
            (Some(killed), _) if now.saturating_duration_since(killed) < KILL_GRACE => {
                return CallCheck::InTime;
            }
            _ => {}
        }
        self.completed()
            .map_or(CallCheck::InTime, CallCheck::Abandon)
    }

    fn check_length(&mut self, now: Instant) -> CallCheck {
        let setup = &self.member.setup;
        let longest = match setup.runs_one_by_one() {
            true => LONG_CALL,
            // Waits that overlap take as long as the longest; what runs is finished.
            false => LONG_CALL.max(setup.timeout),
        };
        let is_long = now.saturating_duration_since(self.started) >= longest;
        if !is_long || self.stopped || self.records < 2 || setup.info.takes_batches {
            return CallCheck::InTime;
        }
        self.stopped = true;
        CallCheck::Stop(self.cancel.clone())
    }

    /// What the call has published. `None` if it has made progress or returned since the check: then no record is to blame, and its
    /// worker has the outcomes.
    fn completed(&self) -> Option<Published> {
        let at = self.progress();
        if at != self.seen {
            return None;
        }
        match at {
            Some(at) => self.published_at(at),
            // The call never started: no record is done.
            None => Some(Published::default()),
        }
    }

    /// What the call has published; `None` if it has not started, or has returned.
    pub(super) fn published(&self) -> Option<Published> {
        self.published_at(self.progress()?)
    }

    fn published_at(&self, (serial, index): (u64, u32)) -> Option<Published> {
        let mut outcomes = Vec::new();
        let still = self.monitor.completed(serial, &mut outcomes);
        let current = index as usize;
        still.then_some(Published { outcomes, current })
    }

    /// Whether it is the call of this batch.
    pub(super) fn is_of(&self, reply_to: &Arc<Inbox>, batch: BatchId) -> bool {
        self.batch_id == batch && Arc::ptr_eq(&self.reply_to, reply_to)
    }

    fn progress(&self) -> Option<(u64, u32)> {
        self.monitor.current().map(|at| (at.serial, at.index))
    }

    pub(super) fn timed_out(self, published: Published) -> TimedOutCall {
        TimedOutCall {
            member: self.member,
            reply_to: self.reply_to,
            handler: self.handler,
            batch_id: self.batch_id,
            records: self.records,
            published,
        }
    }
}
