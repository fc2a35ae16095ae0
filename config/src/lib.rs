//! Handler specs, service config and control keys: their formats, their validation, and the snapshots made of them.
//!
//! ```text
//!  service file ─► ServiceConfig ─────────────────────────────► the service's parts
//!                     │ names the source
//!                     ▼
//!  a source ───► texts ─► HandlerSpec, or Problems ─► Snapshot{revision} ─► the service's registry
//!  (folder, store, memory)   (all of them, with positions)
//! ```
//!
//! Every document is checked against a table of its fields (`document`). [`section!`] makes the table and typed keys from one
//! declaration per field, the JSON Schemas and the reference pages are generated from the tables, and readers name fields by
//! their keys, so a field cannot be read without being in all of them.
//!
//! [`spec`] and [`service`] are the typed results, [`problem`] lists errors with their positions, and the service acts on
//! a [`snapshot`]. [`control`] has the keys of a store and their values. Nothing
//! here opens a store or depends on another crate of the workspace: stores are `sluicegate-store`, sources and fleet
//! commands `sluicegate-sync`, the bridge `sluicegate-bridge`. None of them needs Kafka or a plugin.

pub mod bounded_file;
pub mod control;
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

pub use environment::Environment;
pub use problem::{Problem, Problems};
pub use secret::Secret;
pub use service::{ServiceConfig, load_service_config};
pub use snapshot::{MetricsLevel, Rejection, RejectionEffect, RuntimeSettings, Snapshot};
pub use spec::{HandlerSpec, Predicate, Test, read_spec};
