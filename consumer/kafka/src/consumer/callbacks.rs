//! librdkafka's callbacks: they only record what happened; the pump reads it with [`sluicegate_engine::source::Source::events`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{ClientContext, TopicPartitionList};
use sluicegate_engine::source::{
    CommitError, CommitErrorKind, CommitResult, Rejection, SourceEvent, TopicPartition,
};

use crate::client_log::log;
use crate::consumer::client_errors::judge;
use crate::ffi::{describe, list_entries};

/// An event recorded by a callback.
#[derive(Debug)]
pub(super) enum CallbackEvent {
    /// The group assigned partitions; librdkafka waits for an assign.
    Assign(Vec<TopicPartition>),
    /// The group revokes partitions; librdkafka waits for an unassign.
    Revoke {
        partitions: Vec<TopicPartition>,
        lost: bool,
    },
    /// The result of a commit.
    Committed {
        results: Vec<CommitResult>,
        error: Option<CommitError>,
    },
    /// An event that is passed on unchanged.
    Other(SourceEvent),
}

/// The context of a source's client.
#[derive(Default)]
pub(super) struct Callbacks {
    seen: Mutex<Vec<CallbackEvent>>,
    joining: AtomicBool,
    /// The last response to leaving the group was an error, or there was none.
    leave_refused: AtomicBool,
    /// The user has enabled the client's debug lines.
    shows_debug: bool,
    closing: AtomicBool,
    released_all: AtomicBool,
}

impl Callbacks {
    /// The context of a client. `shows_debug`: its debug lines are logged, not only parsed.
    pub(super) fn new(shows_debug: bool) -> Self {
        Self {
            shows_debug,
            ..Self::default()
        }
    }

    /// Whether a join is in progress: from the request until the client has applied its assignment.
    pub(super) fn is_joining(&self) -> bool {
        self.joining.load(Ordering::Acquire)
    }

    /// Whether the client has left its group without a confirmation by the coordinator.
    pub(super) fn is_leave_refused(&self) -> bool {
        self.leave_refused.load(Ordering::Acquire)
    }

    /// Takes the recorded events, in order.
    pub(super) fn take(&self) -> Vec<CallbackEvent> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on rebalances are answered in the callback: nothing else answers them, and the client's close waits for
    /// it.
    pub(super) fn set_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Answers the rebalances of a closing group by releasing all partitions, once.
    ///
    /// A closing group treats any assign call as "unassign everything" (rd_kafka_cgrp_handle_assign_op), and the close
    /// waits until one has arrived. The call is queued after the close request in the group's queue, so it answers
    /// every pending rebalance, also one whose event is read later. Another call could arrive after the group has
    /// ended: librdkafka drops it without a reply (rd_kafka_cgrp_op_serve), and its caller would wait forever.
    pub(super) fn release_all(&self, consumer: &BaseConsumer<Self>) {
        if self.released_all.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = consumer.unassign() {
            tracing::warn!(%error, "cannot release the assignment while closing");
        }
    }

    /// Marks the last recorded client error as fatal.
    pub(super) fn mark_fatal(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let last = seen.iter_mut().rev().find_map(|seen| match seen {
            CallbackEvent::Other(SourceEvent::ClientError { fatal, .. }) => Some(fatal),
            _ => None,
        });
        if let Some(fatal) = last {
            *fatal = true;
        }
    }

