//! The C-layout types that the service and its native plugins share.
//!
//! Everything here is plain data in a fixed layout: no type owns memory that the other side frees, and no
//! function unwinds. The service fills [`RawRecord`]s, a plugin writes [`RawOutcome`]s; in between stands the
//! root module that `abi_stable` checks (`root`).

#![allow(non_camel_case_types, non_local_definitions)]

pub mod header_block;
pub mod record;

pub use record::{RawOutcome, RawRecord, outcome_code, outcome_flag, record_flag};
