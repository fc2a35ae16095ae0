//! What holds a partition's frontier, or one record: who, since when, and what it waits for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluicegate_config::escape::{escape, escape_lines};

/// What one handler's share of a record waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WaitsFor {
    /// An earlier record of its lane.
    Lane {
        /// Offset of that record.
        behind: i64,
    },
    /// A worker that is free, or room in the handler's bounds.
    Worker,
    /// The handler's answer: it runs.
    Handler,
    /// The time of its next attempt.
    Retry {
        /// When, in milliseconds since the epoch.
        at_ms: i64,
    },
    /// The acknowledgement of what the handler emitted.
    Emits {
        /// Why it is not produced yet, if the cluster or the producer refused it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refused: Option<ProduceRefusal>,
    },
    /// The acknowledgement of its dead letter (G7).
    DeadLetter {
        /// Why it is not written yet, if the cluster or the producer refused it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refused: Option<ProduceRefusal>,
    },
    /// An operator or a new generation: the handler has failed and its records are held.
    FailedHandler,
}

/// Why a record that the service wants to produce is not produced; it is sent again with growing pauses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProduceRefusal {
    /// The topic that it is for.
    pub topic: String,
    /// What happened, in the client's words.
    pub error: String,
    /// What to do about it, the setting named.
    pub remedy: String,
    /// When it was refused first, in milliseconds since the epoch.
    pub since_ms: i64,
    /// Times that it was refused.
    pub tries: u32,
    /// When it is sent again, in milliseconds since the epoch; `None` while it is.
    pub next_ms: Option<i64>,
}

impl std::fmt::Display for ProduceRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let now_ms = crate::admin::view::now_ms();
        write!(
            f,
            "; {} refuses it since {} ms ({} times): {}; {}",
            self.topic,
            now_ms.saturating_sub(self.since_ms).max(0),
            self.tries,
            self.error,
            self.remedy
        )?;
        match self.next_ms {
            Some(next_ms) => {
                let left_ms = next_ms.saturating_sub(now_ms).max(0);
                write!(f, "; next try in {left_ms} ms")
            }
            None => Ok(()),
        }
    }
}

/// The words behind what is waited for.
fn why(refused: &Option<ProduceRefusal>) -> String {
    refused
        .as_ref()
        .map_or_else(String::new, ProduceRefusal::to_string)
}

impl std::fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lane { behind } => write!(f, "offset {behind}, which is before it in its lane"),
            Self::Worker => f.write_str("a free worker"),
            Self::Handler => f.write_str("the handler's answer"),
            Self::Retry { at_ms } => {
                let left_ms = at_ms.saturating_sub(crate::admin::view::now_ms());
                write!(f, "its next attempt in {} ms", left_ms.max(0))
            }
            Self::Emits { refused } => write!(
                f,
                "the acknowledgement of what the handler emitted{}",
                why(refused)
            ),
            Self::DeadLetter { refused } => {
                write!(f, "the acknowledgement of its dead letter{}", why(refused))
            }
            Self::FailedHandler => {
                f.write_str("an operator or a new generation: the handler has failed")
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
    /// The attempt that runs or comes next, from 1.
    pub attempt: u32,
    /// Since when it waits for this, in milliseconds since the epoch.
    pub since_ms: i64,
    /// What for.
    pub waits_for: WaitsFor,
}

impl std::fmt::Display for HeldBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "offset {} is held by handler `{}`, which waits in attempt {} for {}",
            self.offset, self.handler, self.attempt, self.waits_for
        )
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordStatus {
    /// The partition is ours, and where it begins is being looked up; `reason` says what is in the way.
    Starting,
    /// Every handler that wanted it is done with it.
    Settled,
    /// Some handler is not.
    InFlight,
    /// It was not delivered yet.
    NotDelivered,
    /// Nothing is in flight: the frontier waits for records to come.
    Idle,
    /// The partition cannot be read at present; `reason` says why.
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
    /// The record: the one that was asked for, or else the one at the frontier.
    pub offset: i64,
    /// One past the highest contiguous settled offset.
    pub frontier: i64,
    /// One past the highest delivered offset.
    pub delivered: i64,
    /// Where the record stands.
    pub status: RecordStatus,
    /// Why the partition is stopped or cannot be read, or what else there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Every handler that has not settled the record.
    pub held_by: Vec<HeldBy>,
}

impl Explanation {
    /// The answer in a sentence or two, for people.
    pub fn sentence(&self) -> String {
        let place = format!("{}/{}/{}", self.topic, self.partition, self.offset);
        let mut text = match self.status {
            RecordStatus::Starting => format!("{}/{} has not begun", self.topic, self.partition),
            RecordStatus::Settled => {
                format!("{place} is settled (frontier {})", self.frontier)
            }
            RecordStatus::NotDelivered => format!(
                "{place} was not delivered yet (delivered up to {})",
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
            let waited_ms = crate::admin::view::now_ms()
                .saturating_sub(held.since_ms)
                .max(0);
            // When a record was queued is not noted; only the one at the frontier is known to have waited since that moved.
            let queued = matches!(held.waits_for, WaitsFor::Lane { .. } | WaitsFor::Worker);
            let waits = match queued && self.offset > self.frontier {
                true => "waits".to_owned(),
                false => format!("has waited {:.1} s", waited_ms as f64 / 1_000.0),
            };
            text.push_str(&format!(
                "\nhandler `{}`, attempt {}, {waits} for {}",
                held.handler,
                held.attempt,
                escape(&held.waits_for.to_string())
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
        let text = explanation.sentence();
        assert!(
            text.starts_with("orders/3/41 is in flight (frontier 41)"),
            "{text}"
        );
        assert!(
            text.contains("handler `auditor`, attempt 2, has waited "),
            "{text}"
        );
        assert!(
            text.contains("the acknowledgement of its dead letter; orders.dlt refuses it since "),
            "{text}"
        );
        let why = "(7 times): the record has 10485760 bytes; raise max.message.bytes; next try in";
        assert!(text.contains(why), "{text}");
    }
}
