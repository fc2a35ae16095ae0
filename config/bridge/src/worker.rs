//! The bridge's worker thread: receives the changes of both sides, decides, and runs the transfers.
//!
//! Until `guard` has verified that both stores are those of the sync state, nothing is decided. Then due keys are
//! decided in batches; what may delete or overrule is decided again on fresh readings of both sides (`confirm`), and
//! the transfers run on up to 8 threads. The worker waits for them, so no key is decided on while this bridge writes
//! it. A halt holds all transfers until fresh readings show that it is over: one of them could be a wrong delete (G10).

mod guard;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::jitter::{backoff, jittered};
use sluicegate_store::{StoreError, StoreUpdate};

use super::decide::{Decision, KeyState, decide};
use super::events::{Event, StoreRole, WorkerError, lock};
use super::halt::Halt;
use super::pair::PairCheck;
use super::pair_record::PairRecord;
use super::report::{BridgeReport, Conflict, Counts, HaltReport};
use super::settings::{BridgeSettings, BridgeStores};
use super::sync_state::forget_deleted_before;
use super::transfer::{Known, Progress, Transfer};
use super::view::View;
use super::{Sightings, SyncState};
use refusals::Refusals;

/// Maximum number of concurrent transfers.
const MAX_CONCURRENT: usize = 8;
/// Maximum number of keys decided on per batch; events are received between batches.
const BATCH_SIZE: usize = 256;
/// Time for a view that is behind the sync state to catch up, before both sides are re-read.
const CATCH_UP_DELAY: Duration = Duration::from_millis(300);
/// Delay before an overtaken key is decided on again; randomized between 20 % and 100 %.
const OVERTAKEN_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Initial and maximum delay after a store failure; randomized.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Conflicts kept for the status.
const MAX_CONFLICTS: usize = 32;

pub(super) struct Worker {
    stores: BridgeStores,
    settings: BridgeSettings,
    inbox: Receiver<Event>,
    sides: Pair<View>,
    state: View,
    /// Keys to decide on.
    due: BTreeSet<ControlKey>,
    /// Keys to decide on at a later time.
    later: BTreeMap<ControlKey, Instant>,
    /// Keys whose readings were behind the sync state at the last decision.
    behind: BTreeSet<ControlKey>,
    /// Since when each key has not been known to be equal.
    unsettled: BTreeMap<ControlKey, Instant>,
    refusals: Refusals,
    /// When it first saw each pending write, by `clock`.
    sightings: Sightings,
    clock: Instant,
    /// The record of the pair; `None` until both stores are verified, and while that is uncertain.
    pair: Option<PairRecord>,
    /// The id of the pair and the marks from which missing keys count, when both stores were last verified.
    joined: Option<(Option<String>, Pair<u64>)>,
    /// When a new mark is due, provided that something was recorded since the last one.
    mark_due: Instant,
    /// Whether something was recorded since the last mark.
    recorded_since_mark: bool,
    halt: Option<(Halt, HaltReport)>,
    failures_in_a_row: u32,
    not_before: Instant,
    next_resync: Instant,
    counts: Counts,
    conflicts: Vec<Conflict>,
    /// Sync state of deleted keys below this revision may be removed.
    forget_before: u64,
    pub(super) report: Arc<Mutex<BridgeReport>>,
}

impl Worker {
    pub(super) fn new(
        stores: BridgeStores,
        settings: BridgeSettings,
        inbox: Receiver<Event>,
    ) -> Self {
        let sides = Pair::from_fn(|side| View::new(stores.sides.of(side).describe()));
        let state = View::new(stores.state.describe());
        let report = BridgeReport {
            id: settings.id.clone(),
            preferred_side: settings.preferred_side,
            sides: Pair::from_fn(|side| sides.of(side).report()),
            sync_state: state.report(),
            halted: None,
            failed: None,
            keys: 0,
            unsettled: 0,
            lag_seconds: 0.0,
            counts: Counts::default(),
            refused: Vec::new(),
            conflicts: Vec::new(),
        };
        let now = Instant::now();
        Self {
            stores,
            inbox,
            sides,
            state,
            due: BTreeSet::new(),
            later: BTreeMap::new(),
            behind: BTreeSet::new(),
            unsettled: BTreeMap::new(),
            refusals: Refusals::new(now),
            sightings: Sightings::default(),
            clock: now,
            pair: None,
            joined: None,
            mark_due: now,
            recorded_since_mark: true,
            halt: None,
            failures_in_a_row: 0,
            not_before: now,
            next_resync: now + settings.resync_interval,
            settings,
            counts: Counts::default(),
            conflicts: Vec::new(),
            forget_before: 0,
            report: Arc::new(Mutex::new(report)),
        }
    }

