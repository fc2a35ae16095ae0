//! One handler instance of a native plugin, on its worker's thread.

use std::sync::{Arc, Mutex, PoisonError};

use sluicegate_abi::board::Board;
use sluicegate_abi::host::{self, CallEnd, CallSink, HostSink, Instance, InstanceError};
use sluicegate_abi::plugin::{Emission, Refusal};
use sluicegate_runtime::{
    CallMonitor, CallOutput, CallProgress, CallRequest, CallStatus, Emit, HandlerInstance,
    HealthError, HostServices, LogLevel, MetricKind, NotTaken, RawOutcome, outcome_code,
    outcome_flag,
};

/// Number of records per call without reallocation.
const FIRST_CAPACITY: usize = 1024;

pub(crate) struct NativeInstance {
    /// `None` only during drop.
    instance: Option<Instance>,
    services: Arc<dyn HostServices>,
    board: Arc<Board>,
    monitor: Arc<NativeMonitor>,
    serial: u64,
    spent: bool,
}

impl NativeInstance {
    pub(crate) fn new(instance: Instance, services: Arc<dyn HostServices>) -> Self {
        let board = Arc::new(Board::new(FIRST_CAPACITY));
        let monitor = Arc::new(NativeMonitor {
            board: Mutex::new(Arc::clone(&board)),
        });
        Self {
            instance: Some(instance),
            services,
            board,
            monitor,
            serial: 0,
            spent: false,
        }
    }

    fn reserve(&mut self, records: usize) {
        if records > self.board.capacity() {
            self.board = Arc::new(Board::new(records.next_power_of_two()));
            *self.monitor.lock() = Arc::clone(&self.board);
        }
    }

    /// Runs a lifecycle call; a panic in it makes the instance unusable.
    fn lifecycle_call(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Instance) -> Result<(), InstanceError>,
    ) {
        if self.spent {
            return;
        }
        let Some(instance) = &mut self.instance else {
            return;
        };
        if let Err(panic) = work(instance) {
            self.spent = true;
            self.services.log(
                LogLevel::Error,
                &format!("handler panicked in `{what}`: {panic}"),
            );
        }
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
            cancel,
        } = *call;
        debug_assert_eq!(records.len(), outcomes.len(), "one outcome per record");
        self.reserve(records.len());
        let Some(instance) = self.instance.as_mut().filter(|_| !self.spent) else {
            return CallStatus::Spent;
        };
        self.serial += 1;
        let mut sink = OutputSink {
            output,
            records: records.len() as u32,
        };
        let end = instance.handle(
            records,
            self.serial,
            timeout_ms,
            cancel,
            &self.board,
            &mut sink,
        );
        self.board.close(outcomes);
        discard_emits_of_failures(outcomes, output);
        match end {
            CallEnd::Usable => CallStatus::Usable,
            CallEnd::Spent => {
                self.spent = true;
                CallStatus::Spent
            }
        }
    }

    fn monitor(&self) -> Arc<dyn CallMonitor> {
        Arc::clone(&self.monitor) as _
    }

    fn health(&mut self) -> Result<(), HealthError> {
        let Some(instance) = &mut self.instance else {
            return Err(HealthError::Spent("the instance was dropped".into()));
        };
        instance.health().map_err(|error| match error {
            InstanceError::Failed(reason) => HealthError::Unhealthy(reason),
            InstanceError::Panicked(panic) => HealthError::Spent(panic),
        })
    }

    fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken> {
        let Some(instance) = self.instance.as_mut().filter(|_| !self.spent) else {
            return Err(NotTaken::Spent("the instance panicked earlier".into()));
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
                host::NotTaken::Spent(panic) => {
                    self.spent = true;
                    NotTaken::Spent(panic)
                }
            })
    }

    fn assigned(&mut self, topic: &str, partition: i32, epoch: u32) {
        self.lifecycle_call("assigned", |instance| {
            instance.assigned(topic, partition, epoch)
        });
    }

    fn revoked(&mut self, topic: &str, partition: i32, epoch: u32) {
        self.lifecycle_call("revoked", |instance| {
            instance.revoked(topic, partition, epoch)
        });
    }

    fn drain(&mut self, deadline_ms: u64) {
        self.lifecycle_call("drain", |instance| instance.drain(deadline_ms));
    }
}

impl Drop for NativeInstance {
    fn drop(&mut self) {
        if let Some(Err(panic)) = self.instance.take().map(Instance::destroy) {
            self.services.log(
                LogLevel::Error,
                &format!("handler panicked in its drop: {panic}"),
            );
        }
    }
}

/// Discards the emits of records that ended in a retry, a panic or an unknown code.
fn discard_emits_of_failures(outcomes: &mut [RawOutcome], output: &mut CallOutput) {
    let keeps_emits = |outcome: &RawOutcome| {
        matches!(
            outcome.code,
            outcome_code::ACK | outcome_code::DROP | outcome_code::DEAD_LETTER
        )
    };
    if output.emits.is_empty() || outcomes.iter().all(keeps_emits) {
        return;
    }
    output
        .emits
        .retain(|record| outcomes.get(record as usize).is_some_and(keeps_emits));
    for outcome in outcomes.iter_mut().filter(|outcome| !keeps_emits(outcome)) {
        outcome.flags &= !outcome_flag::EMITTED;
    }
}

/// Holds the instance's board, which is replaced when a call exceeds its capacity.
struct NativeMonitor {
    board: Mutex<Arc<Board>>,
}

impl NativeMonitor {
    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Board>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl CallSink for OutputSink<'_> {
    fn emit(&mut self, record: u32, emission: &Emission<'_>) -> bool {
        if record >= self.records || emission.topic.is_empty() {
            return false;
        }
        self.output.emits.push(&Emit {
            record,
            topic: emission.topic,
            partition: emission.partition,
            timestamp_ms: emission.timestamp_ms,
            key: emission.key,
            value: emission.value,
            headers: emission.headers,
        })
    }

    fn detail(&mut self, text: &str) -> u32 {
        self.output.details.push(text.to_string());
        u32::try_from(self.output.details.len()).unwrap_or(0)
    }
}

/// Adapts the service's logs and metrics to the ABI.
pub(crate) struct ServicesSink(pub(crate) Arc<dyn HostServices>);

impl HostSink for ServicesSink {
    fn log(&self, level: u32, message: &str) {
        let level = match level {
            0 => LogLevel::Error,
            1 => LogLevel::Warn,
            2 => LogLevel::Info,
            3 => LogLevel::Debug,
            _ => LogLevel::Trace,
        };
        self.0.log(level, message);
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
