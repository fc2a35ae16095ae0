//! Finds where partitions start, without blocking on the broker.
//!
//! ```text
//!  find() ─► metadata: id, leader ─► committed offsets ─┬─► decided ──────────────────────────────► Found
//!                                                       └─► no usable commit ─► offsets, by leader ─► Found
//!                 any request refused or unanswered ─► NotFound, retried after a delay
//! ```
//!
//! Partitions are independent: one without a leader, or whose leader does not answer, delays no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use sluicegate_engine::partition::commit::TopicUuid;
use sluicegate_engine::source::starts::{Commit, Decision, Evidence, decide};
use sluicegate_engine::source::{Found, SourceEvent, StartAt, TopicPartition};

use super::list_of;
use crate::consumer::callbacks::Callbacks;
use crate::ffi::{Answer, Connection, ListEntry, NoLeader, OffsetSpec, TopicState, describe};

/// Delay before a failed lookup is first retried; it doubles.
const INITIAL_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Maximum delay.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);
/// Timeout of a request for committed offsets: the longest that librdkafka takes. It still waits for the coordinator after
/// such a request has timed out, and answers the freed request once it has found one, which aborts the process. Without a
/// timeout the request fails with its connection, or is answered when the coordinator returns.
const COMMITTED_TIMEOUT: Duration = Duration::from_hours(1);

/// The source's group, config and connection, as the lookup needs them.
pub(super) struct Context<'a> {
    pub(super) connection: &'a mut Connection<Callbacks>,
    pub(super) group: &'a str,
    pub(super) read_committed: bool,
    pub(super) is_static: bool,
    pub(super) timeout: Duration,
}

/// A partition whose start is resolved.
#[derive(Clone, Debug)]
struct Wanted {
    at: TopicPartition,
    start: StartAt,
    since: Instant,
    failures: u32,
    /// When the request is due; `None` while one is pending.
    due: Option<Instant>,
    /// The pending request. A response to a request of an earlier assignment is ignored: another member may have
    /// committed since.
    question: Option<usize>,
    /// When it was sent, or last reported as unanswered.
    asked: Instant,
}

/// A topic that is known to exist.
#[derive(Clone, Copy)]
struct Topic {
    id: TopicUuid,
    partitions: i32,
}

/// A decision that lacks an offset.
struct Open {
    at: TopicPartition,
    topic_id: TopicUuid,
    decision: Decision,
}

/// A pending request.
enum Question {
    Committed {
        partitions: Vec<TopicPartition>,
        topics: BTreeMap<Arc<str>, Topic>,
    },
    Offsets {
        open: Vec<Open>,
    },
}

/// The partitions whose start is not known yet.
#[derive(Default)]
pub(super) struct Finder {
    wanted: Vec<Wanted>,
    questions: BTreeMap<usize, Question>,
    last_token: usize,
}

impl Finder {
    /// Starts to query partitions.
    pub(super) fn find(&mut self, partitions: &[TopicPartition], start: StartAt) {
        self.forget(partitions);
        let now = Instant::now();
        self.wanted
            .extend(partitions.iter().cloned().map(|at| Wanted {
                at,
                start,
                since: now,
                failures: 0,
                due: Some(now),
                question: None,
                asked: now,
            }));
    }

    /// Drops partitions that are not owned any more.
    pub(super) fn forget(&mut self, partitions: &[TopicPartition]) {
        self.wanted
            .retain(|wanted| !partitions.contains(&wanted.at));
    }

    /// Whether a partition is being queried.
    pub(super) fn is_resolving(&self, at: &TopicPartition) -> bool {
        self.wanted.iter().any(|wanted| wanted.at == *at)
    }

