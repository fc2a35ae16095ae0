//! Locks of state shared between threads; the models in `consumer/engine/loom` replace them with loom's.

pub(crate) use std::sync::Mutex;
