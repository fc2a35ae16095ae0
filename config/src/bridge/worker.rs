//! The bridge's thread: hears of changes on both sides, decides, and carries them across.

mod guard;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::decide::{Decision, KeyState, decide};
use super::halt::Halt;
use super::pair::{PairCheck, PairRecord};
use super::report::{BridgeReport, Conflict, Counts, HaltReport};
use super::running::{BridgeSettings, BridgeStores, Event, StoreRole, lock};
use super::sync_state::forget_deleted_before;
use super::transfer::{Known, Progress, Transfer};
use super::view::View;
use super::{Pair, Side, Sightings, SyncState};
use crate::jitter::{backoff, jittered};
use crate::store::{ControlKey, StoreError, StoreUpdate};
use refusals::Refusals;

/// Crossings that run side by side.
const MAX_CONCURRENT: usize = 8;
/// Keys that are decided on at once, so that news is heard in between.
const BATCH_SIZE: usize = 256;
/// A view that is behind the note is given this long to catch up before both sides are read anew.
const CATCH_UP: Duration = Duration::from_millis(300);
/// Wait before a key that was overtaken is looked at again; a random part of it.
const OVERTAKEN: Duration = Duration::from_millis(200);
/// First and longest wait after a store failed; a random part of it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Conflicts that are remembered for people.
const REMEMBERED: usize = 32;

pub(super) struct Worker {
    stores: BridgeStores,
    settings: BridgeSettings,
    inbox: Receiver<Event>,
    sides: Pair<View>,
    notes: View,
    /// Keys to decide on.
    due: BTreeSet<ControlKey>,
    /// Keys to decide on at a time.
    later: BTreeMap<ControlKey, Instant>,
    /// Keys whose readings were behind the note at the last look.
    behind: BTreeSet<ControlKey>,
    /// Since when a key has not been known to be equal.
    unsettled: BTreeMap<ControlKey, Instant>,
    refusals: Refusals,
    /// Since when it knows what is under way, by the clock that began with it.
    sightings: Sightings,
    clock: Instant,
    /// What is known of the pair; `None` until both stores are known to be those of the notes, and when that is in doubt.
    pair: Option<PairRecord>,
    /// The id of the pair, and since when absences count, when both stores last were those of the notes.
    joined: Option<(Option<String>, Pair<u64>)>,
    /// When a new mark is due, if anything is noted by then.
    mark_due: Instant,
    /// Whether something was noted since the last mark.
    noted: bool,
    halt: Option<(Halt, HaltReport)>,
    failures_in_a_row: u32,
    not_before: Instant,
    next_look: Instant,
    counts: Counts,
    conflicts: Vec<Conflict>,
    /// Notes of deleted keys that were written at an earlier revision may go.
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
        let notes = View::new(stores.notes.describe());
        let report = BridgeReport {
            id: settings.id.clone(),
            preferred_side: settings.preferred_side,
            sides: Pair::from_fn(|side| sides.of(side).report()),
            notes: notes.report(),
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
            notes,
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
            noted: true,
            halt: None,
            failures_in_a_row: 0,
            not_before: now,
            next_look: now + settings.resync_interval,
            settings,
            counts: Counts::default(),
            conflicts: Vec::new(),
            forget_before: 0,
            report: Arc::new(Mutex::new(report)),
        }
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    /// Why it cannot go on.
    pub(super) fn run(mut self) -> Result<(), String> {
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
        let views = [&self.sides.etcd, &self.sides.zookeeper, &self.notes];
        views.iter().all(|view| view.is_ready()) && Instant::now() >= self.not_before
    }

    /// Waits for news or for the next thing to do; `false` ends it.
    fn recv(&mut self) -> Result<bool, String> {
        let now = Instant::now();
        let soonest = self.later.values().copied().min();
        let mut until = soonest.map_or(self.next_look, |soonest| soonest.min(self.next_look));
        if !self.due.is_empty() || self.pair.is_none() {
            let ready = self.is_ready() || now < self.not_before;
            until = if ready { self.not_before } else { until };
        }
        // Lag grows by itself, so the report is renewed even when nothing happens.
        let wait = until
            .saturating_duration_since(now)
            .min(Duration::from_secs(1));
        let mut news = self.inbox.recv_timeout(wait).ok();
        while let Some(one) = news {
            match one {
                Event::Stop => return Ok(false),
                Event::Deaf(which) => {
                    let store = match which {
                        StoreRole::Side(side) => self.stores.sides.of(side),
                        StoreRole::Notes => &self.stores.notes,
                    };
                    return Err(format!("the watch of {} has ended", store.describe()));
                }
                Event::Of(which, update) => self.take(which, update),
            }
            news = self.inbox.try_recv().ok();
        }
        Ok(true)
    }

