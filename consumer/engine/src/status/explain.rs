//! Explains what blocks a partition's frontier or one record: the handler, since when, and what it is waiting for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluicegate_config::escape::{escape, escape_lines};

/// What one handler's share of a record is waiting for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WaitsFor {
    /// A record of the same lane: an earlier one, unless `order` has changed since that was started.
    Lane {
        /// Offset of that record.
        behind: i64,
    },
    /// A free worker, or capacity within the handler's in-flight limits.
    Worker {
        /// Why one of its instances is unhealthy or cannot be built, if so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unhealthy: Option<String>,
    },
    /// Acknowledgements of what the handler emitted for other records: the producer has so much of it that nothing is added.
    Producer {
        /// Emitted records and dead letters of the handler, in this pump, that the cluster has not acknowledged.
        unacknowledged: u32,
    },
    /// The handler's outcome: the record is being handled.
    Handler,
    /// The end of its call, which is at another record: it was handled before that one, or is handled after it.
    Call {
        /// Offset of the record that the call is at.
        runs: i64,
    },
    /// The time of its next attempt.
    Retry {
        /// When, in milliseconds since the epoch.
        at_ms: i64,
    },
    /// The acknowledgement of the records that the handler emitted.
    Emits {
        /// The topics that have not acknowledged all of them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        topics: Vec<String>,
        /// Why they are not produced yet, if the cluster or the producer refused them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refused: Option<ProduceRefusal>,
    },
    /// The acknowledgement of its dead letter (G7).
    DeadLetter {
        /// Why it is not produced yet, if the cluster or the producer refused it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refused: Option<ProduceRefusal>,
    },
    /// The calls that were started under another `order` of the handler: the new one applies once they have ended.
    Order,
    /// Operator action or a new generation: the handler has failed and its records are held.
    FailedHandler,
}

/// Why a record is not produced yet. The service retries with increasing backoff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProduceRefusal {
    /// Target topic.
    pub topic: String,
    /// The producer's error message.
    pub error: String,
    /// What to do about it, naming the setting.
    pub remedy: String,
    /// When it was first refused, in milliseconds since the epoch.
    pub since_ms: i64,
    /// Number of refused attempts.
    pub tries: u32,
    /// Time of the next attempt, in milliseconds since the epoch; `None` while an attempt is in progress.
    pub next_ms: Option<i64>,
}

impl ProduceRefusal {
    /// The refusal as a suffix of a sentence, at `now_ms` since the epoch.
    fn sentence(&self, now_ms: i64) -> String {
        let mut text = format!(
            "; {} has refused it for {} ms ({} times): {}; {}",
            self.topic,
            now_ms.saturating_sub(self.since_ms).max(0),
            self.tries,
            self.error,
            self.remedy
        );
        if let Some(next_ms) = self.next_ms {
            let left_ms = next_ms.saturating_sub(now_ms).max(0);
            text.push_str(&format!("; next attempt in {left_ms} ms"));
        }
        text
    }
}

/// The refusal as a suffix of the sentence; empty without one.
fn why(refused: &Option<ProduceRefusal>, now_ms: i64) -> String {
    refused
        .as_ref()
        .map_or_else(String::new, |refusal| refusal.sentence(now_ms))
}

impl WaitsFor {
    /// What it waits for, as the end of a sentence, at `now_ms` since the epoch.
    pub fn sentence(&self, now_ms: i64) -> String {
        match self {
            Self::Lane { behind } => format!("offset {behind}, which holds its lane"),
            Self::Worker { unhealthy: None } => "a free worker".to_owned(),
            Self::Worker {
                unhealthy: Some(why),
            } => format!("a free worker; not every worker has a healthy instance: {why}"),
            Self::Producer { unacknowledged } => format!(
                "the acknowledgement of {unacknowledged} records that the handler emitted before: the producer takes no more of it"
            ),
            Self::Handler => "the handler's outcome".to_owned(),
            Self::Call { runs } => format!("the end of its call, which is at offset {runs}"),
            Self::Retry { at_ms } => {
                let left_ms = at_ms.saturating_sub(now_ms).max(0);
                format!("its next attempt in {left_ms} ms")
            }
            Self::Emits { topics, refused } => {
                let mut text = "the acknowledgement of its emitted records".to_owned();
                if refused.is_none() && !topics.is_empty() {
                    let topics = topics.join(", ");
                    text.push_str(&format!(" by the leaders and in-sync replicas of {topics}"));
                }
                text + &why(refused, now_ms)
            }
            Self::DeadLetter { refused } => {
                format!(
                    "the acknowledgement of its dead letter{}",
                    why(refused, now_ms)
                )
            }
            Self::Order => {
                "the calls that were started under another `order` of the handler; the new one applies once they have ended"
                    .to_owned()
            }
            Self::FailedHandler => {
                "the handler, which has failed: a restart of it, another generation, or, if its threads hang, their return".to_owned()
            }
        }
    }
}

