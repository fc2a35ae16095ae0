//! Whether every record of a queue is where something will find it: what "no record waits for ever" (G8) means inside a queue.
//! Tests check it after each step, so that a lost wake-up shows where it happens and not at the end.

use std::collections::{HashMap, HashSet};

use super::HandlerQueue;
use super::batches::InFlightBatch;
use super::lanes::LaneUse;
use crate::dispatch::RecordId;
use crate::emit::outbox::Outbox;

impl HandlerQueue {
    /// What is wrong, if something is. Visits all lanes, batches and deferred shares.
    pub(crate) fn broken(&self, outbox: &Outbox) -> Option<String> {
        self.broken_counts(outbox)
            .or_else(|| self.broken_chain(outbox))
            .or_else(|| self.broken_lane())
            .or_else(|| self.unstarted())
    }

    /// A linked record that nothing advances.
    fn broken_chain(&self, outbox: &Outbox) -> Option<String> {
        let pending: HashSet<RecordId> = outbox.pending(self.ix).map(|(key, ..)| key).collect();
        if let Some(key) = pending
            .iter()
            .find(|key| self.deferred.get(**key).is_some())
        {
            return Some(format!("{key:?} is both pending and deferred"));
        }
        let mut linked = self.chains.all();
        let lost = linked.find(|key| !pending.contains(key) && self.deferred.get(*key).is_none());
        lost.map(|key| format!("{key:?} is linked and neither pending nor deferred"))
    }

    fn broken_counts(&self, outbox: &Outbox) -> Option<String> {
        if !self.arrived.is_empty() {
            return Some("records of a run have arrived and are not queued".to_owned());
        }
        let deferred = self.deferred.iter();
        let held = deferred.filter(|(_, share)| share.holds()).count();
        let held = (held + self.chains.troubled().count()) as u32;
        let passing = self.deferred.iter().filter(|(_, share)| share.is_passing());
        if (passing.count() + outbox.pending(self.ix).count()) as u32 != self.passing {
            return Some(format!("{} passing shares are counted", self.passing));
        }
        if held != self.held {
            return Some(format!("{held} shares are held, {} are counted", self.held));
        }
        let in_flight = self.batches.iter().map(|one| keys_of(one).len() as u32);
        let in_flight: u32 = in_flight.sum();
        (in_flight != self.in_flight_records).then(|| {
            format!(
                "{in_flight} records are in batches, {} are counted",
                self.in_flight_records
            )
        })
    }

    fn broken_lane(&self) -> Option<String> {
        let mut held: HashMap<u64, u32> = HashMap::new();
        for (_, share) in self.deferred.iter() {
            if share.lane != 0 && share.holds() {
                *held.entry(share.lane).or_default() += 1;
            }
        }
        for lane in self.chains.troubled() {
            *held.entry(lane).or_default() += 1;
        }
        for lane in self.chains.troubled() {
            if self.chains.is_over(lane) && !self.to_advance.contains(&lane) {
                return Some("a trouble is not checked although no record is left".to_owned());
            }
        }
        for lane in self.lanes.each() {
            let holders = held.remove(&lane.hash).unwrap_or_default();
            if lane.held != holders {
                return Some(format!("{holders} shares hold a lane: {lane:?}"));
            }
            if lane.waiting > 0 && lane.held == 0 && !self.is_released(&lane) {
                return Some(format!("nothing releases a lane: {lane:?}"));
            }
        }
        (!held.is_empty()).then(|| "a lane of a deferred share is not held".to_owned())
    }

    /// Whether the end of a batch, or room, starts what waits in a lane that nothing holds.
    fn is_released(&self, lane: &LaneUse) -> bool {
        let by_batch = |batch: &InFlightBatch| {
            let again = keys_of(batch).iter().any(|key| {
                let share = self.deferred.get(*key);
                share.is_some_and(|share| share.lane == lane.hash)
            });
            again || batch.contended.contains(&lane.hash)
        };
        self.runnable.contains(&lane.hash) || self.batches.peek(lane.batch).is_some_and(by_batch)
    }

    /// Records that could start, although nothing will start them.
    fn unstarted(&self) -> Option<String> {
        if self.dirty {
            return None;
        }
        if self.changes_order() {
            return (self.in_flight_records == 0)
                .then(|| "another order does not apply although no call is under way".to_owned());
        }
        let due: HashSet<RecordId> = self.due.iter().copied().collect();
        let parked = |key: &RecordId| {
            self.deferred
                .get(*key)
                .is_some_and(|share| share.state.is_parked())
        };
        let waiting =
            self.backlog.len() + self.runnable.len() + due.iter().filter(|key| parked(key)).count();
        (waiting > 0 && self.has_room())
            .then(|| format!("{waiting} records or lanes wait although there is room"))
    }
}

fn keys_of(batch: &InFlightBatch) -> &[RecordId] {
    match &batch.batch {
        Some(unsubmitted) => &unsubmitted.keys,
        None => &batch.keys,
    }
}
