//! One step of the world, and its final phase: no more faults, until all records are processed.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluicegate_abi::lend::OwnedRecord;
use sluicegate_engine::dispatch::PumpMessage;
use sluicegate_engine::event::Event;
use sluicegate_engine::source::Delivery;

use super::model::{Check, Held};
use super::script::{FaultRates, Log};
use super::world::{Message, World};

/// Maximum records per poll.
const POLL_SIZE: usize = 8;
/// Upper bound for the memory charge of one record of a script, in bytes.
const LARGEST_CHARGE: u64 = 600;
/// Rounds after which the final phase counts as stuck.
const MAX_ROUNDS: usize = 5_000;

impl World {
    /// One event, followed by the flow's usual work.
    pub fn step(&mut self) -> Check {
        self.refuse_some(self.faults.produce_fails / 2);
        match self.random.below(100) {
            0..20 => self.poll()?,
            20..50 => self.work()?,
            50..70 => self.deliver_message()?,
            70..78 => self.answer_produce()?,
            78..82 => self.answer_commit()?,
            82..84 => self.return_hung(),
            84..90 => {
                let ms = self.random.between(1, self.faults.pause_ms) as u64;
                self.pass(ms)?;
            }
            _ => self.inject_event()?,
        }
        if self.random.chance(self.faults.reorder) {
            self.reorder();
        }
        if self.random.chance(self.faults.renew) {
            self.renew_one();
        }
        if self.random.chance(50) {
            self.answer_lookup()?;
            self.answer_bounds()?;
        }
        self.end_turn()
    }

    /// What a pump does in every turn after it has passed the messages and events on.
    fn end_turn(&mut self) -> Check {
        self.observe()?;
        self.tell_observations()?;
        self.engine.dispatch();
        self.observe()?;
        self.tell(Event::Polled)?;
        let rebalancing = self.group.rebalancing;
        self.tell(Event::TurnEnd { rebalancing })?;
        self.observe()?;
        self.check_revokes()
    }

    /// An event of the group, the control side or the machine.
    fn inject_event(&mut self) -> Check {
        if self.random.chance(30) {
            self.assign_some()?;
        }
        if self.random.chance(self.faults.rebalance * 4) {
            let lost = self.random.chance(30);
            let epochs = self.some_epochs(lost);
            if lost {
                self.lose(&epochs)?;
            } else if !self.engine.is_stopping() {
                self.revoke(&epochs)?;
            }
        }
        let begins = self.random.chance(self.faults.rebalance * 4);
        if begins || (self.group.rebalancing && self.random.chance(30)) {
            self.rebalance()?;
        }
        if self.random.chance(self.faults.swap * 4) {
            self.swap();
        }
        if self.random.chance(self.faults.pool_fails * 4) && !self.pools.is_empty() {
            let at = self.random.below(self.pools.len());
            let failed = self.random.chance(50);
            self.set_failed(at, failed)?;
            if failed && self.random.chance(50) {
                let ix = self.pools[at].0;
                self.switch_off(ix);
            }
        }
        if self.random.chance(self.faults.crash) {
            self.crash();
        }
        // Effects so far belong to the current topic ids.
        self.observe()?;
        let log = self.random.below(self.script.logs.len());
        if self.random.chance(self.faults.recreate) {
            self.recreate(log)?;
        }
        if self.random.chance(self.faults.reset) {
            self.reset_offset(log);
        }
        if self.random.chance(self.faults.retention * 4) {
            self.retain()?;
        }
        if self.random.chance(self.faults.read_fails * 4) {
            self.fail_read()?;
        }
        if self.random.chance(self.faults.stop) {
            self.replace_client()?;
        }
        if self.random.chance(self.faults.stop) {
            let rebalancing = self.group.rebalancing;
            self.tell(Event::Stop { rebalancing })?;
        }
        Ok(())
    }

