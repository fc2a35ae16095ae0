//! Introspection of a running service: reports, the HTTP API, metrics and health.
//!
//! ```text
//!  pump ── PumpReport ──┐
//!  pool ── PoolReport ──┼─► ServiceReport::assemble ─► /readyz, /api/v1/…, /metrics, the demo's table
//!  config ─ Declared ───┘
//! ```
//!
//! The hot path counts in plain integers owned by the pump and the pools; they are read only on request.

pub mod durations;
pub mod explain;
pub mod http;
mod merge;
pub mod metrics;
pub mod openapi;
mod problem;
mod readiness;
pub mod report;
pub mod view;

pub use durations::{DurationCounts, Durations};
pub use explain::{Explanation, HeldBy, ProduceRefusal, RecordStatus, WaitsFor};
pub use problem::{ProblemKind, ServiceProblem};
pub use report::{
    ClientStatistics, CommitCounts, DeclaredHandler, Gate, HandlerFlowReport, HandlerReport,
    HandlerState, OutcomeCounts, PartitionReport, PartitionState, PauseReason, PoolReport,
    PumpReport, ServiceInfo, ServiceReport, TopicReport, UserMetric, UserMetricKind, VersionReport,
};
pub use view::{GateError, Restarted, ServiceSlot, ServiceView};