    /// Whether no lookup and no response is pending.
    pub(super) fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.questions.is_empty()
    }

    /// Sends due requests and handles responses.
    pub(super) fn proceed(
        &mut self,
        answers: Vec<(usize, Answer)>,
        context: &mut Context<'_>,
        out: &mut Vec<SourceEvent>,
    ) {
        self.ask_due(context, out);
        self.report_unanswered(context, out);
        for (token, answer) in answers {
            let Some(question) = self.questions.remove(&token) else {
                continue;
            };
            match question {
                Question::Committed {
                    mut partitions,
                    topics,
                } => {
                    partitions.retain(|at| self.awaits(at, token));
                    self.committed(partitions, topics, answer, context, out);
                }
                Question::Offsets { mut open } => {
                    open.retain(|one| self.awaits(&one.at, token));
                    self.offsets(open, answer, context, out);
                }
            }
        }
    }

    /// Requests the commits of due partitions whose topics are known.
    fn ask_due(&mut self, context: &mut Context<'_>, out: &mut Vec<SourceEvent>) {
        let now = Instant::now();
        let due: Vec<(TopicPartition, Instant)> = self
            .wanted
            .iter()
            .filter(|wanted| wanted.due.is_some_and(|due| due <= now))
            .map(|wanted| (wanted.at.clone(), wanted.since))
            .collect();
        let mut topics = BTreeMap::new();
        let mut known = Vec::new();
        for (at, since) in due {
            match topic_of(context, &at) {
                TopicState::Exists { id, partitions } => {
                    topics.insert(at.topic.clone(), Topic { id, partitions });
                    known.push(at);
                }
                // librdkafka is fetching it; checked again in the next iteration.
                TopicState::Unknown if since.elapsed() < context.timeout => {}
                TopicState::Unknown => {
                    self.failed(&[at], "the cluster does not describe the topic", out);
                }
                TopicState::Missing => {
                    let reason = "the topic does not exist, or the service may not describe it";
                    self.failed(&[at], reason, out);
                }
            }
        }
        if known.is_empty() {
            return;
        }
        let asked = self.with_others(&known, &topics);
        let token = self.next_token();
        self.is_asked(&known, token);
        if context
            .connection
            .ask_committed(context.group, &asked, token, COMMITTED_TIMEOUT)
        {
            let question = Question::Committed {
                partitions: known,
                topics,
            };
            self.questions.insert(token, question);
        } else {
            self.failed(
                &known,
                "cannot query the committed offsets of the group",
                out,
            );
        }
    }

    /// The partitions, and the other partitions of their topics if one without a commit may be new.
    fn with_others(
        &self,
        partitions: &[TopicPartition],
        topics: &BTreeMap<Arc<str>, Topic>,
    ) -> TopicPartitionList {
        let mut all = partitions.to_vec();
        for at in partitions {
            let asks = self
                .wanted
                .iter()
                .any(|wanted| wanted.at == *at && wanted.start != StartAt::Earliest);
            if asks && let Some(topic) = topics.get(&at.topic) {
                all.extend((0..topic.partitions).map(|partition| TopicPartition {
                    topic: at.topic.clone(),
                    partition,
                }));
            }
        }
        all.sort_unstable();
        all.dedup();
        list_of(&all)
    }

    fn committed(
        &mut self,
        partitions: Vec<TopicPartition>,
        topics: BTreeMap<Arc<str>, Topic>,
        answer: Answer,
        context: &mut Context<'_>,
        out: &mut Vec<SourceEvent>,
    ) {
        let entries = match answer {
            Answer::Committed(entries) => entries,
            Answer::Failed(reason) => {
                let reason = format!("cannot read the group's committed offsets: {reason}");
                return self.failed(&partitions, &reason, out);
            }
            other => return self.failed(&partitions, &unexpected(&other), out),
        };
        let mut commits = BTreeMap::new();
        let mut refused = BTreeMap::new();
        for entry in entries {
            let at = place_of(&entry);
            if entry.error_code != 0 {
                refused.insert(at, describe(entry.error_code));
            } else if entry.offset >= 0 {
                let commit = Commit {
                    offset: entry.offset,
                    leader_epoch: entry.leader_epoch,
                    metadata: entry.metadata,
                };
                commits.insert(at, commit);
            }
        }
        let mut found = Vec::new();
        let mut open = Vec::new();
        let generation = context.connection.generation();
        for at in partitions {
            if let Some(reason) = refused.get(&at) {
                let reason = format!("cannot read the committed offset: {reason}");
                self.failed(&[at], &reason, out);
                continue;
            }
            let Some(topic) = topics.get(&at.topic) else {
                continue;
            };
            let others: Vec<_> = commits
                .iter()
                .filter(|(other, _)| other.topic == at.topic && **other != at)
                .map(|(other, commit)| (other.clone(), commit.clone()))
                .collect();
            let start = self.start_of(&at);
            let decision = decide(
                &at,
                &Evidence {
                    group: context.group,
                    topic_id: topic.id,
                    commit: commits.get(&at),
                    others: &others,
                    generation,
                    is_static: context.is_static,
                    start,
                },
            );
            match decision.start {
                StartAt::Offset(offset) => found.push(decision.found(at, topic.id, offset)),
                _ => open.push(Open {
                    topic_id: topic.id,
                    at,
                    decision,
                }),
            }
        }
        self.found(found, out);
        self.ask_offsets(open, context, out);
    }

    /// One request per leader: one that does not answer delays only its own partitions.
    fn ask_offsets(
        &mut self,
        open: Vec<Open>,
        context: &mut Context<'_>,
        out: &mut Vec<SourceEvent>,
    ) {
        let mut by_leader: BTreeMap<Option<i32>, Vec<Open>> = BTreeMap::new();
        for one in open {
            let topic = context.connection.topic_id(&one.at.topic);
            let leader = topic.map_or(Err(NoLeader), |topic| {
                context.connection.leader(topic, one.at.partition)
            });
            match leader {
                Ok(leader) => by_leader.entry(leader).or_default().push(one),
                Err(NoLeader) => self.failed(&[one.at], "the partition has no leader", out),
            }
        }
        for open in by_leader.into_values() {
            let wanted: Vec<_> = open
                .iter()
                .map(|one| (one.at.clone(), spec_of(one.decision.start)))
                .collect();
            let token = self.next_token();
            self.is_asked(&places(&open), token);
            if context.connection.ask_offsets(
                &wanted,
                context.read_committed,
                token,
                context.timeout,
            ) {
                self.questions.insert(token, Question::Offsets { open });
            } else {
                let reason = "cannot query offsets of the cluster";
                self.failed(&places(&open), reason, out);
            }
        }
    }

    fn offsets(
        &mut self,
        open: Vec<Open>,
        answer: Answer,
        context: &mut Context<'_>,
        out: &mut Vec<SourceEvent>,
    ) {
        let entries = match answer {
            Answer::Offsets(entries) => entries,
            Answer::Failed(reason) => {
                let reason = format!("cannot query offsets: {reason}");
                return self.failed(&places(&open), &reason, out);
            }
            other => return self.failed(&places(&open), &unexpected(&other), out),
        };
        let mut found = Vec::new();
        let mut again = Vec::new();
        for mut one in open {
            let entry = entries.iter().find(|entry| place_of(entry) == one.at);
            match entry {
                Some(entry) if entry.error_code != 0 => {
                    let reason = format!("cannot query its offset: {}", describe(entry.error_code));
                    self.failed(&[one.at], &reason, out);
                }
                Some(entry) if entry.offset >= 0 => {
                    found.push(one.decision.found(one.at, one.topic_id, entry.offset));
                }
                // No record at or after that time yet: start at the end.
                Some(_) if matches!(one.decision.start, StartAt::Time(_)) => {
                    one.decision.start = StartAt::Latest;
                    again.push(one);
                }
                _ => self.failed(&[one.at], "the leader returned no offset", out),
            }
        }
        self.found(found, out);
        self.ask_offsets(again, context, out);
    }

    fn found(&mut self, found: Vec<Found>, out: &mut Vec<SourceEvent>) {
        if found.is_empty() {
            return;
        }
        for one in &found {
            self.wanted.retain(|wanted| wanted.at != one.at);
        }
        out.push(SourceEvent::Found(found));
    }

    fn failed(&mut self, partitions: &[TopicPartition], reason: &str, out: &mut Vec<SourceEvent>) {
        let now = Instant::now();
        for wanted in &mut self.wanted {
            if !partitions.contains(&wanted.at) {
                continue;
            }
            let pause = INITIAL_RETRY_DELAY.saturating_mul(1 << wanted.failures.min(10));
            wanted.due = Some(now + pause.min(MAX_RETRY_DELAY));
            wanted.question = None;
            wanted.failures += 1;
            out.push(SourceEvent::NotFound {
                at: wanted.at.clone(),
                reason: reason.to_owned(),
            });
        }
    }

    /// Reports partitions whose request has been pending for the timeout, and again after each further one. It stays pending, but may
    /// wait for a coordinator that has left the cluster: it finds the present one then.
    fn report_unanswered(&mut self, context: &Context<'_>, out: &mut Vec<SourceEvent>) {
        let mut unanswered = false;
        for wanted in &mut self.wanted {
            if wanted.question.is_some() && wanted.asked.elapsed() >= context.timeout {
                wanted.asked = Instant::now();
                unanswered = true;
                out.push(SourceEvent::NotFound {
                    at: wanted.at.clone(),
                    reason: "the brokers have not answered yet".to_owned(),
                });
            }
        }
        if unanswered {
            context.connection.find_coordinators_again();
        }
    }

    /// Marks a request for these partitions as pending.
    fn is_asked(&mut self, partitions: &[TopicPartition], token: usize) {
        for wanted in &mut self.wanted {
            if partitions.contains(&wanted.at) {
                wanted.due = None;
                wanted.question = Some(token);
                wanted.asked = Instant::now();
            }
        }
    }

    /// Whether a partition waits for the response to this request.
    fn awaits(&self, at: &TopicPartition, token: usize) -> bool {
        self.wanted
            .iter()
            .any(|wanted| wanted.at == *at && wanted.question == Some(token))
    }

    fn start_of(&self, at: &TopicPartition) -> StartAt {
        let wanted = self.wanted.iter().find(|wanted| wanted.at == *at);
        wanted.map_or(StartAt::Earliest, |wanted| wanted.start)
    }

    fn next_token(&mut self) -> usize {
        self.last_token += 1;
        self.last_token
    }
}