    /// Runs until a stop is requested.
    ///
    /// # Errors
    /// Why it cannot continue.
    pub(super) fn run(mut self) -> Result<(), WorkerError> {
        while self.recv()? {
            self.requeue_due();
            if self.is_ready() {
                match &self.pair {
                    Some(pair) => self.run_batch(&pair.clone()),
                    None => self.pair_up(),
                }
            }
            self.publish();
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        let views = [&self.sides.etcd, &self.sides.zookeeper, &self.state];
        views.iter().all(|view| view.is_ready()) && Instant::now() >= self.not_before
    }

    /// Waits for an event or for the next due key; `false` stops the worker.
    fn recv(&mut self) -> Result<bool, WorkerError> {
        let now = Instant::now();
        let soonest = self.later.values().copied().min();
        let mut until = soonest.map_or(self.next_resync, |soonest| soonest.min(self.next_resync));
        if !self.due.is_empty() || self.pair.is_none() {
            let ready = self.is_ready() || now < self.not_before;
            until = if ready { self.not_before } else { until };
        }
        // Lag grows with time, so the status is refreshed even without events.
        let wait = until
            .saturating_duration_since(now)
            .min(Duration::from_secs(1));
        let mut event = self.inbox.recv_timeout(wait).ok();
        while let Some(one) = event {
            match one {
                Event::Stop => return Ok(false),
                Event::WatchEnded(which) => {
                    let store = match which {
                        StoreRole::Side(side) => self.stores.sides.of(side),
                        StoreRole::State => &self.stores.state,
                    };
                    return Err(WorkerError::WatchEnded(store.describe()));
                }
                Event::Update(which, update) => self.apply_update(which, update),
            }
            event = self.inbox.try_recv().ok();
        }
        Ok(true)
    }

    fn apply_update(&mut self, which: StoreRole, update: StoreUpdate) {
        let view = match which {
            StoreRole::Side(side) => self.sides.of_mut(side),
            StoreRole::State => &mut self.state,
        };
        let keys = view.update(update);
        if view.take_discontinuity() {
            self.recheck_pair();
        }
        for key in keys {
            if key == ControlKey::Bridge {
                self.check_mark(which);
                continue;
            }
            match which {
                StoreRole::Side(_) => {
                    let unsettled = self.unsettled.entry(key.clone());
                    unsettled.or_insert_with(Instant::now);
                }
                StoreRole::State => self.record_sighting(&key),
            }
            self.due.insert(key);
        }
    }

    /// Re-verifies the pair if another bridge wrote a new mark, the record vanished with its store, or a side now
    /// belongs to a different pair.
    fn check_mark(&mut self, which: StoreRole) {
        let is_current = match (which, &self.pair) {
            (StoreRole::State, pair) => PairRecord::of(self.state.tree()) == *pair,
            (StoreRole::Side(side), Some(pair)) => {
                pair.is_carried_by(side, self.sides.of(side).tree())
            }
            (StoreRole::Side(_), None) => true,
        };
        if !is_current {
            self.recheck_pair();
        }
    }

    fn record_sighting(&mut self, key: &ControlKey) {
        let sync = self.sync(key);
        self.sightings.see(key, sync.as_ref(), self.clock_ms());
    }

    fn record_sightings(&mut self) {
        let keys: Vec<ControlKey> = self.state.keys().cloned().collect();
        self.sightings.forget_others(&keys);
        for key in keys {
            self.record_sighting(&key);
        }
    }

    /// Milliseconds on the monotonic clock.
    fn clock_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Queues all keys that are due by now.
    fn requeue_due(&mut self) {
        let now = Instant::now();
        let due: Vec<ControlKey> = self
            .later
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.later.remove(&key);
            self.due.insert(key);
        }
        if now >= self.next_resync {
            self.next_resync = now + jittered(self.settings.resync_interval);
            let views = [&self.sides.etcd, &self.sides.zookeeper, &self.state];
            let keys = views.iter().flat_map(|view| view.keys());
            self.due.extend(keys.cloned());
            let states = self.state.keys().filter_map(|key| self.state.get(key));
            let states = states.map(|entry| (entry.stamp.revision, &*entry.value));
            self.forget_before = forget_deleted_before(states);
        }
        if self.recorded_since_mark && now >= self.mark_due {
            self.recheck_pair();
        }
    }

