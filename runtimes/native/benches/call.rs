//! CPU cost of the ABI boundary per record: a loaded plugin that acknowledges everything, called with batches of 1, 16 and
//! 256 records.
//!
//! `cargo bench -p sluicegate-native`; the budget is 3 ns per record in a batch of 256.

#[path = "../tests/support/mod.rs"]
mod support;

use sluicegate_abi::view::{BorrowedRecords, RecordParts};
use sluicegate_runtime::{
    CallOutput, CallRequest, CallStatus, CancelFlag, RawOutcome, outcome_code,
};
use support::{built_with, load};

/// CPU time of this thread in nanoseconds, unaffected by other load.
fn on_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok());
    first.expect("the system reports thread CPU time")
}

const RECORDS: usize = 20_000_000;

fn main() {
    let loaded = load(&built_with("misbehave", &["--release"]));
    let mut noop = loaded.create("misbehave", "{}");
    let parts: Vec<RecordParts> = (0..256u64)
        .map(|index| RecordParts {
            topic: "in".into(),
            key: Some(index.to_le_bytes().to_vec()),
            value: Some(vec![b'v'; 100]),
            lane: index + 1,
            attempt: 1,
            ..RecordParts::default()
        })
        .collect();
    let raw = BorrowedRecords::new(&parts);
    let mut outcomes = vec![RawOutcome::default(); raw.len()];
    let mut output = CallOutput::default();
    let cancel = CancelFlag::default();
    for size in [1, 16, 256] {
        let mut best = f64::MAX;
        for _ in 0..5 {
            let calls = RECORDS / 5 / size.max(16);
            let began = on_cpu();
            for _ in 0..calls {
                let call = CallRequest {
                    records: &raw[..size],
                    timeout_ms: 5_000,
                    record_timeout_ms: 0,
                    cancel: &cancel,
                };
                let status =
                    sluicegate_runtime::call(&mut *noop, &call, &mut outcomes[..size], &mut output);
                assert!(matches!(status, Ok(CallStatus::Usable)));
            }
            best = best.min((on_cpu() - began) as f64 / (calls * size) as f64);
        }
        assert!(
            outcomes[..size]
                .iter()
                .all(|outcome| outcome.code == outcome_code::ACK)
        );
        println!("batches of {size:>3}: {best:.2} ns of CPU per record (best of 5)");
    }
}
