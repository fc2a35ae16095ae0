//! Worker pools: the threads that run handler instances, and what watches over them.
//!
//! ```text
//!  pump ── batch ─► pool (a handler's share) ─► thread pool (lock, threads) ─► worker (instances) ─► plugin code
//!   ▲                                              │ event ▼ ▲ effects
//!   └──── Finished │ CallTimedOut ◄────────────────┤ roster (pure): slots, queues, members, restart backoff
//!                                                  └ watchdog: checks once per tick
//! ```
//!
//! Modules depend on one another in this order: `member ← roster ← thread_pool ← worker ← pool`; the watchdog knows a
//! thread pool only as something to check.
//!
//! Plugin code is not trusted to return. An instance is created, called and dropped on one worker thread, without a
//! lock: a call that hangs costs its thread, which is abandoned and replaced, and nothing else (G14). Pumps, the
//! registry and the admin server read what a call has done from memory of the service and never wait for it (ADR 0011).

pub mod clock;
mod emits;
mod error;
mod fair_queue;
mod lock;
mod member;
pub mod pool;
mod provenance;
mod restart;
mod roster;
mod settings;
mod stats;
mod thread_pool;
mod watchdog;
mod worker;

#[cfg(test)]
mod tests;

pub use error::{ConfigNotTaken, ProbeError};
pub use member::{HandlerSetup, Release};
pub use pool::{HandlerPool, ReleaseWatch};
pub use restart::RestartPolicy;
pub use settings::{HungThreads, ThreadPoolSettings};
pub use stats::{HandlerCounts, HandlerStats};
pub use thread_pool::ThreadPool;
pub use watchdog::CallWatchdog;
