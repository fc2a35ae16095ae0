//! A scripted source for tests: topics, rebalances, gaps, redeliveries and rejected commits, all on demand.
//!
//! ```text
//!  test:  MemoryKafka ── create_topic, produce, skip, assign, revoke, refuse_commits … ──► the shared script
//!  pump:  MemorySource ── events, start, poll, commit … ◄───────────────────────────────┘
//! ```
//!
//! The seed decides how the records of several partitions interleave and in what runs; the same seed and script produce
//! the same deliveries.

mod script;

use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use script::{Log, Refusal, Running, Script, Stored};
use sluicegate_abi::lend::OwnedRecord;
use sluicegate_engine::record::Record;
use sluicegate_engine::source::{
    AssignmentId, BoundsError, CommitEntry, CommitError, CommitErrorKind, Delivery, FetchState,
    Membership, Source, SourceError, SourceEvent, StartAt, StartPartition, TopicPartition, Wake,
};

/// The consumer group of all members.
pub const GROUP: &str = "g";

/// The cluster and the group, as scripted by a test. Clones share the state.
#[derive(Clone)]
pub struct MemoryKafka(Arc<Shared>);

struct Shared {
    script: Mutex<Script>,
    /// Whether a wait is to end; used with the condition variable.
    woken: Mutex<bool>,
    wake: Condvar,
}

