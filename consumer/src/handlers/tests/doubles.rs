//! The doubles themselves.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use sluicegate_abi::view::RecordParts;
use sluicegate_runtime::{
    CallMonitor, CallOutput, CallProgress, CallRequest, CallStatus, CreateError, Emit, HandlerInfo,
    HandlerInstance, HostServices, LoadedPlugin, NotTaken, PluginIdentity, RawOutcome, RawRecord,
    outcome_code, outcome_flag,
};

use crate::dispatch::{Batch, EntryKey, FlightKey, Inbox, PumpMessage};
use crate::emit::{Emitter, ProducerRecord, Sent, Ticket, Way};
use crate::handlers::pool::relock;
use crate::source::Wake;

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the scripted handler does with the record of an offset; anything else is acknowledged.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Drop,
    Retry,
    Panic,
    /// Blocks until the gate of that name is opened, then acknowledges.
    Hang(&'static str),
    /// Blocks as `Hang`, then reads the record to `Script::read` and acknowledges.
    HangAndRead(&'static str),
    /// Emits to the topic, then acknowledges.
    Emit(&'static str),
    /// Emits to the topic, then ends with this outcome code.
    EmitThen(&'static str, u16),
}

/// Topic, key, value and header block.
pub(crate) type ReadRecord = (String, Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>);

/// What all instances do, and what they did.
#[derive(Default)]
pub(crate) struct Script {
    deeds: Mutex<HashMap<i64, Deed>>,
    open: Mutex<HashSet<String>>,
    opened: Condvar,
    /// Creations still to fail.
    pub(crate) failing_creations: AtomicU32,
    pub(crate) built: AtomicU32,
    pub(crate) dropped: AtomicU32,
    pub(crate) drained: AtomicU32,
    /// Instances say that they are not well.
    pub(crate) ill: AtomicBool,
    /// Instance names, in the order of their calls, with the number of records.
    pub(crate) calls: Mutex<Vec<(String, usize)>>,
    /// What was read of records after a hang: topic, key, value and header block.
    pub(crate) read: Mutex<Vec<ReadRecord>>,
    /// Offsets of the records that were begun, in order.
    pub(crate) begun: Mutex<Vec<i64>>,
    /// What instances were told, and their first records, in order.
    pub(crate) told: Mutex<Vec<String>>,
    /// The configs that instances were built with or have taken, in order.
    pub(crate) configs: Mutex<Vec<String>>,
}

impl Script {
    pub(crate) fn new(deeds: &[(i64, Deed)]) -> Arc<Self> {
        let script = Self::default();
        *relock(&script.deeds) = deeds.iter().cloned().collect();
        Arc::new(script)
    }

    pub(crate) fn open(&self, gate: &str) {
        relock(&self.open).insert(gate.to_owned());
        self.opened.notify_all();
    }

    fn pass(&self, gate: &str) {
        let open = relock(&self.open);
        let shut = |open: &mut HashSet<String>| !open.contains(gate);
        drop(self.opened.wait_timeout_while(open, DEADLINE, shut));
    }

    pub(crate) fn living(&self) -> u32 {
        self.built.load(Ordering::SeqCst) - self.dropped.load(Ordering::SeqCst)
    }
}

/// A plugin that follows a script. Its config says how creation goes: `refuse`, `hang-create` (at gate `create`),
/// `unhealthy`, anything else is well. A new config is taken by the same words, and by `first-only`, which only the first
/// instance that is asked takes, `spend`, which it does not survive, and `hang-take` (at gate `take`).
pub(crate) struct ScriptedPlugin {
    pub(crate) script: Arc<Script>,
    pub(crate) identity: PluginIdentity,
    pub(crate) infos: Vec<HandlerInfo>,
    pub(crate) shut_down: AtomicU32,
}

impl ScriptedPlugin {
    pub(crate) fn new(script: &Arc<Script>) -> Arc<Self> {
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
            infos: vec![HandlerInfo {
                name: "scripted".to_owned(),
                config_schema: "{}".to_owned(),
                keeps_key_state: false,
                takes_batches: false,
                takes_config: false,
            }],
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

    fn create(
        &self,
        handler: &str,
        instance_name: &str,
        config_json: &str,
        _services: Arc<dyn HostServices>,
    ) -> Result<Box<dyn HandlerInstance>, CreateError> {
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
            name: instance_name.to_owned(),
            well: !config_json.contains("unhealthy"),
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
    well: bool,
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
    fn note(&self, what: String) {
        relock(&self.monitor.script.told).push(what);
    }

    fn one(&self, index: u32, record: &RawRecord, output: &mut CallOutput) -> RawOutcome {
        let deed = relock(&self.monitor.script.deeds)
            .get(&record.offset)
            .cloned();
        let mut outcome = RawOutcome {
            code: outcome_code::ACK,
            ..RawOutcome::default()
        };
        let mut emit = |topic: &str| {
            output.emits.push(Emit {
                record: index,
                topic: topic.to_owned(),
                partition: None,
                timestamp_ms: None,
                key: None,
                value: Some(b"emitted".to_vec()),
                headers: Vec::new(),
            });
            outcome_flag::EMITTED
        };
        match deed {
            None => {}
            Some(Deed::Drop) => outcome.code = outcome_code::DROP,
            Some(Deed::Retry) => outcome.code = outcome_code::RETRY,
            Some(Deed::Hang(gate)) => self.monitor.script.pass(gate),
            Some(Deed::HangAndRead(gate)) => {
                self.monitor.script.pass(gate);
                let read = record.view();
                relock(&self.monitor.script.read).push((
                    read.topic().to_owned(),
                    read.key().map(<[u8]>::to_vec),
                    read.value().map(<[u8]>::to_vec),
                    read.header_block().to_vec(),
                ));
            }
            Some(Deed::Emit(topic)) => outcome.flags = emit(topic),
            Some(Deed::EmitThen(topic, code)) => {
                outcome.flags = emit(topic);
                outcome.code = code;
            }
            Some(Deed::Panic) => {
                output.details.push("scripted panic".to_owned());
                outcome.code = outcome_code::PANICKED;
                outcome.detail = output.details.len() as u32;
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
        output: &mut CallOutput,
    ) -> CallStatus {
        let script = &self.monitor.script;
        let records = call.records;
        relock(&script.calls).push((self.name.clone(), records.len()));
        relock(&script.told).push(format!("called with {}", records[0].offset));
        self.monitor.serial.fetch_add(1, Ordering::SeqCst);
        *relock(&self.monitor.progress) = Some(Vec::new());
        let mut status = CallStatus::Usable;
        for (index, record) in records.iter().enumerate() {
            if call.cancel.is_set() {
                break;
            }
            relock(&script.begun).push(record.offset);
            outcomes[index] = self.one(index as u32, record, output);
            if outcomes[index].code == outcome_code::PANICKED {
                status = CallStatus::Spent;
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

    fn health(&mut self) -> Result<(), String> {
        match self.well && !self.monitor.script.ill.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err("scripted to be ill".to_owned()),
        }
    }

    fn reconfigure(&mut self, config_json: &str) -> Result<(), NotTaken> {
        if config_json.contains("hang-take") {
            self.monitor.script.pass("take");
        }
        let mut configs = relock(&self.monitor.script.configs);
        let taken = format!("took {config_json}");
        if config_json.contains("spend") {
            return Err(NotTaken::Spent("scripted panic".to_owned()));
        }
        if config_json.contains("refuse") {
            return Err(NotTaken::Refused("at /refuse: not allowed".to_owned()));
        }
        if config_json.contains("first-only") && configs.contains(&taken) {
            return Err(NotTaken::Refused("taken already".to_owned()));
        }
        self.well = !config_json.contains("unhealthy");
        configs.push(taken);
        Ok(())
    }

    fn assigned(&mut self, topic: &str, partition: i32, epoch: u32) {
        self.note(format!("assigned {topic}/{partition} {epoch}"));
    }

    fn revoked(&mut self, topic: &str, partition: i32, epoch: u32) {
        self.note(format!("revoked {topic}/{partition} {epoch}"));
    }

    fn drain(&mut self, _deadline_ms: u64) {
        self.monitor.script.drained.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.monitor.script.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

/// A producer that acknowledges everything at once, unless it is full.
#[derive(Default)]
pub(crate) struct Producer {
    /// Sends still to be refused for want of room.
    pub(crate) full_for: AtomicU32,
    pub(crate) topics: Mutex<Vec<String>>,
}

impl Emitter for Producer {
    fn send(&self, record: &ProducerRecord<'_>, _way: Way, ticket: Ticket) -> Sent {
        let full = &self.full_for;
        let refuses = full.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if refuses.is_ok() {
            return Sent::NoRoom(ticket);
        }
        relock(&self.topics).push(record.topic.to_owned());
        ticket.acknowledged();
        Sent::Queued
    }
}

/// A pump's inbox whose messages a test waits for.
pub(crate) struct Home {
    pub(crate) inbox: Arc<Inbox>,
    bell: Arc<Bell>,
    seen: Vec<PumpMessage>,
}

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *relock(&self.rung) = true;
        self.heard.notify_all();
    }
}

impl Home {
    pub(crate) fn new() -> Self {
        let (inbox, bell) = (Arc::new(Inbox::new()), Arc::new(Bell::default()));
        inbox.set_waker(Arc::clone(&bell) as Arc<dyn Wake>);
        Self {
            inbox,
            bell,
            seen: Vec::new(),
        }
    }

    /// Takes the next message that fits, leaving others for later.
    pub(crate) fn next<T>(
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
        assert!(!left.is_zero(), "no {what} came in time");
        let rung = relock(&self.bell.rung);
        let (mut rung, _) = self
            .bell
            .heard
            .wait_timeout_while(rung, left, |rung| !*rung)
            .unwrap();
        *rung = false;
        drop(rung);
        let mut taken = Vec::new();
        self.inbox.take(&mut taken);
        self.seen.append(&mut taken);
    }

    /// Whether it was told of room since the last time.
    pub(crate) fn forget_room(&mut self) -> bool {
        let mut taken = Vec::new();
        self.inbox.take(&mut taken);
        self.seen.append(&mut taken);
        let before = self.seen.len();
        self.seen
            .retain(|message| !matches!(message, PumpMessage::PoolFree));
        self.seen.len() < before
    }

    pub(crate) fn finished(&mut self) -> Box<Batch> {
        self.next("finished batch", |message| match message {
            PumpMessage::Finished(batch) => Ok(batch),
            other => Err(other),
        })
    }

    pub(crate) fn pool_free(&mut self) {
        self.next("free pool", |message| match message {
            PumpMessage::PoolFree => Ok(()),
            other => Err(other),
        });
    }
}

/// Blocks until `condition` holds.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A batch of one record an offset.
pub(crate) fn batch(flight: u32, offsets: &[i64]) -> Box<Batch> {
    let mut batch = Box::new(Batch::new());
    batch.flight = FlightKey {
        index: flight,
        serial: 1,
    };
    for (index, &offset) in offsets.iter().enumerate() {
        let parts = RecordParts {
            offset,
            timestamp_ms: -1,
            epoch: 1,
            attempt: 1,
            ..RecordParts::default()
        };
        batch.records.push(parts.leaked());
        batch.keys.push(EntryKey {
            index: index as u32,
            serial: 1,
        });
    }
    batch
}
