//! State of the scripted cluster, and its reactions to the member's requests.

use std::collections::{BTreeMap, VecDeque};

use sluicegate_engine::partition::commit::TopicUuid;
use sluicegate_engine::record::Record;
use sluicegate_engine::source::starts::{Commit, Evidence, decide};
use sluicegate_engine::source::{
    AssignmentId, CommitEntry, CommitError, CommitResult, Delivery, FetchState, Found, SourceEvent,
    StartAt, TopicPartition,
};

use super::GROUP;

#[derive(Default)]
pub(super) struct Script {
    pub(super) seed: u64,
    pub(super) topics: BTreeMap<TopicPartition, Log>,
    pub(super) events: VecDeque<SourceEvent>,
    pub(super) running: BTreeMap<TopicPartition, Running>,
    pub(super) committed: BTreeMap<TopicPartition, Commit>,
    /// How often a topic was deleted and recreated.
    pub(super) recreated: BTreeMap<String, u128>,
    /// Partitions without a leader: their start cannot be queried.
    pub(super) leaderless: Vec<TopicPartition>,
    /// Lookups that could not be answered yet.
    pub(super) unfound: Vec<(TopicPartition, StartAt)>,
    pub(super) generation: i32,
    /// The group is rebalancing.
    pub(super) rebalancing: bool,
    /// The fetch states that the client reports; unknown if not scripted.
    pub(super) fetches: BTreeMap<TopicPartition, FetchState>,
    pub(super) commit_log: Vec<CommitEntry>,
    pub(super) refusals: VecDeque<Refusal>,
    pub(super) held: Option<Vec<SourceEvent>>,
    pub(super) subscription: Vec<String>,
    pub(super) closed: bool,
    /// The group ignores the client's leave request.
    pub(super) refuses_leave: bool,
}

#[derive(Default)]
pub(super) struct Log {
    pub(super) records: BTreeMap<i64, Stored>,
    pub(super) start: i64,
    pub(super) end: i64,
}

pub(super) struct Stored {
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<u8>,
}

pub(super) struct Running {
    pub(super) slot: AssignmentId,
    /// The consumed position: the next record is at this offset or later.
    pub(super) next: i64,
    /// The end of its log when it was paused, while it is: the client learns of no later records.
    pub(super) paused: Option<i64>,
    pub(super) missing_told: bool,
}

pub(super) enum Refusal {
    /// One partition's commit is rejected in a response that succeeds as a whole.
    Partition(CommitError),
    /// The request fails as a whole.
    Whole(CommitError),
}

impl Log {
    pub(super) fn offset_of(&self, start: StartAt) -> i64 {
        match start {
            StartAt::Earliest => self.start,
            StartAt::Latest => self.end,
            StartAt::Offset(offset) => offset,
            StartAt::Time(time) => {
                let mut records = self.records.iter();
                let found = records.find(|(_, record)| record.timestamp_ms >= time);
                found.map_or(self.end, |(offset, _)| *offset)
            }
        }
    }
}

impl Script {
    /// Reports the start of the partitions that can be found.
    pub(super) fn find_again(&mut self) {
        let mut found = Vec::new();
        for (at, start) in std::mem::take(&mut self.unfound) {
            if self.leaderless.contains(&at) && !self.committed.contains_key(&at) {
                self.events.push_back(SourceEvent::NotFound {
                    at: at.clone(),
                    reason: "the partition has no leader".into(),
                });
                self.unfound.push((at, start));
                continue;
            }
            found.push(self.find(&at, start));
        }
        if !found.is_empty() {
            self.events.push_back(SourceEvent::Found(found));
        }
    }

    pub(super) fn find(&mut self, at: &TopicPartition, start: StartAt) -> Found {
        let others: Vec<_> = self
            .committed
            .iter()
            .filter(|(other, _)| other.topic == at.topic && *other != at)
            .map(|(other, commit)| (other.clone(), commit.clone()))
            .collect();
        let recreated = self.recreated.get(&*at.topic).copied().unwrap_or(0);
        let topic_id = TopicUuid(1 + recreated);
        let decision = decide(
            at,
            &Evidence {
                group: GROUP,
                topic_id,
                commit: self.committed.get(at),
                others: &others,
                generation: Some(self.generation),
                is_static: false,
                start,
            },
        );
        let log = self.topics.entry(at.clone()).or_default();
        let offset = log.offset_of(decision.start);
        decision.found(at.clone(), topic_id, offset)
    }

    /// A number below `below`, by xorshift.
    pub(super) fn random(&mut self, below: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % below.max(1) as u64) as usize
    }

    /// Partitions that have something to deliver. One whose offset is gone reports it, once.
    pub(super) fn ready(&mut self) -> Vec<TopicPartition> {
        let mut ready = Vec::new();
        for (at, running) in &mut self.running {
            let Some(log) = self.topics.get(at) else {
                continue;
            };
            if running.next < log.start || running.next > log.end {
                if !running.missing_told {
                    running.missing_told = true;
                    self.events.push_back(SourceEvent::OffsetMissing {
                        at: at.clone(),
                        asked: Some(running.next),
                        fetched: Some(running.next),
                        truncated: false,
                        reason: format!(
                            "offset {} is outside {}..{}",
                            running.next, log.start, log.end
                        ),
                    });
                }
            } else if running.paused.is_none() {
                match log.records.range(running.next..).next() {
                    Some(_) => ready.push(at.clone()),
                    None => running.next = log.end,
                }
            }
        }
        ready
    }

    pub(super) fn deliver<R: Record>(
        &mut self,
        at: &TopicPartition,
        count: usize,
        out: &mut Vec<Delivery<R>>,
    ) {
        let (Some(running), Some(log)) = (self.running.get_mut(at), self.topics.get(at)) else {
            return;
        };
        for (offset, record) in log.records.range(running.next..).take(count) {
            running.next = offset + 1;
            out.push(Delivery {
                slot: running.slot,
                offset: *offset,
                timestamp_ms: record.timestamp_ms,
                leader_epoch: 0,
                lease: R::copied(
                    record.key.as_deref(),
                    record.value.as_deref(),
                    &record.headers,
                ),
            });
        }
    }

    pub(super) fn commit(
        &mut self,
        entries: &[CommitEntry],
    ) -> (Vec<CommitResult>, Option<CommitError>) {
        let refused = match self.refusals.pop_front() {
            Some(Refusal::Whole(reason)) => return (Vec::new(), Some(reason)),
            Some(Refusal::Partition(reason)) => Some(reason),
            None => None,
        };
        let results = entries.iter().map(|entry| {
            if refused.is_none() {
                let commit = Commit {
                    offset: entry.offset,
                    leader_epoch: entry.leader_epoch,
                    metadata: entry.metadata.clone(),
                };
                self.committed.insert(entry.at.clone(), commit);
                self.commit_log.push(entry.clone());
            }
            CommitResult {
                at: entry.at.clone(),
                offset: entry.offset,
                error: refused.clone(),
            }
        });
        (results.collect(), None)
    }
}