impl MemoryKafka {
    /// An empty cluster.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Shared {
            script: Mutex::new(Script {
                // An odd state never gets stuck at zero.
                seed: seed | 1,
                ..Script::default()
            }),
            woken: Mutex::new(false),
            wake: Condvar::new(),
        }))
    }

    /// The source of the group's only member.
    pub fn source<R: Record>(&self) -> MemorySource<R> {
        MemorySource {
            record: PhantomData,
            kafka: self.clone(),
        }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        let script = self.0.script.lock();
        script.unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script());
        self.wake();
    }

    /// Creates a topic.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        self.change(|script| {
            for partition in 0..partitions {
                script.topics.entry(at(topic, partition)).or_default();
            }
        });
    }

    /// Appends a record and returns its offset; a missing partition is created.
    pub fn produce(
        &self,
        topic: &str,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[u8],
    ) -> i64 {
        let mut offset = 0;
        self.change(|script| {
            let log = script.topics.entry(at(topic, partition)).or_default();
            offset = log.end;
            log.end += 1;
            let stored = Stored {
                timestamp_ms: offset,
                key: key.map(<[u8]>::to_vec),
                value: value.map(<[u8]>::to_vec),
                headers: headers.to_vec(),
            };
            log.records.insert(offset, stored);
        });
        offset
    }

    /// Leaves `count` offsets without a record, as control records and aborted data do; a poll that finds no record
    /// passes them.
    pub fn skip(&self, topic: &str, partition: i32, count: i64) {
        self.change(|script| {
            script.topics.entry(at(topic, partition)).or_default().end += count;
        });
    }

    /// Deletes all records before `offset`, as retention does.
    pub fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        self.change(|script| {
            let log = script.topics.entry(at(topic, partition)).or_default();
            log.start = offset;
            log.end = log.end.max(offset);
            log.records = log.records.split_off(&offset);
        });
    }

    /// Deletes a topic and recreates it with the same partitions, empty. The member is not notified.
    pub fn recreate_topic(&self, topic: &str) {
        self.change(|script| {
            *script.recreated.entry(topic.to_owned()).or_default() += 1;
            let logs = script.topics.iter_mut();
            for (_, log) in logs.filter(|(at, _)| *at.topic == *topic) {
                *log = Log::default();
            }
        });
    }

    /// Takes the leader of a partition away, or restores it.
    pub fn set_leaderless(&self, topic: &str, partition: i32, leaderless: bool) {
        self.change(|script| {
            let at = at(topic, partition);
            script.leaderless.retain(|other| *other != at);
            if leaderless {
                script.leaderless.push(at);
            } else {
                script.find_again();
            }
        });
    }

    /// Scripts the fetch state that the client reports for a partition.
    pub fn set_fetch_state(&self, topic: &str, partition: i32, state: FetchState) {
        self.change(|script| {
            script.fetches.insert(at(topic, partition), state);
        });
    }

    /// Assigns partitions to the member, in a new generation of the group.
    pub fn assign(&self, topic: &str, partitions: &[i32]) {
        let list = partitions.iter().map(|&p| at(topic, p)).collect();
        self.change(|script| script.generation += 1);
        self.tell(SourceEvent::Assigned(list));
    }

    /// Starts or ends a rebalance of the group.
    pub fn set_rebalancing(&self, rebalancing: bool) {
        self.change(|script| script.rebalancing = rebalancing);
    }

    /// Revokes partitions; `lost`: without notice.
    pub fn revoke(&self, topic: &str, partitions: &[i32], lost: bool) {
        let partitions = partitions.iter().map(|&p| at(topic, p)).collect();
        self.tell(SourceEvent::Revoked { partitions, lost });
    }

    /// Makes the source report an event.
    pub fn tell(&self, event: SourceEvent) {
        self.change(|script| script.events.push_back(event));
    }

    /// Redelivers the last `count` offsets of a running partition.
    pub fn repeat(&self, topic: &str, partition: i32, count: i64) {
        self.change(|script| {
            if let Some(running) = script.running.get_mut(&at(topic, partition)) {
                running.next = (running.next - count).max(0);
            }
        });
    }

    /// Rejects every partition of the next commit, in a response that succeeds as a whole.
    pub fn refuse_next_commit(&self, kind: CommitErrorKind, reason: &str) {
        let reason = reason.into();
        let error = CommitError { kind, reason };
        self.change(|script| script.refusals.push_back(Refusal::Partition(error)));
    }

    /// Fails the next commit as a whole.
    pub fn fail_next_commit(&self, reason: &str) {
        let reason = reason.into();
        let kind = CommitErrorKind::Unavailable;
        let error = CommitError { kind, reason };
        self.change(|script| script.refusals.push_back(Refusal::Whole(error)));
    }

    /// Withholds the responses to commits until [`Self::answer_commits`]; the commits themselves take effect at once.
    pub fn hold_commits(&self) {
        self.change(|script| {
            script.held.get_or_insert_default();
        });
    }

    /// Delivers the withheld responses.
    pub fn answer_commits(&self) {
        self.change(|script| {
            let held = script.held.take().unwrap_or_default();
            script.events.extend(held);
        });
    }

    /// What the group has committed for a partition, with its metadata.
    pub fn committed(&self, topic: &str, partition: i32) -> Option<(i64, String)> {
        let script = self.script();
        let commit = script.committed.get(&at(topic, partition))?;
        Some((commit.offset, commit.metadata.clone()))
    }

    /// All accepted commits, in order.
    pub fn commit_log(&self) -> Vec<CommitEntry> {
        self.script().commit_log.clone()
    }

    /// Whether the member delivers this partition.
    pub fn is_running(&self, topic: &str, partition: i32) -> bool {
        self.script().running.contains_key(&at(topic, partition))
    }

    /// The current subscription.
    pub fn subscription(&self) -> Vec<String> {
        self.script().subscription.clone()
    }

    /// Makes the group ignore the member's leave request.
    pub fn refuse_leave(&self) {
        self.script().refuses_leave = true;
    }

    /// Whether the member has left.
    pub fn is_closed(&self) -> bool {
        self.script().closed
    }
}

impl Wake for MemoryKafka {
    fn wake(&self) {
        *self.0.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.wake.notify_all();
    }
}

/// The member's side of a [`MemoryKafka`].
pub struct MemorySource<R = OwnedRecord> {
    record: PhantomData<fn() -> R>,
    kafka: MemoryKafka,
}

impl<R: Record> Source for MemorySource<R> {
    type Record = R;

    fn subscribe(&mut self, topics: &[String]) -> Result<(), SourceError> {
        self.kafka.script().subscription = topics.to_vec();
        Ok(())
    }

    fn events(&mut self, out: &mut Vec<SourceEvent>) {
        out.extend(self.kafka.script().events.drain(..));
    }

    fn is_rebalancing(&self) -> bool {
        self.kafka.script().rebalancing
    }

    fn membership(&mut self) -> Membership {
        Membership {
            generation: Some(self.kafka.script().generation),
            ..Membership::default()
        }
    }

