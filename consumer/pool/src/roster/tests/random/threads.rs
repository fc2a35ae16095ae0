//! What the threads of the model do.

use super::*;

impl Model {
    pub(super) fn run_a_thread(&mut self) {
        let runs = |thread: &Thread| !matches!(thread.doing, Doing::Parked(_));
        let able: Vec<_> = self
            .threads
            .iter()
            .filter_map(|(&id, thread)| runs(thread).then_some(id))
            .collect();
        if let Some(id) = self.random.pick(&able) {
            self.run(id);
        }
    }

    /// The thread ends what it does, or asks for work.
    pub(super) fn run(&mut self, id: WorkerId) {
        let Some(mut thread) = self.threads.remove(&id) else {
            return;
        };
        let doing = std::mem::replace(&mut thread.doing, Doing::Asking);
        let continues = match doing {
            Doing::Asking | Doing::Parked(_) => self.ask(id, &mut thread),
            Doing::Call(item) => self.end_call(id, &mut thread, item),
            Doing::Create(member) => self.end_create(id, &mut thread, &member),
            Doing::Probe(probe) => self.end_probe(id, &mut thread, &probe),
            Doing::Leave(member) => {
                thread.instances.remove(&member.id);
                self.report(id, &thread, Report::Released(&member))
            }
            Doing::Change => true,
            Doing::Check(members, missing) => self.check(id, &mut thread, members, missing),
            Doing::Rebuild(member, missing) => {
                let built = self.random.chance(60);
                let healthy = built && self.random.chance(60);
                if built {
                    thread.instances.insert(member.id);
                }
                let why = (!healthy).then(|| "unhealthy".to_owned());
                thread.doing = Doing::Check(Vec::new(), missing);
                self.report(id, &thread, Report::HealthChecked(&member, why))
            }
        };
        if continues {
            self.threads.insert(id, thread);
            self.carry_out();
        } else {
            self.carry_out();
            self.step(Event::AbandonedThreadEnded(id));
        }
    }

    pub(super) fn report(&mut self, id: WorkerId, thread: &Thread, report: Report<'_>) -> bool {
        let counts = self.roster.report(id, report, self.now, &mut self.effects);
        assert_eq!(counts, !thread.abandoned, "a report of an abandoned thread");
        counts
    }

    pub(super) fn ask(&mut self, id: WorkerId, thread: &mut Thread) -> bool {
        let monitor_of = |member: MemberId| {
            let has = thread.instances.contains(&member);
            has.then(|| Arc::clone(&thread.monitor) as Arc<dyn CallMonitor>)
        };
        let next = self
            .roster
            .next(id, &monitor_of, self.now, &mut self.effects);
        thread.doing = match next {
            Next::Park(until) => Doing::Parked(until),
            Next::Task(Task::Exit) => return false,
            Next::Task(task) => {
                assert!(!thread.abandoned, "an abandoned thread gets work");
                self.begin(id, thread, task)
            }
        };
        true
    }

    pub(super) fn begin(&mut self, id: WorkerId, thread: &Thread, task: Task) -> Doing {
        match task {
            Task::Call(item) => {
                self.starts(id, thread, &item);
                Doing::Call(item)
            }
            Task::Create(member, _) => {
                assert!(!thread.instances.contains(&member.id), "it has one");
                Doing::Create(member)
            }
            Task::Probe(probe) => Doing::Probe(probe),
            Task::Leave(member) => Doing::Leave(member),
            Task::NotifyChange(_) => Doing::Change,
            Task::CheckHealth(missing) => {
                Doing::Check(thread.instances.iter().copied().collect(), missing)
            }
            Task::Exit => unreachable!("handled by the caller"),
        }
    }

