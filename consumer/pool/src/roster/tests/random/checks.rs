//! Effects on the model, and what must hold after each event and at the end.

use std::sync::mpsc::TryRecvError;

use super::*;

impl Model {
    pub(super) fn carry_out(&mut self) {
        while let Some(effect) = self.effects.pop() {
            self.apply(effect);
        }
        self.check_invariants();
    }

    pub(super) fn live_at(&mut self, slot: usize) -> Option<(&WorkerId, &mut Thread)> {
        let mut threads = self.threads.iter_mut();
        threads.find(|(id, thread)| id.slot == slot && !thread.abandoned)
    }

    pub(super) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Spawn(worker) => {
                if self.starts_fail && self.random.chance(30) {
                    let event = Event::ThreadNotStarted(worker, io::ErrorKind::WouldBlock.into());
                    self.roster.step(event, self.now, &mut self.effects);
                    return;
                }
                let thread = Thread {
                    doing: Doing::Asking,
                    instances: BTreeSet::new(),
                    monitor: Arc::default(),
                    abandoned: false,
                };
                self.threads.insert(worker, thread);
            }
            Effect::Wake(slot) => {
                // A thread that is running a task asks for work later.
                if let Some((_, thread)) = self.live_at(slot)
                    && matches!(thread.doing, Doing::Parked(_))
                {
                    thread.doing = Doing::Asking;
                }
            }
            Effect::NotRun(item) => {
                let known = &mut self.items[item.batch.id.index as usize];
                assert_eq!(
                    known.at,
                    At::Queued,
                    "only a queued batch returns unprocessed"
                );
                known.at = At::Returned;
            }
            Effect::TimedOut(call) => {
                let known = &mut self.items[call.batch_id.index as usize];
                let At::Running(worker) = known.at else {
                    panic!("timed out, and {:?}", known.at);
                };
                known.at = At::Abandoned(worker);
            }
            Effect::Room(inbox) => {
                for (known, pump) in &mut self.inboxes {
                    pump.refused &= !Arc::ptr_eq(known, &inbox);
                }
            }
            Effect::Tripped(member, _) => {
                self.tripped.insert(member.id);
            }
            Effect::Released(member, release) => self.released(member.id, release),
            Effect::Answer(reply, result) => drop(reply.try_send(result)),
            Effect::Abandoned(..)
            | Effect::Cancel(_)
            | Effect::Stop(_)
            | Effect::Kill(..)
            | Effect::Failed(..)
            | Effect::Untripped(_)
            | Effect::Health(..)
            | Effect::ThreadEnded => {}
        }
        self.mark_abandoned();
    }

    /// Threads whose slot belongs to another one now.
    pub(super) fn mark_abandoned(&mut self) {
        for (id, thread) in &mut self.threads {
            let slot = &self.roster.slots[id.slot];
            thread.abandoned |= !slot.alive || slot.thread_epoch != id.thread_epoch;
        }
    }

    pub(super) fn released(&mut self, member: MemberId, release: Release) {
        let live = self.threads.values().filter(|thread| !thread.abandoned);
        assert!(
            live.clone()
                .all(|thread| !thread.instances.contains(&member)),
            "released, and a worker has an instance"
        );
        self.left
            .get_mut(&member)
            .expect("it has left")
            .push(release);
    }

    pub(super) fn check_invariants(&mut self) {
        self.mark_abandoned();
        let live = self
            .threads
            .values()
            .filter(|thread| !thread.abandoned)
            .count();
        assert!(live <= self.workers, "{live} threads");
        let roster = &self.roster;
        assert!(roster.queue.len() <= 2 * self.workers, "shared queue");
        for slot in &roster.slots {
            assert!(slot.bound.len() <= 2, "queue of a worker");
            assert!(slot.alive || slot.bound.is_empty(), "no thread runs it");
        }
        if roster.threads == 0 {
            assert!(roster.queue.is_empty(), "no thread runs them");
        }
        let released = self.left.values().map(Vec::len);
        assert!(released.clone().all(|times| times <= 1), "released twice");
    }

    /// All threads return, all members leave: nothing is left.
    pub(super) fn end(mut self) -> usize {
        self.starts_fail = false;
        for _ in 0..2_000 {
            self.settle();
        }
        let queued = |item: &Item| item.at == At::Queued;
        assert_eq!(
            self.items.iter().filter(|item| queued(item)).count(),
            0,
            "stuck"
        );
        self.step(Event::Tick);
        assert!(
            self.inboxes.iter().all(|(_, pump)| !pump.refused),
            "refused for lack of room, and not told of room"
        );
        for member in self.members.values().cloned().collect::<Vec<_>>() {
            self.leave(&member);
        }
        for _ in 0..2_000 {
            self.settle();
        }
        for (number, item) in self.items.iter().enumerate() {
            assert_eq!(item.at, At::Returned, "batch {number}");
        }
        assert!(self.left.values().all(|released| released.len() == 1));
        assert!(self.threads.is_empty() && !self.roster.is_ending());
        assert!(self.roster.leaving.is_empty() && self.roster.abandoned.is_empty());
        for (_, answer) in &self.probes {
            let answer = answer.try_recv();
            assert!(
                !matches!(answer, Err(TryRecvError::Empty)),
                "a probe is left"
            );
        }
        self.batches
    }

    /// Threads run, and a little time passes.
    pub(super) fn settle(&mut self) {
        self.run_a_thread();
        if self.random.chance(10) {
            self.pass(Duration::from_millis(100));
        }
    }
}