    fn find(&mut self, partitions: &[TopicPartition], start: StartAt) {
        self.kafka.change(|script| {
            let wanted = partitions.iter().map(|at| (at.clone(), start));
            script.unfound.extend(wanted);
            script.find_again();
        });
    }

    fn start(&mut self, partitions: &[StartPartition]) -> Result<(), SourceError> {
        let mut script = self.kafka.script();
        for wanted in partitions {
            let log = script.topics.entry(wanted.at.clone()).or_default();
            let next = log.offset_of(wanted.start);
            let running = Running {
                slot: wanted.slot,
                next,
                paused: None,
                missing_told: false,
            };
            script.running.insert(wanted.at.clone(), running);
        }
        Ok(())
    }

    fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError> {
        let mut script = self.kafka.script();
        for at in partitions {
            script.running.remove(at);
            script.unfound.retain(|(other, _)| other != at);
        }
        Ok(())
    }

    fn poll(&mut self, max: usize, out: &mut Vec<Delivery<R>>) {
        let end = out.len() + max;
        let mut script = self.kafka.script();
        while out.len() < end {
            let ready: Vec<TopicPartition> = script.ready();
            if ready.is_empty() {
                break;
            }
            let chosen = &ready[script.random(ready.len())];
            let run = 1 + script.random(16);
            script.deliver(chosen, run.min(end - out.len()), out);
        }
    }

    fn pause(&mut self, slot: AssignmentId, paused: bool) {
        let mut script = self.kafka.script();
        let script = &mut *script;
        let mut running = script.running.iter_mut();
        if let Some((at, running)) = running.find(|(_, running)| running.slot == slot) {
            let end = script.topics.get(at).map_or(0, |log| log.end);
            running.paused = paused.then(|| running.paused.unwrap_or(end));
        }
    }

    fn commit(&mut self, entries: &[CommitEntry]) -> Result<(), SourceError> {
        self.kafka.change(|script| {
            let (results, error) = script.commit(entries);
            let event = SourceEvent::Committed { results, error };
            match &mut script.held {
                Some(held) => held.push(event),
                None => script.events.push_back(event),
            }
        });
        Ok(())
    }

    fn consumed(&mut self, slots: &[AssignmentId], out: &mut Vec<(AssignmentId, i64)>) {
        let script = self.kafka.script();
        let running = script.running.values();
        let asked = running.filter(|running| slots.contains(&running.slot));
        out.extend(asked.map(|running| (running.slot, running.next)));
    }

    fn ask_bounds(&mut self, partitions: &[TopicPartition]) {
        self.kafka.change(|script| {
            for at in partitions {
                let log = script.topics.get(at);
                let bounds = log.map(|log| log.start..log.end);
                script.events.push_back(SourceEvent::Bounds {
                    at: at.clone(),
                    bounds: bounds.ok_or_else(|| BoundsError::Refused("no such topic".to_owned())),
                });
            }
        });
    }

    fn end_offset(&self, slot: AssignmentId) -> Option<i64> {
        let script = self.kafka.script();
        let mut running = script.running.iter();
        let (at, running) = running.find(|(_, running)| running.slot == slot)?;
        running.paused.or(Some(script.topics.get(at)?.end))
    }

    fn fetch_state(&self, slot: AssignmentId) -> FetchState {
        let script = self.kafka.script();
        let mut running = script.running.iter();
        let found = running.find(|(_, running)| running.slot == slot);
        let state = found.and_then(|(at, _)| script.fetches.get(at));
        state.copied().unwrap_or_default()
    }

    fn wait(&mut self, timeout: Duration) {
        let shared = &self.kafka.0;
        let woken = shared.woken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = shared
            .wake
            .wait_timeout_while(woken, timeout, |woken| !*woken);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(self.kafka.clone())
    }

    fn close(&mut self, _deadline: Instant) -> bool {
        let mut script = self.kafka.script();
        script.running.clear();
        script.closed = true;
        // Responses to a client that has closed.
        script.held.iter_mut().for_each(Vec::clear);
        !script.refuses_leave
    }
}

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition {
        topic: topic.into(),
        partition,
    }
}

#[cfg(test)]
#[path = "memory_source_tests.rs"]
mod tests;
