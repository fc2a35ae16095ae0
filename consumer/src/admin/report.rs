//! The report model: plain data that pumps and pools fill on request, and its merge into one report of the service.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluicegate_config::MetricsLevel;

use super::durations::DurationCounts;
use super::explain::HeldBy;
use super::problem::{OfPartition, ProblemKind, ServiceProblem, by_topic};

/// What one pump says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PumpReport {
    /// Which pump, from 0.
    pub pump: u32,
    /// Its partitions.
    pub partitions: Vec<PartitionReport>,
    /// Its share of each handler's work. A handler that ran in several versions may have an entry for each.
    pub handlers: Vec<HandlerFlowReport>,
    /// What it read, by topic.
    pub topics: Vec<TopicReport>,
    /// Bytes of the records that it holds.
    pub in_flight_bytes: u64,
    /// Records that it holds.
    pub in_flight_records: u64,
    /// Its commits.
    pub commits: CommitCounts,
    /// The client's last statistics, as JSON.
    pub client: Option<ClientStatistics>,
    /// The group was joined at some time, or there is nothing to join it for.
    #[serde(default)]
    pub joined: bool,
    /// Since when no broker is connected, in milliseconds since the epoch.
    #[serde(default)]
    pub kafka_unreachable_since_ms: Option<i64>,
    /// What stands between its client and the cluster, and what the group does not take.
    #[serde(default)]
    pub problems: Vec<ServiceProblem>,
}

/// librdkafka's statistics of one client, as it gave them; decoded when somebody scrapes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClientStatistics(pub Box<str>);

/// A partition that is assigned here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PartitionReport {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Fencing number of this ownership.
    pub epoch: u32,
    /// One past the highest contiguous settled offset.
    pub frontier: i64,
    /// One past the highest delivered offset.
    pub delivered: i64,
    /// Records delivered and not settled.
    pub in_flight: u64,
    /// Records that wait for their next attempt.
    pub parked: u64,
    /// Offsets between the frontier and the partition's end, as far as the end is known.
    pub lag: Option<i64>,
    /// What it is doing.
    pub state: PartitionState,
    /// Why it is stopped, cannot be read or is paused.
    pub reason: Option<String>,
    /// What helps against that.
    #[serde(default)]
    pub remedy: Option<String>,
    /// Since when it is stopped, cannot be read or cannot begin, in milliseconds since the epoch.
    #[serde(default)]
    pub since_ms: Option<i64>,
    /// Times that this was met since then.
    #[serde(default)]
    pub count: u64,
    /// Offsets that were passed over since the start because they are not in the log any more.
    #[serde(default)]
    pub gone: u64,
    /// Why it is paused.
    pub paused_for: Option<PauseReason>,
    /// The frontier has not moved for `stall_timeout` while records wait, here or in the log (G8).
    pub stalled: bool,
    /// Since when it stands still, in milliseconds since the epoch, once it counts as stalled.
    #[serde(default)]
    pub stalled_since_ms: Option<i64>,
    /// What holds the frontier; `None` when nothing waits.
    pub held_by: Option<HeldBy>,
}

/// What a partition is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartitionState {
    /// Where it begins is being looked up; `reason` says what is in the way.
    Starting,
    /// Records flow.
    #[default]
    Running,
    /// Its fetching is paused for a while: one of its bounds is reached.
    Paused,
    /// It is about to be given back; no new record starts.
    Draining,
    /// It cannot be read at present, for a `reason`; the client goes on trying.
    Unreadable,
    /// A fault stopped it; `reason` says which.
    Stopped,
}

/// Why the fetching of a partition is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// As many of its records as may be are uncommitted (`processing.max_uncommitted`).
    MaxUncommitted,
    /// Its records are slow to settle and take up the memory that other partitions need (`processing.memory`).
    Memory,
}

impl std::fmt::Display for PauseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::MaxUncommitted => "max_uncommitted",
            Self::Memory => "memory",
        })
    }
}

impl PartitionState {
    /// Its name in the API and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Unreadable => "unreadable",
            Self::Stopped => "stopped",
        }
    }
}

impl std::fmt::Display for PartitionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl PartitionReport {
    /// What keeps it from progressing, for the service's list of problems.
    pub fn problem(&self) -> Option<ServiceProblem> {
        by_topic(self.entry()).pop()
    }

