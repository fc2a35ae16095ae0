//! What does not cross: values that are no values where they are to go, and writes that a store refuses.
//!
//! A value is looked at again when it changes. A write is tried again with growing pauses, since a right or a limit may be
//! mended without a change of the key; until it succeeds the key is not known to be equal.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::Side;
use super::super::crossing::Crossing;
use super::super::decide::{Decision, Refusal};
use super::super::report::RefusedValue;
use super::Worker;
use crate::chance::backoff;
use crate::store::{ControlKey, StoreError};

/// First and longest wait before a refused write is tried again; a random part of it.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between two log lines about one write.
const SAY_AGAIN: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Refusals {
    values: BTreeMap<ControlKey, (u64, RefusedValue)>,
    writes: BTreeMap<ControlKey, RefusedWrite>,
}

struct RefusedWrite {
    /// The revision of the value that was to be written; 0 for none.
    revision: u64,
    tries: u32,
    due: Instant,
    told: Instant,
    shown: RefusedValue,
}

impl Refusals {
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
    pub(super) fn value_is_well(&mut self, key: &ControlKey) {
        self.values.remove(key);
    }

    /// Takes note of a write of the value at `revision` that a store refuses; `true` if that is to be logged.
    pub(super) fn write(
        &mut self,
        key: &ControlKey,
        revision: u64,
        shown: RefusedValue,
        now: Instant,
    ) -> bool {
        let known = self.writes.get(key).filter(|one| one.revision == revision);
        let tries = known.map_or(1, |one| one.tries.saturating_add(1));
        let told = known
            .map(|one| one.told)
            .filter(|told| now.duration_since(*told) < SAY_AGAIN);
        let write = RefusedWrite {
            revision,
            tries,
            due: now + backoff(RETRY.0, RETRY.1, tries),
            told: told.unwrap_or(now),
            shown,
        };
        self.writes.insert(key.clone(), write);
        told.is_none()
    }

    /// How long the write of the value at `revision` is not to be tried again; `None` for one that was not refused.
    pub(super) fn wait(&self, key: &ControlKey, revision: u64, now: Instant) -> Option<Duration> {
        let known = self
            .writes
            .get(key)
            .filter(|one| one.revision == revision)?;
        let wait = known.due.saturating_duration_since(now);
        (wait > Duration::ZERO).then_some(wait)
    }

    /// Nothing is to be written of a key, or it was.
    pub(super) fn write_is_over(&mut self, key: &ControlKey) {
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

    /// How long what a decision asks for is put off, since a store has refused it.
    pub(super) fn refused_before(&self, key: &ControlKey, decision: &Decision) -> Option<Duration> {
        let revision = match decision {
            Decision::Cross { to, .. } => {
                let from = self.sides.of(to.other()).get(key);
                from.map_or(0, |entry| entry.stamp.revision)
            }
            Decision::Agree(_) => 0,
            _ => return None,
        };
        self.refusals.wait(key, revision, Instant::now())
    }

    /// A store has refused what a crossing was to write.
    pub(super) fn write_refused(&mut self, crossing: &Crossing, error: &StoreError) {
        self.counts.failures += 1;
        let (key, side, revision) = (crossing.key(), crossing.to(), crossing.reads());
        let place = self.stores.sides.of(side).locate(key);
        let now = Instant::now();
        let shown = shown(key, side, place, error);
        if self.refusals.write(key, revision, shown, now) {
            tracing::error!(key = %key, "{error}; it is tried again with growing pauses");
        }
        let wait = self.refusals.wait(key, revision, now);
        self.put_off(key, wait.unwrap_or_default());
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
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let (mut now, mut tries, mut lines) = (start, 0, 0);
        while now < start + Duration::from_secs(600) {
            assert_eq!(refusals.wait(&key(), 7, now), None);
            let shown = shown(&key(), Side::ZooKeeper, "/p/h".to_owned(), &"no");
            lines += u32::from(refusals.write(&key(), 7, shown, now));
            tries += 1;
            now += refusals.wait(&key(), 7, now).unwrap_or_default();
        }
        assert!((10..60).contains(&tries), "{tries} tries in ten minutes");
        assert!((5..=11).contains(&lines), "{lines} lines in ten minutes");
        assert_eq!(refusals.report().len(), 1);
        assert_eq!(refusals.wait(&key(), 8, now), None, "another value");
        refusals.write_is_over(&key());
        assert_eq!(refusals.report().len(), 0);
    }
}
