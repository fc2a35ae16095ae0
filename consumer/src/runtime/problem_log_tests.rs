//! When the log tells of what stands.

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

/// A log with a clock.
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

    /// A look after so many seconds, in which every pump was heard.
    fn look(&mut self, second: u64, problems: &[ServiceProblem]) -> Vec<Line> {
        self.look_if(second, problems, true)
    }

    fn look_if(&mut self, second: u64, problems: &[ServiceProblem], complete: bool) -> Vec<Line> {
        let now = self.start + Duration::from_secs(second);
        let wall_ms = i64::try_from(second).expect("small") * 1_000;
        self.log.look(problems, complete, now, wall_ms)
    }
}

#[test]
fn each_kind_that_stands_has_a_line_a_minute_and_one_at_its_end() {
    let mut bench = Bench::new();
    let kind = ProblemKind::HandlerFailed;
    let failed = [
        problem(kind, "a has failed", 0),
        problem(kind, "b has failed", 9_000),
    ];
    let mut lines = Vec::new();
    for second in (10..150).step_by(5) {
        lines.extend(bench.look(second, &failed));
    }
    let stands = |seconds| Line::Stands {
        problems: 2,
        seconds,
        oldest: failed[0].clone(),
    };
    assert_eq!(lines, [stands(70), stands(130)]);
    assert_eq!(bench.look(150, &failed[1..]), [], "one of them is left");
    let over = Line::Over {
        kind,
        seconds: 155,
        what: "b has failed".to_owned(),
    };
    assert_eq!(bench.look(155, &[]), [over]);
    assert_eq!(bench.look(300, &[]), []);
}

/// A text that counts records is another one at each look.
#[test]
fn a_problem_whose_text_changes_is_not_over() {
    let mut bench = Bench::new();
    let kind = ProblemKind::EmitsRefused;
    let mut lines = Vec::new();
    for second in 0..59 {
        let what = format!("handler `a` cannot emit to topic t: {second} records wait");
        lines.extend(bench.look(second, &[problem(kind, &what, 0)]));
    }
    assert_eq!(lines, []);
}

#[test]
fn what_a_silent_pump_does_not_tell_is_not_over() {
    let mut bench = Bench::new();
    let stopped = problem(ProblemKind::PartitionStopped, "partition t/0 is stopped", 0);
    let silent = problem(ProblemKind::Pump, "pump 0 does not answer", 5_000);
    assert_eq!(bench.look(0, std::slice::from_ref(&stopped)), []);
    assert_eq!(bench.look_if(5, &[silent], false), []);
    assert_eq!(
        bench.look(10, &[stopped]),
        [],
        "a short silence has no line"
    );
    assert_eq!(bench.look(15, &[]).len(), 1);
}

#[test]
fn what_does_not_say_since_when_stands_since_it_was_met() {
    let mut bench = Bench::new();
    let mut lines = Vec::new();
    for second in (0..=65).step_by(5) {
        let silent = problem(ProblemKind::Pump, "pump 0 does not answer", second * 1_000);
        lines.extend(bench.look_if(second as u64, &[silent], false));
    }
    lines.extend(bench.look(70, &[]));
    let told = lines.iter().map(|line| match line {
        Line::Begins(problem) => panic!("{problem:?}"),
        Line::Stands { seconds, .. } => ("still", *seconds),
        Line::Over { seconds, .. } => ("over", *seconds),
    });
    assert_eq!(told.collect::<Vec<_>>(), [("still", 60), ("over", 70)]);
}

#[test]
fn what_has_no_line_of_its_own_has_one_here_when_it_begins() {
    let mut bench = Bench::new();
    let stalled = problem(ProblemKind::PartitionStalled, "partition t/0 is stalled", 0);
    let failed = problem(ProblemKind::HandlerFailed, "a has failed", 0);
    let both = [stalled.clone(), failed];
    assert_eq!(bench.look(0, &both), [Line::Begins(stalled)]);
    assert_eq!(bench.look(5, &both), []);
}