    fn take(&mut self, which: StoreRole, update: StoreUpdate) {
        let view = match which {
            StoreRole::Side(side) => self.sides.of_mut(side),
            StoreRole::Notes => &mut self.notes,
        };
        let keys = view.update(update);
        if view.take_broke() {
            self.doubt();
        }
        for key in keys {
            if key == ControlKey::Bridge {
                self.look_at_mark(which);
                continue;
            }
            match which {
                StoreRole::Side(_) => {
                    let unsettled = self.unsettled.entry(key.clone());
                    unsettled.or_insert_with(Instant::now);
                }
                StoreRole::Notes => self.see_note(&key),
            }
            self.due.insert(key);
        }
    }

    /// Another bridge has left a new mark, the record went with its store, or a side is one of another pair.
    fn look_at_mark(&mut self, which: StoreRole) {
        let stands = match (which, &self.pair) {
            (StoreRole::Notes, pair) => PairRecord::of(self.notes.tree()) == *pair,
            (StoreRole::Side(side), Some(pair)) => {
                pair.is_carried_by(side, self.sides.of(side).tree())
            }
            (StoreRole::Side(_), None) => true,
        };
        if !stands {
            self.doubt();
        }
    }

    fn see_note(&mut self, key: &ControlKey) {
        let note = self.note(key);
        self.sightings.see(key, note.as_ref(), self.clock_ms());
    }

    fn see_notes(&mut self) {
        let keys: Vec<ControlKey> = self.notes.keys().cloned().collect();
        self.sightings.forget_others(&keys);
        for key in keys {
            self.see_note(&key);
        }
    }