    /// The call of a batch starts.
    pub(super) fn starts(&mut self, id: WorkerId, thread: &Thread, item: &WorkItem) {
        let known = &mut self.items[item.batch.id.index as usize];
        assert_eq!(known.at, At::Queued, "a batch runs once");
        known.at = At::Running(id);
        assert!(
            thread.instances.contains(&known.member),
            "a batch runs where its handler has an instance"
        );
        if let Some(worker) = known.worker {
            assert_eq!(worker as usize % self.workers, id.slot, "its worker");
        }
        thread.monitor.at(Some((u64::from(item.batch.id.index), 0)));
    }

    pub(super) fn end_call(&mut self, id: WorkerId, thread: &mut Thread, item: WorkItem) -> bool {
        if self.random.chance(20) {
            // It makes progress and does not end yet.
            let progress = self.random.below(100) as u32;
            thread
                .monitor
                .at(Some((u64::from(item.batch.id.index), progress)));
            thread.doing = Doing::Call(item);
            return true;
        }
        thread.monitor.at(None);
        let failure = match self.random.chance(30) {
            true => Failure::Unavailable,
            false => Failure::Poisoned,
        };
        let failed = self.random.chance(20).then_some((failure, "failed"));
        let made_progress = self.random.chance(50);
        let number = item.batch.id.index as usize;
        let report = Report::CallEnded {
            member: &item.member,
            failed,
            made_progress,
        };
        let counts = self.report(id, thread, report);
        let was = match counts {
            true => At::Running(id),
            false => At::Abandoned(id),
        };
        assert_eq!(self.items[number].at, was);
        self.items[number].at = At::Returned;
        if failed.is_some() && counts {
            thread.instances.remove(&item.member.id);
            return self.report(id, thread, Report::LifecycleCall(&item.member));
        }
        counts
    }

    pub(super) fn end_create(
        &mut self,
        id: WorkerId,
        thread: &mut Thread,
        member: &Arc<PoolMember>,
    ) -> bool {
        if self.random.chance(20) {
            let error = ProbeError::RuntimePanicked;
            return self.report(id, thread, Report::NotCreated(member, &error));
        }
        thread.instances.insert(member.id);
        let monitor = Arc::clone(&thread.monitor) as Arc<dyn CallMonitor>;
        match self.roster.created(id, monitor, self.now) {
            Created::Call(item) => {
                self.starts(id, thread, &item);
                thread.doing = Doing::Call(item);
                true
            }
            Created::Recalled => true,
            Created::Abandoned => {
                assert!(thread.abandoned);
                false
            }
        }
    }

    pub(super) fn end_probe(&mut self, id: WorkerId, thread: &mut Thread, probe: &Probe) -> bool {
        let result = match self.random.chance(70) {
            true => Ok(()),
            false => Err(ProbeError::Gone),
        };
        match result.is_ok() && probe.keep {
            true => thread.instances.insert(probe.member.id),
            false => thread.instances.remove(&probe.member.id),
        };
        self.report(id, thread, Report::Probed(probe, result))
    }

    pub(super) fn check(
        &mut self,
        id: WorkerId,
        thread: &mut Thread,
        mut members: Vec<MemberId>,
        mut missing: Vec<Arc<PoolMember>>,
    ) -> bool {
        if let Some(id_of) = members.pop() {
            let member = self.members.get(&id_of).cloned();
            thread.doing = Doing::Check(members, missing);
            let Some(member) = member else { return true };
            if !self.report(id, thread, Report::LifecycleCall(&member)) {
                return false;
            }
            let why = self.random.chance(30).then(|| "unhealthy".to_owned());
            if why.is_some() && self.random.chance(50) {
                thread.instances.remove(&id_of);
            }
            return self.report(id, thread, Report::HealthChecked(&member, why));
        }
        let Some(member) = missing.pop() else {
            return true;
        };
        match self.roster.begin_rebuild(id, &member, self.now) {
            Rebuild::Build(_) => thread.doing = Doing::Rebuild(member, missing),
            Rebuild::NotNow => thread.doing = Doing::Check(Vec::new(), missing),
            Rebuild::Abandoned => {
                assert!(thread.abandoned);
                return false;
            }
        }
        true
    }
}
