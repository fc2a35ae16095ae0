//! A worker thread: builds instances on first use, calls and drops them. Instances never leave their thread.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use sluicegate_engine::dispatch::{Batch, OwnedPartition, PumpMessage};
use sluicegate_runtime::{
    CallMonitor, CallRequest, CallStatus, HandlerInstance, HealthError, NotTaken, RawOutcome,
    outcome_code,
};

use crate::crew::Crew;
use crate::error::ProbeError;
use crate::handoff::{CallReport, Created, Ticket};
use crate::pool::{Config, Tenant};
use crate::seats::{Job, Probe, Task};
use crate::{emits, provenance};

/// Length of a thread name that Linux keeps, in bytes.
const VISIBLE: usize = 15;

const RUNTIME_PANICKED: &str = "the plugin's runtime panicked";

/// Starts the thread of a seat.
pub(super) fn spawn(crew: Arc<Crew>, seat: usize, incarnation: u64) -> std::io::Result<()> {
    let name = thread_name(&crew.settings.name, crew.settings.generation, seat);
    let ticket = Ticket { seat, incarnation };
    // The join handle is dropped: the crew counts its threads, and one that hangs must not be joined.
    std::thread::Builder::new().name(name).spawn(move || {
        Worker {
            crew,
            ticket,
            built: HashMap::new(),
            to_rebuild: HashSet::new(),
        }
        .run();
    })?;
    Ok(())
}

/// `handler/NAME-GENERATION-SEAT`, with NAME truncated to fit [`VISIBLE`].
fn thread_name(name: &str, generation: u64, seat: usize) -> String {
    let tail = format!("-{generation}-{seat}");
    let room = VISIBLE.saturating_sub("handler/".len() + tail.len()).max(1);
    let head: String = name.chars().filter(char::is_ascii).take(room).collect();
    format!("handler/{head}{tail}")
}

struct Built {
    tenant: Arc<Tenant>,
    instance: Box<dyn HandlerInstance>,
    monitor: Arc<dyn CallMonitor>,
    /// The partitions that it was notified of.
    notified: BTreeSet<OwnedPartition>,
    /// Serial number of its config.
    config: u64,
}

