//! When active problems are logged.

use super::*;

fn problem(kind: ProblemKind, what: &str, since_ms: i64) -> ServiceProblem {
    ServiceProblem {
        kind,
        what: what.to_owned(),
        since_ms,
        count: 1,
        cause: "a cause".to_owned(),
        remedy: "a remedy".to_owned(),
    }
}

/// A problem log with a clock.
struct Bench {
    log: ProblemLog,
    start: Instant,
}

impl Bench {
    fn new() -> Self {
        Self {
            log: ProblemLog::default(),
            start: Instant::now(),
        }
    }

    /// A poll at `second`, with reports of all pumps.
    fn update(&mut self, second: u64, problems: &[ServiceProblem]) -> Vec<Line> {
        self.update_if(second, problems, true)
    }

    fn update_if(&mut self, second: u64, problems: &[ServiceProblem], complete: bool) -> Vec<Line> {
        let now = self.start + Duration::from_secs(second);
        let wall_ms = i64::try_from(second).expect("small") * 1_000;
        self.log.update(problems, complete, now, wall_ms)
    }
}

#[test]
fn failing_attempts_are_logged_when_they_become_a_problem() {
    let failing = [problem(ProblemKind::AttemptsFailing, "all fail", 0)];
    let lines = Bench::new().update(41, &failing);
    assert_eq!(lines, [Line::Started(failing[0].clone())]);
}

#[test]
fn each_persisting_kind_has_one_line_per_minute_and_one_at_its_end() {
    let mut bench = Bench::new();
    let kind = ProblemKind::HandlerFailed;
    let failed = [
        problem(kind, "a has failed", 0),
        problem(kind, "b has failed", 9_000),
    ];
    let mut lines = Vec::new();
    for second in (10..150).step_by(5) {
        lines.extend(bench.update(second, &failed));
    }
    let persists = |seconds| Line::Persists {
        problems: 2,
        seconds,
        oldest: failed[0].clone(),
    };
    assert_eq!(lines, [persists(70), persists(130)]);
    assert_eq!(bench.update(150, &failed[1..]), [], "one of them remains");
    let resolved = Line::Resolved {
        kind,
        seconds: 155,
        what: "b has failed".to_owned(),
    };
    assert_eq!(bench.update(155, &[]), [resolved]);
    assert_eq!(bench.update(300, &[]), []);
}

/// A text with a record count changes from poll to poll.
#[test]
fn a_problem_whose_text_changes_is_not_resolved() {
    let mut bench = Bench::new();
    let kind = ProblemKind::EmitsRefused;
    let mut lines = Vec::new();
    for second in 0..59 {
        let what = format!("handler `a` cannot emit to topic t: {second} records wait");
        lines.extend(bench.update(second, &[problem(kind, &what, 0)]));
    }
    assert_eq!(lines, []);
}

#[test]
fn a_problem_missing_from_an_unresponsive_pump_is_not_resolved() {
    let mut bench = Bench::new();
    let stopped = problem(ProblemKind::PartitionStopped, "partition t/0 is stopped", 0);
    let silent = problem(ProblemKind::Pump, "pump 0 does not answer", 5_000);
    assert_eq!(bench.update(0, std::slice::from_ref(&stopped)), []);
    assert_eq!(bench.update_if(5, &[silent], false), []);
    assert_eq!(
        bench.update(10, &[stopped]),
        [],
        "a short silence has no line"
    );
    assert_eq!(bench.update(15, &[]).len(), 1);
}

#[test]
fn a_problem_without_a_start_time_counts_from_its_first_poll() {
    let mut bench = Bench::new();
    let mut lines = Vec::new();
    for second in (0..=65).step_by(5) {
        let silent = problem(ProblemKind::Pump, "pump 0 does not answer", second * 1_000);
        lines.extend(bench.update_if(second as u64, &[silent], false));
    }
    lines.extend(bench.update(70, &[]));
    let told = lines.iter().map(|line| match line {
        Line::Started(problem) => panic!("{problem:?}"),
        Line::Persists { seconds, .. } => ("still", *seconds),
        Line::Resolved { seconds, .. } => ("resolved", *seconds),
    });
    assert_eq!(told.collect::<Vec<_>>(), [("still", 60), ("resolved", 70)]);
}

#[test]
fn a_kind_without_a_line_of_its_own_is_logged_here_at_its_start() {
    let mut bench = Bench::new();
    let stalled = problem(ProblemKind::PartitionStalled, "partition t/0 is stalled", 0);
    let failed = problem(ProblemKind::HandlerFailed, "a has failed", 0);
    let both = [stalled.clone(), failed];
    assert_eq!(bench.update(0, &both), [Line::Started(stalled)]);
    assert_eq!(bench.update(5, &both), []);
}
