//! The log of active problems: one line per minute for each kind that persists, and one when the last problem of a kind is resolved.
//!
//! The start of a problem is usually logged by the component that detects it, with details; only this module logs that it persists.
//! Problems are grouped by kind, because the texts of single problems contain record counts and partitions, which change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use sluicegate_admin::ServiceView;
use sluicegate_engine::status::{ProblemKind, ServiceProblem};
use sluicegate_pool::clock::now_ms;

use super::view::ServiceStatus;

/// Interval between two polls of the active problems. A poll costs the pumps as much as a readiness probe.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum wait for the pumps' reports per poll.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval between two lines about a persisting problem.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Kinds whose start no other component logs.
const LOGGED_HERE: [ProblemKind; 6] = [
    ProblemKind::AttemptsFailing,
    ProblemKind::EmitsUnacknowledged,
    ProblemKind::Group,
    ProblemKind::PartitionStalled,
    ProblemKind::HandlerClosing,
    ProblemKind::HandlerUnhealthy,
];

/// A line to log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// A problem started, of a kind whose start no other component logs.
    Started(ServiceProblem),
    /// Problems of a kind persist.
    Persists {
        /// Number of problems of the kind.
        problems: usize,
        /// Seconds since the first of them started.
        seconds: u64,
        /// The oldest of them.
        oldest: ServiceProblem,
    },
    /// The last problem of a kind is resolved.
    Resolved {
        kind: ProblemKind,
        /// Seconds during which there were problems of the kind.
        seconds: u64,
        /// The oldest of the last ones.
        what: String,
    },
}

/// Problems active at the last poll.
#[derive(Debug, Default)]
struct ProblemLog {
    active: BTreeMap<ProblemKind, ActiveProblem>,
}

#[derive(Clone, Debug)]
struct ActiveProblem {
    /// When it was first seen here.
    first_seen: Instant,
    /// Its age at that time.
    age: Duration,
    what: String,
    logged: Instant,
    /// Whether a line about its persistence was logged.
    persistence_logged: bool,
}

impl ProblemLog {
    /// Records the active problems and returns the lines that are due. A missing problem counts as resolved only if `complete`:
    /// if every pump has reported.
    fn update(
        &mut self,
        problems: &[ServiceProblem],
        complete: bool,
        now: Instant,
        wall_ms: i64,
    ) -> Vec<Line> {
        let mut by_kind: BTreeMap<ProblemKind, Vec<&ServiceProblem>> = BTreeMap::new();
        for problem in problems {
            by_kind.entry(problem.kind).or_default().push(problem);
        }
        let mut lines = Vec::new();
        self.active.retain(|kind, active| {
            let remains = by_kind.contains_key(kind) || !complete;
            // The start of an unresponsive pump is not logged, so a short one has no line about its end either.
            if !remains && (active.persistence_logged || *kind != ProblemKind::Pump) {
                lines.push(Line::Resolved {
                    kind: *kind,
                    seconds: active.seconds(now),
                    what: active.what.clone(),
                });
            }
            remains
        });
        for (kind, of_kind) in by_kind {
            let Some(oldest) = of_kind.iter().min_by_key(|problem| problem.since_ms) else {
                continue;
            };
            let active = self.active.entry(kind).or_insert_with(|| {
                let age_ms = wall_ms.saturating_sub(oldest.since_ms);
                ActiveProblem {
                    first_seen: now,
                    age: Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)),
                    what: String::new(),
                    logged: now,
                    persistence_logged: false,
                }
            });
            if active.what.is_empty() && LOGGED_HERE.contains(&kind) {
                lines.push(Line::Started((*oldest).clone()));
            }
            active.what.clone_from(&oldest.what);
            if now.duration_since(active.logged) >= LOG_INTERVAL {
                active.logged = now;
                active.persistence_logged = true;
                lines.push(Line::Persists {
                    problems: of_kind.len(),
                    seconds: active.seconds(now),
                    oldest: (*oldest).clone(),
                });
            }
        }
        lines
    }
}

impl ActiveProblem {
    fn seconds(&self, now: Instant) -> u64 {
        (self.age + now.duration_since(self.first_seen)).as_secs()
    }
}

impl Line {
    fn write(&self) {
        match self {
            Self::Started(problem) => tracing::warn!(
                kind = %problem.kind,
                cause = problem.cause,
                remedy = problem.remedy,
                "{}",
                problem.what
            ),
            Self::Persists {
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
            Self::Resolved {
                kind,
                seconds,
                what,
            } => tracing::info!(%kind, seconds, "resolved: {what}"),
        }
    }
}

/// The thread that polls and logs the problems, until this is dropped.
pub(super) struct ProblemWatch {
    _stop: Sender<()>,
}

impl ProblemWatch {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's error if the thread cannot be created.
    pub(super) fn start(view: Arc<ServiceStatus>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let watch = move || {
            let mut log = ProblemLog::default();
            while stopped.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let facts = view.report(REPORT_TIMEOUT).facts;
                if facts.stopping {
                    // Problems that stopping pumps no longer report are not resolved.
                    return;
                }
                let is_complete = facts.unresponsive_pumps.is_empty();
                let now = Instant::now();
                for line in log.update(&facts.problems, is_complete, now, now_ms()) {
                    line.write();
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