/// A handler that has not settled its share of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldBy {
    /// The record.
    pub offset: i64,
    /// The handler.
    pub handler: String,
    /// The current or next attempt, counted from 1.
    pub attempt: u32,
    /// Since when it has been waiting, in milliseconds since the epoch.
    pub since_ms: i64,
    /// What it is waiting for.
    pub waits_for: WaitsFor,
}

impl HeldBy {
    /// Which record is held, by whom, and what it waits for, at `now_ms` since the epoch.
    pub fn sentence(&self, now_ms: i64) -> String {
        format!(
            "offset {} is held by handler `{}`, attempt {}, waiting for {}",
            self.offset,
            self.handler,
            self.attempt,
            self.waits_for.sentence(now_ms)
        )
    }
}

/// State of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordStatus {
    /// The partition is assigned and its start offset is being resolved; `reason` says what prevents it.
    Starting,
    /// Every handler that matched the record has settled it.
    Settled,
    /// At least one handler has not settled it.
    InFlight,
    /// Not delivered yet.
    NotDelivered,
    /// Nothing is in flight: the frontier is waiting for new records.
    Idle,
    /// The partition currently cannot be read; `reason` says why.
    Unreadable,
    /// The partition is stopped by a fault; `reason` says which.
    Stopped,
}

/// The answer to `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// The requested record, or the one at the frontier.
    pub offset: i64,
    /// One past the highest contiguous settled offset.
    pub frontier: i64,
    /// One past the highest delivered offset.
    pub delivered: i64,
    /// State of the record.
    pub status: RecordStatus,
    /// Why the partition is stopped or cannot be read, or other details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Handlers that have not settled the record.
    pub held_by: Vec<HeldBy>,
}

impl Explanation {
    /// A human-readable summary, at `now_ms` since the epoch.
    pub fn sentence(&self, now_ms: i64) -> String {
        let place = format!("{}/{}/{}", self.topic, self.partition, self.offset);
        let mut text = match self.status {
            RecordStatus::Starting => format!("{}/{} has not started", self.topic, self.partition),
            RecordStatus::Settled => {
                format!("{place} is settled (frontier {})", self.frontier)
            }
            RecordStatus::NotDelivered => format!(
                "{place} has not been delivered yet (delivered up to {})",
                self.delivered
            ),
            RecordStatus::Idle => format!(
                "nothing holds {}/{}: everything delivered is settled, frontier {}",
                self.topic, self.partition, self.frontier
            ),
            RecordStatus::Unreadable => format!(
                "{}/{} cannot be read beyond offset {}, frontier {}",
                self.topic, self.partition, self.delivered, self.frontier
            ),
            RecordStatus::Stopped => format!(
                "{}/{} is stopped at frontier {}",
                self.topic, self.partition, self.frontier
            ),
            RecordStatus::InFlight => format!("{place} is in flight (frontier {})", self.frontier),
        };
        for held in &self.held_by {
            let waited_ms = now_ms.saturating_sub(held.since_ms).max(0);
            // Queueing times are not recorded: only the record at the frontier is known to have waited since the frontier moved.
            let queued = matches!(
                held.waits_for,
                WaitsFor::Lane { .. } | WaitsFor::Worker { .. } | WaitsFor::Order
            );
            let waits = match queued && self.offset > self.frontier {
                true => "waits".to_owned(),
                false => format!("has waited {:.1} s", waited_ms as f64 / 1_000.0),
            };
            text.push_str(&format!(
                "\nhandler `{}`, attempt {}, {waits} for {}",
                held.handler,
                held.attempt,
                escape(&held.waits_for.sentence(now_ms))
            ));
        }
        if let Some(reason) = &self.reason {
            text.push_str(&format!("\n{}", escape_lines(reason)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_record_names_its_handler_attempt_and_reason() {
        let explanation = Explanation {
            topic: "orders".into(),
            partition: 3,
            offset: 41,
            frontier: 41,
            delivered: 90,
            status: RecordStatus::InFlight,
            reason: None,
            held_by: vec![HeldBy {
                offset: 41,
                handler: "auditor".into(),
                attempt: 2,
                since_ms: 0,
                waits_for: WaitsFor::DeadLetter {
                    refused: Some(ProduceRefusal {
                        topic: "orders.dlt".into(),
                        error: "the record has 10485760 bytes".into(),
                        remedy: "raise max.message.bytes".into(),
                        since_ms: 0,
                        tries: 7,
                        next_ms: Some(i64::MAX),
                    }),
                },
            }],
        };
        let text = explanation.sentence(1_000);
        assert!(
            text.starts_with("orders/3/41 is in flight (frontier 41)"),
            "{text}"
        );
        assert!(
            text.contains("handler `auditor`, attempt 2, has waited "),
            "{text}"
        );
        assert!(
            text.contains("the acknowledgement of its dead letter; orders.dlt has refused it for "),
            "{text}"
        );
        let why =
            "(7 times): the record has 10485760 bytes; raise max.message.bytes; next attempt in";
        assert!(text.contains(why), "{text}");
    }
}
