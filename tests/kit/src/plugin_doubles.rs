//! A scripted plugin, a producer and a pump's inbox, for tests of pools and generations.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluicegate_abi::view::RecordParts;
use sluicegate_engine::dispatch::{Batch, BatchId, Inbox, PumpMessage, RecordId};
use sluicegate_engine::emit::{Delivery, EmitToken, Emitter, ProducerRecord, Sent, Way};
use sluicegate_engine::source::Wake;
use sluicegate_runtime::{
    CallHost, CallMonitor, CallProgress, CallRequest, CallSink, CallStatus, CreateError,
    CreateRequest, Emit, HandlerInfo, HandlerInstance, InstanceError, LoadedPlugin, NotTaken,
    PartitionChange, PartitionEvent, PluginIdentity, RawOutcome, RawRecord, outcome_code,
    outcome_flag,
};

use crate::wait::wait_until;

/// Locks, also after a panic of another holder: scripted panics must not fail other threads.
fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Timeout of every wait.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the scripted handler does with the record at an offset; records without a step are acknowledged.
#[derive(Clone, Debug)]
pub enum Step {
    /// Drops the record.
    Drop,
    /// Asks for another attempt.
    Retry,
    /// Reports a panic, after which the instance is unusable.
    Panic,
    /// Finds what it needs away, after which the instance is unusable.
    Away,
    /// Blocks until the gate of that name is opened, then acknowledges.
    Hang(&'static str),
    /// Blocks like `Hang`, then copies the record to `Script::read` and acknowledges.
    HangAndRead(&'static str),
    /// Emits to the topic, then acknowledges.
    Emit(&'static str),
    /// Emits to the topic, then returns this outcome code.
    EmitThen(&'static str, u16),
}

/// Topic, key, value and header block.
pub type ReadRecord = (String, Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>);

/// The behaviour of all instances, and a record of what they did.
#[derive(Default)]
pub struct Script {
    steps: Mutex<HashMap<i64, Step>>,
    open: Mutex<HashSet<String>>,
    opened: Condvar,
    /// Number of creations that still fail.
    pub failing_creations: AtomicU32,
    /// Number of assigned partitions that instances still refuse.
    pub failing_assignments: AtomicU32,
    /// Number of instances built so far.
    pub built: AtomicU32,
    /// Number of instances dropped so far.
    pub dropped: AtomicU32,
    /// Number of calls that drained an instance.
    pub drained: AtomicU32,
    /// Number of health checks that still panic; the instance is unusable afterwards.
    pub panicking_checks: AtomicU32,
    /// Whether health checks block at the gate `check`.
    pub hanging_checks: AtomicBool,
    /// Whether health checks fail.
    pub unhealthy: AtomicBool,
    /// Instance name and number of records of each call, in order.
    pub calls: Mutex<Vec<(String, usize)>>,
    /// Records read after a hang.
    pub read: Mutex<Vec<ReadRecord>>,
    /// Offsets of the started records, in order.
    pub started: Mutex<Vec<i64>>,
    /// Partition notifications, and the first record of each call, in order.
    pub notifications: Mutex<Vec<String>>,
    /// Configs that instances were built with or took, in order.
    pub configs: Mutex<Vec<String>>,
}

impl Script {
    /// A script with these steps, by offset.
    pub fn new(steps: &[(i64, Step)]) -> Arc<Self> {
        let script = Self::default();
        *relock(&script.steps) = steps.iter().cloned().collect();
        Arc::new(script)
    }

    /// Opens a gate for good, and so releases every call that blocks at it.
    pub fn open(&self, gate: &str) {
        relock(&self.open).insert(gate.to_owned());
        self.opened.notify_all();
    }

    fn pass(&self, gate: &str) {
        let open = relock(&self.open);
        let closed = |open: &mut HashSet<String>| !open.contains(gate);
        drop(self.opened.wait_timeout_while(open, DEADLINE, closed));
    }

    /// Number of instances that are built and not dropped yet.
    pub fn living(&self) -> u32 {
        self.built.load(Ordering::SeqCst) - self.dropped.load(Ordering::SeqCst)
    }
}

/// A plugin that follows a script. Its config controls creation: `refuse`, `hang-create` (at gate `create`), `unhealthy`;
/// anything else is healthy. The same words apply to a new config, and also `first-only` (only the first instance takes it),
/// `poison` (the instance is unusable afterwards) and `hang-take` (at gate `take`).
pub struct ScriptedPlugin {
    /// The script of all its instances.
    pub script: Arc<Script>,
    /// The identity that it reports; only handlers named in it can be created.
    pub identity: PluginIdentity,
    /// The handlers that it declares.
    pub infos: Vec<HandlerInfo>,
    /// Number of shutdowns.
    pub shut_down: AtomicU32,
}

impl ScriptedPlugin {
    /// Version 1.0.0 of the plugin `scripted`, with one handler of that name.
    pub fn new(script: &Arc<Script>) -> Arc<Self> {
        Arc::new(Self {
            script: Arc::clone(script),
            identity: PluginIdentity {
                name: "scripted".to_owned(),
                version: "1.0.0".to_owned(),
                handlers: vec!["scripted".to_owned()],
                abi: "1.0".to_owned(),
                toolchain: "test".to_owned(),
                sha256: "00".to_owned(),
            },
            infos: vec![HandlerInfo::new("scripted", "{}")],
            shut_down: AtomicU32::new(0),
        })
    }
}

impl LoadedPlugin for ScriptedPlugin {
    fn identity(&self) -> &PluginIdentity {
        &self.identity
    }

    fn handlers(&self) -> &[HandlerInfo] {
        &self.infos
    }

    fn create(&self, request: CreateRequest<'_>) -> Result<Box<dyn HandlerInstance>, CreateError> {
        let CreateRequest {
            handler,
            config_json,
            ..
        } = request;
        if !self.identity.handlers.iter().any(|known| known == handler) {
            return Err(CreateError::Unknown {
                name: handler.to_owned(),
                known: self.identity.handlers.join(", "),
            });
        }
        if config_json.contains("refuse") {
            return Err(CreateError::Config("at /refuse: not allowed".to_owned()));
        }
        if config_json.contains("hang-create") {
            self.script.pass("create");
        }
        let failing = &self.script.failing_creations;
        let fails = failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if fails.is_ok() {
            return Err(CreateError::Failed("scripted to fail".to_owned()));
        }
        self.script.built.fetch_add(1, Ordering::SeqCst);
        relock(&self.script.configs).push(format!("built with {config_json}"));
        Ok(Box::new(Instance {
            name: request.name.to_owned(),
            healthy: !config_json.contains("unhealthy"),
            poisoned: false,
            monitor: Arc::new(Monitor {
                script: Arc::clone(&self.script),
                serial: AtomicU64::new(0),
                progress: Mutex::default(),
            }),
        }))
    }

    fn shutdown(&self, _deadline_ms: u64) {
        self.shut_down.fetch_add(1, Ordering::SeqCst);
    }
}

struct Instance {
    name: String,
    healthy: bool,
    poisoned: bool,
    monitor: Arc<Monitor>,
}

struct Monitor {
    script: Arc<Script>,
    serial: AtomicU64,
    /// The outcomes of the running call.
    progress: Mutex<Option<Vec<RawOutcome>>>,
}

impl CallMonitor for Monitor {
    fn current(&self) -> Option<CallProgress> {
        let progress = relock(&self.progress);
        progress.as_ref().map(|done| CallProgress {
            serial: self.serial.load(Ordering::SeqCst),
            index: done.len() as u32,
        })
    }

    fn completed(&self, serial: u64, out: &mut Vec<RawOutcome>) -> bool {
        let progress = relock(&self.progress);
        match progress.as_ref() {
            Some(done) if self.serial.load(Ordering::SeqCst) == serial => {
                out.extend_from_slice(done);
                true
            }
            _ => false,
        }
    }
}

impl Instance {
    fn record(&self, what: String) {
        relock(&self.monitor.script.notifications).push(what);
    }

    fn one(&self, index: u32, record: &RawRecord, host: &mut CallHost<'_>) -> RawOutcome {
        let step = relock(&self.monitor.script.steps)
            .get(&record.offset)
            .cloned();
        let mut outcome = RawOutcome {
            code: outcome_code::ACK,
            ..RawOutcome::default()
        };
        let mut emit = |topic: &str| {
            host.emit(index, &Emit::new(index, topic, Some(b"emitted")).to);
            outcome_flag::EMITTED
        };
        match step {
            None => {}
            Some(Step::Drop) => outcome.code = outcome_code::DROP,
            Some(Step::Retry) => outcome.code = outcome_code::RETRY,
            Some(Step::Hang(gate)) => self.monitor.script.pass(gate),
            Some(Step::HangAndRead(gate)) => {
                self.monitor.script.pass(gate);
                let read = record.view();
                relock(&self.monitor.script.read).push((
                    read.topic().to_owned(),
                    read.key().map(<[u8]>::to_vec),
                    read.value().map(<[u8]>::to_vec),
                    read.header_block().to_vec(),
                ));
            }
            Some(Step::Emit(topic)) => outcome.flags = emit(topic),
            Some(Step::EmitThen(topic, code)) => {
                outcome.flags = emit(topic);
                outcome.code = code;
            }
            Some(Step::Away) => {
                outcome.code = outcome_code::NOT_RUN;
                outcome.detail = host.detail("scripted outage");
            }
            Some(Step::Panic) => {
                outcome.code = outcome_code::PANICKED;
                outcome.detail = host.detail("scripted panic");
            }
        }
        outcome
    }
}

impl HandlerInstance for Instance {
    fn handle(
        &mut self,
        call: &CallRequest<'_>,
        outcomes: &mut [RawOutcome],
        host: &mut CallHost<'_>,
    ) -> CallStatus {
        if self.poisoned {
            return CallStatus::Poisoned;
        }
        let script = &self.monitor.script;
        let records = call.records;
        relock(&script.calls).push((self.name.clone(), records.len()));
        relock(&script.notifications).push(format!("called with {}", records[0].offset));
        self.monitor.serial.fetch_add(1, Ordering::SeqCst);
        *relock(&self.monitor.progress) = Some(Vec::new());
        let mut status = CallStatus::Usable;
        for (index, record) in records.iter().enumerate() {
            if call.cancel.is_set() {
                break;
            }
            relock(&script.started).push(record.offset);
            outcomes[index] = self.one(index as u32, record, host);
            match outcomes[index].code {
                outcome_code::PANICKED => status = CallStatus::Poisoned,
                outcome_code::NOT_RUN => status = CallStatus::Unavailable,
                _ => {}
            }
            if status != CallStatus::Usable {
                break;
            }
            if let Some(done) = relock(&self.monitor.progress).as_mut() {
                done.push(outcomes[index]);
            }
        }
        *relock(&self.monitor.progress) = None;
        status
    }

    fn monitor(&self) -> Arc<dyn CallMonitor> {
        Arc::clone(&self.monitor) as Arc<dyn CallMonitor>
    }

    fn health(&mut self) -> Result<(), InstanceError> {
        if self.monitor.script.hanging_checks.load(Ordering::SeqCst) {
            self.monitor.script.pass("check");
        }
        let panicking = &self.monitor.script.panicking_checks;
        let panics =
            panicking.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        self.poisoned |= panics.is_ok();
        if self.poisoned {
            return Err(InstanceError::Poisoned(
                "scripted panic in health".to_owned(),
            ));
        }
        match self.healthy && !self.monitor.script.unhealthy.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(InstanceError::Failed("scripted to be unhealthy".to_owned())),
        }
    }

    fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken> {
        if config_json.contains("hang-take") {
            self.monitor.script.pass("take");
        }
        let mut configs = relock(&self.monitor.script.configs);
        let taken = format!("took {config_json}");
        if config_json.contains("poison") {
            return Err(NotTaken::Poisoned("scripted panic".to_owned()));
        }
        if config_json.contains("refuse") {
            return Err(NotTaken::Refused("at /refuse: not allowed".to_owned()));
        }
        if config_json.contains("first-only") && configs.contains(&taken) {
            return Err(NotTaken::Refused("taken already".to_owned()));
        }
        self.healthy = !config_json.contains("unhealthy");
        configs.push(taken);
        Ok(())
    }

    fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), InstanceError> {
        let PartitionEvent {
            topic,
            partition,
            epoch,
            ..
        } = event;
        let change = match event.change {
            PartitionChange::Assigned => "assigned",
            PartitionChange::Revoked => "revoked",
            PartitionChange::Lost => "lost",
        };
        self.record(format!("{change} {topic}/{partition} {epoch}"));
        if event.change != PartitionChange::Assigned {
            return Ok(());
        }
        let failing = &self.monitor.script.failing_assignments;
        let fails = failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match fails {
            Ok(_) => Err(InstanceError::Failed("scripted to fail".to_owned())),
            Err(_) => Ok(()),
        }
    }

    fn drain(&mut self, _deadline_ms: u64) -> Result<(), InstanceError> {
        self.monitor.script.drained.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.monitor.script.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

/// A producer that acknowledges every record at once, unless it is full.
#[derive(Default)]
pub struct Producer {
    /// Number of sends that are still refused for lack of room.
    pub full_for: AtomicU32,
    /// Topics of the acknowledged records, in order.
    pub topics: Mutex<Vec<String>>,
}

impl Emitter for Producer {
    fn send(
        &self,
        record: &ProducerRecord<'_>,
        _way: Way,
        reply_to: &Arc<Inbox>,
        token: EmitToken,
    ) -> Sent {
        let full = &self.full_for;
        let refuses = full.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if refuses.is_ok() {
            return Sent::NoRoom;
        }
        relock(&self.topics).push(record.topic.to_owned());
        reply_to.push(PumpMessage::Delivered(vec![Delivery::acknowledged(token)]));
        Sent::Queued
    }
}

/// A pump's inbox that a test can wait on.
pub struct Replies {
    /// The inbox that batches are returned to.
    pub inbox: Arc<Inbox>,
    bell: Arc<Bell>,
    seen: Vec<PumpMessage>,
}

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    woken: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *relock(&self.rung) = true;
        self.woken.notify_all();
    }
}

impl Default for Replies {
    fn default() -> Self {
        Self::new()
    }
}

impl Replies {
    /// An empty inbox that wakes its waiting test.
    pub fn new() -> Self {
        let (inbox, bell) = (Arc::new(Inbox::new()), Arc::new(Bell::default()));
        inbox.set_waker(Arc::clone(&bell) as Arc<dyn Wake>);
        Self {
            inbox,
            bell,
            seen: Vec::new(),
        }
    }

    /// Waits for the next message that `fits` accepts and takes it; others are kept for later.
    pub fn next<T>(
        &mut self,
        what: &str,
        mut fits: impl FnMut(PumpMessage) -> Result<T, PumpMessage>,
    ) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut kept = Vec::new();
            let mut found = None;
            for message in std::mem::take(&mut self.seen) {
                match found {
                    Some(_) => kept.push(message),
                    None => match fits(message) {
                        Ok(value) => found = Some(value),
                        Err(message) => kept.push(message),
                    },
                }
            }
            self.seen = kept;
            if let Some(found) = found {
                return found;
            }
            self.wait(deadline, what);
        }
    }

