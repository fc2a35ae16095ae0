//! How an assignment begins: where, past what, under which token.

use std::cell::Cell;
use std::collections::BTreeMap;

use sluicegate::assignment::NewAssignment;
use sluicegate::source::AssignmentId;

use super::model::{Check, Model, Owned};
use super::script::Log;

impl Model {
    /// Whether a partition may begin so: where its own topic's commit says, past nothing that was not settled, and under
    /// a token above that of every owner who has begun a record.
    pub fn check_assign(&self, new: &NewAssignment, log: usize, logs: &[Log]) -> Check {
        let what = format!("assignment of {} at {}", new.at, new.start);
        let committed = self.committed.get(&new.at);
        let own = committed.filter(|committed| committed.topic_id == logs[log].topic_id);
        let expected = own.map_or(0, |committed| committed.commit.offset);
        if new.start != expected {
            return Err(format!("{what}: its topic's commit is {expected} (G2)"));
        }
        let finished = new.inherited.finished.iter().cloned().flatten();
        let mut records = finished.filter(|offset| logs[log].record(*offset).is_some());
        if let Some(open) = records.find(|&offset| !self.settled_ever.contains(&(log, offset))) {
            return Err(format!("{what}: takes {open} for finished (G1)"));
        }
        match self.begun_under.get(&log) {
            Some(&before) if new.epoch <= before => Err(format!(
                "{what}: token {} after one of {before} (G4)",
                new.epoch
            )),
            _ => Ok(()),
        }
    }

    /// A partition becomes ours.
    pub fn assign(&mut self, new: &NewAssignment, slot: AssignmentId, log: usize) {
        self.met.inherited += u64::from(!new.inherited.finished.is_empty());
        self.met.tokens_first += u64::from(new.token_first);
        let (start, epoch, at) = (new.start, new.epoch, new.at.clone());
        self.owned.insert(
            epoch,
            Owned {
                log,
                at,
                slot,
                finished: new.inherited.finished.clone(),
                records: BTreeMap::new(),
                draining: false,
                fenced: false,
                released: false,
                position: start,
                fetched: start,
                consumed: None,
                begun: start,
                missing: None,
                paused: false,
                next: start,
                settled_to: Cell::new(start),
            },
        );
    }
}