struct Worker {
    crew: Arc<Crew>,
    ticket: Ticket,
    /// Instances by handler.
    built: HashMap<u64, Built>,
    /// Handlers whose instance failed here and was not rebuilt yet.
    to_rebuild: HashSet<u64>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let built = &self.built;
            let monitor_of = |tenant: u64| built.get(&tenant).map(|b| Arc::clone(&b.monitor));
            let task = self.crew.next(self.ticket, &monitor_of);
            let keep_running = match task {
                Task::Call(job) => self.call(job),
                Task::Create(tenant) => self.create_and_call(&tenant),
                Task::Probe(probe) => self.probe(&probe),
                Task::Leave(tenant) => self.leave(&tenant),
                Task::NotifyChange(tenant) => {
                    self.notify_partitions(&tenant);
                    self.apply_config(&tenant);
                    true
                }
                Task::CheckHealth => self.check_health(),
                Task::Exit => false,
            };
            if !keep_running {
                break;
            }
        }
        for (_, built) in self.built.drain() {
            drop_guarded(built);
        }
    }

    fn create_and_call(&mut self, tenant: &Arc<Tenant>) -> bool {
        match self.build(tenant, &tenant.config()) {
            Ok(monitor) => match self.crew.created(self.ticket, monitor) {
                Created::Call(job) => self.call(job),
                Created::Recalled => true,
                Created::Abandoned => false,
            },
            Err(error) => {
                tracing::warn!(handler = %tenant.setup.name, %error, "cannot create instance");
                self.crew.not_created(self.ticket, tenant, &error)
            }
        }
    }

    fn build(
        &mut self,
        tenant: &Arc<Tenant>,
        config: &Config,
    ) -> Result<Arc<dyn CallMonitor>, ProbeError> {
        let setup = &tenant.setup;
        let create = || {
            let services = Arc::clone(&setup.services);
            let instance =
                setup
                    .plugin
                    .create(&setup.exported_as, &setup.name, &config.json, services);
            instance.map(|instance| Built {
                tenant: Arc::clone(tenant),
                monitor: instance.monitor(),
                instance,
                notified: BTreeSet::new(),
                config: config.serial,
            })
        };
        let built =
            catch_unwind(AssertUnwindSafe(create)).map_err(|_| ProbeError::RuntimePanicked)??;
        let monitor = Arc::clone(&built.monitor);
        if self.to_rebuild.remove(&tenant.id) {
            setup.stats.restarted();
        }
        self.built.insert(tenant.id, built);
        self.notify_partitions(tenant);
        Ok(monitor)
    }

    /// Notifies the handler's instance, if there is one, of assigned and revoked partitions.
    fn notify_partitions(&mut self, tenant: &Arc<Tenant>) {
        let Some(built) = self.built.get_mut(&tenant.id) else {
            return;
        };
        let owned = tenant.owned();
        let Built {
            instance, notified, ..
        } = built;
        let notification = catch_unwind(AssertUnwindSafe(|| {
            for gone in notified.difference(&owned) {
                instance.revoked(&gone.topic, gone.partition, gone.epoch);
            }
            for new in owned.difference(notified) {
                instance.assigned(&new.topic, new.partition, new.epoch);
            }
        }));
        if notification.is_err() {
            tracing::warn!(handler = %tenant.setup.name, "instance panicked on a partition change");
        }
        built.notified = owned;
    }

    /// Runs one batch; `false` if this thread was abandoned.
    fn call(&mut self, job: Job) -> bool {
        let Job {
            tenant,
            mut batch,
            home,
        } = job;
        let spent = self.handle(&tenant, &mut batch);
        if let Some(why) = &spent {
            tenant.setup.stats.panicked();
            tenant.setup.stats.failed(why);
        }
        let report = CallReport {
            spent: spent.as_deref(),
            made_progress: batch
                .outcomes
                .iter()
                .any(|outcome| matches!(outcome.code, outcome_code::ACK | outcome_code::DROP)),
        };
        if !self.crew.call_ended(self.ticket, &tenant, &report) {
            // The pump has taken these records back and only waits to free their memory. The emits of this call are
            // discarded, so none of its outcomes may count.
            batch.not_run();
            home.push(PumpMessage::Finished(batch));
            self.crew.hung_call_returned(&tenant);
            return false;
        }
        let setup = &tenant.setup;
        let groups = match batch.output.emits.is_empty() {
            true => Vec::new(),
            false => {
                if let Some(handler) = &setup.provenance {
                    provenance::add(&mut batch, handler);
                }
                let counts = setup.stats.emitted();
                emits::send(&mut batch, &home, &*setup.emitter, counts, setup.timeout)
            }
        };
        setup.stats.returned(batch.records.len() as u64);
        home.push(PumpMessage::Finished(batch));
        for group in groups {
            group.seal();
        }
        if let Some(why) = spent {
            tracing::warn!(handler = %setup.name, reason = %why, "instance failed");
            self.to_rebuild.insert(tenant.id);
            self.crew.begin_lifecycle_call(self.ticket, &tenant);
            if let Some(built) = self.built.remove(&tenant.id) {
                drop_guarded(built);
            }
        }
        true
    }

    /// Calls the instance; returns the reason if it is unusable afterwards.
    fn handle(&mut self, tenant: &Arc<Tenant>, batch: &mut Batch) -> Option<String> {
        batch.not_run();
        if batch.cancel.is_set() {
            return None;
        }
        let Some(built) = self.built.get_mut(&tenant.id) else {
            return Some("the instance no longer exists".to_owned());
        };
        let timeout_ms = tenant.setup.timeout.as_millis() as u64;
        let start = Instant::now();
        let call = CallRequest {
            records: &batch.records,
            timeout_ms,
            cancel: &batch.cancel,
        };
        let status = catch_unwind(AssertUnwindSafe(|| {
            built
                .instance
                .handle(&call, &mut batch.outcomes, &mut batch.output)
        }));
        let elapsed = start.elapsed();
        // Never 0, which marks a batch returned without a call.
        batch.elapsed_us = (elapsed.as_micros() as u64).max(1);
        let records = batch.records.len() as u64;
        tenant
            .setup
            .stats
            .called(records, elapsed.as_nanos() as u64);
        match status {
            Ok(CallStatus::Usable) => None,
            Ok(CallStatus::Spent) => Some(spent_reason(batch)),
            Err(_) => Some(RUNTIME_PANICKED.to_owned()),
        }
    }

    /// Health-checks every instance of this thread; `false` if the thread was abandoned. Where an unhealthy instance was
    /// dropped, another one is built and checked: with a closed gate no batch would build it, and the gate opens only to
    /// healthy instances.
    fn check_health(&mut self) -> bool {
        let Some(mut missing) = self.crew.unhealthy_here(self.ticket) else {
            return false;
        };
        missing.retain(|tenant| !self.built.contains_key(&tenant.id));
        let tenants = self.built.values().map(|built| Arc::clone(&built.tenant));
        for tenant in tenants.collect::<Vec<_>>() {
            if !self.crew.begin_lifecycle_call(self.ticket, &tenant)
                || !self.check_instance(&tenant)
            {
                return false;
            }
        }
        let interval = self.crew.settings.health_interval;
        missing.retain(|tenant| tenant.begin_rebuild(self.ticket.seat, interval));
        missing.iter().all(|tenant| self.rebuild(tenant))
    }

    /// Checks the handler's instance, and drops it if it cannot recover; `false` if the thread was abandoned.
    fn check_instance(&mut self, tenant: &Arc<Tenant>) -> bool {
        let Some(built) = self.built.get_mut(&tenant.id) else {
            return true;
        };
        let health = checked_health(&mut *built.instance);
        let why = health.as_ref().err().map(ToString::to_string);
        if !self.crew.health_checked(self.ticket, tenant, why) {
            return false;
        }
        if let Err(HealthError::Spent(why)) = health {
            self.drop_instance(tenant, &why);
        }
        true
    }

    /// Builds and checks an instance in place of an unhealthy one that was dropped; `false` if the thread was abandoned.
    fn rebuild(&mut self, tenant: &Arc<Tenant>) -> bool {
        if !self.crew.begin_rebuild(self.ticket, tenant) {
            return false;
        }
        match self.build(tenant, &tenant.config()) {
            Ok(_) => self.check_instance(tenant),
            Err(error) => {
                let why = format!("the instance failed and cannot be built again: {error}");
                self.crew.health_checked(self.ticket, tenant, Some(why))
            }
        }
    }

    fn probe(&mut self, probe: &Probe) -> bool {
        let Probe {
            tenant,
            keep,
            config,
            token,
        } = probe;
        if !token.take() {
            let cancelled = Err(ProbeError::Cancelled);
            return self.crew.probed(self.ticket, probe, cancelled);
        }
        let has_one = self.built.contains_key(&tenant.id);
        let tried = match config {
            Some(config) => self.try_config(tenant, config),
            None if has_one => Ok(()),
            None => self.build(tenant, &tenant.config()).map(drop),
        };
        let tried = match tried {
            // The config was refused: the instance keeps the previous one.
            Err(error) if has_one && self.built.contains_key(&tenant.id) => Err(error),
            tried => {
                let result = tried.and_then(|()| self.health_of(tenant));
                let drop_it = result.is_err() || !(*keep || has_one);
                // Dropped before the answer, so that no instance is left when the caller reads it.
                if drop_it && let Some(built) = self.built.remove(&tenant.id) {
                    drop_guarded(built);
                }
                result
            }
        };
        let taken = tried.is_ok() && config.is_some();
        if !self.crew.probed(self.ticket, probe, tried) {
            return false;
        }
        if taken && let Some(built) = self.built.get_mut(&tenant.id) {
            built.config = tenant.config().serial;
        }
        true
    }

    fn health_of(&mut self, tenant: &Arc<Tenant>) -> Result<(), ProbeError> {
        let Some(Built { instance, .. }) = self.built.get_mut(&tenant.id) else {
            return Err(ProbeError::Gone);
        };
        Ok(checked_health(&mut **instance)?)
    }

    /// Applies a config to the instance here, or builds one with it. After an error the instance keeps the previous config or
    /// is dropped.
    fn try_config(&mut self, tenant: &Arc<Tenant>, json: &Arc<str>) -> Result<(), ProbeError> {
        let Some(Built { instance, .. }) = self.built.get_mut(&tenant.id) else {
            let config = Config {
                serial: 0,
                json: Arc::clone(json),
            };
            return self.build(tenant, &config).map(drop);
        };
        let taken = catch_unwind(AssertUnwindSafe(|| instance.reconfigure(json)));
        let taken = taken.unwrap_or_else(|_| Err(NotTaken::Spent(RUNTIME_PANICKED.to_owned())));
        taken.map_err(|error| {
            if let NotTaken::Spent(why) = &error {
                self.drop_instance(tenant, why);
            }
            error.into()
        })
    }

    /// Applies the handler's current config to the instance here, if it has another one. An instance that refuses a config
    /// accepted by another instance is dropped, and rebuilt on the next batch.
    fn apply_config(&mut self, tenant: &Arc<Tenant>) {
        let config = tenant.config();
        let has = self.built.get(&tenant.id).map(|built| built.config);
        if has.is_none_or(|serial| serial == config.serial) {
            return;
        }
        match self.try_config(tenant, &config.json) {
            Ok(()) => {
                if let Some(built) = self.built.get_mut(&tenant.id) {
                    built.config = config.serial;
                }
            }
            Err(error) => self.drop_instance(tenant, &error.to_string()),
        }
    }

    /// Drops an unusable instance; it is rebuilt on the next batch, or at the next health check if it was unhealthy.
    fn drop_instance(&mut self, tenant: &Arc<Tenant>, why: &str) {
        if let Some(built) = self.built.remove(&tenant.id) {
            tracing::warn!(handler = %tenant.setup.name, reason = why, "instance dropped");
            self.to_rebuild.insert(tenant.id);
            drop_guarded(built);
        }
    }

    fn leave(&mut self, tenant: &Arc<Tenant>) -> bool {
        if let Some(mut built) = self.built.remove(&tenant.id) {
            let deadline_ms = self.crew.settings.drain_timeout.as_millis() as u64;
            let drained = catch_unwind(AssertUnwindSafe(|| built.instance.drain(deadline_ms)));
            if drained.is_err() {
                tracing::warn!(handler = %tenant.setup.name, "instance panicked while draining");
            }
            drop_guarded(built);
        }
        self.to_rebuild.remove(&tenant.id);
        self.crew.released(self.ticket, tenant)
    }
}

