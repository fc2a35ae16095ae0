//! Calls into a native plugin.

use std::path::PathBuf;
use std::sync::Arc;

use sluicegate_abi::view::{BorrowedRecords, RecordParts};
use sluicegate_native::NativeRuntime;
use sluicegate_runtime::{
    CallOutput, CallRequest, CancelFlag, CreateRequest, HandlerRuntime, HostServices, LogLine,
    MetricKind, RawOutcome, VerifiedArtefact, outcome_code,
};

use crate::{RECORDS, measured};

/// Records per call.
const CALL: usize = 250;

struct Silent;

impl HostServices for Silent {
    fn log(&self, _line: &LogLine<'_>) {}

    fn metric(&self, _kind: MetricKind, _name: &str, _value: f64) {}
}

/// The library of the `noop` handler, next to this program.
fn library() -> PathBuf {
    let own = std::env::current_exe().expect("this program's file");
    own.with_file_name(format!(
        "{}noop{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    ))
}

/// Calls through the ABI into the `noop` handler, with 250 records per call.
pub(crate) fn abi_call() {
    let cache = std::env::temp_dir().join(format!("instructions-{}", std::process::id()));
    std::fs::create_dir_all(&cache).expect("a folder for the copy");
    let identity = NativeRuntime.inspect(&library());
    let identity = identity.expect("the plugin `noop` is built");
    let plugin = NativeRuntime
        .load(&VerifiedArtefact::new(&library(), &identity), &cache, 1)
        .expect("the plugin `noop` loads");
    let mut instance = plugin
        .create(CreateRequest::new("noop", "noop", "{}", Arc::new(Silent)))
        .expect("it takes no config");
    let part = |offset: usize| RecordParts {
        topic: "flights".into(),
        offset: offset as i64,
        timestamp_ms: 1_700_000_000_000,
        key: Some(format!("key-{offset}").into_bytes()),
        value: Some(vec![b'v'; 100]),
        lane: offset as u64 + 1,
        epoch: 1,
        attempt: 1,
        ..RecordParts::default()
    };
    let parts: Vec<RecordParts> = (0..CALL).map(part).collect();
    let records = BorrowedRecords::new(&parts);
    let mut outcomes = vec![RawOutcome::default(); CALL];
    let mut output = CallOutput::default();
    let cancel = CancelFlag::default();
    for _ in 0..RECORDS as usize / CALL {
        let call = CallRequest {
            records: &records,
            timeout_ms: 0,
            record_timeout_ms: 0,
            cancel: &cancel,
        };
        let called = measured(|| {
            sluicegate_runtime::call(&mut *instance, &call, &mut outcomes, &mut output)
        });
        assert!(called.is_ok(), "the runtime panicked");
        assert!(outcomes.iter().all(|one| one.code == outcome_code::ACK));
    }
    drop(instance);
    let _ = std::fs::remove_dir_all(&cache);
}