    fn wait(&mut self, deadline: Instant, what: &str) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no {what} in time");
        let rung = relock(&self.bell.rung);
        let (mut rung, _) = self
            .bell
            .woken
            .wait_timeout_while(rung, left, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
        drop(rung);
        let mut taken = Vec::new();
        self.inbox.take(&mut taken);
        self.seen.append(&mut taken);
    }

    /// Discards notices of room; returns whether there were any since the last call.
    pub fn forget_room(&mut self) -> bool {
        let mut taken = Vec::new();
        self.inbox.take(&mut taken);
        self.seen.append(&mut taken);
        let before = self.seen.len();
        self.seen
            .retain(|message| !matches!(message, PumpMessage::PoolFree));
        self.seen.len() < before
    }

    /// Waits for the next finished batch.
    pub fn finished(&mut self) -> Box<Batch> {
        self.next("finished batch", |message| match message {
            PumpMessage::Finished(batch) => Ok(batch),
            other => Err(other),
        })
    }

    /// Waits for the next notice that a pool has room.
    pub fn pool_free(&mut self) {
        self.next("free pool", |message| match message {
            PumpMessage::PoolFree => Ok(()),
            other => Err(other),
        });
    }
}

/// Blocks until `condition` holds.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    wait_until(DEADLINE, condition, || what.to_owned());
}

/// A batch with one record per offset.
pub fn batch(number: u32, offsets: &[i64]) -> Box<Batch> {
    let record = |&offset: &i64| RecordParts {
        offset,
        timestamp_ms: -1,
        epoch: 1,
        attempt: 1,
        ..RecordParts::default()
    };
    batch_of(number, offsets.iter().map(record))
}

/// A batch of these records. They are leaked, because a hung call may read them at any time.
pub fn batch_of(number: u32, records: impl IntoIterator<Item = RecordParts>) -> Box<Batch> {
    let mut batch = Box::new(Batch::new());
    batch.id = BatchId {
        index: number,
        serial: 1,
    };
    for (index, parts) in (0..).zip(records) {
        batch.records.push(parts.leaked());
        batch.keys.push(RecordId { index, serial: 1 });
    }
    batch
}

/// The outcome codes of a returned batch, in its order.
pub fn codes(batch: &Batch) -> Vec<u16> {
    batch.outcomes.iter().map(|outcome| outcome.code).collect()
}
