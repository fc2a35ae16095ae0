//! From specs and plugin files to running handlers: which generation of which plugin serves which spec.
//!
//! ```text
//!  plugins folder ─► catalogue ─┐
//!  Snapshot ──────► registry ◄──┘     managed: applied spec, rejection, pending change
//!                      │ build: trial, load, create, health
//!                      ▼
//!                 generation ── worker pool (`sluicegate-pool`)
//!                      │
//!                      ├─► table ─► pumps
//!                      └─► release: drain, drop, shut down
//! ```
//!
//! A handler keeps its name and changes its generation: code, config and threads are replaced together, and only once
//! the new ones are healthy (G9). Pumps know a generation only as a worker pool in the [`HandlerTable`]. It is released
//! once every pump has swapped its table: queued batches return and are submitted to the new generation, running calls
//! finish first.

mod applied;
mod build;
pub mod catalogue;
mod changes;
pub mod find;
mod folder;
pub mod generation;
mod lookup;
mod managed;
mod outputs;
mod reconcile;
pub mod redaction;
pub mod registry;
pub mod release;
mod report;
mod restarting;
pub mod services;
mod settings;
pub mod table;
pub mod trial;
pub mod watch;

#[cfg(test)]
mod tests;

pub use applied::{Applied, Refusal};
pub use catalogue::Catalogue;
pub use changes::Settled;
pub use find::FindError;
pub use generation::{CodeOrigin, GenerationState};
pub use reconcile::{Required, SpecChange, SpecEffect};
pub use registry::Registry;
pub use restarting::{RestartRefusal, RestartState};
pub use settings::RegistrySettings;
pub use table::{HandlerPlan, HandlerTable, HandlerTarget};
pub use watch::FolderWatch;
