//! Which handlers receive a record: routes compiled to an index that is replaced as a whole.
//!
//! ```text
//!  specs' routes ─► RoutingIndex::compile ─► Arc<RoutingIndex>      (immutable; fields, atoms, topic table)
//!                                                  │ Router::new, Router::swap
//!  topics of the cluster ──────────────► RoutingIndex::subscription (names that the client subscribes to)
//!  topic (once per assignment) ─────────► Router::plan ─► TopicPlanId (routes that this topic can reach)
//!  partition, key, header block ────────► Router::route             (class numbers ─► memo ─► handlers)
//!                                                  └─ not in the memo: postings of the rarest atom, verified
//! ```
//!
//! A header value, key or partition is mapped to small class numbers (`fields`, `patterns`): values that no atom
//! distinguishes have the same ones. Together they are the cache key of the result (`memo`), so the cost per record
//! does not depend on the number of handlers. A record with a repeated header, or with more classes than fit the cache
//! key, is evaluated by postings each time: slower, with the same result. All caches are bounded.
//!
//! A swap replaces the plans of all topics and empties the caches: a result cached under the old index would route a
//! record by two snapshots (G9). `oracle` is a slow and plain implementation of the same; property tests compare the
//! two. Patterns are resolved to topic names here, not by the Kafka client, which knows no exceptions (ADR 0017).

mod atoms;
mod error;
mod fields;
mod index;
mod memo;
mod names;
pub mod oracle;
mod patterns;
mod plan;
mod router;
mod subscription;
mod topics;

#[cfg(test)]
mod tests;

pub use error::RouteError;
pub use index::RoutingIndex;
pub use router::{Router, TopicPlanId};
pub use subscription::Subscription;
pub use topics::LeftOut;