    /// The same, to be put together with that of other partitions.
    pub(super) fn entry(&self) -> Option<OfPartition<'_>> {
        let of_partition = |kind, state, since_ms, cause, remedy| OfPartition {
            topic: &self.topic,
            partition: self.partition,
            kind,
            state,
            since_ms,
            count: self.count.max(1),
            cause,
            remedy,
        };
        if let Some(since_ms) = self.since_ms {
            let kind = match self.state {
                PartitionState::Stopped => ProblemKind::PartitionStopped,
                PartitionState::Starting => ProblemKind::PartitionStarting,
                _ => ProblemKind::PartitionUnreadable,
            };
            let cause = self.reason.clone().unwrap_or_default();
            let remedy = self.remedy.clone().unwrap_or_default();
            return Some(of_partition(
                kind,
                self.state.name(),
                since_ms,
                cause,
                remedy,
            ));
        }
        let since_ms = self.stalled_since_ms?;
        let cause = match &self.held_by {
            Some(held) => held.to_string(),
            None => self.reason.clone().unwrap_or_default(),
        };
        let place = (&self.topic, self.partition);
        let remedy = match self.held_by {
            Some(_) => format!("`sluicegate explain {}/{}` tells the rest", place.0, place.1),
            None => "look for a transaction that stays open, and for what librdkafka's log lines say of the partition"
                .to_owned(),
        };
        Some(of_partition(
            ProblemKind::PartitionStalled,
            "stalled",
            since_ms,
            cause,
            remedy,
        ))
    }
}

/// What a topic brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TopicReport {
    /// Topic.
    pub topic: String,
    /// Records delivered, repeats not counted.
    pub consumed: u64,
    /// Records that no handler wanted.
    pub unrouted: u64,
    /// Records that the client delivered twice within an assignment; dropped.
    pub repeats_dropped: u64,
    /// Partitions that began at their beginning, since the topic was deleted and created again.
    #[serde(default)]
    pub recreated: u64,
    /// Partitions whose commit metadata was not used: finished records of theirs may run again.
    #[serde(default)]
    pub metadata_dropped: u64,
}

/// A pump's share of a handler's work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HandlerFlowReport {
    /// Handler name.
    pub name: String,
    /// Version of its plugin that did it.
    pub version: String,
    /// Records in its lanes and pools, parked ones included.
    pub in_flight: u64,
    /// Records that wait for their next attempt.
    pub parked: u64,
    /// Times that what it emitted, or a dead letter of it, was refused by the cluster or the producer.
    #[serde(default)]
    pub refusals: u64,
    /// Records that wait for a further try of such.
    #[serde(default)]
    pub refused: u64,
    /// Why they wait, by topic.
    #[serde(default)]
    pub problems: Vec<ServiceProblem>,
    /// Outcomes, after settlement: a retry that became a dead letter counts as dead letter.
    pub outcomes: OutcomeCounts,
    /// Its last error: reason of a retry, dead letter or drop, without the record's value.
    pub last_error: Option<String>,
    /// Since when nothing of it has settled, while it is switched off or removed and still has records; in milliseconds
    /// since the epoch.
    pub held_since_ms: Option<i64>,
}

/// Outcomes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutcomeCounts {
    /// Done.
    pub ack: u64,
    /// Attempts that ended with another attempt to come.
    pub retry: u64,
    /// Given up, with a dead letter.
    pub dead_letter: u64,
    /// Dropped by the handler or by policy.
    pub drop: u64,
    /// Passed by while the gate was shut.
    pub skipped: u64,
}

impl OutcomeCounts {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.ack += other.ack;
        self.retry += other.retry;
        self.dead_letter += other.dead_letter;
        self.drop += other.drop;
        self.skipped += other.skipped;
    }

    /// The kinds' names in metrics, with their counts.
    pub fn by_name(&self) -> [(&'static str, u64); 5] {
        [
            ("ack", self.ack),
            ("retry", self.retry),
            ("dead_letter", self.dead_letter),
            ("drop", self.drop),
            ("skipped", self.skipped),
        ]
    }

    /// Records that are over and done with: everything except retries.
    pub fn settled(&self) -> u64 {
        self.ack + self.dead_letter + self.drop + self.skipped
    }
}

