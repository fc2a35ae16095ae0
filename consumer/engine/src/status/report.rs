//! The report model: plain data that pumps and pools fill on request. `merge` combines it into a report of the service.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluicegate_config::MetricsLevel;

use super::problem::{OfPartition, ProblemKind, ServiceProblem, by_topic};
use crate::status::{CommitCounts, DurationCounts, HeldBy, LastError, OutcomeCounts};

/// Report of one pump.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PumpReport {
    /// Index of the pump, from 0.
    pub pump: u32,
    /// Its partitions.
    pub partitions: Vec<PartitionReport>,
    /// Its share of each handler's work; one entry per handler and version.
    pub handlers: Vec<HandlerFlowReport>,
    /// Records read, by topic.
    pub topics: Vec<TopicReport>,
    /// Bytes of its records in flight.
    pub in_flight_bytes: u64,
    /// Its records in flight.
    pub in_flight_records: u64,
    /// Its commits.
    pub commits: CommitCounts,
    /// The Kafka client's latest statistics, as JSON.
    pub client: Option<ClientStatistics>,
    /// The group has been joined at least once, or there is nothing to subscribe to.
    #[serde(default)]
    pub joined: bool,
    /// Since when no broker has been connected, in milliseconds since the epoch.
    #[serde(default)]
    pub kafka_unreachable_since_ms: Option<i64>,
    /// Problems of its client with the cluster, and of its membership and commits with the group.
    #[serde(default)]
    pub problems: Vec<ServiceProblem>,
}

/// One client's statistics as received from librdkafka; decoded only on a scrape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClientStatistics(pub Box<str>);

/// A partition that is assigned to this process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PartitionReport {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Fencing epoch of this assignment.
    pub epoch: u64,
    /// One past the highest contiguous settled offset.
    pub frontier: i64,
    /// One past the highest delivered offset.
    pub delivered: i64,
    /// Records delivered and not settled.
    pub in_flight: u64,
    /// Records waiting for their next attempt.
    pub parked: u64,
    /// Offsets between the frontier and the end of the partition; `None` while the end is unknown.
    pub lag: Option<i64>,
    /// Its state.
    pub state: PartitionState,
    /// Why it is stopped, unreadable or paused.
    pub reason: Option<String>,
    /// Remedy for `reason`.
    #[serde(default)]
    pub remedy: Option<String>,
    /// Since when it has been stopped, unreadable or unable to start, in milliseconds since the epoch.
    #[serde(default)]
    pub since_ms: Option<i64>,
    /// Number of occurrences since then.
    #[serde(default)]
    pub count: u64,
    /// Offsets skipped since startup because they have left the log.
    #[serde(default)]
    pub gone: u64,
    /// Why it is paused.
    pub paused_for: Option<PauseReason>,
    /// The frontier has not moved for `stall_timeout` although records are waiting, here or in the log (G8).
    pub stalled: bool,
    /// Start of the standstill, in milliseconds since the epoch; set once the partition counts as stalled.
    #[serde(default)]
    pub stalled_since_ms: Option<i64>,
    /// What blocks the frontier; `None` when nothing is waiting.
    pub held_by: Option<HeldBy>,
}

/// State of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartitionState {
    /// Its start offset is being resolved; `reason` says what prevents it.
    Starting,
    /// Records are being processed.
    #[default]
    Running,
    /// Fetching is paused because one of its bounds is reached.
    Paused,
    /// It is being revoked; no new record is started.
    Draining,
    /// It currently cannot be read; `reason` says why. The client keeps retrying.
    Unreadable,
    /// A fault stopped it; `reason` says which.
    Stopped,
}

/// Why fetching from a partition is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// The limit of uncommitted records is reached (`processing.max_uncommitted`).
    MaxUncommitted,
    /// Its records settle slowly and occupy memory that other partitions need (`processing.memory`).
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
    /// What prevents its progress at `now_ms` since the epoch, as an entry of the service's problem list.
    pub fn problem(&self, now_ms: i64) -> Option<ServiceProblem> {
        by_topic(self.entry(now_ms)).pop()
    }

    /// The same, for merging with entries of other partitions.
    pub(super) fn entry(&self, now_ms: i64) -> Option<OfPartition<'_>> {
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
            Some(held) => held.sentence(now_ms),
            None => self.reason.clone().unwrap_or_default(),
        };
        let place = (&self.topic, self.partition);
        let remedy = match self.held_by {
            Some(_) => format!(
                "run `sluicegate explain {}/{}` for details",
                place.0, place.1
            ),
            None => {
                "check for a hanging transaction, and librdkafka's log lines about the partition"
                    .to_owned()
            }
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

/// Counters of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TopicReport {
    /// Topic.
    pub topic: String,
    /// Records delivered, without repeats.
    pub consumed: u64,
    /// Records that matched no handler.
    pub unrouted: u64,
    /// Records that the client delivered twice within an assignment; dropped.
    pub repeats_dropped: u64,
    /// Partitions that started from the beginning because the topic was deleted and recreated.
    #[serde(default)]
    pub recreated: u64,
    /// Partitions whose commit metadata was discarded: their finished records may run again.
    #[serde(default)]
    pub metadata_dropped: u64,
}

