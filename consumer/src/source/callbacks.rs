//! What librdkafka calls: the callbacks only record what happened; the pump reads it with [`super::Source::events`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{ClientContext, TopicPartitionList};

use super::raw::{describe, list_entries};
use super::{CommitResult, SourceEvent, TopicPartition};

/// What a callback recorded.
#[derive(Debug)]
pub(super) enum Seen {
    /// The group gave us partitions; librdkafka waits for an assign.
    Assign(Vec<TopicPartition>),
    /// The group takes partitions; librdkafka waits for an unassign.
    Revoke {
        partitions: Vec<TopicPartition>,
        lost: bool,
    },
    /// A commit was answered.
    Committed {
        results: Vec<CommitResult>,
        error: Option<String>,
    },
    /// Anything that only has to be passed on.
    Other(SourceEvent),
}

/// The context of a source's client.
#[derive(Default)]
pub(super) struct Callbacks {
    seen: Mutex<Vec<Seen>>,
    closing: AtomicBool,
    gave_up: AtomicBool,
}

impl Callbacks {
    /// Takes what was recorded, in order.
    pub(super) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on nobody answers rebalances: they are answered in the callback, as the client's close waits for it.
    pub(super) fn set_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Answers the rebalances of a closing group by giving everything up, once.
    ///
    /// A closing group takes any assign call for "unassign everything" (rd_kafka_cgrp_handle_assign_op), and the close waits
    /// until one has come. The call stands behind the order to close in the group's queue, so it answers every rebalance
    /// that there is, also one whose event is read later. A second call can come when the group has ended: librdkafka
    /// drops it without a reply (rd_kafka_cgrp_op_serve), and whoever waits for that waits for ever.
    pub(super) fn give_up(&self, consumer: &BaseConsumer<Self>) {
        if self.gave_up.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = consumer.unassign() {
            tracing::warn!(%error, "could not give up the assignment while closing");
        }
    }

    /// Marks the last recorded client error as fatal.
    pub(super) fn mark_fatal(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let last = seen.iter_mut().rev().find_map(|seen| match seen {
            Seen::Other(SourceEvent::ClientError { fatal, .. }) => Some(fatal),
            _ => None,
        });
        if let Some(fatal) = last {
            *fatal = true;
        }
    }

    fn record(&self, seen: Seen) {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(seen);
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let json = String::from_utf8_lossy(statistics).into_owned();
        self.record(Seen::Other(SourceEvent::Statistics(json.into_boxed_str())));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let fatal = error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal);
        self.record(Seen::Other(SourceEvent::ClientError {
            reason: reason.to_owned(),
            fatal,
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
            self.give_up(consumer);
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
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Seen::Assign(partitions),
            _ => Seen::Revoke {
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
                error: (entry.error_code != 0).then(|| describe(entry.error_code)),
            })
            .collect();
        self.record(Seen::Committed {
            results,
            error: result.err().map(|error| error.to_string()),
        });
    }
}

/// Passes a line of librdkafka's log on.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, text: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => tracing::error!(target: "librdkafka", facility, "{text}"),
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{text}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::info!(target: "librdkafka", facility, "{text}");
        }
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{text}"),
    }
}
