//! The pump with its engine, on a scripted source.

mod lost_offsets;
mod stopping;
