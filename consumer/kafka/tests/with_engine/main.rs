//! The engine with the source, on librdkafka's mock cluster.
//!
//! `resident`, `waiting`: of many records that were read, a few are kept for long. None of them keeps a fetch buffer of the
//! client alive, of which only their own bytes are charged (G8).
//!
//! `leaderless`: a partition without a leader delays no other, and is reported. `outage`: nor does an outage end the search
//! for where partitions start.

mod leaderless;
mod outage;
mod reading;
mod resident;
mod waiting;

/// The service's allocator, which serves librdkafka too: what is resident depends on it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
