//! The log of what stands: a line a minute for each kind of problem that goes on, and one when none of the kind is left.
//!
//! Where a problem begins is logged where it is met, with its particulars, if that has a place; that it still stands an hour later is known here
//! alone. It goes by kinds: the texts of single problems count records and name partitions, which come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::view::ServiceStatus;
use crate::admin::view::now_ms;
use crate::admin::{ProblemKind, ServiceProblem, ServiceView};

/// Between two looks at what stands. A look costs the pumps as much as a question for readiness.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long the pumps are waited for at a look.
const ANSWER: Duration = Duration::from_millis(500);
/// Between two lines about what goes on.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Kinds whose beginning nobody else logs.
const BEGUN_HERE: [ProblemKind; 4] = [
    ProblemKind::Group,
    ProblemKind::PartitionStalled,
    ProblemKind::HandlerClosing,
    ProblemKind::HandlerUnhealthy,
];

/// What the log is told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// There is one of a kind that has no line of its own.
    Begins(ServiceProblem),
    /// Problems of a kind go on.
    Stands {
        /// How many are listed of the kind.
        problems: usize,
        /// For how long there have been any.
        seconds: u64,
        /// The oldest.
        oldest: ServiceProblem,
    },
    /// None of a kind is left.
    Over {
        kind: ProblemKind,
        /// For how long there were any.
        seconds: u64,
        /// The oldest of those that were there last.
        what: String,
    },
}

/// What was standing at the last look.
#[derive(Debug, Default)]
struct ProblemLog {
    standing: BTreeMap<ProblemKind, ActiveProblem>,
}

#[derive(Clone, Debug)]
struct ActiveProblem {
    /// When it was met here.
    met: Instant,
    /// How old it was then.
    age: Duration,
    what: String,
    told: Instant,
    /// Whether the log was told that it stands.
    is_told: bool,
}

impl ProblemLog {
    /// Takes note of what stands, oldest first of each kind, and gives the lines that are due. What is not there is over only
    /// `if_complete`: if everybody was heard.
    fn look(
        &mut self,
        problems: &[ServiceProblem],
        if_complete: bool,
        now: Instant,
        wall_ms: i64,
    ) -> Vec<Line> {
        let mut by_kind: BTreeMap<ProblemKind, Vec<&ServiceProblem>> = BTreeMap::new();
        for problem in problems {
            by_kind.entry(problem.kind).or_default().push(problem);
        }
        let mut lines = Vec::new();
        self.standing.retain(|kind, standing| {
            let stays = by_kind.contains_key(kind) || !if_complete;
            // That a pump does not answer has no line of its beginning: a short one is not told of at all.
            if !stays && (standing.is_told || *kind != ProblemKind::Pump) {
                lines.push(Line::Over {
                    kind: *kind,
                    seconds: standing.seconds(now),
                    what: standing.what.clone(),
                });
            }
            stays
        });
        for (kind, of_kind) in by_kind {
            let Some(oldest) = of_kind.iter().min_by_key(|problem| problem.since_ms) else {
                continue;
            };
            let standing = self.standing.entry(kind).or_insert_with(|| {
                let age_ms = wall_ms.saturating_sub(oldest.since_ms);
                ActiveProblem {
                    met: now,
                    age: Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)),
                    what: String::new(),
                    told: now,
                    is_told: false,
                }
            });
            if standing.what.is_empty() && BEGUN_HERE.contains(&kind) {
                lines.push(Line::Begins((*oldest).clone()));
            }
            standing.what.clone_from(&oldest.what);
            if now.duration_since(standing.told) >= SAY_AGAIN {
                standing.told = now;
                standing.is_told = true;
                lines.push(Line::Stands {
                    problems: of_kind.len(),
                    seconds: standing.seconds(now),
                    oldest: (*oldest).clone(),
                });
            }
        }
        lines
    }
}

impl ActiveProblem {
    fn seconds(&self, now: Instant) -> u64 {
        (self.age + now.duration_since(self.met)).as_secs()
    }
}

impl Line {
    fn tell(&self) {
        match self {
            Self::Begins(problem) => tracing::warn!(
                kind = %problem.kind,
                cause = problem.cause,
                remedy = problem.remedy,
                "{}",
                problem.what
            ),
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
                seconds,
                what,
            } => tracing::info!(%kind, seconds, "over: {what}"),
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
    pub(super) fn start(view: Arc<ServiceStatus>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let watch = move || {
            let mut log = ProblemLog::default();
            while stopped.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let facts = view.report(ANSWER).facts;
                if facts.stopping {
                    // What pumps do not answer any more is not over.
                    return;
                }
                let is_complete = facts.unresponsive_pumps.is_empty();
                let now = Instant::now();
                for line in log.look(&facts.problems, is_complete, now, now_ms()) {
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