    /// Decides on a batch of due keys and runs the transfers.
    fn run_batch(&mut self, pair: &PairRecord) {
        let mut batch = BTreeSet::new();
        while batch.len() < BATCH_SIZE
            && let Some(key) = self.due.pop_first()
        {
            batch.insert(key);
        }
        if batch.is_empty() {
            return;
        }
        let mut confirm = Vec::new();
        let mut transfers = Vec::new();
        let began_ms = now_ms();
        for key in batch {
            if self.halt.is_some() {
                // Only fresh readings show whether the halt is over.
                confirm.push(key);
                continue;
            }
            let decision = self.decide_on(&key, pair, false);
            match decision {
                Decision::Confirm => confirm.push(key),
                Decision::Stale if self.behind.remove(&key) => confirm.push(key),
                Decision::Stale => {
                    self.requeue_after(&key, CATCH_UP_DELAY);
                    self.behind.insert(key);
                }
                decision => transfers.extend(self.act(&key, pair, decision, began_ms)),
            }
        }
        if !confirm.is_empty() {
            match self.confirm(&confirm) {
                Ok(Some(confirmed)) => transfers.extend(confirmed),
                Ok(None) => {
                    // Nothing is copied, whatever it was decided on.
                    self.due.extend(confirm);
                    let held = transfers.iter().map(|transfer| transfer.key().clone());
                    self.due.extend(held);
                    return;
                }
                Err(error) => {
                    self.failed(&error);
                    self.due.extend(confirm);
                }
            }
        }
        self.execute(transfers);
    }

    /// Re-reads both sides and decides on that. The sync state was read before, which is what makes the readings fresh.
    /// `None`: nothing may be copied.
    fn confirm(&mut self, keys: &[ControlKey]) -> Result<Option<Vec<Transfer>>, StoreError> {
        let began_ms = now_ms();
        self.read_sides()?;
        let PairCheck::Fits(pair) = self.check_pair(false, began_ms) else {
            self.recheck_pair();
            return Ok(None);
        };
        let decided: Vec<(&ControlKey, Decision)> = keys
            .iter()
            .map(|key| (key, self.decide_on(key, &pair, true)))
            .collect();
        if let Some(halt) = self.check_mass_delete(&decided, &pair) {
            self.enter_halt(halt);
            return Ok(None);
        }
        self.leave_halt();
        let mut transfers = Vec::new();
        for (key, decision) in decided {
            transfers.extend(self.act(key, &pair, decision, began_ms));
        }
        Ok(Some(transfers))
    }

    fn sync(&self, key: &ControlKey) -> Option<SyncState> {
        let sync = self.state.get(key);
        sync.and_then(|entry| SyncState::from_json(&entry.value))
    }

    fn decide_on(&self, key: &ControlKey, pair: &PairRecord, fresh: bool) -> Decision {
        let sync = self.sync(key);
        decide(&KeyState {
            key,
            places: &Pair::from_fn(|side| self.stores.sides.of(side).locate(key)),
            entries: Pair::from_fn(|side| self.sides.of(side).get(key)),
            revisions: Pair::from_fn(|side| self.sides.of(side).tree().revision),
            deleted: Pair::from_fn(|side| self.sides.of(side).saw_deleted(key)),
            sync: sync.as_ref(),
            ages: &self.sightings.ages(key, sync.as_ref(), self.clock_ms()),
            forget: (self.state.get(key))
                .is_some_and(|entry| entry.stamp.revision < self.forget_before),
            pair,
            fresh,
            preferred_side: self.settings.preferred_side,
            own: &self.settings.id,
            now_ms: now_ms(),
        })
    }

