//! Retention deletes records before they are read: the client stops until the partition resumes at the start of its log.

use sluicegate_engine::source::SourceEvent;

use super::model::Check;
use super::world::World;

impl World {
    /// Moves the start of a log past the next offset of some owner.
    pub fn retain(&mut self) -> Check {
        let mut epochs: Vec<u64> = self
            .model
            .owned
            .iter()
            .filter(|(_, owned)| !owned.released && !owned.draining && owned.missing.is_none())
            .map(|(&epoch, _)| epoch)
            .collect();
        if epochs.is_empty() {
            return Ok(());
        }
        epochs.sort_unstable();
        let epoch = *self.random.pick(&epochs);
        let ahead = self.random.between(1, 30) as i64;
        let owned = &self.model.owned[&epoch];
        let log = owned.log;
        // Records already delivered count as read, even if the client is about to deliver them again.
        let given = owned
            .records
            .last_key_value()
            .map_or(0, |(last, _)| last + 1);
        // A client that sought back is positioned before the frontier, which has advanced since.
        let frontier = self.flow().assignment(owned.slot).ledger().frontier();
        let due = given.max(owned.position).max(frontier);
        let start = (due + ahead).min(self.script.logs[log].end());
        let before = self.model.log_start.get(&log).copied().unwrap_or(0);
        if start > due && start > before {
            self.model.log_start.insert(log, start);
            self.begin_missing(epoch)?;
        }
        Ok(())
    }

    /// The client's fetch fails if its next offset has been deleted, and the engine is told.
    pub fn begin_missing(&mut self, epoch: u64) -> Check {
        let Some(owned) = self.model.owned.get_mut(&epoch) else {
            return Ok(());
        };
        let start = self.model.log_start.get(&owned.log).copied().unwrap_or(0);
        if owned.position >= start {
            return Ok(());
        }
        owned.missing = Some(start);
        let (slot, at, position) = (owned.slot, owned.at.clone(), owned.position);
        self.model.coverage.missing_in_flight += u64::from(!self.engine.flow().is_unused(slot));
        self.model
            .trace(|| format!("epoch {epoch}: the log begins at {start} now"));
        let asked = self.random.chance(80).then_some(position);
        self.tell_source(SourceEvent::OffsetMissing {
            at,
            asked,
            fetched: Some(position),
            truncated: false,
            reason: "out of range".to_owned(),
        })
    }
}
