//! Random events against a model of threads and pumps: what must hold after every event, and at the end.
//!
//! `SLUICEGATE_ROSTER_SEEDS=100000` runs more seeds, `SLUICEGATE_ROSTER_SEED=7` runs one.

mod checks;
mod threads;

use std::collections::BTreeMap;

use sluicegate_engine::dispatch::OwnedPartition;
use sluicegate_runtime::CancelFlag;

use super::*;
use crate::member::Release;

const SEEDS: u64 = 300;
const EVENTS: usize = 600;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> Option<T> {
        (!choices.is_empty()).then(|| choices[self.below(choices.len())].clone())
    }
}

/// Where a batch is, as its pump sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Queued,
    Running(WorkerId),
    /// Its call was reported as timed out.
    Abandoned(WorkerId),
    Returned,
}

struct Item {
    at: At,
    member: MemberId,
    worker: Option<u32>,
    cancel: CancelFlag,
}

/// What a thread does.
enum Doing {
    /// Starts, or has ended a task, or was woken: it asks for work next.
    Asking,
    Parked(Option<Instant>),
    Call(WorkItem),
    Create(Arc<PoolMember>),
    Probe(Probe),
    Leave(Arc<PoolMember>),
    Change,
    /// Members to check, then members to build an instance for.
    Check(Vec<MemberId>, Vec<Arc<PoolMember>>),
    /// Builds an instance in a health check.
    Rebuild(Arc<PoolMember>, Vec<Arc<PoolMember>>),
}

struct Thread {
    doing: Doing,
    instances: BTreeSet<MemberId>,
    monitor: Arc<ScriptedMonitor>,
    abandoned: bool,
}

#[derive(Default)]
struct Pump {
    /// Its last submission was refused, and it was not notified since.
    refused: bool,
}

