//! One handler instance of a native plugin, on its worker's thread.

use std::sync::{Arc, Mutex, PoisonError};

use sluicegate_abi::host::{self, CallEnd, CallLimits, HostSink, Instance, LogLine};
use sluicegate_abi::plugin::Refusal;
use sluicegate_abi::progress::SharedProgress;
use sluicegate_runtime::{
    CallHost, CallMonitor, CallProgress, CallRequest, CallStatus, HandlerInstance, HostServices,
    InstanceError, LogLevel, MetricKind, NotTaken, PartitionEvent, RawOutcome,
};

use crate::loaded::Living;

const PANICKED_EARLIER: &str = "the instance panicked earlier";
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
        request: &CallRequest<'_>,
        outcomes: &mut [RawOutcome],
        host: &mut CallHost<'_>,
    ) -> CallStatus {
        let CallRequest {
            records,
            timeout_ms,
            record_timeout_ms,
            cancel,
        } = *request;
        self.reserve(records.len());
        let Some(instance) = self.instance.as_mut().filter(|_| !self.poisoned) else {
            return CallStatus::Poisoned;
        };
        self.serial += 1;
        let end = instance.handle(
            records,
            self.serial,
            CallLimits {
                timeout_ms,
                record_timeout_ms,
            },
            cancel,
            &self.progress,
            host,
        );
        self.progress.close(outcomes);
        match end {
            CallEnd::Usable => CallStatus::Usable,
            CallEnd::Poisoned => {
                self.poisoned = true;
                CallStatus::Poisoned
            }
            CallEnd::Unavailable => {
                self.poisoned = true;
                CallStatus::Unavailable
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
