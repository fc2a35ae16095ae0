//! The log of what stands: a line a minute for each kind of problem that goes on, and one when it is over.
//!
//! Where a problem begins is logged where it is met, with its particulars; that it still stands an hour later is known here alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::view::View;
use crate::admin::view::now_ms;
use crate::admin::{ProblemKind, ServiceProblem, ServiceView};

/// Between two looks at what stands.
const LOOK: Duration = Duration::from_secs(1);
/// How long the pumps are waited for at a look.
const ANSWER: Duration = Duration::from_millis(500);
/// Between two lines about what goes on, in milliseconds.
const SAY_AGAIN_MS: i64 = 60_000;

/// What the log is told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// Problems of a kind go on.
    Stands {
        /// How many of the kind.
        problems: usize,
        /// For how long the oldest of them has.
        seconds: i64,
        /// The oldest.
        oldest: ServiceProblem,
    },
    /// Problems of a kind are over.
    Over {
        kind: ProblemKind,
        /// How many of the kind.
        problems: usize,
        /// For how long the first of them stood.
        seconds: i64,
        /// The first of them.
        what: String,
    },
}

/// What was standing at the last look.
#[derive(Debug, Default)]
struct ProblemLog {
    standing: BTreeMap<(ProblemKind, String), Known>,
    told_ms: BTreeMap<ProblemKind, i64>,
}

#[derive(Clone, Debug)]
struct Known {
    since_ms: i64,
    what: String,
}

impl ProblemLog {
    /// Takes note of what stands, and gives the lines that are due.
    fn look(&mut self, problems: &[ServiceProblem], now_ms: i64) -> Vec<Line> {
        let before = std::mem::take(&mut self.standing);
        for problem in problems {
            let key = key_of(problem);
            let known = before.get(&key);
            // What cannot tell since when it stands has stood since it was met here.
            let since_ms = known.map_or(problem.since_ms, |known| known.since_ms);
            let known = Known {
                since_ms: since_ms.min(problem.since_ms),
                what: problem.what.clone(),
            };
            self.standing.entry(key).or_insert(known);
        }
        let mut lines = self.over(before, now_ms);
        lines.extend(self.stands(problems, now_ms));
        lines
    }

    fn over(&self, before: BTreeMap<(ProblemKind, String), Known>, now_ms: i64) -> Vec<Line> {
        let mut over: BTreeMap<ProblemKind, Vec<Known>> = BTreeMap::new();
        for ((kind, name), known) in before {
            if !self.standing.contains_key(&(kind, name)) {
                over.entry(kind).or_default().push(known);
            }
        }
        let line = |(kind, known): (ProblemKind, Vec<Known>)| {
            let first = known.iter().min_by_key(|known| known.since_ms)?;
            Some(Line::Over {
                kind,
                problems: known.len(),
                seconds: now_ms.saturating_sub(first.since_ms) / 1_000,
                what: first.what.clone(),
            })
        };
        over.into_iter().filter_map(line).collect()
    }

    fn stands(&mut self, problems: &[ServiceProblem], now_ms: i64) -> Vec<Line> {
        let mut by_kind: BTreeMap<ProblemKind, Vec<(&ServiceProblem, i64)>> = BTreeMap::new();
        for problem in problems {
            let known = self.standing.get(&key_of(problem));
            let since_ms = known.map_or(problem.since_ms, |known| known.since_ms);
            let of_kind = by_kind.entry(problem.kind).or_default();
            of_kind.push((problem, since_ms));
        }
        self.told_ms.retain(|kind, _| by_kind.contains_key(kind));
        let mut lines = Vec::new();
        for (kind, of_kind) in by_kind {
            let Some((oldest, since_ms)) = of_kind.iter().min_by_key(|(_, since_ms)| *since_ms)
            else {
                continue;
            };
            let told_ms = *self.told_ms.entry(kind).or_insert(*since_ms);
            if now_ms.saturating_sub(told_ms) < SAY_AGAIN_MS {
                continue;
            }
            self.told_ms.insert(kind, now_ms);
            lines.push(Line::Stands {
                problems: of_kind.len(),
                seconds: now_ms.saturating_sub(*since_ms) / 1_000,
                oldest: (*oldest).clone(),
            });
        }
        lines
    }
}

/// What makes it the same problem at the next look. The partitions of one are named in its text, and come and go.
fn key_of(problem: &ServiceProblem) -> (ProblemKind, String) {
    use ProblemKind as Kind;
    let name = match problem.kind {
        Kind::PartitionStopped
        | Kind::PartitionUnreadable
        | Kind::PartitionStarting
        | Kind::PartitionStalled
        | Kind::SpecRefused
        | Kind::Group => String::new(),
        _ => problem.what.clone(),
    };
    (problem.kind, name)
}

impl Line {
    fn tell(&self) {
        match self {
            Self::Stands {
                problems,
                seconds,
                oldest,
            } => tracing::warn!(
                kind = %oldest.kind,
                problems,
                seconds,
                cause = oldest.cause,
                remedy = oldest.remedy,
                "still: {}",
                oldest.what
            ),
            Self::Over {
                kind,
                problems,
                seconds,
                what,
            } => tracing::info!(%kind, problems, seconds, "over: {what}"),
        }
    }
}

/// Tells the log until it is dropped.
pub(super) struct ProblemWatch {
    _stop: Sender<()>,
}

impl ProblemWatch {
    /// Starts it.
    ///
    /// # Errors
    /// Of the system, when there is no thread for it.
    pub(super) fn start(view: Arc<View>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let watch = move || {
            let mut log = ProblemLog::default();
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let report = view.report(ANSWER);
                for line in log.look(&report.facts.problems, now_ms()) {
                    line.tell();
                }
            }
        };
        let thread = std::thread::Builder::new().name("problems".to_owned());
        thread.spawn(watch)?;
        Ok(Self { _stop: stop })
    }
}

#[cfg(test)]
#[path = "problem_log_tests.rs"]
mod tests;
