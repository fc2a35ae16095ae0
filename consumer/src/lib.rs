//! A Kafka consumer service whose handlers are plugins.
//!
//! ```text
//!  librdkafka's threads ── fetched records
//!         │
//!         ▼
//!  ┌─ pump: one OS thread per Kafka client ──────────────────────────────────────────────┐
//!  │ source ─► ledger.deliver ─► routing ─► dispatch: lanes ─► batches ─► worker pools    │
//!  │ inbox  ─► settlement (ack │ retry │ dead letter │ drop) ─► ledger.settle             │
//!  │                                            └─► frontier ─► commit                    │
//!  └──────┬───────────────────────────────────────────────────────────────▲──────────────┘
//!         │ batches of borrowed records, bounded by count and bytes        │ outcomes, in batches
//!         ▼                                                                │
//!    worker pool of (handler, generation): N threads, one instance on each ┘
//!         │ emitted records
//!         ▼
//!    producer: a record settles only after its emits are acknowledged
//! ```
//!
//! The modules are listed in the order in which a record passes through them. `flow` is the pump's pure core: it has no
//! Kafka client, no threads and no clock, so that the seeded simulator runs exactly the code that runs in production.

pub mod source;

pub mod assignment;
pub mod ledger;
pub mod trouble;

pub mod routing;

pub mod dispatch;
pub mod flow;

pub mod handlers;

pub mod settlement;

pub mod emit;
mod sync;

pub mod commit;

pub mod pump;

pub mod runtime;

pub mod bridge;

pub mod admin;
pub mod cli;
pub mod demo;
pub mod logging;
pub mod produce;