struct Model {
    random: Random,
    roster: Roster,
    effects: Effects,
    now: Instant,
    workers: usize,
    inboxes: Vec<(Arc<Inbox>, Pump)>,
    members: BTreeMap<MemberId, Arc<PoolMember>>,
    /// Members that have left, and the results of their release.
    left: BTreeMap<MemberId, Vec<Release>>,
    threads: BTreeMap<WorkerId, Thread>,
    items: Vec<Item>,
    probes: Vec<(ProbeId, Answer)>,
    tripped: BTreeSet<MemberId>,
    /// Threads can fail to start.
    starts_fail: bool,
    batches: usize,
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let (workers, now) = (1 + random.below(4), Instant::now());
        let mut model = Self {
            roster: Roster::new(
                ThreadPoolSettings {
                    health_interval: 5 * SECOND,
                    ..settings(workers as u32)
                },
                now,
            ),
            effects: Effects::default(),
            now,
            workers,
            inboxes: (0..2).map(|_| (Arc::default(), Pump::default())).collect(),
            members: BTreeMap::new(),
            left: BTreeMap::new(),
            threads: BTreeMap::new(),
            items: Vec::new(),
            probes: Vec::new(),
            tripped: BTreeSet::new(),
            starts_fail: random.chance(30),
            batches: 0,
            random,
        };
        for _ in 0..1 + model.random.below(3) {
            model.add();
        }
        model
    }

    fn add(&mut self) {
        let name = format!("member {}", self.members.len() + self.left.len());
        let member = self.roster.add(setup(&name, 3));
        self.members.insert(member.id, member);
    }

    fn any_member(&mut self) -> Option<Arc<PoolMember>> {
        let all: Vec<_> = self.members.values().cloned().collect();
        self.random.pick(&all)
    }

    fn step(&mut self, event: Event<'_>) {
        self.roster.step(event, self.now, &mut self.effects);
        self.carry_out();
    }

    /// One random event.
    fn event(&mut self) {
        match self.random.below(100) {
            0..30 => self.submit(),
            30..85 => self.run_a_thread(),
            85..90 => {
                let passed = [1, 10, 200, 1_000, 12_000, 31_000][self.random.below(6)];
                self.pass(Duration::from_millis(passed));
            }
            90..93 => self.recall(),
            93..96 => self.probe(),
            96 => {
                if let Some(member) = self.any_member() {
                    self.tripped.remove(&member.id);
                    self.step(Event::Reset(&member));
                }
            }
            97 => self.own(),
            98 if !self.members.is_empty() && self.members.len() < 4 => self.add(),
            _ => {
                if self.members.len() > 1
                    && let Some(member) = self.any_member()
                {
                    self.leave(&member);
                }
            }
        }
    }

    fn submit(&mut self) {
        let Some(member) = self.any_member() else {
            return;
        };
        let worker = self.random.chance(30).then(|| self.random.below(8) as u32);
        let batch = batch(self.items.len() as u32, worker);
        let cancel = batch.cancel.clone();
        let to = self.random.below(self.inboxes.len());
        let inbox = Arc::clone(&self.inboxes[to].0);
        let submitted = self
            .roster
            .submit(&member, batch, &inbox, &mut self.effects);
        if submitted.is_ok() {
            assert!(!self.tripped.contains(&member.id), "tripped, and accepts");
            self.batches += 1;
            self.items.push(Item {
                at: At::Queued,
                member: member.id,
                worker,
                cancel,
            });
        } else if !self.tripped.contains(&member.id) {
            self.inboxes[to].1.refused = true;
        }
        self.carry_out();
    }

    fn leave(&mut self, member: &Arc<PoolMember>) {
        self.members.remove(&member.id);
        self.left.insert(member.id, Vec::new());
        self.step(Event::Leave(member));
        let queued = |item: &Item| item.at == At::Queued && item.member == member.id;
        let creating = self.threads.values().filter(|thread| {
            matches!(&thread.doing, Doing::Create(of) if of.id == member.id) && !thread.abandoned
        });
        assert!(
            self.items.iter().filter(|item| queued(item)).count() <= creating.count(),
            "only batches whose instance is being built stay"
        );
    }

    fn recall(&mut self) {
        let queued: Vec<usize> = (0..self.items.len())
            .filter(|&at| self.items[at].at == At::Queued)
            .collect();
        if let Some(at) = self.random.pick(&queued) {
            self.items[at].cancel.set();
            self.step(Event::Recall);
            assert_eq!(self.items[at].at, At::Returned, "a cancelled batch");
        }
    }

    fn probe(&mut self) {
        if self.random.chance(30)
            && let Some((id, answer)) = self.probes.pop()
        {
            if self.roster.cancel_probe(id) {
                assert!(answer.try_recv().is_err(), "cancelled, and answered");
            }
            return;
        }
        if let Some(member) = self.any_member() {
            let (reply, answer) = sync_channel(1);
            let config = self.random.chance(50).then(|| "new".into());
            let keep = self.random.chance(50);
            let id = self
                .roster
                .probe(&member, keep, config, reply, &mut self.effects);
            self.probes.push((id, answer));
            self.carry_out();
        }
    }

    fn own(&mut self) {
        if let Some(member) = self.any_member() {
            let owned = [OwnedPartition::new("t", self.random.below(3) as i32, 1)];
            let inbox = Arc::clone(&self.inboxes[0].0);
            self.step(Event::Owned(&member, &inbox, &owned));
        }
    }

    fn pass(&mut self, passed: Duration) {
        self.now += passed;
        self.step(Event::Tick);
        for thread in self.threads.values_mut() {
            if matches!(thread.doing, Doing::Parked(Some(until)) if until <= self.now) {
                thread.doing = Doing::Asking;
            }
        }
    }
}

fn run(seed: u64) -> usize {
    let mut model = Model::new(seed);
    for _ in 0..EVENTS {
        model.event();
    }
    model.end()
}

#[test]
fn random_events_lose_no_batch_and_keep_all_bounds() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse().ok())
    };
    if let Some(seed) = number("SLUICEGATE_ROSTER_SEED") {
        run(seed);
        return;
    }
    let mut batches = 0;
    let seeds = number("SLUICEGATE_ROSTER_SEEDS").unwrap_or(SEEDS);
    for seed in 0..seeds {
        let ran = std::panic::catch_unwind(|| run(seed));
        batches += ran.unwrap_or_else(|_| panic!("replay with SLUICEGATE_ROSTER_SEED={seed}"));
    }
    assert!(batches as u64 > 10 * seeds, "{batches} batches");
}
