//! The roster without threads: every fault as a table of events and effects, and random events against invariants.

mod failures;
mod health;
mod random;
mod sharing;
mod table;
mod watch;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Batch, BatchId, Inbox};
use sluicegate_kit::plugin_doubles::{Producer, Script, ScriptedPlugin};
use sluicegate_runtime::{CallMonitor, CallProgress, HandlerInfo, RawOutcome, outcome_code};

use super::*;
use crate::restart::RestartPolicy;
use crate::settings::HungThreads;
use crate::stats::HandlerStats;
use crate::tests::pool::Silent;

const SECOND: Duration = Duration::from_secs(1);
/// Timeout of a record; its grace period is a tenth.
const TIMEOUT: Duration = Duration::from_secs(10);
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(15);
const HEALTH_INTERVAL: Duration = Duration::from_secs(3_600);

fn settings(workers: u32) -> ThreadPoolSettings {
    ThreadPoolSettings {
        name: "test".to_owned(),
        generation: 1,
        workers,
        create_timeout: CREATE_TIMEOUT,
        drain_timeout: DRAIN_TIMEOUT,
        health_interval: HEALTH_INTERVAL,
        health_timeout: HEALTH_TIMEOUT,
        hung: HungThreads::default(),
    }
}

fn setup(name: &str, max_restarts: u32) -> HandlerSetup {
    HandlerSetup {
        generation: 1,
        name: name.into(),
        info: Arc::new(HandlerInfo::new("scripted", "{}")),
        plugin: ScriptedPlugin::new(&Script::new(&[])),
        config: "{}".into(),
        provenance: None,
        timeout: TIMEOUT,
        restart: RestartPolicy {
            max_restarts,
            restart_window: 60 * SECOND,
        },
        services: Arc::new(Silent),
        emitter: Arc::new(Producer::default()),
        stats: Arc::new(HandlerStats::default()),
    }
}

/// A batch without records: the roster reads only its number, its worker and its flag.
fn batch(number: u32, worker: Option<u32>) -> Box<Batch> {
    let mut batch = Box::new(Batch::new());
    batch.id = BatchId {
        index: number,
        serial: 1,
    };
    batch.worker = worker;
    batch
}

/// Progress that a test sets.
#[derive(Default)]
struct ScriptedMonitor {
    at: Mutex<Option<(u64, u32)>>,
    can_kill: AtomicBool,
}

impl ScriptedMonitor {
    fn at(&self, call: Option<(u64, u32)>) {
        *self.at.lock().unwrap() = call;
    }
}

impl CallMonitor for ScriptedMonitor {
    fn current(&self) -> Option<CallProgress> {
        let at = *self.at.lock().unwrap();
        at.map(|(serial, index)| CallProgress { serial, index })
    }

    fn completed(&self, serial: u64, out: &mut Vec<RawOutcome>) -> bool {
        let Some((running, index)) = *self.at.lock().unwrap() else {
            return false;
        };
        let done = RawOutcome {
            code: outcome_code::ACK,
            ..RawOutcome::default()
        };
        out.resize(index as usize, done);
        running == serial
    }

    fn can_kill(&self) -> bool {
        self.can_kill.load(Ordering::Relaxed)
    }
}

fn thread(slot: usize, thread_epoch: u64) -> WorkerId {
    WorkerId { slot, thread_epoch }
}

/// A roster, a clock that a test advances, and the instances of all threads.
struct Table {
    roster: Roster,
    effects: Effects,
    /// The effects so far, in words.
    log: Vec<String>,
    now: Instant,
    inbox: Arc<Inbox>,
    monitor: Arc<ScriptedMonitor>,
    instances: BTreeSet<(WorkerId, MemberId)>,
}

impl Table {
    fn tripped(&self, member: &PoolMember) -> bool {
        let state = self.roster.members.get(&member.id);
        state.is_some_and(|state| state.tripped.is_some())
    }

    fn new(workers: u32) -> Self {
        let now = Instant::now();
        Self {
            roster: Roster::new(settings(workers), now),
            effects: Effects::default(),
            log: Vec::new(),
            now,
            inbox: Arc::default(),
            monitor: Arc::default(),
            instances: BTreeSet::new(),
        }
    }

    fn add(&mut self, name: &str) -> Arc<PoolMember> {
        self.roster.add(setup(name, 3))
    }

    /// Submits a batch; `false` if it is refused.
    fn submit(&mut self, member: &Arc<PoolMember>, number: u32) -> bool {
        self.submit_to(member, number, None)
    }

    fn submit_to(&mut self, member: &Arc<PoolMember>, number: u32, worker: Option<u32>) -> bool {
        let (batch, inbox) = (batch(number, worker), Arc::clone(&self.inbox));
        let submitted = self.roster.submit(member, batch, &inbox, &mut self.effects);
        self.carry_out();
        submitted.is_ok()
    }

    fn step(&mut self, event: Event<'_>) {
        self.roster.step(event, self.now, &mut self.effects);
        self.carry_out();
    }

    /// Lets time pass, and the watchdog notice it.
    fn tick(&mut self, passed: Duration) {
        self.now += passed;
        self.step(Event::Tick);
    }

