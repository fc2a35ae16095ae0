//! What does not cross: values that are no values where they are to go, and writes that a store refuses.
//!
//! A value is looked at again when it changes. A write is tried again with growing pauses, since a right or a limit may be
//! mended without a change of the key; until it succeeds the key is not known to be equal.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::Side;
use super::super::decide::{Decision, Refusal};
use super::super::report::RefusedValue;
use super::super::transfer::{Transfer, Writes};
use super::Worker;
use crate::jitter::backoff;
use crate::store::{ControlKey, StoreError};

/// First and longest wait before a refused write is tried again; a random part of it.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between two log lines about one write.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Refused writes are tried again at multiples of this.
const TRIED_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Refusals {
    began: Instant,
    values: BTreeMap<ControlKey, (u64, RefusedValue)>,
    writes: BTreeMap<ControlKey, RefusedWrite>,
}

struct RefusedWrite {
    what: Writes,
    tries: u32,
    due: Instant,
    told: Instant,
    shown: RefusedValue,
}

impl Refusals {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            values: BTreeMap::new(),
            writes: BTreeMap::new(),
        }
    }

    /// Takes note of a value that is refused as it stands at `revision`; `false` if it is known.
    pub(super) fn value(&mut self, key: &ControlKey, revision: u64, refused: RefusedValue) -> bool {
        let known = self.values.get(key);
        if known.is_some_and(|(at, known)| *at == revision && known.side == refused.side) {
            return false;
        }
        self.values.insert(key.clone(), (revision, refused));
        true
    }

    /// The value of a key is one again.
    pub(super) fn clear_value(&mut self, key: &ControlKey) {
        self.values.remove(key);
    }

    /// Takes note of a write that a store refuses; `true` if that is to be logged.
    pub(super) fn write(
        &mut self,
        key: &ControlKey,
        what: Writes,
        shown: RefusedValue,
        now: Instant,
    ) -> bool {
        let known = self.writes.get(key).filter(|one| one.what == what);
        let tries = known.map_or(1, |one| one.tries.saturating_add(1));
        let told = known
            .map(|one| one.told)
            .filter(|told| now.duration_since(*told) < SAY_AGAIN);
        let write = RefusedWrite {
            what,
            tries,
            due: self.together(now + backoff(RETRY.0, RETRY.1, tries)),
            told: told.unwrap_or(now),
            shown,
        };
        self.writes.insert(key.clone(), write);
        told.is_none()
    }

    /// How long a write that was refused is not to be tried again, which may be no time any more; `None` for any other.
    pub(super) fn wait(&self, key: &ControlKey, what: Writes, now: Instant) -> Option<Duration> {
        let known = self.writes.get(key).filter(|one| one.what == what)?;
        Some(known.due.saturating_duration_since(now))
    }

    /// The next time of those at which everything is tried again that is due until then: each try may need a listing of both
    /// sides, and one serves all.
    fn together(&self, due: Instant) -> Instant {
        let step = TRIED_EVERY.as_secs_f64();
        let steps = (due.duration_since(self.began).as_secs_f64() / step).ceil();
        self.began + TRIED_EVERY.mul_f64(steps)
    }

    /// Nothing is to be written of a key, or it was.
    pub(super) fn clear_write(&mut self, key: &ControlKey) {
        self.writes.remove(key);
    }

    /// Everything, sorted by key.
    pub(super) fn report(&self) -> Vec<RefusedValue> {
        let mut all: BTreeMap<&ControlKey, &RefusedValue> = self
            .writes
            .iter()
            .map(|(key, one)| (key, &one.shown))
            .collect();
        all.extend(self.values.iter().map(|(key, (_, one))| (key, one)));
        all.into_values().cloned().collect()
    }
}

