//! The rules of the repository, as tests: `cargo xtask tidy` runs them.
//!
//! Each rule reads the tracked files, lists every violation, and says how to fix it. Exceptions are listed next to their
//! rule, with the reason.

mod dependencies;
mod files;
mod functions;
mod guarantees;
mod printing;
mod repository;
mod sources;
mod supply;
mod unsafe_code;
mod words;
