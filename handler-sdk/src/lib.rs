//! SDK for writing Sluicegate handlers.
//!
//! A handler is a type with a config and a method that receives records and returns their outcomes:
//!
//! ```
//! use schemars::JsonSchema;
//! use serde::Deserialize;
//! use sluicegate_sdk::{Context, Emit, Handler, Outcome, Record, Result, Setup};
//!
//! #[derive(Deserialize, JsonSchema)]
//! struct Config {
//!     topic: String,
//! }
//!
//! struct Shout(Config);
//!
//! impl Handler for Shout {
//!     type Config = Config;
//!
//!     fn new(config: Config, _setup: &mut Setup) -> Result<Self> {
//!         Ok(Self(config))
//!     }
//!
//!     fn handle(&mut self, record: &Record<'_>, ctx: &mut Context<'_>) -> Result {
//!         let Some(value) = record.value() else { return Ok(Outcome::drop("a tombstone")) };
//!         ctx.emit(Emit::copy_of(record, &self.0.topic).value(&value.to_ascii_uppercase()));
//!         Ok(Outcome::Ack)
//!     }
//! }
//!
//! // In the library itself: sluicegate_sdk::export_handler! { "shout" => Shout }
//!
//! let mut kit = sluicegate_sdk::testing::Kit::of::<Shout>(serde_json::json!({ "topic": "loud" }))?;
//! let run = kit.run([sluicegate_sdk::testing::record("in").value("psst")]);
//! assert_eq!(run.emits[0].value.as_deref(), Some(&b"PSST"[..]));
//! # Ok::<(), String>(())
//! ```
//!
//! In reading order: [`Handler`] (and [`BatchHandler`], `AsyncHandler`), [`Record`], [`Context`], [`Outcome`],
//! [`export_handler!`], [`testing`].

mod adapter;
#[cfg(feature = "async")]
mod async_handler;
mod context;
mod emit;
mod export;
#[cfg(feature = "log")]
mod forward;
mod handler;
pub mod json;
mod objects;
mod outcome;
mod partition;
mod record;
mod shared;
mod sums;
pub mod template;
pub mod testing;

#[cfg(feature = "async")]
pub use async_handler::AsyncHandler;
pub use context::{Batch, BatchContext, Context, FencingToken, Level, Services};
pub use emit::Emit;
pub use handler::{BatchHandler, Handler, Setup};
pub use outcome::{Classify, ErrorClass, HandlerError, Outcome, Result};
pub use partition::Partition;
pub use record::Record;
/// For configs: their schemas ship in the plugin.
pub use schemars;
/// For configs.
pub use serde;
/// The runtime of async handlers.
#[cfg(feature = "async")]
pub use tokio;

/// Used by the export macro; not part of the public API.
#[doc(hidden)]
pub mod __private {
    #[cfg(feature = "async")]
    pub use crate::export::overlapping;
    pub use crate::export::{Entry, Exported, Exports, batch, per_record};
    pub use sluicegate_abi::descriptor::Descriptor;
    pub use sluicegate_abi::plugin::{LibHeader, library_header};
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
