//! Worker pools: the threads that run handler instances, and what watches over them.
//!
//! ```text
//!  pump ── batch ─► pool (a handler's share) ─► crew (threads, seats) ─► worker (instances) ─► plugin code
//!   ▲                                              ├ turns, restart: fair queueing, restart backoff
//!   └──── Finished │ CallTimedOut ◄────────────────┴ watchdog: call timeouts
//! ```
//!
//! Plugin code is not trusted to return. An instance is created, called and dropped on one worker thread, without a
//! lock: a call that hangs costs its thread, which is abandoned and replaced, and nothing else (G14). Pumps, the
//! registry and the admin server read what a call has done from memory of the service and never wait for it (ADR 0011).

pub mod clock;
mod crew;
mod emits;
mod error;
mod handoff;
pub mod pool;
mod provenance;
mod restart;
mod seats;
mod stats;
mod turns;
mod watchdog;
mod worker;

#[cfg(test)]
mod tests;

pub use crew::{Crew, CrewSettings};
pub use error::{ConfigNotTaken, ProbeError};
pub use pool::{HandlerPool, HandlerSetup, LiveConfig, Release, ReleaseWatch};
pub use restart::RestartPolicy;
pub use stats::{HandlerCounts, HandlerStats};
pub use watchdog::CallWatchdog;