    /// Returns the transfer of a decision, if it requires one now; anything else is queued for later.
    fn act(
        &mut self,
        key: &ControlKey,
        pair: &PairRecord,
        decision: Decision,
        began_ms: u64,
    ) -> Option<Transfer> {
        if !matches!(decision, Decision::Refuse(_)) {
            self.refusals.clear_value(key);
        }
        let refused = self.retry_wait(key, &decision);
        if let Some(wait) = refused.filter(|wait| !wait.is_zero()) {
            self.requeue_after(key, wait);
            return None;
        }
        let sync_entry = self.state.get(key);
        let sync_at = sync_entry.map(|entry| entry.stamp);
        match decision {
            Decision::NoOp => {
                self.unsettled.remove(key);
                self.refusals.clear_write(key);
                self.forget_deleted(key);
                None
            }
            Decision::Confirm | Decision::Stale => {
                self.requeue_after(key, CATCH_UP_DELAY);
                None
            }
            Decision::Wait { until_ms } => {
                let wait = Duration::from_millis(until_ms.saturating_sub(now_ms()) + 1);
                self.requeue_after(key, wait.mul_f64(1.0 + 0.1 * fastrand::f64()));
                let views = Pair::from_fn(|side| self.sides.of(side).get(key));
                if views.etcd.map(|entry| &entry.value) == views.zookeeper.map(|entry| &entry.value)
                {
                    self.unsettled.remove(key);
                }
                None
            }
            Decision::RecordInSync(sync) => {
                let by = &self.settings.id;
                Some(Transfer::state_only(key, sync, sync_at, by, began_ms))
            }
            Decision::Copy { to, conflict } => {
                let sync = sync_entry.and_then(|entry| SyncState::from_json(&entry.value));
                // A conflict whose write was refused was counted and logged then; a value written there since makes it another.
                if conflict && refused.is_none() {
                    self.record_conflict(key, to);
                }
                let (from, there) = (
                    self.sides.of(to.other()).get(key),
                    self.sides.of(to).get(key),
                );
                let known = Known {
                    sync: sync.as_ref(),
                    sync_at,
                    ages: &self.sightings.ages(key, sync.as_ref(), self.clock_ms()),
                    pair,
                };
                let by = &self.settings.id;
                Some(Transfer::new(key, to, from, there, known, by, began_ms))
            }
            Decision::Refuse(refusal) => {
                self.refuse(key, &refusal);
                None
            }
        }
    }

    /// Forgets the observed delete of a key that exists on neither side and has no recorded value.
    fn forget_deleted(&mut self, key: &ControlKey) {
        let exists = |side: &Side| self.sides.of(*side).get(key).is_some();
        let is_recorded = self.sync(key).is_some_and(|sync| sync.value.is_some());
        if Side::BOTH.iter().any(exists) || is_recorded {
            return;
        }
        for side in Side::BOTH {
            self.sides.of_mut(side).forget_deleted(key);
        }
    }

    fn requeue_after(&mut self, key: &ControlKey, wait: Duration) {
        self.later.insert(key.clone(), Instant::now() + wait);
    }