    fn set_failed(&mut self, pool: usize, failed: bool) -> Check {
        // What the flow has done so far belongs to the present state of the pools.
        self.observe()?;
        let ix = self.pools[pool].0.0;
        let change = if failed { "fails" } else { "recovers" };
        self.model
            .trace(|| format!("pool {pool}, of h{ix}, {change}"));
        if self.pools[pool].2.set_failed(failed) {
            self.messages.push_back(Message {
                message: PumpMessage::PoolFree,
                share: None,
            });
        }
        Ok(())
    }

    fn assign_some(&mut self) -> Check {
        let mut logs = self.free_logs();
        logs.retain(|_| self.random.chance(60));
        match logs.is_empty() {
            true => Ok(()),
            false => self.assign(&logs),
        }
    }

    /// A random subset of the assigned partitions; includes those being revoked only if `draining`.
    fn some_epochs(&mut self, draining: bool) -> Vec<u64> {
        let mut epochs: Vec<u64> = self
            .model
            .owned
            .iter()
            .filter(|(_, owned)| !owned.released && (draining || !owned.draining))
            .map(|(&epoch, _)| epoch)
            .collect();
        epochs.sort_unstable();
        epochs.retain(|_| self.random.chance(50));
        epochs
    }

    /// Reads records, up to the flow's read quota.
    fn poll(&mut self) -> Check {
        for _ in 0..self.flow().read_quota(POLL_SIZE) {
            let mut epochs: Vec<u64> = self
                .model
                .owned
                .iter()
                .filter(|(_, owned)| !owned.released && !owned.paused)
                .map(|(&epoch, _)| epoch)
                .collect();
            if epochs.is_empty() {
                break;
            }
            epochs.sort_unstable();
            let epoch = *self.random.pick(&epochs);
            if self.random.chance(self.faults.repeat / 4) {
                self.rewind(epoch);
            }
            self.deliver_next(epoch)?;
            self.observe()?;
        }
        // A poll, and one record of each partition next to what hung calls and paused partitions hold.
        let beyond = (POLL_SIZE + self.script.logs.len()) as u64;
        let budget = self.script.flow.budget_bytes + beyond * LARGEST_CHARGE;
        if self.flow().charged() > budget {
            return Err(format!("{} bytes are held (G8)", self.flow().charged()));
        }
        Ok(())
    }

    /// The client will deliver some of its records again.
    fn rewind(&mut self, epoch: u64) {
        let back = self.random.between(1, 5);
        if let Some(owned) = self.model.owned.get_mut(&epoch)
            && owned.missing.is_none()
            && let Some((&offset, _)) = owned
                .records
                .range(owned.seeked_to..)
                .rev()
                .take(back)
                .last()
        {
            owned.position = offset;
        }
    }

    /// The client takes the next entry from its queue and delivers it if it is a record.
    fn deliver_next(&mut self, epoch: u64) -> Check {
        self.fetch_ahead(epoch);
        let Some(owned) = self.model.owned.get_mut(&epoch) else {
            return Ok(());
        };
        if owned.missing.is_some() {
            return Ok(());
        }
        let log = &self.script.logs[owned.log];
        let Some(offset) = log.next_read(owned.position) else {
            return Ok(());
        };
        owned.position = offset + 1;
        owned.consumed = owned.consumed.max(Some(owned.position));
        let Some(record) = log.record(offset) else {
            return Ok(());
        };
        if !owned.draining {
            owned
                .records
                .entry(record.offset)
                .or_insert_with(Held::default);
        }
        let mut records = vec![Delivery {
            slot: owned.slot,
            offset: record.offset,
            timestamp_ms: 1_000 + record.offset,
            leader_epoch: 0,
            lease: OwnedRecord::new(record.key.as_deref(), Some(&record.value), &record.headers),
        }];
        let (slot, offset) = (owned.slot, record.offset);
        self.model
            .trace(|| format!("epoch {epoch}, {slot:?}: offset {offset} is delivered"));
        self.tell(Event::Records(&mut records))
    }

