//! A Kafka consumer service whose handlers are plugins.