    fn record(&self, seen: CallbackEvent) {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(seen);
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if matches!(level, RDKafkaLogLevel::Debug) {
            if let Some(joining) = join_state(facility, text) {
                self.joining.store(joining, Ordering::Release);
            }
            if let Some(refused) = leave_refused(facility, text) {
                self.leave_refused.store(refused, Ordering::Release);
            }
            if !self.shows_debug {
                return;
            }
        }
        log(level, facility, text);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let json = String::from_utf8_lossy(statistics).into_owned();
        self.record(CallbackEvent::Other(SourceEvent::Statistics(
            json.into_boxed_str(),
        )));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let (kind, remedy) = judge(code);
        self.record(CallbackEvent::Other(SourceEvent::ClientError {
            kind,
            reason: reason.to_owned(),
            remedy,
            fatal: code == Some(RDKafkaErrorCode::Fatal),
        }));
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        if self.closing.load(Ordering::Acquire) {
            self.release_all(consumer);
            return;
        }
        let partitions = list_entries(list)
            .into_iter()
            .map(|entry| TopicPartition {
                topic: entry.topic.into(),
                partition: entry.partition,
            })
            .collect();
        self.record(match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                CallbackEvent::Assign(partitions)
            }
            _ => CallbackEvent::Revoke {
                partitions,
                lost: consumer.assignment_lost(),
            },
        });
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        let results = list_entries(offsets)
            .into_iter()
            .map(|entry| CommitResult {
                at: TopicPartition {
                    topic: entry.topic.into(),
                    partition: entry.partition,
                },
                offset: entry.offset,
                error: (entry.error_code != 0).then(|| refusal(entry.error_code)),
            })
            .collect();
        self.record(CallbackEvent::Committed {
            results,
            error: result.err().map(|error| as_refusal(&error)),
        });
    }
}

/// The join state according to a debug line of the group, if the line contains it: `… changed join state steady -> init
/// (state up)`. librdkafka reports it nowhere else at once; its statistics contain it at their interval.
fn join_state(facility: &str, text: &str) -> Option<bool> {
    // As in rd_kafka_cgrp_join_state_names. Only the classic protocol joins.
    const JOINING: [&str; 4] = [
        "wait-join",
        "wait-metadata",
        "wait-sync",
        "wait-assign-call",
    ];
    if facility != "CGRPJOINSTATE" {
        return None;
    }
    let (_, state) = text.rsplit_once(" -> ")?;
    let state = state.split(' ').next()?;
    Some(JOINING.contains(&state))
}

/// Whether the coordinator has rejected the leave request or was not reached, according to a debug line of the group,
/// if the line says so: `LeaveGroup response error in state up: Local: Timed out`. librdkafka closes in the same way in
/// any case and reports it nowhere else.
fn leave_refused(facility: &str, text: &str) -> Option<bool> {
    if facility != "LEAVEGROUP" {
        return None;
    }
    if text.contains(" response received in state ") {
        return Some(false);
    }
    let (_, answer) = text.split_once(" response error in state ")?;
    // With these errors the member is already gone.
    let gone = [
        RDKafkaErrorCode::UnknownMemberId,
        RDKafkaErrorCode::GroupIdNotFound,
    ];
    let is_gone = |code: RDKafkaErrorCode| answer.ends_with(&describe(code as i32));
    Some(!gone.into_iter().any(is_gone))
}

/// Converts a broker's or librdkafka's error code for a commit.
fn refusal(code: i32) -> CommitError {
    CommitError {
        kind: kind_of(code),
        reason: describe(code),
    }
}

/// As [`refusal`], for a commit that failed as a whole.
pub(super) fn as_refusal(error: &KafkaError) -> CommitError {
    match error.rdkafka_error_code() {
        Some(code) => refusal(code as i32),
        None => CommitError {
            kind: CommitErrorKind::Unavailable,
            reason: error.to_string(),
        },
    }
}