/// The client's metadata about a partition's topic; requests it if there is none.
fn topic_of(context: &mut Context<'_>, at: &TopicPartition) -> TopicState {
    let topic = context.connection.topic_id(&at.topic);
    topic.map_or(TopicState::Missing, |topic| {
        context.connection.topic_state(topic)
    })
}

fn places(open: &[Open]) -> Vec<TopicPartition> {
    open.iter().map(|one| one.at.clone()).collect()
}

fn place_of(entry: &ListEntry) -> TopicPartition {
    TopicPartition {
        topic: entry.topic.as_str().into(),
        partition: entry.partition,
    }
}

fn spec_of(start: StartAt) -> OffsetSpec {
    match start {
        StartAt::Earliest => OffsetSpec::Earliest,
        StartAt::Latest => OffsetSpec::Latest,
        StartAt::Time(ms) | StartAt::Offset(ms) => OffsetSpec::Time(ms),
    }
}

fn unexpected(answer: &Answer) -> String {
    format!("unexpected response: {answer:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    #[test]
    fn a_response_to_a_request_of_an_earlier_assignment_is_ignored() {
        let mut finder = Finder::default();
        finder.find(&[at(0), at(1)], StartAt::Earliest);
        let first = finder.next_token();
        finder.is_asked(&[at(0), at(1)], first);
        finder.forget(&[at(0)]);
        finder.find(&[at(0)], StartAt::Earliest);
        assert_eq!(
            (finder.awaits(&at(0), first), finder.awaits(&at(1), first)),
            (false, true),
            "t/0 had another owner in between"
        );
        let second = finder.next_token();
        finder.is_asked(&[at(0)], second);
        assert!(finder.awaits(&at(0), second));
    }
}
