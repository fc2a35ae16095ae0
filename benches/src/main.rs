//! The bare loop. `main` is in C (`bare_loop.c`, which lists the modes); this crate links it with librdkafka and the service's allocator.
#![no_main]

use rdkafka as _;
use rdkafka_sys as _;

/// As in the service, librdkafka uses this allocator too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
