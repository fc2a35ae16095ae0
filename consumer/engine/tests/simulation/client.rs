//! The client: carries out the engine's effects, and answers them at any later time.
//!
//! Of its two positions, the fetch position runs ahead of the delivered one by the contents of its queue.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use sluicegate_abi::lend::OwnedRecord;
use sluicegate_engine::event::{Effect, Event, Observation};
use sluicegate_engine::partition::assignment::NewAssignment;
use sluicegate_engine::partition::commit::{CommitMetadata, next_epoch};
use sluicegate_engine::source::starts::{Decision, Evidence, decide};
use sluicegate_engine::source::{
    AssignmentId, BoundsError, FetchState, Found, Membership, Origin, PartitionFault, SourceError,
    SourceEvent, StartAt, StartPartition, TopicPartition,
};

use super::model::Check;
use super::world::World;

/// Maximum entries of one fetch.
const MAX_FETCH: usize = 20;

/// What the client owes the engine.
#[derive(Default)]
pub struct Client {
    /// Assigned by the group, and not started.
    pub offered: BTreeSet<TopicPartition>,
    /// Revoked by the group, and not released.
    pub revoking: BTreeSet<TopicPartition>,
    /// Lookups of start offsets.
    lookups: Vec<(TopicPartition, StartAt)>,
    /// Queries of log bounds.
    bounds: Vec<TopicPartition>,
    /// The metadata of commits from which partitions are about to start.
    found: HashMap<TopicPartition, CommitMetadata>,
}

impl Client {
    /// Whether something is unanswered.
    pub fn owes(&self) -> bool {
        !self.lookups.is_empty() || !self.bounds.is_empty()
    }

    /// Drops what concerns a partition that is not owned any more.
    fn drop_lookups(&mut self, at: &TopicPartition) {
        self.offered.remove(at);
        self.revoking.remove(at);
        self.lookups.retain(|(of, _)| of != at);
    }
}

impl World {
    /// Passes an event to the engine and carries out its effects.
    pub fn tell(&mut self, event: Event<'_, OwnedRecord>) -> Check {
        let before = self.engine.left_behind().uncommitted;
        self.engine.step(event, &mut self.effects);
        let after = self.engine.left_behind().uncommitted;
        // A stop counts from 0.
        let reported = if after < before {
            after
        } else {
            after - before
        };
        let mut left = 0;
        while let Some(effect) = self.effects.pop_front() {
            left += self.carry_out(effect, reported)?;
        }
        if left > reported {
            return Err(format!(
                "{left} last commits are missing, {reported} are reported"
            ));
        }
        Ok(())
    }

    /// As [`Self::tell`], for an event of the source.
    pub fn tell_source(&mut self, event: SourceEvent) -> Check {
        self.tell(Event::Source(event, Membership::default()))
    }

    /// Returns how many partitions were released without their last commit. `reported`: how many of this step the engine
    /// counts.
    fn carry_out(&mut self, effect: Effect, reported: u64) -> Result<u64, String> {
        self.model.trace(|| format!("effect: {effect:?}"));
        match effect {
            Effect::Find { partitions, start } => {
                let lookups = partitions.into_iter().map(|at| (at, start));
                self.client.lookups.extend(lookups);
            }
            Effect::Start(partitions) => {
                for partition in partitions {
                    self.start_partition(&partition)?;
                }
            }
            Effect::Seek(partition) => self.seek(&partition)?,
            Effect::Release(partitions) => return self.release(&partitions, reported),
            Effect::AskBounds(partitions) => self.client.bounds.extend(partitions),
            Effect::LearnPositions(slots) => self.learn_positions(&slots)?,
            Effect::Pause(slot, paused) => self.pause(slot, paused),
            Effect::Commit(entries) => self.send_commit(entries)?,
            Effect::ListTopics => {}
            Effect::Leave { renew, .. } => return self.leave(renew, reported),
            Effect::Fail(reason) => return Err(format!("the engine fails: {reason}")),
        }
        Ok(0)
    }

    /// The group assigns partitions, which ends a rebalance.
    pub fn assign(&mut self, logs: &[usize]) -> Check {
        self.group.rebalancing = false;
        let partitions: Vec<TopicPartition> = logs
            .iter()
            .map(|&log| self.script.logs[log].at.clone())
            .collect();
        self.client.offered.extend(partitions.iter().cloned());
        self.tell_source(SourceEvent::Assigned(partitions))
    }

    /// Logs of partitions that are neither owned nor assigned.
    pub fn free_logs(&self) -> Vec<usize> {
        if self.engine.is_stopping() {
            return Vec::new();
        }
        let logs = self.script.logs.iter().enumerate();
        let free = logs.filter(|(_, log)| {
            self.model.current(&log.at).is_none()
                && !self.client.offered.contains(&log.at)
                && !self.client.revoking.contains(&log.at)
        });
        free.map(|(index, _)| index).collect()
    }

    /// Index of a partition's log.
    pub fn log_of(&self, at: &TopicPartition) -> usize {
        let mut logs = self.script.logs.iter();
        logs.position(|log| log.at == *at)
            .expect("only scripted partitions are assigned")
    }