/// Runs a health check. Runtimes contain plugin panics; one that escapes counts as a failure.
fn checked_health(instance: &mut dyn HandlerInstance) -> Result<(), HealthError> {
    catch_unwind(AssertUnwindSafe(|| instance.health()))
        .unwrap_or_else(|_| Err(HealthError::Spent(RUNTIME_PANICKED.to_owned())))
}

/// The panic message, if the call left one.
fn spent_reason(batch: &Batch) -> String {
    let panicked = |outcome: &&RawOutcome| outcome.code == outcome_code::PANICKED;
    batch
        .outcomes
        .iter()
        .find(panicked)
        .and_then(|outcome| (outcome.detail as usize).checked_sub(1))
        .and_then(|at| batch.output.details.get(at))
        .cloned()
        .unwrap_or_else(|| "the instance cannot be used again".to_owned())
}

/// Drops an instance. Runtimes contain plugin panics; one that escapes must not end the thread.
fn drop_guarded(built: Built) {
    if catch_unwind(AssertUnwindSafe(|| drop(built))).is_err() {
        tracing::error!("dropping an instance panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::thread_name;

    #[test]
    fn thread_names_fit_and_keep_generation_and_worker() {
        assert_eq!(thread_name("fraud-detector", 3, 0), "handler/fra-3-0");
        assert_eq!(thread_name("ab", 3, 0), "handler/ab-3-0");
        assert_eq!(thread_name("fraud", 12345, 10), "handler/f-12345-10");
    }
}
