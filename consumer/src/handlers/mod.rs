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
//!
//! A handler keeps its name and changes its generation: code, config and threads are replaced together, and only once
//! the new ones are healthy (G9). Pumps know a generation only as a worker pool in the [`HandlerTable`]. It is released
//! once every pump has swapped its table: queued batches return and are submitted to the new generation, running calls
//! finish first.
//!
//! Plugin code is not trusted to return. An instance is created, called and dropped on one worker thread, without a
//! lock: a call that hangs costs its thread, which is abandoned and replaced, and nothing else (G14). Pumps, the
//! registry and the admin server read what a call has done from memory of the service and never wait for it (ADR 0011).

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
