//! From outcomes to settled records: retry delays after failed attempts, and the format of dead letters.
//!
//! ```text
//!  retry, panic, timeout ─► attempts left? ─ yes ─► RetryPolicy::delay_ms ─► parked ─► next attempt
//!                                └ no ─► dead_letter::send ─► acknowledged: settled
//!  terminal error ──────────────────────────┘  └─► refused, for any reason: the lane waits, nothing is skipped (G7)
//! ```
//!
//! Nothing here keeps state: attempts, timers and held lanes belong to [`crate::flow`]. An attempt is a call that ran
//! the record: a refusal by the cluster is not one (ADR 0020), nor is a record that its call did not reach. Delays have
//! jitter, so that records which failed together, for example because a database was down, are not retried together.
//!
//! A dead letter carries the record byte for byte, followed by headers about its origin and failure. The number of
//! times that it was written to its topic is counted in these headers, the only state that travels with a record:
//! without the limit, a record that returns from its dead-letter topic would circulate forever (ADR 0018).

pub mod dead_letter;
pub mod retry;

pub use retry::RetryPolicy;
