//! Checks before anything is copied: whether both stores are those of the sync state, and whether missing keys
//! appear to be lost.

use std::time::{Duration, Instant};

use sluicegate_config::control::{ControlKey, Pair, Side};
use sluicegate_store::StoreError;
use sluicegate_store::jitter::jittered;

use super::super::Progress;
use super::super::halt::{Absences, Halt};
use super::super::pair::{PairCheck, check_pair};
use super::super::pair_record::PairRecord;
use super::super::renewal::Renewal;
use super::super::report::HaltReport;
use super::{Decision, OVERTAKEN_RETRY_DELAY, Worker, now_ms};

/// Poll interval of a halted bridge.
const HALTED_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Interval of new marks, if something was recorded since the last one; a mark is also written at the start. A restore
/// from a backup older than the last mark is detected whatever was written to the store afterwards.
const MARK_INTERVAL: Duration = Duration::from_secs(600);

impl Worker {
    /// Requires a check of the pair before anything is copied.
    pub(super) fn recheck_pair(&mut self) {
        self.pair = None;
        // The sync state may be of an earlier state, whose revisions are lower.
        self.forget_before = 0;
    }

    /// Re-reads everything, verifies that the stores are those of the sync state, and writes a new mark if one is due.
    pub(super) fn pair_up(&mut self) {
        match self.try_pair_up() {
            Ok(Progress::Going | Progress::Done) => {}
            Ok(Progress::Late) => {
                self.failed(&"reading both stores and the sync state took longer than 3 s; the readings are too old to act on");
            }
            Ok(_) => {
                // Another bridge is renewing the pair.
                self.counts.overtaken += 1;
                self.not_before =
                    Instant::now() + OVERTAKEN_RETRY_DELAY.mul_f64(0.2 + 0.8 * fastrand::f64());
            }
            Err(error) => self.failed(&error),
        }
    }

    fn try_pair_up(&mut self) -> Result<Progress, StoreError> {
        let began_ms = now_ms();
        self.state.adopt(self.stores.state.list()?);
        self.record_sightings();
        self.read_sides()?;
        let new_mark = self.recorded_since_mark && Instant::now() >= self.mark_due;
        let mut renewal = match self.check_pair(new_mark, began_ms) {
            PairCheck::Fits(pair) => {
                self.failures_in_a_row = 0;
                let joined = Some((pair.id.clone(), pair.trusted_from));
                if self.joined != joined {
                    // A side was emptied or reverted and gets its missing keys back, possibly by another bridge:
                    // deletes seen before are void.
                    for side in Side::BOTH {
                        self.sides.of_mut(side).forget_all_deleted();
                    }
                    self.joined = joined;
                }
                self.pair = Some(pair);
                if matches!(self.halt, Some((Halt::Foreign { .. }, _))) {
                    self.leave_halt();
                }
                // The answer was about the state at the start, not about later ones.
                if std::mem::take(&mut self.settings.accept) != Pair::default() {
                    tracing::info!(
                        "both sides belong to the pair: --accept-store no longer applies"
                    );
                }
                return Ok(Progress::Done);
            }
            PairCheck::Renew(renewal) => renewal,
            foreign @ PairCheck::Foreign(_) => {
                let now = self.stores.state.list()?;
                if PairRecord::of(&now) != PairRecord::of(self.state.tree()) {
                    // Another bridge joined the sides between the readings.
                    return Ok(Progress::Overtaken);
                }
                let address = |side| self.stores.sides.of(side).address();
                if let Some(halt) = Halt::of(&foreign, address) {
                    self.enter_halt(halt);
                }
                return Ok(Progress::Done);
            }
        };
        self.log_renewal(&renewal);
        let sides = Pair::from_fn(|side| &**self.stores.sides.of(side));
        loop {
            match renewal.step(sides, &*self.stores.state, now_ms()) {
                Progress::Going => {}
                Progress::Done => {
                    self.mark_due = Instant::now() + jittered(MARK_INTERVAL);
                    self.recorded_since_mark = false;
                    if renewal.taken_over().next().is_some() {
                        self.settings.accept = Pair::default();
                    }
                    return Ok(Progress::Done);
                }
                Progress::Failed(error) => return Err(error),
                ended => return Ok(ended),
            }
        }
    }

