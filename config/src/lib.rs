//! Specs, validation, snapshots and their sources.
//!
//! ```text
//!  service file ─► ServiceConfig ─────────────────────────────► the service's parts
//!                     │ names one
//!                     ▼
//!  SpecSource ─► texts ─► HandlerSpec, or Problems ─► Snapshot{revision} ─► diff with the running one ─► Changes
//!  (file, memory)         (all of them, with places)
//! ```
//!
//! [`store`] holds the key-value stores that a source, the bridge and the commands share; [`bridge`] keeps two of them equal.
//!
//! Modules, in the order in which a text meets them: [`source`] reads it, [`spec`] and [`service`] are what it becomes,
//! [`problem`] is what is wrong with it, [`snapshot`] and [`mod@diff`] are what the service acts on.

mod atomic_file;
mod bounded_file;
pub mod bridge;
pub mod diff;
mod digest;
mod document;
mod environment;
pub mod escape;
pub mod fleet;
mod jitter;
pub mod member;
pub mod problem;
pub mod reference;
pub mod rollout;
pub mod schema;
pub mod secret;
pub mod service;
pub mod snapshot;
pub mod source;
pub mod spec;
pub mod store;
mod validate;

pub use diff::{Change, diff};
pub use environment::Environment;
pub use member::MemberReport;
pub use problem::{Problem, Problems};
pub use rollout::Rollout;
pub use secret::Secret;
pub use service::{ServiceConfig, load_service_config};
pub use snapshot::{MetricsLevel, Rejection, RejectionEffect, RuntimeSettings, Snapshot};
pub use spec::{HandlerSpec, Predicate, Test, read_spec};
pub use validate::validate_everything;
