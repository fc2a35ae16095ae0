//! Checks of the scenario `problems` for each cause: where it is shown, how few log lines it causes, and that it clears.

use std::time::{Duration, Instant};

use e2e::service::Service;
use e2e::wait::{stays, wait_for};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);
/// Warnings and errors of the service in the first minute of one cause.
const MOST_LINES: usize = 20;

pub(crate) fn readyz(service: &Service) -> Result<(u16, Value), String> {
    let (status, body) = service.get("/readyz")?;
    let body = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
    Ok((status, body))
}

/// The problem of this kind, with these words, in `/readyz`.
fn problem(service: &Service, shown: &Shown<'_>) -> Result<(u16, Value), String> {
    let (status, body) = readyz(service)?;
    let all = body["problems"].as_array().ok_or("no list of problems")?;
    let is_it = |one: &&Value| {
        let text = one.to_string().to_lowercase();
        let mut words = shown.words.iter();
        one["kind"] == shown.kind && words.all(|word| text.contains(&word.to_lowercase()))
    };
    let found = all.iter().find(is_it).cloned();
    let found = found.ok_or_else(|| format!("{status}: {body}"))?;
    Ok((status, found))
}

/// The expected effects of a cause.
pub(crate) struct Shown<'a> {
    pub(crate) kind: &'a str,
    pub(crate) status: u16,
    /// Parts of description, cause and remedy.
    pub(crate) words: &'a [&'a str],
    /// A partition, and its state in `explain`.
    pub(crate) explain: (&'a str, &'a str),
}

pub(crate) fn warnings(service: &mut Service) -> usize {
    let log = service.process().log();
    let told = log
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"));
    told.count()
}

/// Waits until the cause is shown everywhere. The log had `before` warnings before it.
pub(crate) fn shows(service: &mut Service, before: usize, shown: &Shown<'_>) {
    let what = format!("{} to show", shown.kind);
    let (status, problem) = wait_for(&what, DEADLINE, || problem(service, shown));
    assert_eq!(status, shown.status, "{problem}");
    assert!(problem["since_ms"].as_i64() > Some(0) && problem["count"].as_u64() > Some(0));
    for field in ["what", "cause", "remedy"] {
        assert!(problem[field] != "", "{problem}");
    }
    wait_for("the status to show it", DEADLINE, || {
        let status = service.api("status")?;
        match status["problems"].to_string().contains(shown.kind) {
            true => Ok(()),
            false => Err(status["problems"].to_string()),
        }
    });
    wait_for("the metrics to show it", DEADLINE, || {
        let kind = [("kind", shown.kind)];
        match service.metrics()?.sum("sluicegate_problems", &kind) {
            count if count >= 1.0 => Ok(()),
            count => Err(count.to_string()),
        }
    });
    let (place, words) = shown.explain;
    let said = wait_for("explain to show it", DEADLINE, || {
        let (status, body) = service.get(&format!("/api/v1/explain/{place}"))?;
        match body.to_lowercase().contains(&words.to_lowercase()) {
            true => Ok(format!("{status} {body}")),
            false => Err(format!("{status} {body}")),
        }
    });
    let lines = warnings(service) - before;
    println!(
        "    {}: /readyz {status}; {} | {} | {}; count {}; {lines} warnings so far; explain: {}",
        shown.kind,
        problem["what"],
        problem["cause"],
        problem["remedy"],
        problem["count"],
        said.chars().take(300).collect::<String>(),
    );
}

/// Waits until no problem is left. The log has a line for the end of each problem that lasted for several polls.
pub(crate) fn heals(service: &mut Service) {
    let kinds = |body: &Value| -> Vec<String> {
        let problems = body["problems"].as_array().into_iter().flatten();
        let now_ms = e2e::now_ms();
        let stood = problems.filter(|one| {
            let since_ms = one["since_ms"].as_i64();
            since_ms.is_some_and(|since_ms| now_ms - since_ms > 8_000)
        });
        let kinds = stood.filter_map(|one| one["kind"].as_str());
        kinds.map(str::to_owned).collect()
    };
    let stood = readyz(service).map_or_else(|_| Vec::new(), |(_, body)| kinds(&body));
    wait_for("all problems to clear", DEADLINE, || {
        let (status, body) = readyz(service)?;
        let none = body["problems"].as_array().is_some_and(Vec::is_empty);
        let metrics = service.metrics()?;
        let mut left = metrics.sum("sluicegate_problems", &[])
            + metrics.sum("sluicegate_kafka_unreachable_seconds", &[]);
        for state in ["unreadable", "stopped", "starting"] {
            left += metrics.sum("sluicegate_partition_state", &[("state", state)]);
        }
        match status == 200 && none && left == 0.0 {
            true => Ok(()),
            false => Err(format!("{status}, {left} in metrics: {body}")),
        }
    });
    wait_for("the log to report the end", DEADLINE, || {
        let log = service.process().log();
        let told = |kind: &String| {
            let kind = format!("kind={kind}");
            let mut ends = log.lines().filter(|line| line.contains(" resolved: "));
            ends.any(|line| line.contains(&kind))
        };
        match stood.iter().all(told) {
            true => Ok(()),
            false => Err(format!("{stood:?}: {}", service.process().log_tail())),
        }
    });
}

/// Waits for the rest of a minute since `began`, in which the log must stay short.
pub(crate) fn minute(service: &mut Service, began: Instant, before: usize, what: &str) {
    let left = Duration::from_secs(60).saturating_sub(began.elapsed());
    stays("a short log", left, || {
        let lines = warnings(service) - before;
        assert!(
            lines <= MOST_LINES,
            "{lines} lines of {what} after {:?}:\n{}",
            began.elapsed(),
            service.process().log_tail()
        );
        Ok(())
    });
    println!(
        "    {what}: {} warnings in the first minute",
        warnings(service) - before
    );
}
