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

#[test]
fn each_kind_that_stands_has_a_line_a_minute_and_one_at_its_end() {
    let mut log = ProblemLog::default();
    let start = 1_000_000;
    let failed = [
        problem(ProblemKind::HandlerFailed, "a has failed", start),
        problem(ProblemKind::HandlerFailed, "b has failed", start + 9_000),
    ];
    let mut lines = Vec::new();
    for second in 0..150 {
        lines.extend(log.look(&failed, start + second * 1_000));
    }
    let stands = |seconds| Line::Stands {
        problems: 2,
        seconds,
        oldest: failed[0].clone(),
    };
    assert_eq!(lines, [stands(60), stands(120)]);

    let over = |what: &str, seconds| Line::Over {
        kind: ProblemKind::HandlerFailed,
        problems: 1,
        seconds,
        what: what.to_owned(),
    };
    let one_left = log.look(&failed[1..], start + 150_000);
    assert_eq!(one_left, [over("a has failed", 150)]);
    let none_left = log.look(&[], start + 151_000);
    assert_eq!(none_left, [over("b has failed", 142)]);
    assert_eq!(log.look(&[], start + 300_000), []);
}

#[test]
fn partitions_that_come_to_a_problem_do_not_end_it() {
    let mut log = ProblemLog::default();
    let kind = ProblemKind::PartitionUnreadable;
    assert_eq!(log.look(&[problem(kind, "partition t/0", 5)], 10), []);
    assert_eq!(log.look(&[problem(kind, "partitions t/0, t/1", 5)], 20), []);
    assert_eq!(
        log.look(&[], 5_005),
        [Line::Over {
            kind,
            problems: 1,
            seconds: 5,
            what: "partitions t/0, t/1".to_owned(),
        }]
    );
}

#[test]
fn what_does_not_say_since_when_stands_since_it_was_met() {
    let mut log = ProblemLog::default();
    let mut lines = 0;
    for second in 0..=60 {
        let now_ms = second * 1_000;
        let silent = problem(ProblemKind::Pump, "pump 0 does not answer", now_ms);
        lines += log.look(&[silent], now_ms).len();
    }
    assert_eq!(lines, 1);
}
