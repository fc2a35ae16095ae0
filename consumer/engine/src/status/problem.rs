//! The service's problem list: conditions that block progress or need an operator. Pumps, pools and the control side report
//! them; `/readyz`, the status, `explain` and the metrics render them.
//!
//! ```text
//!  flow:    stopped, unreadable, stalled partitions · refused commits, emits, dead letters ─┐
//!  pump:    partitions without a start offset · the client's last errors · the group        ├─► problems ─► bounded
//!  pools:   failed, unhealthy, held handlers                                                │
//!  control: refused specs, an unreachable store, missing topics ────────────────────────────┘
//! ```

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Maximum number of problems listed individually; the others are only counted.
const MAX_PROBLEMS: usize = 100;
/// Maximum number of partitions named in one entry.
const NAMED_PARTITIONS: usize = 20;
/// Maximum bytes of a cause, which may quote a whole refused spec.
const MAX_CAUSE: usize = 4_000;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// Kind of a problem; each kind has a series of `sluicegate_problems`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum ProblemKind {
            $($(#[$doc])* #[serde(rename = $name)] $kind,)*
        }

        impl ProblemKind {
            /// All kinds, in listing order.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name in the API and in metrics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// No broker answers a client.
    KafkaUnreachable = "kafka_unreachable",
    /// The brokers refuse the login, or TLS fails.
    KafkaLogin = "kafka_login",
    /// A broker cannot be reached, while others can.
    BrokerUnreachable = "broker_unreachable",
    /// The group refuses the member, or has revoked all of its partitions.
    Group = "group",
    /// A subscribed topic is missing or reading it is not permitted.
    Topic = "topic",
    /// Any other error of a client.
    Client = "client",
    /// A pump does not answer.
    Pump = "pump",
    /// A partition is stopped by a fault.
    PartitionStopped = "partition_stopped",
    /// A partition currently cannot be read.
    PartitionUnreadable = "partition_unreadable",
    /// A partition's start offset is unknown.
    PartitionStarting = "partition_starting",
    /// A frontier has not moved for `processing.stall_timeout` although records are waiting.
    PartitionStalled = "partition_stalled",
    /// The group refuses commits.
    CommitsRefused = "commits_refused",
    /// The cluster refuses records that a handler emits.
    EmitsRefused = "emits_refused",
    /// Records that a handler emitted, or its dead letters, have not been acknowledged for a while.
    EmitsUnacknowledged = "emits_unacknowledged",
    /// The cluster refuses a handler's dead letters.
    DeadLettersRefused = "dead_letters_refused",
    /// Every attempt of a handler fails.
    AttemptsFailing = "attempts_failing",
    /// A handler has failed; its records are held.
    HandlerFailed = "handler_failed",
    /// A handler's gate should be open and is held closed until the handler is healthy.
    HandlerHeld = "handler_held",
    /// A handler is unhealthy.
    HandlerUnhealthy = "handler_unhealthy",
    /// A handler that is switched off or deleted does not release its records.
    HandlerClosing = "handler_closing",
    /// A spec, or a part of one, is refused.
    SpecRefused = "spec_refused",
    /// The plugins folder cannot be read.
    PluginsUnread = "plugins_unread",
    /// A file in the plugins folder is not a usable plugin.
    PluginRefused = "plugin_refused",
    /// The source of specs cannot be read.
    SpecsUnreachable = "specs_unreachable",
    /// The store's specs are held back: they appear to be another store's or the result of a loss.
    SpecsHeld = "specs_held",
    /// The bridge inside the service is halted or has failed.
    BridgeHalted = "bridge_halted",
    /// Another process uses the member id.
    MemberId = "member_id",
    /// A topic that a route names does not exist.
    TopicMissing = "topic_missing",
    /// A dead-letter topic does not exist.
    DeadLetterTopicMissing = "dead_letter_topic_missing",
    /// The cluster's topics cannot be listed.
    TopicsUnlisted = "topics_unlisted",
}

impl ProblemKind {
    /// Whether it concerns the Kafka client and the cluster, rather than partitions, handlers or specs.
    pub fn is_of_client(self) -> bool {
        self <= Self::Client
    }
}

impl std::fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A condition that needs an operator. It is listed until it is resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceProblem {
    /// Machine-readable kind.
    pub kind: ProblemKind,
    /// What is wrong.
    pub what: String,
    /// Since when, in milliseconds since the epoch.
    pub since_ms: i64,
    /// Number of occurrences since then.
    pub count: u64,
    /// Why.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl ServiceProblem {
    /// The description of a handler that reads a nonexistent topic.
    pub fn reads_missing_topic(handler: &str, topic: &str) -> String {
        format!("handler `{handler}`{}", without(topic))
    }

    /// Whether it reports this topic as nonexistent.
    pub fn is_missing_topic(&self, topic: &str) -> bool {
        self.kind == ProblemKind::TopicMissing && self.what.ends_with(&without(topic))
    }

    /// The problem as one human-readable line, at `now_ms` since the epoch.
    pub fn sentence(&self, now_ms: i64) -> String {
        let seconds = now_ms.saturating_sub(self.since_ms).max(0) / 1_000;
        let times = match self.count {
            0 | 1 => String::new(),
            count => format!(" ({count} times)"),
        };
        format!(
            "{}, for {seconds} s{times}: {}; {}",
            self.what, self.cause, self.remedy
        )
    }
}

fn without(topic: &str) -> String {
    format!(" reads topic {topic}, which does not exist")
}

/// Sorts problems by kind and age, and limits their number and size.
pub(super) fn bounded(mut problems: Vec<ServiceProblem>) -> Vec<ServiceProblem> {
    problems.sort_by(|a, b| (a.kind, a.since_ms, &a.what).cmp(&(b.kind, b.since_ms, &b.what)));
    for problem in &mut problems {
        if problem.cause.len() > MAX_CAUSE {
            let end = problem.cause.floor_char_boundary(MAX_CAUSE);
            problem.cause.truncate(end);
            problem.cause.push('…');
        }
    }
    if problems.len() <= MAX_PROBLEMS {
        return problems;
    }
    // A flood of one kind must not hide the others: slots are allotted round-robin, oldest entries of each kind first.
    let mut turns: Vec<(usize, ServiceProblem)> = Vec::with_capacity(problems.len());
    let mut seen: BTreeMap<ProblemKind, usize> = BTreeMap::new();
    for problem in problems {
        let turn = seen.entry(problem.kind).or_default();
        turns.push((*turn, problem));
        *turn += 1;
    }
    turns.sort_by_key(|(turn, _)| *turn);
    let mut left_out: BTreeMap<ProblemKind, ServiceProblem> = BTreeMap::new();
    for (_, problem) in turns.split_off(MAX_PROBLEMS) {
        let kind = problem.kind;
        let more = left_out.entry(kind).or_insert_with(|| ServiceProblem {
            count: 0,
            cause: "as above".to_owned(),
            remedy: "as above".to_owned(),
            ..problem
        });
        more.count += 1;
        more.what = format!("{} more problems of kind {kind}", more.count);
    }
    let mut kept: Vec<ServiceProblem> = turns.into_iter().map(|(_, problem)| problem).collect();
    kept.sort_by(|a, b| (a.kind, a.since_ms, &a.what).cmp(&(b.kind, b.since_ms, &b.what)));
    kept.extend(left_out.into_values());
    kept
}

/// A problem of one partition; `state` completes the sentence "partition t/0 is …".
pub(super) struct OfPartition<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) kind: ProblemKind,
    pub(super) state: &'a str,
    pub(super) since_ms: i64,
    pub(super) count: u64,
    pub(super) cause: String,
    pub(super) remedy: String,
}

