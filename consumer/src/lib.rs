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
//! The commands: [`cli`] reads the arguments, and starts the service (`sluicegate-service`), the bridge, the [`demo`] or
//! the loader of records ([`load`]).

pub mod cli;
pub mod demo;
pub mod load;