/// Commits by result, counted per partition in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommitCounts {
    /// Accepted.
    pub ok: u64,
    /// Refused for one partition inside an answer.
    pub refused: u64,
    /// Failed as a whole, or never answered.
    pub failed: u64,
}

/// What a generation's worker pool says of itself. Counters never go down: a released generation goes on being reported
/// with its counts (one entry a handler and version is enough), `generation` lower than that of its successor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolReport {
    /// Handler name.
    pub handler: String,
    /// Version of the plugin.
    pub version: String,
    /// Generation.
    pub generation: u64,
    /// Where the generation stands.
    pub state: HandlerState,
    /// Threads.
    pub workers: u32,
    /// Threads in a call just now.
    pub busy: u32,
    /// Threads given up because a call overran its timeout.
    pub quarantined: u32,
    /// Panics contained in this generation.
    pub panics: u64,
    /// Instances rebuilt.
    pub restarts: u64,
    /// Last panic, overrun or failed start.
    pub last_error: Option<String>,
    /// Since when it has failed or says that it is not healthy, in milliseconds since the epoch.
    #[serde(default)]
    pub since_ms: Option<i64>,
    /// Time a record.
    pub durations: DurationCounts,
    /// Records that it emitted and the cluster acknowledged, by topic.
    pub emitted: BTreeMap<String, u64>,
    /// The handler's own metrics.
    pub metrics: Vec<UserMetric>,
}

/// A metric of a handler's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserMetric {
    /// Name as the handler gave it.
    pub name: String,
    /// Kind and value.
    #[serde(flatten)]
    pub kind: UserMetricKind,
}

/// Kind and value of a handler's own metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum UserMetricKind {
    /// Only grows.
    Counter {
        /// Sum of what was added.
        value: f64,
    },
    /// Goes up and down.
    Gauge {
        /// What was set last.
        value: f64,
    },
    /// A distribution.
    Histogram {
        /// Upper bound and number of observations within it that are above the bound before.
        buckets: Vec<(f64, u64)>,
        /// Observations beyond the last bound.
        beyond: u64,
        /// Sum of what was observed.
        sum: f64,
    },
}

/// Where a handler's present generation stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HandlerState {
    /// Its plugin is being loaded and its instances built.
    #[default]
    Starting,
    /// It takes records.
    Active,
    /// It takes records, but says that it is not well.
    Unhealthy,
    /// It finishes what it has.
    Draining,
    /// Its instances died too often; its records are held until an operator or a new generation acts.
    Failed,
    /// Its plugin or config was refused; nothing of it runs.
    Rejected,
}

impl std::fmt::Display for HandlerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Starting => "STARTING",
            Self::Active => "ACTIVE",
            Self::Unhealthy => "UNHEALTHY",
            Self::Draining => "DRAINING",
            Self::Failed => "FAILED",
            Self::Rejected => "REJECTED",
        })
    }
}

/// A handler's on/off key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Records reach it.
    #[default]
    Open,
    /// Records pass it by, counted as skipped.
    Shut,
    /// The store says open; records pass it by as at a shut one until its instances are well.
    Held,
}

impl std::fmt::Display for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Shut => "shut",
            Self::Held => "held",
        })
    }
}

/// What the snapshot in force says of a handler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeclaredHandler {
    /// Handler name.
    pub name: String,
    /// Its plugin.
    pub plugin: String,
    /// Its gate.
    pub gate: Gate,
    /// Its route, as in the spec.
    pub route: serde_json::Value,
    /// Why it is not served, if it was refused.
    pub rejected: Option<String>,
    /// Why what stands in the source of specs is not what is served.
    #[serde(default)]
    pub refused_spec: Option<String>,
}