    /// Milliseconds on the clock that nobody sets.
    fn clock_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Moves what is due by now.
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
        if now >= self.next_look {
            self.next_look = now + jittered(self.settings.resync_interval);
            let views = [&self.sides.etcd, &self.sides.zookeeper, &self.notes];
            let keys = views.iter().flat_map(|view| view.keys());
            self.due.extend(keys.cloned());
            let notes = self.notes.keys().filter_map(|key| self.notes.get(key));
            let notes = notes.map(|entry| (entry.stamp.revision, &*entry.value));
            self.forget_before = forget_deleted_before(notes);
        }
        if self.noted && now >= self.mark_due {
            self.doubt();
        }
    }

    /// Decides on a portion of what is due, and carries it across.
    fn run_batch(&mut self, pair: &PairRecord) {
        let mut portion = BTreeSet::new();
        while portion.len() < BATCH_SIZE
            && let Some(key) = self.due.pop_first()
        {
            portion.insert(key);
        }
        if portion.is_empty() {
            return;
        }
        let mut confirm = Vec::new();
        let mut crossings = Vec::new();
        let began_ms = now_ms();
        for key in portion {
            if self.halt.is_some() {
                // Whether it may go on shows on fresh readings.
                confirm.push(key);
                continue;
            }
            let decision = self.look(&key, pair, false);
            match decision {
                Decision::Confirm => confirm.push(key),
                Decision::Stale if self.behind.remove(&key) => confirm.push(key),
                Decision::Stale => {
                    self.requeue_after(&key, CATCH_UP);
                    self.behind.insert(key);
                }
                decision => crossings.extend(self.act(&key, pair, decision, began_ms)),
            }
        }
        if !confirm.is_empty() {
            match self.confirm(&confirm) {
                Ok(Some(confirmed)) => crossings.extend(confirmed),
                Ok(None) => {
                    // Nothing crosses, whatever it was decided on.
                    self.due.extend(confirm);
                    let held = crossings.iter().map(|crossing| crossing.key().clone());
                    self.due.extend(held);
                    return;
                }
                Err(error) => {
                    self.failed(&error);
                    self.due.extend(confirm);
                }
            }
        }
        self.execute(crossings);
    }

    /// Reads both sides anew and decides on that. The notes were read before, which is what makes the readings fresh.
    /// `None`: nothing may cross.
    fn confirm(&mut self, keys: &[ControlKey]) -> Result<Option<Vec<Transfer>>, StoreError> {
        let began_ms = now_ms();
        self.read_sides()?;
        let PairCheck::Fits(pair) = self.check_pair(false, began_ms) else {
            self.doubt();
            return Ok(None);
        };
        let decided: Vec<(&ControlKey, Decision)> = keys
            .iter()
            .map(|key| (key, self.look(key, &pair, true)))
            .collect();
        if let Some(halt) = self.brake(&decided, &pair) {
            self.stand_still(halt);
            return Ok(None);
        }
        self.go_on();
        let mut crossings = Vec::new();
        for (key, decision) in decided {
            crossings.extend(self.act(key, &pair, decision, began_ms));
        }
        Ok(Some(crossings))
    }

    fn note(&self, key: &ControlKey) -> Option<SyncState> {
        let note = self.notes.get(key);
        note.and_then(|entry| SyncState::from_json(&entry.value))
    }

    fn look(&self, key: &ControlKey, pair: &PairRecord, fresh: bool) -> Decision {
        let note = self.note(key);
        decide(&KeyState {
            key,
            places: &Pair::from_fn(|side| self.stores.sides.of(side).locate(key)),
            entries: Pair::from_fn(|side| self.sides.of(side).get(key)),
            revisions: Pair::from_fn(|side| self.sides.of(side).tree().revision),
            deleted: Pair::from_fn(|side| self.sides.of(side).saw_deleted(key)),
            note: note.as_ref(),
            ages: &self.sightings.ages(key, note.as_ref(), self.clock_ms()),
            forget: (self.notes.get(key))
                .is_some_and(|entry| entry.stamp.revision < self.forget_before),
            pair,
            fresh,
            preferred_side: self.settings.preferred_side,
            own: &self.settings.id,
            now_ms: now_ms(),
        })
    }

    /// What a decision asks for at once; the rest is put down for later.
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
        let refused = self.refused_before(key, &decision);
        if let Some(wait) = refused.filter(|wait| !wait.is_zero()) {
            self.requeue_after(key, wait);
            return None;
        }
        let note_entry = self.notes.get(key);
        let note_at = note_entry.map(|entry| entry.stamp);
        match decision {
            Decision::NoOp => {
                self.unsettled.remove(key);
                self.refusals.clear_write(key);
                self.forget_deleted(key);
                None
            }
            Decision::Confirm | Decision::Stale => {
                self.requeue_after(key, CATCH_UP);
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
            Decision::RecordInSync(note) => {
                let by = &self.settings.id;
                Some(Transfer::of_note(key, note, note_at, by, began_ms))
            }
            Decision::Copy { to, conflict } => {
                let note = note_entry.and_then(|entry| SyncState::from_json(&entry.value));
                // One whose write was refused was counted and told then; what has come there since makes it another.
                if conflict && refused.is_none() {
                    self.record_conflict(key, to);
                }
                let (from, there) = (
                    self.sides.of(to.other()).get(key),
                    self.sides.of(to).get(key),
                );
                let noted = Known {
                    note: note.as_ref(),
                    note_at,
                    ages: &self.sightings.ages(key, note.as_ref(), self.clock_ms()),
                    pair,
                };
                let by = &self.settings.id;
                Some(Transfer::new(key, to, from, there, noted, by, began_ms))
            }
            Decision::Refuse(refusal) => {
                self.refuse(key, &refusal);
                None
            }
        }
    }

    /// A key that stands on neither side and of which no value is noted is no news any more.
    fn forget_deleted(&mut self, key: &ControlKey) {
        let stands = |side: &Side| self.sides.of(*side).get(key).is_some();
        let is_noted = self.note(key).is_some_and(|note| note.value.is_some());
        if Side::BOTH.iter().any(stands) || is_noted {
            return;
        }
        for side in Side::BOTH {
            self.sides.of_mut(side).forget_deleted(key);
        }
    }

    fn requeue_after(&mut self, key: &ControlKey, wait: Duration) {
        self.later.insert(key.clone(), Instant::now() + wait);
    }

    /// Runs crossings to their ends.
    fn execute(&mut self, mut crossings: Vec<Transfer>) {
        let share = crossings.len().div_ceil(MAX_CONCURRENT).max(1);
        let stores = &self.stores;
        let ended: Vec<(Transfer, Progress)> = std::thread::scope(|scope| {
            let mut running = Vec::new();
            while !crossings.is_empty() {
                let rest = crossings.split_off(share.min(crossings.len()));
                let mine = std::mem::replace(&mut crossings, rest);
                running.push(scope.spawn(move || {
                    let ended = mine
                        .into_iter()
                        .map(|crossing| execute_one(crossing, stores));
                    ended.collect::<Vec<_>>()
                }));
            }
            // A panic in there is a fault of the bridge; it ends the bridge as it would end its thread.
            let ended = running.into_iter().flat_map(|thread| match thread.join() {
                Ok(ended) => ended,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            ended.collect()
        });
        for (crossing, progress) in ended {
            self.transferred(&crossing, progress);
        }
    }

    fn transferred(&mut self, crossing: &Transfer, progress: Progress) {
        let key = crossing.key();
        let (wrote, wrote_note) = crossing.written();
        if let Some(note) = wrote_note {
            self.noted = true;
            self.notes.wrote(key, note);
            self.see_note(key);
        }
        if let Some(entry) = wrote {
            let (side, from) = (crossing.to(), crossing.to().other());
            let (place, replaced) = (self.stores.sides.of(side).locate(key), crossing.replaces());
            let counted = match &entry {
                Some(entry) => {
                    let revision = entry.stamp.revision;
                    tracing::info!(%key, %side, place, revision, replaced, "written, as {from} has it");
                    &mut self.counts.writes
                }
                None => {
                    tracing::info!(%key, %side, place, replaced, "deleted, as {from} has it no more");
                    &mut self.counts.deletes
                }
            };
            *counted.of_mut(side) += 1;
            self.sides.of_mut(crossing.to()).wrote(key, entry);
        }
        match progress {
            Progress::Done => {
                self.failures_in_a_row = 0;
                self.unsettled.remove(key);
                self.refusals.clear_write(key);
            }
            Progress::Going | Progress::Overtaken | Progress::Late => {
                self.counts.overtaken += 1;
                self.requeue_after(key, OVERTAKEN.mul_f64(0.2 + 0.8 * fastrand::f64()));
            }
            Progress::Failed(error) if error.is_retryable() => {
                self.failed(&error);
                self.due.insert(key.clone());
            }
            Progress::Failed(error) => {
                self.write_refused(crossing, &error);
            }
        }
    }

    fn failed(&mut self, error: &dyn std::fmt::Display) {
        self.counts.failures += 1;
        if Instant::now() < self.not_before {
            // Another crossing of the same pass has said so.
            return;
        }
        self.failures_in_a_row += 1;
        let (first, longest) = BACKOFF;
        self.not_before = Instant::now() + backoff(first, longest, self.failures_in_a_row);
        tracing::warn!("{error}; the bridge tries again");
    }

    fn record_conflict(&mut self, key: &ControlKey, loser: Side) {
        *self.counts.conflicts.of_mut(loser) += 1;
        let overruled = self.sides.of(loser).get(key);
        let overruled_revision = overruled.map_or(0, |entry| entry.stamp.revision);
        tracing::warn!(
            key = %key, winner = %loser.other(), overruled_revision,
            "both sides hold different values; the winner's stands"
        );
        if self.conflicts.len() == REMEMBERED {
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
        report.notes = self.notes.report();
        report.halted = self.halt.as_ref().map(|(_, report)| report.clone());
        report.keys = keys.len();
        report.unsettled = self.unsettled.len();
        report.lag_seconds = oldest.map_or(0.0, |since| since.elapsed().as_secs_f64());
        report.counts = self.counts.clone();
        report.refused = self.refusals.report();
        report.conflicts.clone_from(&self.conflicts);
    }
}

fn execute_one(mut crossing: Transfer, stores: &BridgeStores) -> (Transfer, Progress) {
    let side = Arc::clone(stores.sides.of(crossing.to()));
    loop {
        match crossing.step(&*side, &*stores.notes, now_ms()) {
            Progress::Going => {}
            ended => return (crossing, ended),
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
