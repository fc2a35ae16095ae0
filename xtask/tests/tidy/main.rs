//! The rules of the repository, as tests: `cargo xtask tidy` runs them.
//!
//! Each rule reads the tracked files, names every place that breaks it, and says what to do. An exception stands beside its
//! rule with the reason.

mod dependencies;
mod files;
mod functions;
mod guarantees;
mod house;
mod printing;
mod sources;
mod supply;
mod unsafe_code;
mod words;
