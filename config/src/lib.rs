//! Specs, validation, snapshots and their sources.