    /// Runs transfers to completion.
    fn execute(&mut self, mut transfers: Vec<Transfer>) {
        let share = transfers.len().div_ceil(MAX_CONCURRENT).max(1);
        let stores = &self.stores;
        let ended: Vec<(Transfer, Progress)> = std::thread::scope(|scope| {
            let mut running = Vec::new();
            while !transfers.is_empty() {
                let rest = transfers.split_off(share.min(transfers.len()));
                let mine = std::mem::replace(&mut transfers, rest);
                running.push(scope.spawn(move || {
                    let ended = mine
                        .into_iter()
                        .map(|transfer| execute_one(transfer, stores));
                    ended.collect::<Vec<_>>()
                }));
            }
            // A panic in a transfer ends the bridge, as it would in the worker thread itself.
            let ended = running.into_iter().flat_map(|thread| match thread.join() {
                Ok(ended) => ended,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            ended.collect()
        });
        for (transfer, progress) in ended {
            self.transferred(&transfer, progress);
        }
    }

    fn transferred(&mut self, transfer: &Transfer, progress: Progress) {
        let key = transfer.key();
        let (wrote, wrote_sync) = transfer.written();
        if let Some(sync) = wrote_sync {
            self.recorded_since_mark = true;
            self.state.wrote(key, sync);
            self.record_sighting(key);
        }
        if let Some(entry) = wrote {
            let (side, from) = (transfer.to(), transfer.to().other());
            let (place, replaced) = (self.stores.sides.of(side).locate(key), transfer.replaces());
            let counted = match &entry {
                Some(entry) => {
                    let revision = entry.stamp.revision;
                    tracing::info!(%key, %side, place, revision, replaced, "value written, copied from {from}");
                    &mut self.counts.writes
                }
                None => {
                    tracing::info!(%key, %side, place, replaced, "key deleted, as on {from}");
                    &mut self.counts.deletes
                }
            };
            *counted.of_mut(side) += 1;
            self.sides.of_mut(transfer.to()).wrote(key, entry);
        }
        match progress {
            Progress::Done => {
                self.failures_in_a_row = 0;
                self.unsettled.remove(key);
                self.refusals.clear_write(key);
            }
            Progress::Going | Progress::Overtaken | Progress::Late => {
                self.counts.overtaken += 1;
                self.requeue_after(
                    key,
                    OVERTAKEN_RETRY_DELAY.mul_f64(0.2 + 0.8 * fastrand::f64()),
                );
            }
            Progress::Failed(error) if error.is_retryable() => {
                self.failed(&error);
                self.due.insert(key.clone());
            }
            Progress::Failed(error) => {
                self.write_refused(transfer, &error);
            }
        }
    }

    fn failed(&mut self, error: &dyn std::fmt::Display) {
        self.counts.failures += 1;
        if Instant::now() < self.not_before {
            // Another transfer of the same batch has logged it.
            return;
        }
        self.failures_in_a_row += 1;
        let (first, longest) = BACKOFF;
        self.not_before = Instant::now() + backoff(first, longest, self.failures_in_a_row);
        tracing::warn!("{error}; retrying");
    }

    fn record_conflict(&mut self, key: &ControlKey, loser: Side) {
        *self.counts.conflicts.of_mut(loser) += 1;
        let overruled = self.sides.of(loser).get(key);
        let overruled_revision = overruled.map_or(0, |entry| entry.stamp.revision);
        tracing::warn!(
            key = %key, winner = %loser.other(), overruled_revision,
            "conflict: both sides were changed differently; the winner's state is kept"
        );
        if self.conflicts.len() == MAX_CONFLICTS {
            self.conflicts.remove(0);
        }
        self.conflicts.push(Conflict {
            key: key.to_string(),
            winner: loser.other(),
            overruled_revision,
            at: jiff::Timestamp::now().to_string(),
        });
    }

    fn publish(&mut self) {
        for side in Side::BOTH {
            *self.counts.repairs.of_mut(side) = self.sides.of(side).repairs;
        }
        let keys: BTreeSet<&ControlKey> =
            (self.sides.etcd.keys().chain(self.sides.zookeeper.keys())).collect();
        let oldest = self.unsettled.values().min();
        let mut report = lock(&self.report);
        report.sides = Pair::from_fn(|side| self.sides.of(side).report());
        report.sync_state = self.state.report();
        report.halted = self.halt.as_ref().map(|(_, report)| report.clone());
        report.keys = keys.len();
        report.unsettled = self.unsettled.len();
        report.lag_seconds = oldest.map_or(0.0, |since| since.elapsed().as_secs_f64());
        report.counts = self.counts.clone();
        report.refused = self.refusals.report();
        report.conflicts.clone_from(&self.conflicts);
    }
}

fn execute_one(mut transfer: Transfer, stores: &BridgeStores) -> (Transfer, Progress) {
    let side = Arc::clone(stores.sides.of(transfer.to()));
    loop {
        match transfer.step(&*side, &*stores.state, now_ms()) {
            Progress::Going => {}
            ended => return (transfer, ended),
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
