//! Which handlers want a record: routes compiled to an index that is swapped whole.
//!
//! ```text
//!  specs' routes ─► RoutingIndex::compile ─► Arc<RoutingIndex>      (immutable; fields, atoms, topic table)
//!                                                  │ Router::new, Router::swap
//!  topics of the cluster ──────────────► RoutingIndex::subscription (names that the client subscribes to)
//!  topic (once an assignment) ──────────► Router::plan ─► TopicPlanId (routes that this topic can reach)
//!  partition, key, header block ────────► Router::route             (class numbers ─► memo ─► handlers)
//!                                                  └─ not in the memo: postings of the rarest atom, verified
//! ```
//!
//! A header value, key or partition is turned into small class numbers (`fields`, `patterns`): two values that no atom
//! tells apart have the same ones. Together they are the key under which the answer is remembered (`memo`), so the
//! cost of a record does not depend on how many handlers there are. `oracle` says the same slowly and plainly.

mod atoms;
mod fields;
mod index;
mod memo;
mod names;
pub mod oracle;
mod patterns;
mod plan;
mod router;
mod topics;

#[cfg(test)]
mod tests;

pub use index::{RouteError, RoutingIndex};
pub use router::{Router, TopicPlanId};
pub use topics::{LeftOut, Subscription};