    /// Logs why the pair is renewed.
    fn log_renewal(&self, renewal: &Renewal) {
        for side in renewal.went_back() {
            tracing::warn!(
                store = %self.stores.sides.of(side).address(),
                "the store reverted to an earlier state: keys missing there are written again and not deleted elsewhere; keys \
                 that were deleted on both sides since are deleted there again"
            );
        }
        for side in renewal.taken_over() {
            tracing::warn!(
                store = %self.stores.sides.of(side).address(),
                "the store is accepted as reverted: values of {} are written to it, and keys that it lacks are not deleted",
                side.other()
            );
        }
    }

    pub(super) fn read_sides(&mut self) -> Result<(), StoreError> {
        for side in Side::BOTH {
            let tree = self.stores.sides.of(side).list()?;
            self.sides.of_mut(side).adopt(tree);
            // The caller checks at once whether it is still the same store.
            self.sides.of_mut(side).take_discontinuity();
        }
        Ok(())
    }

    pub(super) fn check_pair(&self, new_mark: bool, began_ms: u64) -> PairCheck {
        let sides = Pair::from_fn(|side| self.sides.of(side).tree());
        check_pair(
            &self.stores.name,
            self.state.tree(),
            &sides,
            new_mark,
            self.settings.accept,
            began_ms,
        )
    }

    pub(super) fn enter_halt(&mut self, halt: Halt) {
        self.not_before = Instant::now() + HALTED_POLL_INTERVAL;
        if self.halt.as_ref().is_some_and(|(known, _)| *known == halt) {
            return;
        }
        tracing::error!("bridge halted: {halt}");
        let report = HaltReport {
            reason: halt.to_string(),
            since: jiff::Timestamp::now().to_string(),
        };
        self.halt = Some((halt, report));
    }

    pub(super) fn leave_halt(&mut self) {
        if self.halt.take().is_some() {
            tracing::info!("bridge resumed");
        }
    }

    /// Returns a halt if so many keys are missing that they appear to be lost. A bridge that is halted for it stays so until
    /// none is missing.
    pub(super) fn check_mass_delete(
        &self,
        decided: &[(&ControlKey, Decision)],
        pair: &PairRecord,
    ) -> Option<Halt> {
        if self.settings.allow_mass_delete {
            return None;
        }
        Side::BOTH.into_iter().find_map(|side| {
            let held = match &self.halt {
                Some((Halt::MassDelete { side: held, .. }, _)) => *held == side,
                _ => false,
            };
            let deletes = |(key, decision): &(&ControlKey, Decision)| {
                self.is_found_absent(key, side, decision)
            };
            if !held && !decided.iter().any(deletes) {
                return None;
            }
            let absences = self.absences(side, pair);
            if !(absences.are_many() || held && absences.absent > 0) {
                return None;
            }
            Some(Halt::MassDelete {
                side,
                store: self.stores.sides.of(side).address(),
                absent: absences.absent,
                known: absences.known,
            })
        })
    }

    /// Whether `decision` copies a delete that only a listing found on `side`.
    fn is_found_absent(&self, key: &ControlKey, side: Side, decision: &Decision) -> bool {
        let view = self.sides.of(side);
        let is_copied = matches!(decision, Decision::Copy { to, .. } if *to == side.other());
        is_copied && view.get(key).is_none() && !view.saw_deleted(key)
    }

    fn absences(&self, side: Side, pair: &PairRecord) -> Absences {
        let mut absences = Absences::default();
        for key in self.state.keys() {
            let sync = self.sync(key);
            if sync.is_some_and(|sync| sync.value.is_some()) {
                absences.known += 1;
                if self.sides.of(side).get(key).is_none() {
                    let decision = self.decide_on(key, pair, true);
                    let counts = self.is_found_absent(key, side, &decision);
                    absences.absent += usize::from(counts);
                }
            }
        }
        absences
    }
}
