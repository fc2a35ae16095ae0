//! A worker thread: builds instances on first use, calls and drops them. Instances never leave their thread.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Batch, OwnedPartition, PumpMessage};
use sluicegate_runtime::{
    CallMonitor, CallRequest, CallStatus, CreateRequest, HandlerInstance, InstanceError, NotTaken,
    PartitionChange, PartitionEvent, RawOutcome, outcome_code,
};

use crate::error::ProbeError;
use crate::member::{Config, MemberId, PoolMember};
use crate::restart::Failure;
use crate::roster::{Created, Event, Probe, Rebuild, Report, Task, WorkItem, WorkerId};
use crate::thread_pool::ThreadPool;
use crate::{emits, provenance};

/// Length of a thread name that Linux keeps, in bytes.
const VISIBLE: usize = 15;

const RUNTIME_PANICKED: &str = "the plugin's runtime panicked";

/// Starts the thread of a slot.
pub(crate) fn spawn(threads: Arc<ThreadPool>, id: WorkerId) -> std::io::Result<()> {
    let name = thread_name(&threads.settings.name, threads.settings.generation, id.slot);
    // The join handle is dropped: the thread pool counts its threads, and one that hangs must not be joined.
    std::thread::Builder::new().name(name).spawn(move || {
        let worker = Worker {
            threads,
            id,
            built: HashMap::new(),
            to_rebuild: HashSet::new(),
        };
        // Panics of plugins are caught where they are called. One that arrives here would take a slot and its batch with it, so that
        // lanes and partitions wait for ever: an invariant is broken (G13).
        if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
            tracing::error!("a worker thread panicked outside of its handler; the process ends");
            std::process::abort();
        }
    })?;
    Ok(())
}

/// `handler/NAME-GENERATION-SLOT`, with NAME truncated to fit [`VISIBLE`].
fn thread_name(name: &str, generation: u64, slot: usize) -> String {
    let tail = format!("-{generation}-{slot}");
    let room = VISIBLE.saturating_sub("handler/".len() + tail.len()).max(1);
    let head: String = name.chars().filter(char::is_ascii).take(room).collect();
    format!("handler/{head}{tail}")
}

struct Built {
    member: Arc<PoolMember>,
    instance: Box<dyn HandlerInstance>,
    monitor: Arc<dyn CallMonitor>,
    /// The partitions that it was notified of.
    notified: BTreeSet<OwnedPartition>,
    /// Serial number of its config.
    config: u64,
}

