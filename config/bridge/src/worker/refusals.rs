//! Refused values and writes: values that are invalid at their destination, and writes that a store refuses.
//!
//! A value is checked again when it changes. A write is retried with growing delays, since a permission or limit may be
//! fixed without a change of the key; until it succeeds the key counts as unsettled.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sluicegate_config::control::{ControlKey, Side};
use sluicegate_store::StoreError;
use sluicegate_store::jitter::backoff;

use super::super::decide::{Decision, Refusal};
use super::super::report::RefusedValue;
use super::super::transfer::{Transfer, Writes};
use super::Worker;

/// Initial and maximum delay before a refused write is retried; randomized.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Minimum time between two log lines about one refused write.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Retries are aligned to multiples of this: each may need a listing of both sides, and one listing serves all.
const RETRY_STEP: Duration = Duration::from_secs(5);

pub(super) struct Refusals {
    began: Instant,
    values: BTreeMap<ControlKey, (u64, RefusedValue)>,
    writes: BTreeMap<ControlKey, RefusedWrite>,
}

struct RefusedWrite {
    what: Writes,
    attempts: u32,
    due: Instant,
    logged: Instant,
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

    /// Records a value that is refused at `revision`; `false` if that is known.
    pub(super) fn value(&mut self, key: &ControlKey, revision: u64, refused: RefusedValue) -> bool {
        let known = self.values.get(key);
        if known.is_some_and(|(at, known)| *at == revision && known.side == refused.side) {
            return false;
        }
        self.values.insert(key.clone(), (revision, refused));
        true
    }

    /// Clears the refusal of a key's value.
    pub(super) fn clear_value(&mut self, key: &ControlKey) {
        self.values.remove(key);
    }

    /// Records a write that a store refuses; `true` if it is to be logged.
    pub(super) fn write(
        &mut self,
        key: &ControlKey,
        what: Writes,
        shown: RefusedValue,
        now: Instant,
    ) -> bool {
        let known = self.writes.get(key).filter(|one| one.what == what);
        let attempts = known.map_or(1, |one| one.attempts.saturating_add(1));
        let logged = known
            .map(|one| one.logged)
            .filter(|logged| now.duration_since(*logged) < LOG_INTERVAL);
        let write = RefusedWrite {
            what,
            attempts,
            due: self.align_to_step(now + backoff(RETRY_DELAYS.0, RETRY_DELAYS.1, attempts)),
            logged: logged.unwrap_or(now),
            shown,
        };
        self.writes.insert(key.clone(), write);
        logged.is_none()
    }

    /// Remaining delay of a refused write, possibly zero; `None` for any other write.
    pub(super) fn wait(&self, key: &ControlKey, what: Writes, now: Instant) -> Option<Duration> {
        let known = self.writes.get(key).filter(|one| one.what == what)?;
        Some(known.due.saturating_duration_since(now))
    }

    /// The next retry time at or after `due`, on the grid of `RETRY_STEP`.
    fn align_to_step(&self, due: Instant) -> Instant {
        let step = RETRY_STEP.as_secs_f64();
        let steps = (due.duration_since(self.began).as_secs_f64() / step).ceil();
        self.began + RETRY_STEP.mul_f64(steps)
    }

    /// Clears the refused write of a key: it succeeded, or has become unnecessary.
    pub(super) fn clear_write(&mut self, key: &ControlKey) {
        self.writes.remove(key);
    }

    /// All refusals, sorted by key.
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
            tracing::error!(key = %key, %side, "value refused: {}", refusal.problems);
        }
    }

    /// Remaining delay of a decision's write, if a store has refused it before.
    pub(super) fn retry_wait(&self, key: &ControlKey, decision: &Decision) -> Option<Duration> {
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
            Decision::RecordInSync(_) => Some(Writes::State),
            _ => None,
        }
    }

    /// Handles a store's refusal of a transfer's write.
    pub(super) fn write_refused(&mut self, transfer: &Transfer, error: &StoreError) {
        self.counts.failures += 1;
        let (key, what) = (transfer.key(), transfer.writes());
        // The sync state is in etcd, whichever side is written.
        let (side, place) = match transfer.was_state_refused() {
            true => (Side::Etcd, self.stores.state.locate(key)),
            false => {
                let side = transfer.to();
                (side, self.stores.sides.of(side).locate(key))
            }
        };
        let now = Instant::now();
        let shown = shown(key, side, place, error);
        if self.refusals.wait(key, what, now).is_none() {
            *self.counts.refusals.of_mut(side) += 1;
        }
        if self.refusals.write(key, what, shown, now) {
            tracing::error!(key = %key, "{error}; retrying with growing delays");
        }
        let wait = self.refusals.wait(key, what, now);
        self.requeue_after(key, wait.unwrap_or_default());
    }
}

/// A refused write in the form of the status.
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
    fn a_refused_write_is_retried_with_growing_delays_and_logged_once_per_minute() {
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
        let (mut now, mut attempts, mut lines) = (start, 0, 0);
        while now < start + Duration::from_secs(600) {
            assert!(
                refusals
                    .wait(&key(), seven, now)
                    .is_none_or(|wait| wait.is_zero())
            );
            let shown = shown(&key(), Side::ZooKeeper, "/p/h".to_owned(), &"no");
            lines += u32::from(refusals.write(&key(), seven, shown, now));
            attempts += 1;
            now += refusals.wait(&key(), seven, now).unwrap_or_default();
        }
        assert!(
            (10..60).contains(&attempts),
            "{attempts} attempts in ten minutes"
        );
        assert!((5..=11).contains(&lines), "{lines} lines in ten minutes");
        assert_eq!(refusals.report().len(), 1);
        for other in [value(Some(8)), value(None), over_another, Writes::State] {
            assert_eq!(refusals.wait(&key(), other, now), None, "{other:?}");
        }
        refusals.clear_write(&key());
        assert_eq!(refusals.report().len(), 0);
    }
}
