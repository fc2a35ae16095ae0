//! Locks and atomics of what threads share; the models in `consumer/loom` put loom's in their place.

pub(crate) use std::sync::atomic::AtomicU32;
pub(crate) use std::sync::{Mutex, MutexGuard};