/// A handler, everything together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandlerReport {
    /// Handler name.
    pub name: String,
    /// Its plugin.
    pub plugin: String,
    /// Version of the generation in force.
    pub version: String,
    /// Generation in force.
    pub generation: u64,
    /// Where it stands.
    pub state: HandlerState,
    /// Its gate.
    pub gate: Gate,
    /// It is declared no more, and gone once it has no records left.
    pub removed: bool,
    /// Since when nothing of it has settled, while it is switched off or removed and still has records; in milliseconds
    /// since the epoch.
    pub held_since_ms: Option<i64>,
    /// Threads.
    pub workers: u32,
    /// Threads in a call just now.
    pub busy: u32,
    /// Threads given up.
    pub quarantined: u32,
    /// Records in its lanes and pools.
    pub in_flight: u64,
    /// Records that wait for their next attempt.
    pub parked: u64,
    /// Times that what it emitted, or a dead letter of it, was refused by the cluster or the producer.
    #[serde(default)]
    pub refusals: u64,
    /// Records that wait for a further try of such; each holds its lane.
    #[serde(default)]
    pub refused: u64,
    /// Since when it has failed or says that it is not healthy, in milliseconds since the epoch.
    #[serde(default)]
    pub since_ms: Option<i64>,
    /// What keeps its records from being handled or produced, with the remedy; empty when all is well.
    #[serde(default)]
    pub problems: Vec<ServiceProblem>,
    /// Outcomes of all versions.
    pub outcomes: OutcomeCounts,
    /// Panics of all versions, contained.
    pub panics: u64,
    /// Instances rebuilt.
    pub restarts: u64,
    /// Acknowledged emitted records by topic.
    pub emitted: BTreeMap<String, u64>,
    /// Its last error.
    pub last_error: Option<String>,
    /// Why what stands in the source of specs is refused, while an earlier spec is in force.
    #[serde(default)]
    pub refused_spec: Option<String>,
    /// Its route, as in the spec.
    pub route: serde_json::Value,
    /// Counts by version.
    pub versions: Vec<VersionReport>,
    /// Time a record.
    pub durations: DurationCounts,
    /// The handler's own metrics.
    pub metrics: Vec<UserMetric>,
}

/// Counts of one version of a handler's plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionReport {
    /// Version.
    pub version: String,
    /// Outcomes.
    pub outcomes: OutcomeCounts,
    /// Panics, contained.
    pub panics: u64,
}

/// What belongs to the service as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceInfo {
    /// Version of the service.
    pub version: String,
    /// Consumer group.
    pub group_id: String,
    /// When it started, in milliseconds since the epoch.
    pub started_ms: i64,
    /// Revision of the snapshot in force.
    pub revision: u64,
    /// Snapshots refused since the start.
    pub rejections: u64,
    /// Keys whose change the watch had missed and a re-read found.
    pub repairs: u64,
    /// Since when the source of specs cannot be read, in milliseconds since the epoch; the last good ones stay in force.
    pub unreachable_since_ms: Option<i64>,
    /// Since when what stands in the control plane is not applied, in milliseconds since the epoch; `problems` says why.
    #[serde(default)]
    pub held_since_ms: Option<i64>,
    /// How fine metrics are.
    pub metrics_level: MetricsLevel,
    /// Why the last one was refused; `None` once a later one was applied.
    pub last_rejection: Option<String>,
    /// Bytes of records that may be in flight.
    pub budget_bytes: u64,
    /// Pumps that did not answer in time.
    pub unresponsive_pumps: Vec<u32>,
    /// Unsigned plugins are accepted.
    pub allow_unsigned: bool,
    /// What does not progress, and what else an operator should mend; each entry goes when it heals.
    #[serde(default)]
    pub problems: Vec<ServiceProblem>,
    /// Pumps that have not joined the group since the start.
    #[serde(default)]
    pub not_joined: Vec<u32>,
    /// Since when no Kafka broker answers, in milliseconds since the epoch.
    #[serde(default)]
    pub kafka_unreachable_since_ms: Option<i64>,
    /// `processing.stall_timeout` in milliseconds.
    #[serde(default)]
    pub stall_timeout_ms: i64,
    /// It was told to stop.
    #[serde(default)]
    pub stopping: bool,
}

/// Everything, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceReport {
    /// What belongs to the service as a whole.
    #[serde(flatten)]
    pub facts: ServiceInfo,
    /// Bytes of records in flight.
    pub in_flight_bytes: u64,
    /// Records in flight.
    pub in_flight_records: u64,
    /// Commits.
    pub commits: CommitCounts,
    /// Topics, by name.
    pub topics: Vec<TopicReport>,
    /// Handlers, by name.
    pub handlers: Vec<HandlerReport>,
    /// Partitions, by topic and number.
    pub partitions: Vec<PartitionReport>,
    /// Statistics of each pump's client.
    pub clients: Vec<(u32, ClientStatistics)>,
}