/// A pump's share of a handler's work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HandlerFlowReport {
    /// Handler name.
    pub name: String,
    /// Version of its plugin.
    pub version: String,
    /// Records in its lanes and pools, including parked ones.
    pub in_flight: u64,
    /// Records waiting for their next attempt.
    pub parked: u64,
    /// Number of times the cluster or the producer refused its emitted records or dead letters.
    #[serde(default)]
    pub refusals: u64,
    /// Records waiting for another produce attempt.
    #[serde(default)]
    pub refused: u64,
    /// Its emitted records and dead letters that the producer has and the cluster has not acknowledged.
    #[serde(default)]
    pub unacknowledged: u64,
    /// Why they are waiting, by topic.
    #[serde(default)]
    pub problems: Vec<ServiceProblem>,
    /// Outcomes, after settlement: a retry that became a dead letter counts as dead letter.
    pub outcomes: OutcomeCounts,
    /// Its last error: reason of a retry or dead letter, or why the cluster refused what it produced, without the record's
    /// value.
    pub last_error: Option<LastError>,
    /// While it is switched off or removed with records left: since when none of them has settled, in milliseconds since
    /// the epoch.
    pub held_since_ms: Option<i64>,
}

/// Report of a generation's worker pool. Counters never decrease: a released generation keeps being reported with its
/// counts (one entry per handler and version), with a lower `generation` than its successor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolReport {
    /// Handler name.
    pub handler: String,
    /// Version of the plugin.
    pub version: String,
    /// Generation.
    pub generation: u64,
    /// The plugin file whose code the active generation runs.
    #[serde(default)]
    pub path: Option<String>,
    /// SHA-256 of that code.
    #[serde(default)]
    pub sha256: Option<String>,
    /// State of the generation.
    pub state: HandlerState,
    /// Threads.
    pub workers: u32,
    /// Threads currently in a call.
    pub busy: u32,
    /// Threads abandoned after a call timeout.
    pub quarantined: u32,
    /// Abandoned threads of the handler, of any generation, that have not returned.
    #[serde(default)]
    pub hung: u32,
    /// Panics contained in this generation.
    pub panics: u64,
    /// Instances rebuilt.
    pub restarts: u64,
    /// Why it has failed or is unhealthy.
    #[serde(default)]
    pub reason: Option<String>,
    /// Last panic, timeout or failed start.
    pub last_error: Option<LastError>,
    /// Since when it has been failed or unhealthy, in milliseconds since the epoch.
    #[serde(default)]
    pub since_ms: Option<i64>,
    /// Processing time per record.
    pub durations: DurationCounts,
    /// Acknowledged emitted records, by topic.
    pub emitted: BTreeMap<String, u64>,
    /// The handler's own metrics.
    pub metrics: Vec<UserMetric>,
}

/// A metric registered by a handler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserMetric {
    /// Name as given by the handler.
    pub name: String,
    /// Kind and value.
    #[serde(flatten)]
    pub kind: UserMetricKind,
}

/// Kind and value of a handler's metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum UserMetricKind {
    /// Monotonic counter.
    Counter {
        /// Sum of all increments.
        value: f64,
    },
    /// Gauge.
    Gauge {
        /// Last value set.
        value: f64,
    },
    /// Histogram.
    Histogram {
        /// Upper bound and number of observations, not cumulative.
        buckets: Vec<(f64, u64)>,
        /// Observations above the last bound.
        beyond: u64,
        /// Sum of all observations.
        sum: f64,
    },
}

/// State of a handler's current generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HandlerState {
    /// Its plugin is being loaded and its instances built.
    #[default]
    Starting,
    /// It takes records.
    Active,
    /// It takes records, but its health check fails.
    Unhealthy,
    /// It finishes its in-flight records.
    Draining,
    /// Its instances failed too often; its records are held until an operator restarts it or a new generation replaces it.
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

/// A handler's gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Records are routed to it.
    #[default]
    Open,
    /// Closed: records skip it and are counted as skipped.
    Closed,
    /// Desired open, but held closed until an instance is healthy; records skip it.
    Held,
}

impl std::fmt::Display for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Held => "held",
        })
    }
}

/// A handler as declared by the active snapshot.
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
    /// Why the spec in the source is not the one being served.
    #[serde(default)]
    pub refused_spec: Option<String>,
}