    /// Answers a lookup of a start offset, or says why it cannot yet.
    pub fn answer_lookup(&mut self) -> Check {
        if self.client.lookups.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.client.lookups.len());
        if self.random.chance(self.faults.lookup_fails) {
            self.model.coverage.not_found += 1;
            let at = self.client.lookups[index].0.clone();
            let reason = "the partition has no leader".to_owned();
            return self.tell_source(SourceEvent::NotFound { at, reason });
        }
        let (at, start) = self.client.lookups.swap_remove(index);
        let log = self.log_of(&at);
        let decision = self.decide(log, start);
        let membership = self.member_of(log, &decision)?;
        let inherits = decision.origin == Origin::Committed;
        let metadata = decision.read.metadata.clone().filter(|_| inherits);
        self.client
            .found
            .insert(at.clone(), metadata.unwrap_or_default());
        let found = Found {
            at,
            topic_id: self.script.logs[log].topic_id,
            offset: match decision.start {
                StartAt::Offset(offset) => offset,
                _ => 0,
            },
            oldest: decision.start == StartAt::Earliest,
            leader_epoch: decision.leader_epoch,
            origin: decision.origin,
            read: decision.read,
        };
        self.tell(Event::Source(SourceEvent::Found(vec![found]), membership))
    }

    fn decide(&self, log: usize, start: StartAt) -> Decision {
        let log = &self.script.logs[log];
        let committed = self.model.committed.get(&log.at);
        decide(
            &log.at,
            &Evidence {
                group: "g",
                topic_id: log.topic_id,
                commit: committed.map(|committed| &committed.commit),
                others: &[],
                generation: Some(self.generation),
                is_static: self.script.is_static,
                start,
            },
        )
    }

    /// The membership under which a partition starts: the generation gives it a token that no other assignment of this
    /// process has, because the model identifies assignments by their tokens.
    fn member_of(&mut self, log: usize, decision: &Decision) -> Result<Membership, String> {
        // A static member that was killed reclaims its partitions in the same generation; every other owner gets them in
        // a later one.
        self.generation += i32::from(!self.rejoins);
        let metadata = decision.read.metadata.as_ref();
        let kept = metadata.map(|metadata| metadata.epoch);
        let token = |generation| next_epoch(Some(generation), kept, self.script.is_static);
        let (mut epoch, token_first) = token(self.generation).expect("tokens are small here");
        let inherits = decision.origin == Origin::Committed;
        let first = NewAssignment {
            at: self.script.logs[log].at.clone(),
            topic_id: self.script.logs[log].topic_id,
            start: match decision.start {
                StartAt::Offset(offset) => offset,
                _ => 0,
            },
            epoch,
            token_first,
            leader_epoch: decision.leader_epoch,
            inherited: metadata.filter(|_| inherits).cloned().unwrap_or_default(),
        };
        self.model.check_assign(&first, log, &self.script.logs)?;
        let mut generation = self.generation;
        while self.model.owned.contains_key(&epoch) {
            generation = generation.max(epoch as i32) + 1;
            (epoch, _) = token(generation).expect("tokens are small here");
        }
        self.generation = generation;
        Ok(Membership {
            generation: Some(generation),
            is_static: self.script.is_static,
            assigned_by_broker: false,
        })
    }

    fn start_partition(&mut self, start: &StartPartition) -> Check {
        let log = self.log_of(&start.at);
        if !self.client.offered.remove(&start.at) {
            return Err(format!("{} is started, but not assigned (G5)", start.at));
        }
        let assignment = self.engine.flow().assignment(start.slot);
        let new = NewAssignment {
            at: start.at.clone(),
            topic_id: start.topic_id,
            start: start.due.unwrap_or(0),
            epoch: assignment.epoch(),
            token_first: assignment.token_first(),
            leader_epoch: start.leader_epoch,
            inherited: self.client.found.remove(&start.at).unwrap_or_default(),
        };
        self.model.check_assign(&new, log, &self.script.logs)?;
        self.group.assigned(
            log,
            !new.inherited.finished.is_empty(),
            &mut self.model.coverage,
        );
        self.model.assign(&new, start.slot, log);
        self.begin_missing(new.epoch)
    }

    /// The client is repositioned, or fails to.
    fn seek(&mut self, start: &StartPartition) -> Check {
        let StartAt::Offset(to) = start.start else {
            return Err(format!("{} is repositioned to no offset", start.at));
        };
        if self.random.chance(self.faults.lookup_fails / 2) {
            self.model.coverage.seeks_failed += 1;
            let error = SourceError::Retryable("the broker is away".to_owned());
            return self.tell(Event::Sought(start.slot, Err(error)));
        }
        // Queued records may have been admitted, and settled, in the same step.
        self.see_admissions()?;
        // The position may have passed the lost offset before the bounds were known: nothing is skipped then.
        let is_next = self.flow().assignment(start.slot).ledger().next() == to;
        let owned = self
            .model
            .owned
            .iter_mut()
            .map(|(&epoch, owned)| (epoch, owned));
        let owned = owned
            .into_iter()
            .find(|(_, owned)| owned.slot == start.slot);
        let Some((epoch, owned)) = owned.filter(|(_, owned)| !owned.released) else {
            return Err(format!(
                "{} is repositioned after its release (G5)",
                start.at
            ));
        };
        if owned.missing.is_some() && !is_next {
            self.model.restart(epoch, to, &self.script.logs)?;
            self.model
                .trace(|| format!("epoch {epoch} resumes at {to}"));
        } else {
            self.model.coverage.read_again += 1;
            owned.missing = None;
            owned.position = to;
            owned.fetched = to;
        }
        self.tell(Event::Sought(start.slot, Ok(())))
    }

    /// Answers a query of a log's bounds, or says why it cannot.
    pub fn answer_bounds(&mut self) -> Check {
        if self.client.bounds.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.client.bounds.len());
        let at = self.client.bounds.swap_remove(index);
        let bounds = if self.random.chance(self.faults.lookup_fails) {
            Err(BoundsError::NoOffset)
        } else {
            Ok(self.bounds_of(&at))
        };
        self.tell_source(SourceEvent::Bounds { at, bounds })
    }

    fn bounds_of(&self, at: &TopicPartition) -> Range<i64> {
        let log = self.log_of(at);
        let start = self.model.log_start.get(&log).copied().unwrap_or(0);
        start..self.script.logs[log].end().max(start)
    }

    /// A fetch of some partition fails: its offset cannot be read although the log has it, or the broker refuses it.
    pub fn fail_read(&mut self) -> Check {
        let read = |owned: &&super::model::Owned| {
            !owned.released && !owned.draining && owned.missing.is_none()
        };
        let owned: Vec<_> = self.model.owned.values().filter(read).collect();
        if owned.is_empty() {
            return Ok(());
        }
        let owned = *self.random.pick(&owned);
        let (at, position) = (owned.at.clone(), owned.position);
        let event = match self.random.below(3) {
            0 => SourceEvent::PartitionError {
                at,
                reason: "not authorized".to_owned(),
                fault: PartitionFault::Denied,
            },
            asked => SourceEvent::OffsetMissing {
                at,
                asked: (asked == 1).then_some(position),
                fetched: None,
                truncated: false,
                reason: "out of range".to_owned(),
            },
        };
        self.tell_source(event)
    }

    /// The client's view of its partitions, if the engine is due for it.
    pub fn tell_observations(&mut self) -> Check {
        if !self.engine.observation_due() {
            return Ok(());
        }
        let mut observations = Vec::new();
        for slot in self.engine.slots() {
            let log = self.log_of(self.engine.flow().assignment(slot).at());
            observations.push(Observation {
                slot,
                end: Some(self.script.logs[log].end()),
                fetch: FetchState::Fetching,
            });
        }
        self.tell(Event::Observed(&observations))
    }

    /// The client fetches, sometimes far ahead of what it has delivered.
    pub fn fetch_ahead(&mut self, epoch: u64) {
        let entries = self.random.between(1, MAX_FETCH);
        let Some(owned) = self.model.owned.get_mut(&epoch) else {
            return;
        };
        let log = &self.script.logs[owned.log];
        owned.fetched = owned.fetched.max(owned.position);
        for _ in 0..entries {
            if let Some(offset) = log.next_read(owned.fetched) {
                owned.fetched = offset + 1;
            }
        }
    }

    /// Pauses or resumes fetching; a pause discards the client's queue.
    fn pause(&mut self, slot: AssignmentId, paused: bool) {
        for owned in self.model.owned.values_mut() {
            if owned.slot == slot {
                owned.paused = paused;
                owned.fetched = owned.position;
            }
        }
    }

    /// Reports how far partitions were read. Drains may begin with it.
    fn learn_positions(&mut self, slots: &[AssignmentId]) -> Check {
        let mut positions = Vec::new();
        for owned in self.model.owned.values() {
            if owned.released || !slots.contains(&owned.slot) {
                continue;
            }
            let controls = &self.script.logs[owned.log].controls;
            let ahead = owned.position..owned.fetched;
            if controls.iter().any(|offset| ahead.contains(offset)) {
                self.model.coverage.fetched_past_control += 1;
            }
            positions.extend(owned.consumed.map(|position| (owned.slot, position)));
        }
        let frontiers: Vec<i64> = positions
            .iter()
            .map(|&(slot, _)| self.frontier(slot))
            .collect();
        self.model.trace(|| format!("positions: {positions:?}"));
        self.tell(Event::Positions(&positions))?;
        for (&(slot, _), before) in positions.iter().zip(frontiers) {
            self.model.coverage.passed_control += u64::from(self.frontier(slot) > before);
        }
        self.see_drains()
    }

    fn frontier(&self, slot: AssignmentId) -> i64 {
        self.flow().assignment(slot).ledger().frontier()
    }

    /// Forgets partitions that the group has taken away, or that were handed over.
    pub fn forget_offers(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.client.drop_lookups(at);
        }
    }
}
