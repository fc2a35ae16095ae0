//! From outcomes to settled records: what a failed attempt is followed by, and what a dead letter looks like.

pub mod dead_letter;
pub mod retry;

pub use retry::RetryPolicy;
