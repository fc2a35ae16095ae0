//! Black-box tests of the service against real servers: the harness of the scenarios under `tests/tests/scenarios/`.
//!
//! ```text
//!  cache, launcher   server sources: endpoints in the environment, Maven + Java, Docker
//!  debian            unpacked Debian packages
//!        │
//!  process           a guarded child: own process group, log in a file, killed with its owner
//!        │
//!  kafka, zookeeper, etcd, postgres   a server on free ports with a temporary folder
//!        │
//!  client            an independent Kafka client that writes and reads topics
//!  workdir, service  a service's folder (config, specs, plugins) and the binary running in it
//!  proxy             a TCP proxy that can be cut, stalled and made to lose events
//!  metrics           parsed output of `/metrics`
//!  steady            loads: records at a steady rate
//!  flights           the flights of 2013, and the expected output of the handlers
//! ```
//!
//! Nothing here uses the service's code: only its commands, its files, its HTTP API and Kafka.

pub mod artefacts;
pub mod cache;
pub mod certificates;
#[cfg(feature = "client")]
pub mod client;
pub mod control;
pub mod debian;
pub mod etcd;
pub mod flights;
pub mod kafka;
pub mod launcher;
pub mod metrics;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod service;
pub mod steady;
#[cfg(feature = "client")]
mod topics;
pub mod wait;
pub mod workdir;
pub mod zookeeper;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Whether the long forms of the scenarios are requested (`cargo xtask test --long`).
#[must_use]
pub fn long() -> bool {
    std::env::var_os("SLUICEGATE_TEST_LONG").is_some()
}

/// The time of the clock, since 1970.
///
/// # Panics
/// If the clock is before that.
#[must_use]
pub fn since_epoch() -> Duration {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.expect("a clock after 1970")
}

/// The time of the clock in milliseconds since 1970, as Kafka and the service count it.
///
/// # Panics
/// If the clock is before that.
#[must_use]
pub fn now_ms() -> i64 {
    since_epoch().as_millis() as i64
}

/// Random numbers whose seed the output of the test says.
#[must_use]
pub fn random() -> fastrand::Rng {
    let seed = fastrand::u64(..);
    println!("seed {seed:#x}");
    fastrand::Rng::with_seed(seed)
}

/// A name that no earlier test on this broker has used: `base` and a suffix from the clock and the process.
#[must_use]
pub fn unique(base: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let nanos = since_epoch().subsec_nanos();
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{base}-{:x}-{nanos:x}-{count}", std::process::id())
}
