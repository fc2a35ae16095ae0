//! Introspection of a running service: the HTTP API, health, metrics and the log.
//!
//! ```text
//!  service ── ServiceView ─► ServiceReport ─┬─► http: /livez, /readyz, /api/v1/…
//!                                           └─► metrics: /metrics ◄── logging: lost lines
//! ```
//!
//! Reports are types of the engine (`status`); they are made on request from plain integers that the pumps and pools
//! count in. The log is part of this crate because the metrics count the lines that it loses.

pub mod http;
pub mod logging;
pub mod metrics;
pub mod openapi;
pub mod view;

pub use view::{GateError, Restarted, ServiceSlot, ServiceView};
