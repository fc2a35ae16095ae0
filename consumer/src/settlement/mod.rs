//! From outcomes to settled records: retry delays after failed attempts, and the format of dead letters.

pub mod dead_letter;
pub mod retry;

pub use retry::RetryPolicy;
