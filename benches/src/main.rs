//! The bare loop: its `main` is C (`bare_loop.c`); this only links it with librdkafka and the service's allocator.
#![no_main]

use rdkafka as _;
use rdkafka_sys as _;

/// As in the service: serves librdkafka too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
