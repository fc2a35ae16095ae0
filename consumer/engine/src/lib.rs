//! The engine: decides what happens to every record, without Kafka, threads or a clock.
//!
//! ```text
//!  source ─► partition: ledger.deliver ─► routing ─► dispatch: lanes ─► batches ─► worker pools
//!  inbox  ─► settlement (ack │ retry │ dead letter │ drop) ─► ledger.settle
//!                                        └─► frontier ─► commit
//! ```
//!
//! Modules in the order in which a record passes through them. [`flow`] holds them together: it is called by the pump
//! with what has happened and the present time, and says what is to be done, so that the seeded simulator
//! (`tests/simulation`) runs exactly the code that runs in production. What it needs from outside is behind traits:
//! [`source::Source`], [`emit::Emitter`] and [`dispatch::WorkerPool`]. The bytes of a record are a type parameter
//! ([`record::Record`]), so that nothing here knows where they are kept.

pub mod record;

pub mod source;

pub mod partition;

pub mod routing;

pub mod dispatch;
pub mod flow;

pub mod settlement;

pub mod emit;
mod sync;

pub mod status;