/// One problem for all partitions of a topic that share state, cause and remedy.
pub(super) fn by_topic<'a>(
    partitions: impl IntoIterator<Item = OfPartition<'a>>,
) -> Vec<ServiceProblem> {
    let mut groups: BTreeMap<_, (i64, u64, Vec<i32>)> = BTreeMap::new();
    for one in partitions {
        let key = (one.kind, one.topic, one.state, one.cause, one.remedy);
        let group = groups.entry(key).or_insert((one.since_ms, 0, Vec::new()));
        group.0 = group.0.min(one.since_ms);
        group.1 += one.count;
        group.2.push(one.partition);
    }
    let problem = |(key, group): ((ProblemKind, &str, &str, String, String), _)| {
        let (kind, topic, state, cause, remedy) = key;
        let (since_ms, count, numbers): (i64, u64, Vec<i32>) = group;
        let named = numbers.iter().take(NAMED_PARTITIONS);
        let mut names: Vec<String> = named.map(|number| format!("{topic}/{number}")).collect();
        if let Some(more) = numbers.len().checked_sub(NAMED_PARTITIONS + 1) {
            names.push(format!("{} more", more + 1));
        }
        let (noun, verb) = match numbers.len() {
            1 => ("partition", "is"),
            _ => ("partitions", "are"),
        };
        ServiceProblem {
            kind,
            what: format!("{noun} {} {verb} {state}", names.join(", ")),
            since_ms,
            count,
            cause,
            remedy,
        }
    };
    groups.into_iter().map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: ProblemKind, number: i64) -> ServiceProblem {
        ServiceProblem {
            kind,
            what: format!("{number}"),
            since_ms: number,
            count: 1,
            cause: "c".repeat(10_000),
            remedy: String::new(),
        }
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other_and_its_rest_is_counted() {
        let flood = (0..5_000).map(|number| problem(ProblemKind::SpecRefused, number));
        let rest = [
            problem(ProblemKind::Group, 7),
            problem(ProblemKind::TopicMissing, 8),
        ];
        let shown = bounded(flood.chain(rest).collect());
        assert_eq!(shown.len(), MAX_PROBLEMS + 1);
        assert_eq!(shown[0].kind, ProblemKind::Group);
        let last = shown.last().expect("there are some");
        assert_eq!(last.what, "4902 more problems of kind spec_refused");
        let bytes: usize = shown.iter().map(|problem| problem.cause.len()).sum();
        assert!(bytes < MAX_PROBLEMS * (MAX_CAUSE + 4), "{bytes}");
    }

    #[test]
    fn partitions_with_one_cause_are_one_problem() {
        let cause = |partition: i32| match partition {
            3 => "another",
            _ => "Broker: Topic authorization failed",
        };
        let partitions = (0..30).map(|partition| OfPartition {
            topic: "t",
            partition,
            kind: ProblemKind::PartitionUnreadable,
            state: "unreadable",
            since_ms: 100 - i64::from(partition),
            count: 2,
            cause: cause(partition).to_owned(),
            remedy: "grant READ".to_owned(),
        });
        let problems = by_topic(partitions);
        assert_eq!(problems.len(), 2);
        assert!(
            problems[0]
                .what
                .starts_with("partitions t/0, t/1, t/2, t/4, ")
        );
        assert!(problems[0].what.ends_with(", 9 more are unreadable"));
        assert_eq!((problems[0].since_ms, problems[0].count), (71, 58));
        assert_eq!(problems[1].what, "partition t/3 is unreadable");
    }

    #[test]
    fn names_in_the_api_and_in_metrics_are_the_same() {
        for kind in ProblemKind::ALL {
            let json = serde_json::to_value(kind).expect("a name");
            assert_eq!(json, serde_json::json!(kind.name()));
        }
    }
}
