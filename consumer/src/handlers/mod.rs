//! The live handlers: catalogue of plugins, generations, worker pools, and the plan that pumps run by.

pub mod crew;
mod emits;
mod handoff;
pub mod overrun;
pub mod plan;
pub mod pool;
pub mod restart;
mod seats;
pub mod stats;
mod turns;
mod worker;

#[cfg(test)]
mod tests;

pub use crew::{Crew, CrewSettings};
pub use overrun::OverrunWatch;
pub use plan::{HandlerPlan, Plan};
pub use pool::{HandlerPool, HandlerSetup, Release, ReleaseWatch};
pub use restart::RestartPolicy;
pub use stats::{HandlerCounts, HandlerStats};
