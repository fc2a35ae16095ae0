//! What does not progress, in one list: pumps, handlers and the control side put in what stands, and `/readyz`, the status,
//! `explain` and the metrics render it.
//!
//! ```text
//!  flow:    stopped, unreadable, stalled partitions · refused commits, emits, dead letters ─┐
//!  pump:    partitions without a beginning · the client's last errors · the group           ├─► problems ─► bounded
//!  pools:   failed, unhealthy, held handlers                                                │
//!  control: refused specs, an unreachable store, missing topics ────────────────────────────┘
//! ```

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most problems that are listed one by one; of the others the number is told.
const MAX_PROBLEMS: usize = 100;
/// Most partitions that one entry names.
const NAMED_PARTITIONS: usize = 20;
/// Most characters of a cause: it may quote a whole refused spec.
const MAX_CAUSE: usize = 4_000;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What a problem is about; each kind has a series of `sluicegate_problems`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum ProblemKind {
            $($(#[$doc])* #[serde(rename = $name)] $kind,)*
        }

        impl ProblemKind {
            /// All of them, in the order in which problems are listed.
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
    /// The brokers refuse the login, or the encryption fails.
    KafkaLogin = "kafka_login",
    /// A broker cannot be reached, while others can.
    BrokerUnreachable = "broker_unreachable",
    /// The group does not take the member, or has taken everything away from it.
    Group = "group",
    /// A subscribed topic is missing or may not be read.
    Topic = "topic",
    /// Anything else that a client complains of.
    Client = "client",
    /// A pump does not answer.
    Pump = "pump",
    /// A partition is stopped by a fault.
    PartitionStopped = "partition_stopped",
    /// A partition cannot be read at present.
    PartitionUnreadable = "partition_unreadable",
    /// It is not known where a partition begins.
    PartitionStarting = "partition_starting",
    /// A frontier has stood still for `processing.stall_timeout` while records wait.
    PartitionStalled = "partition_stalled",
    /// The group does not take commits.
    CommitsRefused = "commits_refused",
    /// The cluster does not take what a handler emits.
    EmitsRefused = "emits_refused",
    /// The cluster does not take a handler's dead letters.
    DeadLettersRefused = "dead_letters_refused",
    /// A handler has failed; its records are held.
    HandlerFailed = "handler_failed",
    /// A handler's gate is to be open and is held shut until it is healthy.
    HandlerHeld = "handler_held",
    /// A handler says that it is not healthy.
    HandlerUnhealthy = "handler_unhealthy",
    /// A handler that is switched off or deleted does not let go of its records.
    HandlerClosing = "handler_closing",
    /// A spec, or a part of one, is refused.
    SpecRefused = "spec_refused",
    /// The plugins folder cannot be read.
    PluginsUnread = "plugins_unread",
    /// A file in the plugins folder is no plugin that can be used.
    PluginRefused = "plugin_refused",
    /// The source of specs cannot be read.
    SpecsUnreachable = "specs_unreachable",
    /// What stands in the store of specs is not applied: it looks like another store's, or like a loss.
    SpecsHeld = "specs_held",
    /// Another process has the member id.
    MemberId = "member_id",
    /// A topic that a route names does not exist.
    TopicMissing = "topic_missing",
    /// A dead-letter topic does not exist.
    DeadLetterTopicMissing = "dead_letter_topic_missing",
    /// The cluster's topics cannot be listed.
    TopicsUnlisted = "topics_unlisted",
}

impl ProblemKind {
    /// Whether it is about a client and the cluster, rather than about partitions, handlers or specs.
    pub fn is_of_client(self) -> bool {
        self <= Self::Client
    }
}

impl std::fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that an operator should mend. It is listed while it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceProblem {
    /// What it is about, for programs.
    pub kind: ProblemKind,
    /// What is not as it should be.
    pub what: String,
    /// Since when, in milliseconds since the epoch.
    pub since_ms: i64,
    /// Times that it was met since then.
    pub count: u64,
    /// Why.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl ServiceProblem {
    /// What a handler misses that reads a topic which is not there.
    pub fn reads_missing_topic(handler: &str, topic: &str) -> String {
        format!("handler `{handler}`{}", without(topic))
    }

    /// Whether it is that this topic is not there.
    pub fn is_missing_topic(&self, topic: &str) -> bool {
        self.kind == ProblemKind::TopicMissing && self.what.ends_with(&without(topic))
    }

    /// The problem in a line, for people.
    pub fn sentence(&self) -> String {
        let seconds = super::view::now_ms().saturating_sub(self.since_ms).max(0) / 1_000;
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

/// Problems by kind and age, no more than a reader can take in.
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
    // One flood must not hide the other kinds: each keeps its oldest entries, in turns.
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

/// What is wrong with one partition; `state` says it in words that follow its name.
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
    fn a_flood_of_one_kind_hides_no_other_and_is_told_as_a_number() {
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
