//! Concurrent steps. A step keeps a core busy or mostly waits; the number of running steps is limited by the cores.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::Result;

use crate::step::Report;

/// How much of a core a step uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// Half a core: the step waits for servers, members and deadlines.
    Light,
    /// A whole core, which its time limits rely on.
    Full,
}

impl Load {
    fn halves(self) -> usize {
        match self {
            Self::Light => 1,
            Self::Full => 2,
        }
    }
}

/// A queued step.
pub(super) struct Waiting<'a> {
    pub(super) name: String,
    pub(super) load: Load,
    pub(super) run: Box<dyn FnOnce() -> Result<Report> + Send + 'a>,
}

impl Waiting<'_> {
    pub(super) fn of(name: &str, run: fn() -> Result<Report>) -> Self {
        Self {
            name: name.to_owned(),
            load: Load::Full,
            run: Box::new(run),
        }
    }
}

/// Steps queued for half cores.
struct Queue<'a> {
    state: Mutex<State<'a>>,
    freed: Condvar,
}

struct State<'a> {
    waiting: VecDeque<Waiting<'a>>,
    free: usize,
}

impl<'a> Queue<'a> {
    fn new(waiting: Vec<Waiting<'a>>, halves: usize) -> Self {
        let state = State {
            waiting: waiting.into(),
            free: halves,
        };
        Self {
            state: Mutex::new(state),
            freed: Condvar::new(),
        }
    }

    /// Blocks until a step fits into the free half cores and takes the first such step; `None` when the queue is empty.
    fn next(&self) -> Option<Waiting<'a>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.waiting.is_empty() {
                return None;
            }
            let free = state.free;
            let fits = state
                .waiting
                .iter()
                .position(|step| step.load.halves() <= free);
            if let Some(step) = fits.and_then(|place| state.waiting.remove(place)) {
                state.free -= step.load.halves();
                return Some(step);
            }
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn release(&self, load: Load) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free += load.halves();
        self.freed.notify_all();
    }

    /// Runs steps until the queue is empty.
    fn run_all(&self) -> Vec<Report> {
        let mut reports = Vec::new();
        while let Some(step) = self.next() {
            reports.push(done(&step.name, (step.run)()));
            self.release(step.load);
        }
        reports
    }
}

/// Runs `steps` concurrently, in order, and those of `background` one after the other at the same time.
pub(super) fn run(steps: Vec<Waiting<'_>>, background: Vec<Waiting<'_>>) -> Vec<Report> {
    let halves = 2 * std::thread::available_parallelism().map_or(2, usize::from);
    let (steps, background) = (Queue::new(steps, halves), Queue::new(background, 2));
    std::thread::scope(|scope| {
        let mut running: Vec<_> = (0..halves)
            .map(|_| scope.spawn(|| steps.run_all()))
            .collect();
        running.push(scope.spawn(|| background.run_all()));
        let ended = running.into_iter().flat_map(|thread| match thread.join() {
            Ok(reports) => reports,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    })
}

/// Runs `steps` one after the other, with nothing else running.
pub(super) fn one_by_one(steps: Vec<Waiting<'_>>) -> Vec<Report> {
    Queue::new(steps, 2).run_all()
}

/// The report of a step; a step that could not run counts as failed.
pub(super) fn done(name: &str, done: Result<Report>) -> Report {
    done.unwrap_or_else(|error| {
        eprintln!("{name}: {error:#}");
        let mut failed = Report::new(name);
        failed.failed.push(format!("{name} ({error:#})"));
        failed
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use anyhow::{bail, ensure};

    use super::*;

    /// Steps that wait for each other, in groups of a fixed size.
    struct Meeting {
        size: usize,
        came: Mutex<usize>,
        changed: Condvar,
    }

    impl Meeting {
        fn of(size: usize) -> Self {
            Self {
                size,
                came: Mutex::new(0),
                changed: Condvar::new(),
            }
        }

        fn wait(&self) -> Result<()> {
            let mut came = self.came.lock().expect("no step panics");
            let full = (*came / self.size + 1) * self.size;
            *came += 1;
            self.changed.notify_all();
            let limit = Duration::from_secs(10);
            let waited = self
                .changed
                .wait_timeout_while(came, limit, |came| *came < full);
            let (came, _) = waited.expect("no step panics");
            ensure!(*came >= full, "{came} of {full} steps have begun");
            Ok(())
        }
    }

    #[test]
    fn steps_run_concurrently_and_one_that_cannot_run_does_not_stop_the_others() {
        let together = Meeting::of(2);
        let meets = |name: &str| Waiting {
            name: name.to_owned(),
            load: Load::Full,
            run: Box::new(|| {
                together.wait()?;
                Ok(Report::new("met"))
            }),
        };
        let fails = Waiting {
            name: "fails".to_owned(),
            load: Load::Light,
            run: Box::new(|| bail!("it cannot")),
        };
        let reports = run(vec![fails, meets("a")], vec![meets("b")]);
        let mut failed: Vec<&str> = reports
            .iter()
            .flat_map(|report| report.failed.iter().map(String::as_str))
            .collect();
        failed.sort_unstable();
        assert_eq!(failed, ["fails (it cannot)"]);
        assert_eq!(reports.len(), 3);
    }

    #[test]
    fn running_steps_are_limited_by_the_cores() {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let (busy, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // As many steps as may run concurrently wait for each other: fewer do not meet, more are counted.
        let together = Meeting::of(cores);
        let step = |load: Load| Waiting {
            name: "step".to_owned(),
            load,
            run: Box::new(|| {
                let now = busy.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                let met = together.wait();
                busy.fetch_sub(1, Ordering::SeqCst);
                met.map(|()| Report::new("step"))
            }),
        };
        let steps = (0..20 * cores).map(|_| step(Load::Full)).collect();
        let reports = run(steps, Vec::new());
        assert_eq!(reports.len(), 20 * cores);
        assert!(reports.iter().all(|report| report.failed.is_empty()));
        assert_eq!(most.into_inner(), cores);
    }
}
