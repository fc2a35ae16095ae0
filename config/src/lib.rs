//! Handler specs, service config, validation, and the sources and stores that specs come from.
//!
//! ```text
//!  service file ─► ServiceConfig ─────────────────────────────► the service's parts
//!                     │ names the source
//!                     ▼
//!  SpecSource ─► texts ─► HandlerSpec, or Problems ─► Snapshot{revision} ─► the service's registry
//!  (folder, store, memory)   (all of them, with positions)
//! ```
//!
//! Every document is checked against a table of its fields (`document`). The JSON Schemas and the reference pages are
//! generated from the same tables, so a field that is read without being in its table is missing there and rejected as
//! unknown.
//!
//! [`store`] abstracts the key-value stores that the source, the bridge and the CLI share; [`bridge`] replicates
//! between two, and [`fleet`] has the operator's commands on one. None of this depends on another crate of the
//! workspace: validation, bridge and fleet commands need neither Kafka nor a plugin.
//!
//! Modules in data-flow order: [`source`] reads texts, [`spec`] and [`service`] are the typed results, [`problem`]
//! lists errors with their positions, the service acts on a [`snapshot`], and [`mod@diff`] describes what changed.

pub mod bounded_file;
pub mod control;
pub mod diff;
pub mod document;
mod environment;
pub mod escape;
pub mod problem;
pub mod reference;
pub mod schema;
pub mod secret;
pub mod service;
pub mod snapshot;
pub mod spec;

pub use diff::{Change, diff};
pub use environment::Environment;
pub use problem::{Problem, Problems};
pub use secret::Secret;
pub use service::{ServiceConfig, load_service_config};
pub use snapshot::{MetricsLevel, Rejection, RejectionEffect, RuntimeSettings, Snapshot};
pub use spec::{HandlerSpec, Predicate, Test, read_spec};