    /// Faults end: everything must be processed and committed.
    pub fn finish(&mut self) -> Check {
        self.faults = FaultRates::default();
        let left = self.keep_closed_faulty();
        for pool in 0..self.pools.len() {
            if !left
                .iter()
                .any(|left| Arc::ptr_eq(left, &self.pools[pool].2))
            {
                self.set_failed(pool, false)?;
            }
        }
        for _ in 0..MAX_ROUNDS {
            self.round()?;
            // Stuck calls may hold the whole budget.
            if self.flow().read_quota(1) == 0 {
                self.return_stuck();
            }
            if self.is_done() && !self.return_stuck() {
                return self.check_end();
            }
        }
        Err(self.what_is_stuck())
    }

    pub fn round(&mut self) -> Check {
        let free = self.free_logs();
        if !free.is_empty() {
            self.assign(&free)?;
        }
        while self.client.owes() {
            self.answer_lookup()?;
            self.answer_bounds()?;
        }
        self.return_hung();
        self.settle_group()?;
        self.answer_commit()?;
        self.pass(100)?;
        for _ in 0..8 {
            self.answer_produce()?;
            self.work()?;
            self.work()?;
            self.deliver_message()?;
            self.deliver_message()?;
            self.deliver_message()?;
            self.observe()?;
        }
        self.poll()?;
        self.faults = FaultRates::default();
        self.producer.set_refusing(None);
        self.end_turn()
    }

    fn is_done(&self) -> bool {
        self.script
            .logs
            .iter()
            .all(|log| self.committed_in(log) >= log.end() && self.model.current(&log.at).is_some())
            && self.messages.is_empty()
            && self.running.iter().all(|run| run.stuck)
            && self.unanswered.is_empty()
            && self.commit.is_none()
            && self.knows_its_commits()
    }

    /// Whether the flow knows what is committed: the answer to a commit can be lost.
    fn knows_its_commits(&self) -> bool {
        self.script.logs.iter().all(|log| {
            let current = self.model.current(&log.at);
            current.is_some_and(|owned| self.flow().assignment(owned.slot).committed() >= log.end())
        })
    }

    /// The committed offset of the topic with this id.
    fn committed_in(&self, log: &Log) -> i64 {
        let committed = self.model.committed.get(&log.at);
        let own = committed.filter(|committed| committed.topic_id == log.topic_id);
        own.map_or(0, |committed| committed.commit.offset)
    }

    fn check_end(&self) -> Check {
        for (log, script) in self.script.logs.iter().enumerate() {
            let committed = self.committed_in(script);
            if committed != script.end() {
                return Err(format!(
                    "{} is committed at {committed}, its end is {}",
                    script.at,
                    script.end()
                ));
            }
            let lost = script.records.iter().find(|record| {
                let place = (log, record.offset);
                !self.model.settled_ever.contains(&place) && !self.model.gone.contains(&place)
            });
            if let Some(record) = lost {
                return Err(format!(
                    "{}/{} was never settled (G1)",
                    script.at, record.offset
                ));
            }
        }
        if self.flow().shipments() != 0 {
            return Err(format!("{} shipments are kept", self.flow().shipments()));
        }
        if self.flow().kept_bytes() != 0 {
            return Err(format!(
                "{} bytes of emits are kept",
                self.flow().kept_bytes()
            ));
        }
        if self.flow().charged() != 0 || self.flow().held_records() != 0 {
            return Err(format!(
                "{} bytes of {} records are still held",
                self.flow().charged(),
                self.flow().held_records()
            ));
        }
        Ok(())
    }

    fn what_is_stuck(&self) -> String {
        let frontiers: BTreeMap<String, (i64, i64)> = self
            .flow()
            .partitions()
            .map(|(at, slot)| {
                let ledger = self.flow().assignment(slot).ledger();
                (at.to_string(), (ledger.frontier(), ledger.next()))
            })
            .collect();
        format!(
            "stuck: {} messages, {} batches, {} unanswered, {} records held, {} bytes, (frontier, next) {frontiers:?}",
            self.messages.len(),
            self.running.len(),
            self.unanswered.len(),
            self.flow().held_records(),
            self.flow().charged(),
        )
    }
}
