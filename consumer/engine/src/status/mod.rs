//! The status of a service as plain data, on which every view of it is based.
//!
//! ```text
//!  pump ── PumpReport ──┐
//!  pool ── PoolReport ──┼─► ServiceReport::assemble ─► /readyz, /api/v1/…, /metrics, the demo's table
//!  config ─ Declared ───┘
//! ```
//!
//! Whatever keeps a record, a partition or a handler from progressing is a [`ServiceProblem`] with cause, start and
//! remedy; readiness, metrics, log and API render the same list. Nothing here reads a clock: texts with an age take the
//! present time as an argument.

mod counts;
mod durations;
mod explain;
mod merge;
mod problem;
mod readiness;
mod report;

pub use counts::{CommitCounts, LastError, OutcomeCounts};
pub use durations::{BOUNDS_US, BUCKETS, DurationCounts, Durations};
pub use explain::{Explanation, HeldBy, ProduceRefusal, RecordStatus, WaitsFor};
pub use problem::{ProblemKind, ServiceProblem};
pub use report::{
    ClientStatistics, DeclaredHandler, Gate, HandlerFlowReport, HandlerReport, HandlerState,
    PartitionReport, PartitionState, PauseReason, PoolReport, PumpReport, ServiceInfo,
    ServiceReport, TopicReport, UserMetric, UserMetricKind, VersionReport,
};