    /// What the thread does next, in words.
    fn next(&mut self, worker: WorkerId) -> String {
        let (instances, monitor) = (&self.instances, &self.monitor);
        let monitor_of = |member| {
            let has = instances.contains(&(worker, member));
            has.then(|| Arc::clone(monitor) as Arc<dyn CallMonitor>)
        };
        let next = self
            .roster
            .next(worker, &monitor_of, self.now, &mut self.effects);
        self.carry_out();
        match next {
            Next::Park(None) => "park".to_owned(),
            Next::Park(Some(until)) => format!("park for {:?}", until - self.now),
            Next::Task(task) => match task {
                Task::Call(item) => format!("call {}", item.batch.id.index),
                Task::Create(member, config) => {
                    format!("create {} with {}", member.setup.name, config.json)
                }
                Task::Probe(probe) => format!("probe {}", probe.member.setup.name),
                Task::Leave(member) => format!("leave {}", member.setup.name),
                Task::NotifyChange(member) => format!("change {}", member.setup.name),
                Task::CheckHealth(missing) => format!("check, {} missing", missing.len()),
                Task::Exit => "exit".to_owned(),
            },
        }
    }

    /// The instance of a batch is built; what happens to the batch.
    fn created(&mut self, worker: WorkerId, member: &PoolMember) -> &'static str {
        self.instances.insert((worker, member.id));
        let monitor = Arc::clone(&self.monitor) as Arc<dyn CallMonitor>;
        match self.roster.created(worker, monitor, self.now) {
            Created::Call(_) => "call",
            Created::Recalled => "recalled",
            Created::Abandoned => "abandoned",
        }
    }

    fn report(&mut self, worker: WorkerId, report: Report<'_>) -> bool {
        let counts = self
            .roster
            .report(worker, report, self.now, &mut self.effects);
        self.carry_out();
        counts
    }

    fn call_ended(
        &mut self,
        worker: WorkerId,
        member: &Arc<PoolMember>,
        poisoned: Option<&str>,
    ) -> bool {
        let failed = poisoned.map(|why| (Failure::Poisoned, why));
        let made_progress = failed.is_none();
        self.report(
            worker,
            Report::CallEnded {
                member,
                failed,
                made_progress,
            },
        )
    }

    /// Starts a thread for a first batch and brings it into its call.
    fn running(&mut self, member: &Arc<PoolMember>, number: u32) -> WorkerId {
        assert!(self.submit(member, number));
        let started = self.effects().join(", ");
        let (slot, epoch) = started
            .strip_prefix("spawn ")
            .unwrap()
            .split_once('/')
            .unwrap();
        let worker = thread(slot.parse().unwrap(), epoch.parse().unwrap());
        assert!(self.next(worker).starts_with("create"));
        assert_eq!(self.created(worker, member), "call");
        worker
    }

    fn probe(&mut self, member: &Arc<PoolMember>, config: Option<&str>) -> (ProbeId, Answer) {
        let (reply, answer) = sync_channel(1);
        let config = config.map(Arc::from);
        let id = self
            .roster
            .probe(member, true, config, reply, &mut self.effects);
        self.carry_out();
        (id, answer)
    }

    /// Carries out the effects of one event, as words.
    fn carry_out(&mut self) {
        let effects = std::iter::from_fn(|| self.effects.pop());
        self.log.extend(effects.map(words));
    }

    /// The effects since the last call, in words.
    fn effects(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

/// What the caller of a probe receives.
type Answer = Receiver<Result<(), ProbeError>>;

fn words(effect: Effect) -> String {
    match effect {
        Effect::Spawn(worker) => format!("spawn {}/{}", worker.slot, worker.thread_epoch),
        Effect::Wake(slot) => format!("wake {slot}"),
        Effect::Cancel(_) => "cancel".to_owned(),
        Effect::Stop(_) => "stop".to_owned(),
        Effect::Kill(_, serial) => format!("kill {serial}"),
        Effect::NotRun(item) => format!("not run {}", item.batch.id.index),
        Effect::TimedOut(call) => {
            format!(
                "timed out {} after {}",
                call.batch_id.index, call.published.current
            )
        }
        Effect::Room(_) => "room".to_owned(),
        Effect::Answer(reply, result) => {
            let words = match &result {
                Ok(()) => "answer ok".to_owned(),
                Err(error) => format!("answer {error}"),
            };
            let _ = reply.try_send(result);
            words
        }
        Effect::Failed(_, why) => format!("failed {why}"),
        Effect::Tripped(member, _) => format!("tripped {}", member.setup.name),
        Effect::Untripped(member) => format!("untripped {}", member.setup.name),
        Effect::Health(_, slot, Some(why)) => format!("unhealthy {slot} {why}"),
        Effect::Health(_, slot, None) => format!("healthy {slot}"),
        Effect::Abandoned(_, slot, _) => format!("abandoned {slot}"),
        Effect::Released(member, release) => format!("released {} {release:?}", member.setup.name),
        Effect::ThreadEnded => "thread ended".to_owned(),
    }
}
