//! Why routes do not compile.

use std::error::Error;

/// Why routes do not compile; only another spec does.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// A regex of the predicate is malformed.
    #[error("regex `{pattern}` in a route does not compile: {source}")]
    Pattern {
        /// The regex.
        pattern: String,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A topic pattern is malformed.
    #[error("topic pattern `{pattern}` does not compile: {source}")]
    Topic {
        /// The pattern.
        pattern: String,
        /// The reason.
        source: Box<dyn Error + Send + Sync>,
    },
}
