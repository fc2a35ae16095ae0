//! Records that the service produces: emitted records of handlers, and dead letters.
//!
//! ```text
//!  worker: Emitter::send (each) ─► inbox: Finished
//!  producer's thread: one report of many answers ─► inbox: Delivered
//!  pump: `outbox`: everything that a record emitted is acknowledged: settle
//!           └─► refused: hold the lane, explain, back off ─► sent again from the first refused one
//! ```
//!
//! A record settles only after everything that it emitted is acknowledged by all in-sync replicas (G1). The pump keeps what is
//! sent until then: a refusal comes from the cluster and costs the record no attempt (ADR 0020). Records after the first
//! refused one are sent again too, so that the last copies are in order. A [`EmitToken`] names a record while it is with the
//! producer, which answers each exactly once.

mod counts;
pub(crate) mod delivery;
mod emitter;
pub mod failure;
pub mod outbox;
pub(crate) mod shipment;
mod token;

pub use counts::{EmitCounts, ShownTopic};
pub use delivery::Delivery;
pub use emitter::{Emitter, ProducerRecord, Sent, Way};
pub use failure::{EmitFailure, FailureKind};
pub use outbox::answer_unsent;
pub use token::EmitToken;