struct Worker {
    threads: Arc<ThreadPool>,
    id: WorkerId,
    /// Instances by handler.
    built: HashMap<MemberId, Built>,
    /// Handlers whose instance failed here and was not rebuilt yet.
    to_rebuild: HashSet<MemberId>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let built = &self.built;
            let monitor_of = |member: MemberId| built.get(&member).map(|b| Arc::clone(&b.monitor));
            let task = self.threads.next(self.id, &monitor_of);
            let keep_running = match task {
                Task::Call(item) => self.call(item),
                Task::Create(member, config) => self.create_and_call(&member, &config),
                Task::Probe(probe) => self.probe(probe),
                Task::Leave(member) => self.leave(&member),
                Task::NotifyChange(member) => {
                    self.notify_change(&member);
                    true
                }
                Task::CheckHealth(missing) => self.check_health(&missing),
                Task::Exit => false,
            };
            if !keep_running {
                break;
            }
        }
        for (_, built) in self.built.drain() {
            drop_guarded(built);
        }
        self.threads.tell(Event::AbandonedThreadEnded(self.id));
    }

    /// Reports what was done until now; `false` if this thread was abandoned.
    fn report(&self, report: Report<'_>) -> bool {
        self.threads.report(self.id, report, Instant::now())
    }

    fn create_and_call(&mut self, member: &Arc<PoolMember>, config: &Config) -> bool {
        match self.build(member, config) {
            Ok(monitor) => match self.threads.created(self.id, monitor) {
                Created::Call(item) => self.call(item),
                Created::Recalled => true,
                Created::Abandoned => false,
            },
            Err(error) => {
                tracing::warn!(handler = %member.setup.name, %error, "cannot create instance");
                self.report(Report::NotCreated(member, &error))
            }
        }
    }

    fn build(
        &mut self,
        member: &Arc<PoolMember>,
        config: &Config,
    ) -> Result<Arc<dyn CallMonitor>, ProbeError> {
        let started = Instant::now();
        let setup = &member.setup;
        let create = || {
            let instance = setup.plugin.create(CreateRequest {
                handler: &setup.info.name,
                name: &setup.name,
                config_json: &config.json,
                worker: self.id.slot as u32,
                generation: setup.generation,
                services: Arc::clone(&setup.services),
            });
            instance.map(|instance| Built {
                member: Arc::clone(member),
                monitor: instance.monitor(),
                instance,
                notified: BTreeSet::new(),
                config: config.serial,
            })
        };
        let built =
            catch_unwind(AssertUnwindSafe(create)).map_err(|_| ProbeError::RuntimePanicked)??;
        let monitor = Arc::clone(&built.monitor);
        self.built.insert(member.id, built);
        let left = self
            .threads
            .settings
            .create_timeout
            .saturating_sub(started.elapsed());
        match self.notify_partitions(member, left) {
            Ok(()) => {
                if self.to_rebuild.remove(&member.id) {
                    setup.stats.restarted();
                }
                Ok(monitor)
            }
            Err(error) => {
                if let Some(built) = self.built.remove(&member.id) {
                    drop_guarded(built);
                }
                Err(ProbeError::Partition(error))
            }
        }
    }

    /// Notifies the handler's instance, if there is one, of assigned, revoked and lost partitions.
    ///
    /// All of it is to be done within `time`; each is told what is left.
    ///
    /// # Errors
    /// It cannot follow one of them, and must not be used.
    fn notify_partitions(
        &mut self,
        member: &Arc<PoolMember>,
        time: Duration,
    ) -> Result<(), InstanceError> {
        let started = Instant::now();
        let Some(built) = self.built.get_mut(&member.id) else {
            return Ok(());
        };
        let owned = self.threads.lock().roster.owned(member);
        let Built {
            instance, notified, ..
        } = built;
        let gone = notified.difference(&owned).map(|gone| {
            let change = match gone.lost.load(Ordering::Acquire) {
                true => PartitionChange::Lost,
                false => PartitionChange::Revoked,
            };
            (change, gone)
        });
        let new = owned.difference(notified);
        let mut changes = gone.chain(new.map(|new| (PartitionChange::Assigned, new)));
        contained(|| {
            changes.try_for_each(|(change, at)| {
                instance.partition(&PartitionEvent {
                    change,
                    topic: &at.topic,
                    partition: at.partition,
                    epoch: at.epoch,
                    start_offset: (change == PartitionChange::Assigned).then_some(at.start),
                    deadline: Some(time.saturating_sub(started.elapsed())),
                })
            })
        })?;
        built.notified = owned;
        Ok(())
    }

    /// Tells the handler's instance of changed partitions and a changed config. One that cannot follow is dropped, and rebuilt on
    /// the next batch.
    fn notify_change(&mut self, member: &Arc<PoolMember>) {
        match self.notify_partitions(member, self.threads.settings.drain_timeout) {
            Ok(()) => self.apply_config(member),
            Err(error) => {
                let why = ProbeError::Partition(error).to_string();
                self.drop_instance(member, &why);
            }
        }
    }

    /// Runs one batch; `false` if this thread was abandoned.
    fn call(&mut self, item: WorkItem) -> bool {
        let WorkItem {
            member,
            mut batch,
            reply_to,
        } = item;
        let (failed, ended) = self.handle(&member, &mut batch);
        if let Some((failure, why)) = &failed {
            if *failure == Failure::Poisoned {
                member.setup.stats.panicked();
            }
            member.setup.stats.failed(why);
        }
        let report = Report::CallEnded {
            member: &member,
            failed: failed
                .as_ref()
                .map(|(failure, why)| (*failure, why.as_str())),
            made_progress: batch.outcomes.iter().any(RawOutcome::succeeds),
        };
        if !self.threads.report(self.id, report, ended) {
            // The pump has recalled these records and only waits to free their memory. The emits of this call are
            // discarded, so none of its outcomes may count.
            batch.not_run();
            reply_to.push(PumpMessage::Finished(batch));
            return false;
        }
        let setup = &member.setup;
        if !batch.output.emits.is_empty() {
            if let Some(handler) = &setup.provenance {
                provenance::add(&mut batch, handler);
            }
            let counts = setup.stats.emitted();
            emits::send(
                &mut batch,
                &reply_to,
                &*setup.emitter,
                counts,
                setup.timeout,
            );
        }
        setup.stats.returned(batch.records.len() as u64);
        reply_to.push(PumpMessage::Finished(batch));
        if let Some((failure, why)) = failed {
            match failure {
                Failure::Poisoned => {
                    setup.warn(&format!("instance failed: {why}"));
                }
                Failure::Unavailable => {
                    setup.warn(&format!("what the instance needs is away: {why}"));
                }
            }
            self.to_rebuild.insert(member.id);
            self.report(Report::LifecycleCall(&member));
            if let Some(built) = self.built.remove(&member.id) {
                drop_guarded(built);
            }
        }
        true
    }

    /// Calls the instance; returns why it is unusable afterwards, if so, and the end of the call.
    fn handle(&mut self, member: &Arc<PoolMember>, batch: &mut Batch) -> (Option<Failed>, Instant) {
        batch.not_run();
        if batch.cancel.is_set() {
            return (None, Instant::now());
        }
        let Some(built) = self.built.get_mut(&member.id) else {
            let why = "the instance no longer exists".to_owned();
            return (Some((Failure::Poisoned, why)), Instant::now());
        };
        let timeout = u64::try_from(member.setup.timeout.as_millis()).unwrap_or(u64::MAX);
        let (timeout_ms, record_timeout_ms) = match member.setup.info.takes_batches {
            true => (timeout, 0),
            false => (0, timeout),
        };
        let start = Instant::now();
        let request = CallRequest {
            records: &batch.records,
            timeout_ms,
            record_timeout_ms,
            cancel: &batch.cancel,
        };
        let status = sluicegate_runtime::call(
            &mut *built.instance,
            &request,
            &mut batch.outcomes,
            &mut batch.output,
        );
        let elapsed = start.elapsed();
        // Never 0, which marks a batch returned without a call.
        batch.elapsed_us = (elapsed.as_micros() as u64).max(1);
        let records = batch.records.len() as u64;
        member
            .setup
            .stats
            .called(records, elapsed.as_nanos() as u64);
        let failed = match status {
            Ok(CallStatus::Usable) => None,
            Ok(CallStatus::Poisoned) => {
                let why = reason_of(batch, outcome_code::PANICKED);
                Some((Failure::Poisoned, why))
            }
            Ok(CallStatus::Unavailable) => {
                let why = reason_of(batch, outcome_code::NOT_RUN);
                Some((Failure::Unavailable, why))
            }
            Err(_) => Some((Failure::Poisoned, RUNTIME_PANICKED.to_owned())),
        };
        (failed, start + elapsed)
    }

    /// Health-checks every instance of this thread, then builds and checks one for each of the `missing` handlers, whose
    /// unhealthy instance was dropped; `false` if the thread was abandoned.
    fn check_health(&mut self, missing: &[Arc<PoolMember>]) -> bool {
        let members = self.built.values().map(|built| Arc::clone(&built.member));
        for member in members.collect::<Vec<_>>() {
            // Each check of a handler whose threads hang would cost another one.
            if member.is_tripped() {
                continue;
            }
            if !self.report(Report::HealthCheck(&member)) || !self.check_instance(&member) {
                return false;
            }
        }
        missing.iter().all(|member| self.rebuild(member))
    }

    /// Checks the handler's instance, and drops it if it cannot recover; `false` if the thread was abandoned.
    fn check_instance(&mut self, member: &Arc<PoolMember>) -> bool {
        let Some(built) = self.built.get_mut(&member.id) else {
            return true;
        };
        let health = contained(|| built.instance.health());
        let why = health.as_ref().err().map(ToString::to_string);
        if !self.report(Report::HealthChecked(member, why)) {
            return false;
        }
        if let Err(InstanceError::Poisoned(why)) = health {
            self.drop_instance(member, &why);
        }
        true
    }

    /// Builds and checks an instance in place of an unhealthy one that was dropped; `false` if the thread was abandoned.
    fn rebuild(&mut self, member: &Arc<PoolMember>) -> bool {
        let config = match self.threads.begin_rebuild(self.id, member) {
            Rebuild::Build(config) => config,
            Rebuild::NotNow => return true,
            Rebuild::Abandoned => return false,
        };
        match self.build(member, &config) {
            Ok(_) => self.check_instance(member),
            Err(error) => {
                let why = format!("the instance failed and cannot be built again: {error}");
                self.report(Report::HealthChecked(member, Some(why)))
            }
        }
    }

    fn probe(&mut self, probe: Probe) -> bool {
        let Probe {
            member,
            keep,
            config,
            new_config,
        } = &probe;
        let has_one = self.built.contains_key(&member.id);
        let tried = match new_config {
            Some(new_config) => self.try_config(member, new_config),
            None if has_one => Ok(()),
            None => self.build(member, config).map(drop),
        };
        let tried = match tried {
            // The config was refused: the instance keeps the previous one.
            Err(error) if has_one && self.built.contains_key(&member.id) => Err(error),
            tried => {
                let result = tried.and_then(|()| self.health_of(member));
                let drop_it = result.is_err() || !(*keep || has_one);
                // Dropped before the answer, so that no instance is left when the caller reads it.
                if drop_it && let Some(built) = self.built.remove(&member.id) {
                    drop_guarded(built);
                }
                result
            }
        };
        self.report(Report::Probed(&probe, tried))
    }

    fn health_of(&mut self, member: &Arc<PoolMember>) -> Result<(), ProbeError> {
        let Some(Built { instance, .. }) = self.built.get_mut(&member.id) else {
            return Err(ProbeError::Gone);
        };
        Ok(contained(|| instance.health())?)
    }

    /// Applies a config to the instance here, or builds one with it. After an error the instance keeps the previous config or
    /// is dropped.
    fn try_config(&mut self, member: &Arc<PoolMember>, config: &Config) -> Result<(), ProbeError> {
        let Some(built) = self.built.get_mut(&member.id) else {
            return self.build(member, config).map(drop);
        };
        let taken = catch_unwind(AssertUnwindSafe(|| {
            built.instance.reconfigure(&config.json)
        }));
        match taken.unwrap_or_else(|_| Err(NotTaken::Poisoned(RUNTIME_PANICKED.to_owned()))) {
            Ok(()) => {
                built.config = config.serial;
                Ok(())
            }
            Err(error) => {
                if let NotTaken::Poisoned(why) = &error {
                    self.drop_instance(member, why);
                }
                Err(error.into())
            }
        }
    }

    /// Applies the handler's current config to the instance here, if it has another one. An instance that refuses a config
    /// accepted by another instance is dropped, and rebuilt on the next batch.
    fn apply_config(&mut self, member: &Arc<PoolMember>) {
        let config = self.threads.lock().roster.config(member);
        let has = self.built.get(&member.id).map(|built| built.config);
        if has.is_none_or(|serial| serial == config.serial) {
            return;
        }
        if let Err(error) = self.try_config(member, &config) {
            self.drop_instance(member, &error.to_string());
        }
    }

    /// Drops an unusable instance; it is rebuilt on the next batch, or at the next health check if it was unhealthy.
    fn drop_instance(&mut self, member: &Arc<PoolMember>, why: &str) {
        if let Some(built) = self.built.remove(&member.id) {
            tracing::warn!(handler = %member.setup.name, reason = why, "instance dropped");
            self.to_rebuild.insert(member.id);
            drop_guarded(built);
        }
    }

    fn leave(&mut self, member: &Arc<PoolMember>) -> bool {
        if let Some(mut built) = self.built.remove(&member.id) {
            let deadline_ms = self.threads.settings.drain_timeout.as_millis() as u64;
            let drained = contained(|| built.instance.drain(deadline_ms));
            if let Err(error) = drained {
                tracing::warn!(handler = %member.setup.name, %error, "instance was not drained");
            }
            drop_guarded(built);
        }
        self.to_rebuild.remove(&member.id);
        self.report(Report::Released(member))
    }
}

/// Runs a lifecycle call. Runtimes contain plugin panics; one that escapes has poisoned the instance.
fn contained(work: impl FnOnce() -> Result<(), InstanceError>) -> Result<(), InstanceError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(InstanceError::Poisoned(RUNTIME_PANICKED.to_owned())))
}

/// Why an instance is unusable after a call.
type Failed = (Failure, String);

/// The text that the call left for an outcome with this code, if there is one.
fn reason_of(batch: &Batch, code: u16) -> String {
    let with_code = batch.outcomes.iter().filter(|one| one.code == code);
    let mut details = with_code.filter_map(|outcome: &RawOutcome| {
        let at = (outcome.detail as usize).checked_sub(1)?;
        batch.output.details.get(at)
    });
    let reason = details.next().cloned();
    reason.unwrap_or_else(|| "the instance cannot be used again".to_owned())
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
