//! Logs, metrics and output of a handler, captured for a test.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sluicegate_abi::header_block::Headers;
use sluicegate_abi::host::{CallSink, HostSink, LogLine};
use sluicegate_abi::limits::{MAX_DETAIL, MAX_DETAILS, MAX_EMITTED, MAX_TOPIC};
use sluicegate_abi::plugin::EmitResult;
use sluicegate_abi::progress::CancelFlag;
use sluicegate_abi::record::ProducerRecord;
use sluicegate_abi::{RawOutcome, outcome_code};

use super::{Emitted, Outcome};
use crate::Level;

#[derive(Default)]
pub(super) struct CapturedOutput(Mutex<Captured>);

#[derive(Default)]
pub(super) struct Captured {
    pub(super) logs: Vec<(Level, String)>,
    /// The fields of the log lines, as JSON.
    pub(super) fields: Vec<String>,
    pub(super) metrics: BTreeMap<(u32, String), Vec<f64>>,
}

impl CapturedOutput {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Captured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostSink for CapturedOutput {
    fn log(&self, line: &LogLine<'_>) {
        let level = [
            Level::Error,
            Level::Warn,
            Level::Info,
            Level::Debug,
            Level::Trace,
        ]
        .get(line.level as usize)
        .copied()
        .unwrap_or(Level::Trace);
        self.lock().logs.push((level, line.message.to_string()));
        self.lock().fields.push(line.fields.to_string());
    }

    fn metric(&self, kind: u32, name: &str, value: f64) {
        // As the service does.
        if !is_metric_name(name) || !value.is_finite() {
            let why = format!(
                "metric `{name}` is not recorded: use at most 128 letters, digits and `_`, not starting with a digit"
            );
            self.lock().logs.push((Level::Warn, why));
            self.lock().fields.push(String::new());
            return;
        }
        self.lock()
            .metrics
            .entry((kind, name.to_string()))
            .or_default()
            .push(value);
    }
}

fn is_metric_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = name.starts_with(|c: char| !c.is_ascii_digit());
    begins && name.len() <= 128 && name.chars().all(fits)
}

/// What an emitted record costs besides its bytes.
const OF_EACH: usize = 64;

pub(super) struct Collected {
    cancel: CancelFlag,
    bytes: usize,
    pub(super) emits: Vec<Emitted>,
    details: Vec<String>,
    detail_bytes: usize,
}

impl Collected {
    /// Of a call that this flag ends.
    pub(super) fn new(cancel: &CancelFlag) -> Self {
        Self {
            cancel: cancel.clone(),
            bytes: 0,
            emits: Vec::new(),
            details: Vec::new(),
            detail_bytes: 0,
        }
    }

    fn detail_of(&self, raw: &RawOutcome) -> Option<&String> {
        let at = (raw.detail as usize).checked_sub(1)?;
        self.details.get(at)
    }

    /// Why a record was not run.
    pub(super) fn reason_not_run(&self, raw: &[RawOutcome]) -> String {
        let mut not_run = raw.iter().filter(|one| one.code == outcome_code::NOT_RUN);
        let reason = not_run.find_map(|one| self.detail_of(one));
        reason.cloned().unwrap_or_default()
    }

    pub(super) fn outcome(&self, raw: &RawOutcome) -> Outcome {
        let text = self.detail_of(raw).cloned().unwrap_or_default();
        match raw.code {
            outcome_code::ACK => Outcome::Ack,
            outcome_code::DROP => Outcome::Drop(text),
            outcome_code::RETRY => {
                Outcome::Retry((raw.arg != 0).then(|| Duration::from_millis(raw.arg)), text)
            }
            outcome_code::DEAD_LETTER => Outcome::DeadLetter(text),
            outcome_code::PANICKED => Outcome::Panicked(text),
            _ => Outcome::NotRun,
        }
    }
}

impl CallSink for Collected {
    fn emit(&mut self, record: u32, emitted: &ProducerRecord<'_>) -> EmitResult {
        if !(1..=MAX_TOPIC).contains(&emitted.topic.len()) {
            return EmitResult::Denied;
        }
        if self.cancel.is_cancelled() {
            return EmitResult::Cancelled;
        }
        let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let size = len(emitted.key) + len(emitted.value) + emitted.headers.len() + OF_EACH;
        if self.bytes + size > MAX_EMITTED {
            return EmitResult::Full;
        }
        self.bytes += size;
        self.emits.push(Emitted {
            record: record as usize,
            topic: emitted.topic.to_string(),
            partition: emitted.partition,
            timestamp_ms: emitted.timestamp_ms,
            key: emitted.key.map(<[u8]>::to_vec),
            value: emitted.value.map(<[u8]>::to_vec),
            headers: Headers::new(emitted.headers)
                .map(|(name, value)| {
                    (
                        String::from_utf8_lossy(name).into_owned(),
                        value.map(<[u8]>::to_vec),
                    )
                })
                .collect(),
        });
        EmitResult::Taken
    }

    fn detail(&mut self, text: &str) -> u32 {
        let text = &text[..text.floor_char_boundary(MAX_DETAIL)];
        if self.detail_bytes + text.len() > MAX_DETAILS {
            return 0;
        }
        self.detail_bytes += text.len();
        self.details.push(text.to_string());
        self.details.len() as u32
    }
}