impl Worker {
    pub(super) fn refuse(&mut self, key: &ControlKey, refusal: &Refusal) {
        let side = refusal.side;
        self.unsettled.remove(key);
        let revision = self.sides.of(side).get(key);
        let revision = revision.map_or(0, |entry| entry.stamp.revision);
        let place = self.stores.sides.of(side).locate(key);
        let refused = RefusedValue::new(key.to_string(), side, place, &refusal.problems);
        if self.refusals.value(key, revision, refused) {
            *self.counts.refusals.of_mut(side) += 1;
            tracing::error!(key = %key, %side, "value does not cross: {}", refusal.problems);
        }
    }

    /// How long what a decision asks for is put off, if a store has refused it before.
    pub(super) fn refused_before(&self, key: &ControlKey, decision: &Decision) -> Option<Duration> {
        let what = self.writes(key, decision)?;
        self.refusals.wait(key, what, Instant::now())
    }

    /// What a decision writes.
    fn writes(&self, key: &ControlKey, decision: &Decision) -> Option<Writes> {
        match decision {
            Decision::Copy { to, .. } => {
                let at = |side| self.sides.of(side).get(key);
                let at = |side| at(side).map(|entry| entry.stamp.revision);
                Some(Writes::Value {
                    to: *to,
                    revision: at(to.other()),
                    replaces: at(*to).unwrap_or(0),
                })
            }
            Decision::RecordInSync(_) => Some(Writes::Note),
            _ => None,
        }
    }

    /// A store has refused what a crossing was to write.
    pub(super) fn write_refused(&mut self, crossing: &Transfer, error: &StoreError) {
        self.counts.failures += 1;
        let (key, what) = (crossing.key(), crossing.writes());
        // The notes are in etcd, whichever side is written.
        let (side, place) = match crossing.was_note_refused() {
            true => (Side::Etcd, self.stores.notes.locate(key)),
            false => {
                let side = crossing.to();
                (side, self.stores.sides.of(side).locate(key))
            }
        };
        let now = Instant::now();
        let shown = shown(key, side, place, error);
        if self.refusals.wait(key, what, now).is_none() {
            *self.counts.refusals.of_mut(side) += 1;
        }
        if self.refusals.write(key, what, shown, now) {
            tracing::error!(key = %key, "{error}; it is tried again with growing pauses");
        }
        let wait = self.refusals.wait(key, what, now);
        self.requeue_after(key, wait.unwrap_or_default());
    }
}

/// A write as it is shown.
fn shown(key: &ControlKey, side: Side, place: String, why: &impl ToString) -> RefusedValue {
    RefusedValue {
        key: key.to_string(),
        side,
        place,
        problems: vec![why.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ControlKey {
        ControlKey::spec("h").expect("a name")
    }

    #[test]
    fn a_refused_write_is_tried_again_with_growing_pauses_and_told_once_a_minute() {
        let start = Instant::now();
        let mut refusals = Refusals::new(start);
        let value = |revision| Writes::Value {
            to: Side::ZooKeeper,
            revision,
            replaces: 5,
        };
        let over_another = Writes::Value {
            to: Side::ZooKeeper,
            revision: Some(7),
            replaces: 6,
        };
        let seven = value(Some(7));
        let (mut now, mut tries, mut lines) = (start, 0, 0);
        while now < start + Duration::from_secs(600) {
            assert!(
                refusals
                    .wait(&key(), seven, now)
                    .is_none_or(|wait| wait.is_zero())
            );
            let shown = shown(&key(), Side::ZooKeeper, "/p/h".to_owned(), &"no");
            lines += u32::from(refusals.write(&key(), seven, shown, now));
            tries += 1;
            now += refusals.wait(&key(), seven, now).unwrap_or_default();
        }
        assert!((10..60).contains(&tries), "{tries} tries in ten minutes");
        assert!((5..=11).contains(&lines), "{lines} lines in ten minutes");
        assert_eq!(refusals.report().len(), 1);
        for other in [value(Some(8)), value(None), over_another, Writes::Note] {
            assert_eq!(refusals.wait(&key(), other, now), None, "{other:?}");
        }
        refusals.clear_write(&key());
        assert_eq!(refusals.report().len(), 0);
    }
}