fn kind_of(code: i32) -> CommitErrorKind {
    use RDKafkaErrorCode as Code;
    const REBALANCING: [i32; 3] = [
        Code::IllegalGeneration as i32,
        Code::RebalanceInProgress as i32,
        Code::StaleMemberEpoch as i32,
    ];
    const NOT_MEMBER: [i32; 6] = [
        Code::GroupIdNotFound as i32,
        Code::UnknownMemberId as i32,
        Code::FencedInstanceId as i32,
        Code::FencedMemberEpoch as i32,
        Code::AssignmentLost as i32,
        Code::Fatal as i32,
    ];
    const NO_RIGHT: [i32; 3] = [
        Code::TopicAuthorizationFailed as i32,
        Code::GroupAuthorizationFailed as i32,
        Code::ClusterAuthorizationFailed as i32,
    ];
    const NO_TOPIC: i32 = Code::UnknownTopicOrPartition as i32;
    const METADATA_SIZE: i32 = Code::OffsetMetadataTooLarge as i32;
    const REQUEST_SIZE: i32 = Code::InvalidCommitOffsetSize as i32;
    const REJECTED: [i32; 2] = [Code::InvalidGroupId as i32, Code::InvalidRequest as i32];
    match code {
        code if REBALANCING.contains(&code) => CommitErrorKind::Rebalancing,
        code if NOT_MEMBER.contains(&code) => CommitErrorKind::NotMember,
        code if NO_RIGHT.contains(&code) => CommitErrorKind::Rejected(Rejection::Right),
        NO_TOPIC => CommitErrorKind::Rejected(Rejection::NoTopic),
        METADATA_SIZE => CommitErrorKind::Rejected(Rejection::MetadataSize),
        REQUEST_SIZE => CommitErrorKind::Rejected(Rejection::RequestSize),
        code if REJECTED.contains(&code) => CommitErrorKind::Rejected(Rejection::Other),
        _ => CommitErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_is_in_progress_until_the_client_has_applied_its_assignment() {
        let line = |from: &str, to: &str| {
            format!("[thrd:main]: Group \"a -> b\" changed join state {from} -> {to} (state up)")
        };
        for (from, to, joining) in [
            ("init", "wait-join", true),
            ("wait-join", "wait-metadata", true),
            ("wait-metadata", "wait-sync", true),
            ("wait-sync", "wait-assign-call", true),
            ("wait-assign-call", "steady", false),
            ("wait-sync", "wait-unassign-call", false),
            ("wait-sync", "init", false),
            ("steady", "init", false),
        ] {
            assert_eq!(join_state("CGRPJOINSTATE", &line(from, to)), Some(joining));
        }
        assert_eq!(join_state("HEARTBEAT", &line("init", "wait-join")), None);
        assert_eq!(join_state("CGRPJOINSTATE", "changed"), None);
    }

    #[test]
    fn a_leave_is_refused_unless_the_coordinator_confirms_it_or_knows_no_such_member() {
        for (answer, refused) in [
            ("LeaveGroup response received in state up", false),
            (
                "ConsumerGroupHeartbeat response received in state up",
                false,
            ),
            (
                "LeaveGroup response error in state up: Broker: Unknown member",
                false,
            ),
            (
                "LeaveGroup response error in state up: Local: Timed out",
                true,
            ),
            (
                "LeaveGroup response error in state wait-coord: Local: Waiting for coordinator",
                true,
            ),
        ] {
            let text = format!("[thrd:main]: {answer}");
            assert_eq!(
                leave_refused("LEAVEGROUP", &text),
                Some(refused),
                "{answer}"
            );
        }
        assert_eq!(leave_refused("LEAVE", "Leaving group"), None);
        assert_eq!(
            leave_refused("LEAVEGROUP", "words of another version"),
            None
        );
    }

    #[test]
    fn rejections_by_a_rebalancing_group_are_told_from_permanent_ones() {
        for (code, kind) in [
            (22, CommitErrorKind::Rebalancing),
            (27, CommitErrorKind::Rebalancing),
            (113, CommitErrorKind::Rebalancing),
            (25, CommitErrorKind::NotMember),
            (69, CommitErrorKind::NotMember),
            (82, CommitErrorKind::NotMember),
            (110, CommitErrorKind::NotMember),
            (-142, CommitErrorKind::NotMember),
            (12, CommitErrorKind::Rejected(Rejection::MetadataSize)),
            (28, CommitErrorKind::Rejected(Rejection::RequestSize)),
            (29, CommitErrorKind::Rejected(Rejection::Right)),
            (30, CommitErrorKind::Rejected(Rejection::Right)),
            (3, CommitErrorKind::Rejected(Rejection::NoTopic)),
            (7, CommitErrorKind::Unavailable),
            (14, CommitErrorKind::Unavailable),
            (16, CommitErrorKind::Unavailable),
            (-195, CommitErrorKind::Unavailable),
            (9_999, CommitErrorKind::Unavailable),
        ] {
            assert_eq!(kind_of(code), kind, "{code}: {}", describe(code));
        }
    }
}
