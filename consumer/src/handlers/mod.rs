//! Handlers at run time: which plugin serves which spec, and the threads that run it.
//!
//! ```text
//!  plugins folder ─► catalogue ─┐
//!  Snapshot ──────► registry ◄──┘     managed: applied spec, rejection, pending change
//!                      │ prepare: load, create, health
//!                      ▼
//!                 generation ── pool (a handler's share) ── crew (threads, seats) ── worker (instances)
//!                      │                                      ├ turns, restart: fair queueing, restart backoff
//!                      │                                      └ watchdog: call timeouts
//!                      ├─► table ─► pumps
//!                      └─► release: drain, drop, shut down
//! ```

mod build;
pub mod catalogue;
pub mod crew;
mod emits;
mod folder;
pub mod generation;
mod handoff;
mod managed;
mod outputs;
pub mod pool;
mod provenance;
pub mod redaction;
pub mod registry;
pub mod release;
mod report;
pub mod restart;
mod restarting;
mod seats;
pub mod services;
pub mod stats;
pub mod table;
mod turns;
pub mod watch;
pub mod watchdog;
mod worker;

#[cfg(test)]
mod tests;

pub use catalogue::Catalogue;
pub use crew::{Crew, CrewSettings};
pub use generation::GenerationState;
pub use pool::{HandlerPool, HandlerSetup, LiveConfig, Release, ReleaseWatch};
pub use registry::{Applied, Refusal, Registry, RegistrySettings};
pub use restart::RestartPolicy;
pub use restarting::{RestartRefusal, RestartState};
pub use stats::{HandlerCounts, HandlerStats};
pub use table::{HandlerPlan, HandlerTable};
pub use watch::FolderWatch;
pub use watchdog::CallWatchdog;
