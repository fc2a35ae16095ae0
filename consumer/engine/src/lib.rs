//! The engine: decides what happens to every record, without Kafka, threads or a clock.
//!
//! ```text
//!  source ─► partition: ledger.deliver ─► routing ─► dispatch: lanes ─► batches ─► worker pools
//!  inbox  ─► settlement (ack │ retry │ dead letter │ drop) ─► ledger.settle
//!                                        └─► frontier ─► commit
//! ```
//!
//! [`engine::Engine::step`] takes an [`event::Event`] and appends [`event::Effect`]s; it is the only way in, for the pump as
//! for tests on a scripted source. [`engine`] decides about partitions (offers, lost offsets, hand-overs, the end of a
//! membership), [`flow`] about their records and commits; the other modules stand in the order in which a record passes
//! through them. What remains behind traits are the worker pools and the producer ([`dispatch::WorkerPool`],
//! [`emit::Emitter`]); [`source::Source`] is the pump's. The bytes of a record are a type parameter ([`record::Record`]), so
//! that nothing here knows where they are kept.

pub mod clock;
pub mod record;

pub mod source;

pub mod engine;
pub mod event;

pub mod partition;
mod random;

pub mod routing;

pub mod dispatch;
pub mod flow;

pub mod settlement;

pub mod emit;
mod sync;

pub mod status;
