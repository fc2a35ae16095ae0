//! The bodies of requests and responses that are not reports of the engine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluicegate_engine::status::{CommitCounts, Gate, ServiceInfo, ServiceProblem, TopicReport};

use super::answer::ErrorDetail;

/// Status of the whole service, as returned by `/api/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatusReport {
    /// Version, group, snapshot.
    #[serde(flatten)]
    pub facts: ServiceInfo,
    /// As in `/readyz`: the group was joined, Kafka answers within `stall_timeout`, and some enabled handler takes records.
    pub ready: bool,
    /// Why it is not ready.
    pub reason: Option<String>,
    /// Bytes of records in flight.
    pub in_flight_bytes: u64,
    /// Records in flight.
    pub in_flight_records: u64,
    /// Commits.
    pub commits: CommitCounts,
    /// Topics, by name.
    pub topics: Vec<TopicReport>,
    /// Number of handlers.
    pub handlers: usize,
    /// Number of partitions.
    pub partitions: usize,
    /// Partitions whose frontier has not moved for `stall_timeout` although records are waiting.
    pub stalled: Vec<String>,
}

/// The response of `/readyz`, with status 200 or 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Readiness {
    /// Whether it is ready.
    pub ready: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
    /// What does not progress, and other conditions that need an operator. Most of them do not affect readiness.
    pub problems: Vec<ServiceProblem>,
}

impl Readiness {
    /// `ready` fails with the text of the response.
    pub(super) fn of(ready: Result<(), String>, problems: Vec<ServiceProblem>) -> Self {
        let error = ready.err().map(|message| ErrorDetail {
            code: "not_ready".to_owned(),
            message,
        });
        Self {
            ready: error.is_none(),
            error,
            problems,
        }
    }
}

/// The body of a gate change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GateBody {
    /// Open (`true`) or closed (`false`).
    pub open: bool,
}

/// A completed gate change: the control plane holds the new value and the service has applied it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GateChange {
    /// The handler.
    pub name: String,
    /// Its gate after the change.
    pub gate: Gate,
}

/// A completed restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HandlerRestart {
    /// The handler.
    pub name: String,
    /// The generation that now serves.
    pub generation: u64,
    /// Whether it was rebuilt. Otherwise the loaded generation was reset: no plugin in the folder serves the spec any more.
    #[serde(default = "rebuilt")]
    pub rebuilt: bool,
}

/// The value for a member of an earlier version, whose response lacks the field.
fn rebuilt() -> bool {
    true
}

/// The result of `control-plane/accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlPlaneAcceptance {
    /// Whether held-back control-plane state was applied.
    pub accepted: bool,
}
