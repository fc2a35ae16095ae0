//! Everything that touches librdkafka: the consumer, the producer, topics, and the mock cluster.
//!
//! ```text
//!  settings ─► consumer (Source) ─► records in the client's memory ─► the engine
//!           └► producer (Emitter) ◄─ emitted records and dead letters
//! ```
//!
//! [`KafkaSource`] and [`KafkaEmitter`] implement the engine's traits. Only `ffi` calls the C library; a record stays in
//! the client's fetch buffer for as long as the engine keeps its [`RecordBuf`].

mod client_log;
pub mod consumer;
mod ffi;
pub mod mock;
pub mod producer;
pub mod reach;
pub mod settings;
#[cfg(test)]
mod testing;
pub mod topics;

pub use consumer::KafkaSource;
pub use ffi::{NewTopic, RecordBuf, TopicNotCreated, create_topics};
pub use producer::KafkaEmitter;
pub use rdkafka::error::KafkaError;
pub use settings::{ClientSettings, ConfigRefusal};
