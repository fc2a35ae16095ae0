//! The engine: decides what happens to every record, without Kafka, threads or a clock.
//!
//! ```text
//!  Event ─► engine ──────────────────────────── a partition: offers, lost offsets, hand-overs, the end of a membership
//!             └─► flow: deliver ─► partition: ledger ─► routing ─► queue of each handler ─► lane ─► batch ─► worker pool
//!                     ▲                                               │                                     │
//!                     │            ack, drop ◄── outcomes ◄───────────┼───────── inbox ◄── Finished ────────┘
//!                     │               │        retry ─► parked ───────┘            ▲
//!                     │               │        emits, dead letter ─► producer ─────┘ Delivered
//!                     │               ▼
//!                     └── records: share settled ─► ledger.settle ─► frontier ─► committer ─► Effect
//! ```
//!
//! [`engine::Engine::step`] takes an [`event::Event`] and appends [`event::Effect`]s; it is the only way in, for the pump as
//! for tests on a scripted source. [`engine`] decides about partitions, [`flow`] takes records in and out, [`queue`] owns what
//! one handler still has to do (its shares of records), and `records` what all handlers settle. What remains behind traits
//! are the worker pools and the producer ([`dispatch::WorkerPool`], [`emit::Emitter`]); [`source::Source`] is the pump's. The
//! bytes of a record are a type parameter ([`record::Record`]), so that nothing here knows where they are kept.

pub mod clock;
pub mod record;

pub mod source;

pub mod engine;
pub mod event;

pub mod partition;
mod random;

pub mod routing;

pub mod flow;

pub mod dispatch;
pub mod queue;

mod records;
pub mod settlement;

pub mod emit;
mod sync;

pub mod status;
