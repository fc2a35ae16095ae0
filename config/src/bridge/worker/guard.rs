//! What a bridge looks at before anything crosses: whether both stores are those of the notes, and whether what is missing
//! there looks lost.

use std::time::{Duration, Instant};

use super::super::halt::{Absences, Halt};
use super::super::pair::{PairCheck, PairRecord, check_pair};
use super::super::renewal::Renewal;
use super::super::report::HaltReport;
use super::super::{Pair, Progress, Side};
use super::{Decision, OVERTAKEN, Worker, now_ms};
use crate::jitter::jittered;
use crate::store::{ControlKey, StoreError};

/// Time between two looks at stores that the bridge does not work with.
const HALTED_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// A new mark is left at the start, and this long after the last one if something was noted since: a store that is restored
/// from an older backup than that is known for it whatever was written to it meanwhile.
const MARK_INTERVAL: Duration = Duration::from_secs(600);

impl Worker {
    /// What is known of the pair is to be looked at again before anything crosses.
    pub(super) fn doubt(&mut self) {
        self.pair = None;
        // The notes may be those of an earlier state, whose revisions are lower.
        self.forget_before = 0;
    }

    /// Reads everything anew, looks whether the stores are those of the notes, and leaves a new mark if one is due.
    pub(super) fn pair_up(&mut self) {
        match self.try_pair_up() {
            Ok(Progress::Going | Progress::Done) => {}
            Ok(Progress::Late) => {
                self.failed(&"reading both stores and the notes takes longer than 3 s, too long to know what stands there");
            }
            Ok(_) => {
                // Another bridge is at it.
                self.counts.overtaken += 1;
                self.not_before = Instant::now() + OVERTAKEN.mul_f64(0.2 + 0.8 * fastrand::f64());
            }
            Err(error) => self.failed(&error),
        }
    }

    fn try_pair_up(&mut self) -> Result<Progress, StoreError> {
        let began_ms = now_ms();
        self.notes.adopt(self.stores.notes.list()?);
        self.see_notes();
        self.read_sides()?;
        let anew = self.noted && Instant::now() >= self.mark_due;
        let mut renewal = match self.check_pair(anew, began_ms) {
            PairCheck::Fits(pair) => {
                self.failures_in_a_row = 0;
                let joined = Some((pair.id.clone(), pair.trusted_from));
                if self.joined != joined {
                    // A side was emptied or went back, and is given back what it lacks: another bridge may have done that.
                    for side in Side::BOTH {
                        self.sides.of_mut(side).forget_all_deleted();
                    }
                    self.joined = joined;
                }
                self.pair = Some(pair);
                if matches!(self.halt, Some((Halt::Foreign { .. }, _))) {
                    self.go_on();
                }
                // It was an answer to what stood there then, not to what will.
                if std::mem::take(&mut self.settings.accept) != Pair::default() {
                    tracing::info!("both sides are those of the pair: no store is left to accept");
                }
                return Ok(Progress::Done);
            }
            PairCheck::Renew(renewal) => renewal,
            foreign @ PairCheck::Foreign(_) => {
                let now = self.stores.notes.list()?;
                if PairRecord::of(&now) != PairRecord::of(self.notes.tree()) {
                    // Another bridge joins the sides between the readings.
                    return Ok(Progress::Overtaken);
                }
                let address = |side| self.stores.sides.of(side).address();
                if let Some(halt) = Halt::of(&foreign, address) {
                    self.stand_still(halt);
                }
                return Ok(Progress::Done);
            }
        };
        self.tell_of(&renewal);
        let sides = Pair::from_fn(|side| &**self.stores.sides.of(side));
        loop {
            match renewal.step(sides, &*self.stores.notes, now_ms()) {
                Progress::Going => {}
                Progress::Done => {
                    self.mark_due = Instant::now() + jittered(MARK_INTERVAL);
                    self.noted = false;
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

    /// Says why the pair is joined anew.
    fn tell_of(&self, renewal: &Renewal) {
        for side in renewal.went_back() {
            tracing::warn!(
                store = %self.stores.sides.of(side).address(),
                "the store went back to an earlier state: keys that are missing there are written again, none is deleted for it; those \
                 that were deleted on both sides since are deleted there again"
            );
        }
        for side in renewal.taken_over() {
            tracing::warn!(
                store = %self.stores.sides.of(side).address(),
                "the store is accepted as one that went back: what {} holds travels to it, and nothing is deleted for what it lacks",
                side.other()
            );
        }
    }

    pub(super) fn read_sides(&mut self) -> Result<(), StoreError> {
        for side in Side::BOTH {
            let tree = self.stores.sides.of(side).list()?;
            self.sides.of_mut(side).adopt(tree);
            // Whoever reads looks at once whether it is the store that it was.
            self.sides.of_mut(side).take_broke();
        }
        Ok(())
    }

    pub(super) fn check_pair(&self, anew: bool, began_ms: u64) -> PairCheck {
        let sides = Pair::from_fn(|side| self.sides.of(side).tree());
        check_pair(
            &self.stores.name,
            self.notes.tree(),
            &sides,
            anew,
            self.settings.accept,
            began_ms,
        )
    }

    pub(super) fn stand_still(&mut self, halt: Halt) {
        self.not_before = Instant::now() + HALTED_POLL_INTERVAL;
        if self.halt.as_ref().is_some_and(|(known, _)| *known == halt) {
            return;
        }
        tracing::error!("the bridge stands still: {halt}");
        let report = HaltReport {
            reason: halt.to_string(),
            since: jiff::Timestamp::now().to_string(),
        };
        self.halt = Some((halt, report));
    }

    pub(super) fn go_on(&mut self) {
        if self.halt.take().is_some() {
            tracing::info!("the bridge carries keys across again");
        }
    }

    /// Whether so many keys are missing that they look lost. One that stands still for it does so until none is missing.
    pub(super) fn brake(
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

    /// Whether `decision` carries a delete across that only a listing found on `side`.
    fn is_found_absent(&self, key: &ControlKey, side: Side, decision: &Decision) -> bool {
        let view = self.sides.of(side);
        let crosses = matches!(decision, Decision::Copy { to, .. } if *to == side.other());
        crosses && view.get(key).is_none() && !view.saw_deleted(key)
    }

    fn absences(&self, side: Side, pair: &PairRecord) -> Absences {
        let mut absences = Absences::default();
        for key in self.notes.keys() {
            let note = self.note(key);
            if note.is_some_and(|note| note.value.is_some()) {
                absences.known += 1;
                if self.sides.of(side).get(key).is_none() {
                    let decision = self.look(key, pair, true);
                    let counts = self.is_found_absent(key, side, &decision);
                    absences.absent += usize::from(counts);
                }
            }
        }
        absences
    }
}
