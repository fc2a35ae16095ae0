//! One handler instance of a native plugin, on its worker's thread.

use std::sync::{Arc, Mutex, PoisonError};

use sluicegate_abi::host::{self, CallEnd, CallLimits, CallSink, HostSink, Instance, LogLine};
use sluicegate_abi::plugin::{EmitResult, Refusal};
use sluicegate_abi::progress::SharedProgress;
use sluicegate_abi::record::ProducerRecord;
use sluicegate_runtime::{
    CallMonitor, CallOutput, CallProgress, CallRequest, CallStatus, CancelFlag, Emit,
    HandlerInstance, HostServices, InstanceError, LogLevel, MetricKind, NotTaken, PartitionEvent,
    RawOutcome, outcome_flag,
};

use crate::loaded::Living;

const PANICKED_EARLIER: &str = "the instance panicked earlier";
/// Maximum bytes of what a call emits, with what is needed to find them.
const MAX_EMITTED: usize = 32 << 20;
/// Maximum bytes of one text of a call, and of all.
const MAX_DETAIL: usize = 8 << 10;
const MAX_DETAILS: usize = 4 << 20;
/// Number of records per call without reallocation.
const FIRST_CAPACITY: usize = 1024;

pub(crate) struct NativeInstance {
    /// `None` only during drop.
    instance: Option<Instance>,
    services: Arc<dyn HostServices>,
    progress: Arc<SharedProgress>,
    monitor: Arc<NativeMonitor>,
    serial: u64,
    poisoned: bool,
    /// Dropped after the instance.
    _living: Living,
}

impl NativeInstance {
    pub(crate) fn new(instance: Instance, services: Arc<dyn HostServices>, living: Living) -> Self {
        let progress = Arc::new(SharedProgress::new(FIRST_CAPACITY));
        let monitor = Arc::new(NativeMonitor {
            progress: Mutex::new(Arc::clone(&progress)),
        });
        Self {
            instance: Some(instance),
            services,
            progress,
            monitor,
            serial: 0,
            poisoned: false,
            _living: living,
        }
    }

    fn reserve(&mut self, records: usize) {
        if records > self.progress.capacity() {
            self.progress = Arc::new(SharedProgress::new(records.next_power_of_two()));
            *self.monitor.lock() = Arc::clone(&self.progress);
        }
    }

    /// Runs a lifecycle call; a panic in it makes the instance unusable.
    fn lifecycle_call(
        &mut self,
        work: impl FnOnce(&mut Instance) -> Result<(), host::InstanceError>,
    ) -> Result<(), InstanceError> {
        let Some(instance) = self.instance.as_mut().filter(|_| !self.poisoned) else {
            return Err(InstanceError::Poisoned(PANICKED_EARLIER.into()));
        };
        work(instance).map_err(|error| match error {
            host::InstanceError::Failed(reason) => InstanceError::Failed(reason),
            host::InstanceError::Panicked(panic) => {
                self.poisoned = true;
                InstanceError::Poisoned(panic)
            }
        })
    }
}

impl HandlerInstance for NativeInstance {
    fn handle(
        &mut self,
        call: &CallRequest<'_>,
        outcomes: &mut [RawOutcome],
        output: &mut CallOutput,
    ) -> CallStatus {
        let CallRequest {
            records,
            timeout_ms,
            record_timeout_ms,
            cancel,
        } = *call;
        debug_assert_eq!(records.len(), outcomes.len(), "one outcome per record");
        self.reserve(records.len());
        let Some(instance) = self.instance.as_mut().filter(|_| !self.poisoned) else {
            return CallStatus::Poisoned;
        };
        self.serial += 1;
        let mut sink = OutputSink {
            output,
            records: records.len() as u32,
            cancel,
            detail_bytes: 0,
        };
        let end = instance.handle(
            records,
            self.serial,
            CallLimits {
                timeout_ms,
                record_timeout_ms,
            },
            cancel,
            &self.progress,
            &mut sink,
        );
        self.progress.close(outcomes);
        discard_emits_of_failures(outcomes, output);
        match end {
            CallEnd::Usable => CallStatus::Usable,
            CallEnd::Poisoned => {
                self.poisoned = true;
                CallStatus::Poisoned
            }
        }
    }

    fn monitor(&self) -> Arc<dyn CallMonitor> {
        Arc::clone(&self.monitor) as _
    }

    fn health(&mut self) -> Result<(), InstanceError> {
        self.lifecycle_call(Instance::health)
    }

    fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken> {
        let Some(instance) = self.instance.as_mut().filter(|_| !self.poisoned) else {
            return Err(NotTaken::Poisoned(PANICKED_EARLIER.into()));
        };
        instance
            .reconfigure(config_json)
            .map_err(|refused| match refused {
                host::NotTaken::Refused(Refusal::Config(text) | Refusal::Failed(text)) => {
                    NotTaken::Refused(text)
                }
                host::NotTaken::Refused(Refusal::Unknown) => {
                    NotTaken::Refused("it cannot be reconfigured".into())
                }
                host::NotTaken::Poisoned(panic) => {
                    self.poisoned = true;
                    NotTaken::Poisoned(panic)
                }
            })
    }

    fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), InstanceError> {
        self.lifecycle_call(|instance| instance.partition(event))
    }

    fn drain(&mut self, deadline_ms: u64) -> Result<(), InstanceError> {
        self.lifecycle_call(|instance| instance.drain(deadline_ms))
    }
}

impl Drop for NativeInstance {
    fn drop(&mut self) {
        if let Some(Err(panic)) = self.instance.take().map(Instance::destroy) {
            let message = format!("handler panicked in its drop: {panic}");
            let line = sluicegate_runtime::LogLine::new(LogLevel::Error, &message);
            self.services.log(&line);
        }
    }
}

/// Discards the emits of records that ended in a retry, a panic or an unknown code.
fn discard_emits_of_failures(outcomes: &mut [RawOutcome], output: &mut CallOutput) {
    if output.emits.is_empty() || outcomes.iter().all(RawOutcome::is_final) {
        return;
    }
    output.emits.retain(|record| {
        outcomes
            .get(record as usize)
            .is_some_and(RawOutcome::is_final)
    });
    for outcome in outcomes.iter_mut().filter(|outcome| !outcome.is_final()) {
        outcome.flags &= !outcome_flag::EMITTED;
    }
}

/// Holds the progress of the instance's calls, which is replaced when a call exceeds its capacity.
struct NativeMonitor {
    progress: Mutex<Arc<SharedProgress>>,
}

impl NativeMonitor {
    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<SharedProgress>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallMonitor for NativeMonitor {
    fn current(&self) -> Option<CallProgress> {
        self.lock()
            .current()
            .map(|(serial, index)| CallProgress { serial, index })
    }

    fn completed(&self, serial: u64, out: &mut Vec<RawOutcome>) -> bool {
        self.lock().read(serial, out)
    }
}

struct OutputSink<'a> {
    output: &'a mut CallOutput,
    records: u32,
    cancel: &'a CancelFlag,
    /// Bytes of the texts so far.
    detail_bytes: usize,
}

impl CallSink for OutputSink<'_> {
    fn emit(&mut self, record: u32, emitted: &ProducerRecord<'_>) -> EmitResult {
        if record >= self.records || emitted.topic.is_empty() {
            return EmitResult::Denied;
        }
        if self.cancel.is_cancelled() {
            return EmitResult::Cancelled;
        }
        let emit = Emit {
            record,
            to: *emitted,
        };
        if self.output.emits.held() + emit.size() > MAX_EMITTED {
            return EmitResult::Full;
        }
        match self.output.emits.push(&emit) {
            true => EmitResult::Taken,
            false => EmitResult::Denied,
        }
    }

    fn detail(&mut self, text: &str) -> u32 {
        let text = &text[..text.floor_char_boundary(MAX_DETAIL)];
        if self.detail_bytes + text.len() > MAX_DETAILS {
            return 0;
        }
        self.detail_bytes += text.len();
        self.output.details.push(text.to_string());
        u32::try_from(self.output.details.len()).unwrap_or(0)
    }
}

/// Adapts the service's logs and metrics to the ABI.
pub(crate) struct ServicesSink(pub(crate) Arc<dyn HostServices>);

impl HostSink for ServicesSink {
    fn log(&self, line: &LogLine<'_>) {
        let level = match line.level {
            0 => LogLevel::Error,
            1 => LogLevel::Warn,
            2 => LogLevel::Info,
            3 => LogLevel::Debug,
            _ => LogLevel::Trace,
        };
        self.0.log(&sluicegate_runtime::LogLine {
            level,
            target: line.target,
            message: line.message,
            fields: line.fields,
        });
    }

    fn metric(&self, kind: u32, name: &str, value: f64) {
        let kind = match kind {
            0 => MetricKind::Counter,
            1 => MetricKind::Gauge,
            // A metric kind of a later ABI minor: not supported here.
            3.. => return,
            2 => MetricKind::Histogram,
        };
        self.0.metric(kind, name, value);
    }
}
