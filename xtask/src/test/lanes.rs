//! Steps side by side: most scenarios wait most of the time, so more of them run than there are cores.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use crate::step::Report;

/// A step that waits for a lane.
pub(super) struct Waiting<'a> {
    pub(super) name: String,
    pub(super) run: Box<dyn FnOnce() -> Result<Report> + Send + 'a>,
}

impl Waiting<'_> {
    pub(super) fn of(name: &str, run: fn() -> Result<Report>) -> Self {
        Self {
            name: name.to_owned(),
            run: Box::new(run),
        }
    }
}

/// How many steps run at a time: twice the cores, since a scenario keeps half a core busy.
pub(super) fn lanes() -> usize {
    2 * std::thread::available_parallelism().map_or(2, usize::from)
}

/// Runs `steps` in their order, [`lanes`] at a time, and those of `behind` one after the other beside them.
pub(super) fn run(steps: Vec<Waiting<'_>>, behind: Vec<Waiting<'_>>) -> Vec<Report> {
    let steps = Mutex::new(steps.into_iter());
    let behind = Mutex::new(behind.into_iter());
    std::thread::scope(|scope| {
        let mut running: Vec<_> = (0..lanes()).map(|_| scope.spawn(|| lane(&steps))).collect();
        running.push(scope.spawn(|| lane(&behind)));
        let ended = running.into_iter().flat_map(|lane| match lane.join() {
            Ok(reports) => reports,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    })
}

/// Runs `steps` one after the other with nothing beside them.
pub(super) fn one_by_one(steps: Vec<Waiting<'_>>) -> Vec<Report> {
    lane(&Mutex::new(steps.into_iter()))
}

fn lane(steps: &Mutex<std::vec::IntoIter<Waiting<'_>>>) -> Vec<Report> {
    let next = || {
        let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.next()
    };
    let mut reports = Vec::new();
    while let Some(step) = next() {
        reports.push(done(&step.name, (step.run)()));
    }
    reports
}

/// The report of a step; one that could not be run has failed.
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
    use std::sync::Barrier;

    use anyhow::bail;

    use super::*;

    #[test]
    fn steps_run_side_by_side_and_one_that_cannot_run_stops_no_other() {
        let together = Barrier::new(2);
        let meets = |name: &str| Waiting {
            name: name.to_owned(),
            run: Box::new(|| {
                together.wait();
                Ok(Report::new("met"))
            }),
        };
        let fails = Waiting {
            name: "fails".to_owned(),
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
}