/// Merged report of a handler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandlerReport {
    /// Handler name.
    pub name: String,
    /// Its plugin.
    pub plugin: String,
    /// Version of the active generation.
    pub version: String,
    /// Active generation.
    pub generation: u64,
    /// The plugin file whose code it runs; another one may be in its place by now.
    #[serde(default)]
    pub path: Option<String>,
    /// SHA-256 of the code that it runs.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Its state.
    pub state: HandlerState,
    /// Its gate.
    pub gate: Gate,
    /// It is not declared any more; removed once it has no records left.
    pub removed: bool,
    /// While it is switched off or removed with records left: since when none of them has settled, in milliseconds since
    /// the epoch.
    pub held_since_ms: Option<i64>,
    /// Threads.
    pub workers: u32,
    /// Threads currently in a call.
    pub busy: u32,
    /// Abandoned threads.
    pub quarantined: u32,
    /// Abandoned threads that have not returned.
    #[serde(default)]
    pub hung: u32,
    /// Records in its lanes and pools.
    pub in_flight: u64,
    /// Records waiting for their next attempt.
    pub parked: u64,
    /// Number of times the cluster or the producer refused its emitted records or dead letters.
    #[serde(default)]
    pub refusals: u64,
    /// Records waiting for another produce attempt; each blocks its lane.
    #[serde(default)]
    pub refused: u64,
    /// Its emitted records and dead letters that the producer has and the cluster has not acknowledged.
    #[serde(default)]
    pub unacknowledged: u64,
    /// Since when it has been failed or unhealthy, in milliseconds since the epoch.
    #[serde(default)]
    pub since_ms: Option<i64>,
    /// What prevents its records from being handled or produced, with remedies; empty without a problem.
    #[serde(default)]
    pub problems: Vec<ServiceProblem>,
    /// Outcomes, summed over all versions.
    pub outcomes: OutcomeCounts,
    /// Contained panics, summed over all versions.
    pub panics: u64,
    /// Instances rebuilt.
    pub restarts: u64,
    /// Acknowledged emitted records by topic.
    pub emitted: BTreeMap<String, u64>,
    /// Why it has failed, is unhealthy or was rejected.
    #[serde(default)]
    pub reason: Option<String>,
    /// Its last error, of any kind.
    pub last_error: Option<String>,
    /// When that was, in milliseconds since the epoch.
    #[serde(default)]
    pub last_error_ms: Option<i64>,
    /// Why the spec in the source is refused, while an earlier one stays active.
    #[serde(default)]
    pub refused_spec: Option<String>,
    /// Its route, as in the spec.
    pub route: serde_json::Value,
    /// Counts by version.
    pub versions: Vec<VersionReport>,
    /// Processing time per record.
    pub durations: DurationCounts,
    /// The handler's own metrics.
    pub metrics: Vec<UserMetric>,
}

/// Counters of one version of a handler's plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionReport {
    /// Version.
    pub version: String,
    /// Outcomes.
    pub outcomes: OutcomeCounts,
    /// Contained panics.
    pub panics: u64,
}

/// Information about the service as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceInfo {
    /// Version of the service.
    pub version: String,
    /// Consumer group.
    pub group_id: String,
    /// Start time, in milliseconds since the epoch.
    pub started_ms: i64,
    /// Revision of the active snapshot.
    pub revision: u64,
    /// Snapshots refused since startup.
    pub rejections: u64,
    /// Changed keys that the watch missed and a re-read found.
    pub repairs: u64,
    /// Since when the source of specs has been unreadable, in milliseconds since the epoch; the last specs stay active.
    pub unreachable_since_ms: Option<i64>,
    /// Since when control-plane state has been held back, in milliseconds since the epoch; `problems` says why.
    #[serde(default)]
    pub held_since_ms: Option<i64>,
    /// Metrics granularity.
    pub metrics_level: MetricsLevel,
    /// Why the last snapshot was refused; `None` once a later one was applied.
    pub last_rejection: Option<String>,
    /// Byte budget of records in flight.
    pub budget_bytes: u64,
    /// Pumps that did not answer in time.
    pub unresponsive_pumps: Vec<u32>,
    /// Unsigned plugins are accepted.
    pub allow_unsigned: bool,
    /// What does not progress, and other conditions that need an operator; an entry is removed once it is resolved.
    #[serde(default)]
    pub problems: Vec<ServiceProblem>,
    /// Pumps that have not joined the group since startup.
    #[serde(default)]
    pub not_joined: Vec<u32>,
    /// Since when no Kafka broker has answered, in milliseconds since the epoch.
    #[serde(default)]
    pub kafka_unreachable_since_ms: Option<i64>,
    /// `processing.stall_timeout` in milliseconds.
    #[serde(default)]
    pub stall_timeout_ms: i64,
    /// It is shutting down.
    #[serde(default)]
    pub stopping: bool,
}

/// Report of the whole service at one point in time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceReport {
    /// Information about the service as a whole.
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
    /// Kafka client statistics by pump.
    pub clients: Vec<(u32, ClientStatistics)>,
}
