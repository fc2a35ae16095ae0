//! The start of an assignment: its offset, the finished records that it inherits, and its fencing token.

use std::cell::Cell;
use std::collections::BTreeMap;

use sluicegate_engine::partition::assignment::NewAssignment;
use sluicegate_engine::source::AssignmentId;

use super::model::{Check, Model, Owned};
use super::script::Log;

impl Model {
    /// Checks the start of an assignment: at the commit of the same topic id, skipping only settled records, and
    /// with a token above that of every owner that has started a record.
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
            return Err(format!("{what}: treats {open} as finished (G1)"));
        }
        match self.started_under.get(&log) {
            Some(&before) if new.epoch <= before => Err(format!(
                "{what}: token {} after one of {before} (G4)",
                new.epoch
            )),
            _ => Ok(()),
        }
    }

    /// A partition is assigned.
    pub fn assign(&mut self, new: &NewAssignment, slot: AssignmentId, log: usize) {
        self.coverage.inherited += u64::from(!new.inherited.finished.is_empty());
        self.coverage.tokens_first += u64::from(new.token_first);
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
                seeked_to: start,
                missing: None,
                paused: false,
                next: start,
                settled_to: Cell::new(start),
            },
        );
    }
}
