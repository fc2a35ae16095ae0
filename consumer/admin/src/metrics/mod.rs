//! Metrics in Prometheus' text format, encoded from a report on each scrape.
//!
//! Nothing is counted here: counters live where the work is done, so no record costs a metrics call.

mod bridge;
mod client;
mod family;
mod user;

use sluicegate_config::MetricsLevel;
use sluicegate_engine::status::{HandlerReport, PartitionState, ProblemKind, ServiceReport};
use sluicegate_pool::clock::now_ms;

pub use bridge::encode_bridge;
use family::{Families, seconds_histogram};

/// Content type of the output of [`encode`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Encodes `report`.
pub fn encode(report: &ServiceReport) -> String {
    let mut families = Families::default();
    let level = report.facts.metrics_level;
    identity(report, &mut families);
    log(&mut families);
    control_plane(report, &mut families);
    problems(report, &mut families);
    if level >= MetricsLevel::Basic {
        flow(report, &mut families);
        topics(report, &mut families);
    }
    if level >= MetricsLevel::Handler {
        handlers(report, &mut families);
        for handler in &report.handlers {
            user::add(handler, &mut families);
        }
    }
    if level >= MetricsLevel::Partition {
        partitions(report, &mut families);
        for (pump, statistics) in &report.clients {
            client::add(*pump, &statistics.0, &mut families);
        }
    }
    families.encode()
}

fn identity(report: &ServiceReport, families: &mut Families) {
    let facts = &report.facts;
    families.gauge(
        "sluicegate_build_info",
        "Version of the service; always 1",
        &[("version", &facts.version)],
        1.0,
    );
    families.gauge(
        "sluicegate_start_time_seconds",
        "When the service started, in seconds since the epoch",
        &[],
        facts.started_ms as f64 / 1e3,
    );
    let plugins = "1 while plugins without a signature are accepted";
    families.gauge(
        "sluicegate_unsigned_plugins_allowed",
        plugins,
        &[],
        f64::from(facts.allow_unsigned),
    );
}

/// Lines that the process's log has lost.
fn log(families: &mut Families) {
    families.counter(
        "sluicegate_log_lines_lost_total",
        "Log lines dropped because the reader was too slow, or the disk or pipe refused them",
        &[],
        crate::logging::lost_lines(),
    );
}

fn control_plane(report: &ServiceReport, families: &mut Families) {
    let facts = &report.facts;
    families.gauge(
        "sluicegate_snapshot_revision",
        "Revision of the active handler specs",
        &[],
        facts.revision as f64,
    );
    families.counter(
        "sluicegate_snapshot_rejections_total",
        "Refused snapshots of handler specs",
        &[],
        facts.rejections,
    );
    families.counter(
        "sluicegate_snapshot_repairs_total",
        "Changed keys that the watch missed and a re-read found",
        &[],
        facts.repairs,
    );
    families.gauge(
        "sluicegate_control_plane_unreachable_seconds",
        "How long the source of specs has been unreadable; 0 while it is readable",
        &[],
        seconds_since(facts.unreachable_since_ms),
    );
    families.gauge(
        "sluicegate_control_plane_held_seconds",
        "How long control-plane state has been held back because it appears to be another store's or the result of a loss; 0 while it is applied",
        &[],
        seconds_since(facts.held_since_ms),
    );
}

/// Seconds since `since_ms`; 0 for `None`.
fn seconds_since(since_ms: Option<i64>) -> f64 {
    since_ms.map_or(0, |since_ms| now_ms().abs_diff(since_ms)) as f64 / 1e3
}

/// Exported at every metrics level: a lack of progress must always be visible.
fn problems(report: &ServiceReport, families: &mut Families) {
    let facts = &report.facts;
    families.gauge(
        "sluicegate_kafka_unreachable_seconds",
        "How long no Kafka broker has answered; 0 while one does",
        &[],
        seconds_since(facts.kafka_unreachable_since_ms),
    );
    for kind in ProblemKind::ALL {
        let count = facts
            .problems
            .iter()
            .filter(|one| one.kind == *kind)
            .count();
        families.gauge(
            "sluicegate_problems",
            "Current problems by kind; /readyz and the status list them",
            &[("kind", kind.name())],
            count as f64,
        );
    }
}

fn flow(report: &ServiceReport, families: &mut Families) {
    families.gauge(
        "sluicegate_in_flight_bytes",
        "Bytes of records in flight",
        &[],
        report.in_flight_bytes as f64,
    );
    families.gauge(
        "sluicegate_in_flight_bytes_limit",
        "Bytes of records in flight at which reading is suspended",
        &[],
        report.facts.budget_bytes as f64,
    );
    let commits = [
        ("ok", report.commits.ok),
        ("refused", report.commits.refused),
        ("failed", report.commits.failed),
    ];
    for (result, count) in commits {
        let help = "Commits of a partition's frontier, by result";
        families.counter(
            "sluicegate_commits_total",
            help,
            &[("result", result)],
            count,
        );
    }
}

fn topics(report: &ServiceReport, families: &mut Families) {
    for topic in &report.topics {
        let labels = [("topic", topic.topic.as_str())];
        let help = "Records read";
        families.counter(
            "sluicegate_records_consumed_total",
            help,
            &labels,
            topic.consumed,
        );
        let help = "Records that matched no handler";
        families.counter(
            "sluicegate_records_unrouted_total",
            help,
            &labels,
            topic.unrouted,
        );
        let help = "Records that the client delivered twice within an assignment; dropped";
        families.counter(
            "sluicegate_repeats_dropped_total",
            help,
            &labels,
            topic.repeats_dropped,
        );
        let help =
            "Partitions that started from the beginning: the topic was deleted and recreated";
        families.counter(
            "sluicegate_topic_recreated_total",
            help,
            &labels,
            topic.recreated,
        );
        let help = "Partitions whose commit metadata was discarded";
        families.counter(
            "sluicegate_commit_metadata_dropped_total",
            help,
            &labels,
            topic.metadata_dropped,
        );
    }
}

fn partitions(report: &ServiceReport, families: &mut Families) {
    for partition in &report.partitions {
        let number = partition.partition.to_string();
        let labels = [("topic", partition.topic.as_str()), ("partition", &number)];
        // A starting partition has no start offset yet.
        if partition.state != PartitionState::Starting {
            let help = "One past the highest contiguous settled offset";
            families.gauge(
                "sluicegate_partition_frontier",
                help,
                &labels,
                partition.frontier as f64,
            );
        }
        if let Some(lag) = partition.lag {
            let help = "Offsets between the frontier and the partition's end";
            families.gauge(
                "sluicegate_partition_lag_records",
                help,
                &labels,
                lag as f64,
            );
        }
        let help = "1 for the partition's current state";
        let state = partition.state.to_string();
        families.gauge(
            "sluicegate_partition_state",
            help,
            &[labels[0], labels[1], ("state", &state)],
            1.0,
        );
        let help = "Offsets skipped because they have left the log";
        families.counter(
            "sluicegate_records_gone_total",
            help,
            &labels,
            partition.gone,
        );
        let help = "Records delivered and not settled";
        families.gauge(
            "sluicegate_partition_in_flight_records",
            help,
            &labels,
            partition.in_flight as f64,
        );
        if let Some(reason) = partition.paused_for {
            let help = "1 while fetching from the partition is paused, by reason";
            let reason = reason.to_string();
            let labels = [labels[0], labels[1], ("reason", reason.as_str())];
            families.gauge("sluicegate_partition_paused", help, &labels, 1.0);
        }
        let help =
            "1 while the frontier has not moved for stall_timeout although records are waiting";
        families.gauge(
            "sluicegate_partition_stalled",
            help,
            &labels,
            f64::from(partition.stalled),
        );
    }
}

fn handlers(report: &ServiceReport, families: &mut Families) {
    for handler in &report.handlers {
        outcomes(handler, families);
        let labels = [("handler", handler.name.as_str())];
        families.histogram(
            "sluicegate_handler_duration_seconds",
            "Handler time per record: the call's time divided evenly among its records",
            &labels,
            seconds_histogram(&handler.durations),
        );
        let help = "Records in a handler's lanes and pools, including parked ones";
        families.gauge(
            "sluicegate_handler_in_flight_records",
            help,
            &labels,
            handler.in_flight as f64,
        );
        let help = "Records waiting for their next attempt";
        families.gauge(
            "sluicegate_handler_parked_records",
            help,
            &labels,
            handler.parked as f64,
        );
        refusals(handler, families);
        let help = "Instances rebuilt";
        families.counter(
            "sluicegate_handler_restarts_total",
            help,
            &labels,
            handler.restarts,
        );
        let help = "Worker threads abandoned since the start after a call, a creation or a lifecycle call timed out";
        families.gauge(
            "sluicegate_handler_quarantined_workers",
            help,
            &labels,
            f64::from(handler.quarantined),
        );
        let help = "Abandoned worker threads, of all generations, that have not returned";
        families.gauge(
            "sluicegate_handler_hung_threads",
            help,
            &labels,
            f64::from(handler.hung),
        );
        let help = "1 while the gate is open";
        let open = handler.gate == sluicegate_engine::status::Gate::Open;
        families.gauge(
            "sluicegate_handler_gate_open",
            help,
            &labels,
            f64::from(open),
        );
        let help = "1 for the state of the handler's current generation";
        let state = handler.state.to_string();
        let labels = [labels[0], ("state", &state)];
        families.gauge("sluicegate_handler_state", help, &labels, 1.0);
        for (topic, count) in &handler.emitted {
            let help = "Records that a handler emitted and the cluster acknowledged";
            let labels = [("handler", handler.name.as_str()), ("topic", topic)];
            families.counter("sluicegate_emitted_records_total", help, &labels, *count);
        }
    }
}

fn refusals(handler: &HandlerReport, families: &mut Families) {
    let labels = [("handler", handler.name.as_str())];
    let help =
        "Emitted records and dead letters refused by the cluster or the producer, per attempt";
    families.counter(
        "sluicegate_handler_produce_refusals_total",
        help,
        &labels,
        handler.refusals,
    );
    let help = "Records that block their lane until a refused emit or dead letter is produced";
    families.gauge(
        "sluicegate_handler_refused_records",
        help,
        &labels,
        handler.refused as f64,
    );
    let help = "Emitted records and dead letters that the producer has and the cluster has not acknowledged";
    families.gauge(
        "sluicegate_handler_unacknowledged_emits",
        help,
        &labels,
        handler.unacknowledged as f64,
    );
}

fn outcomes(handler: &HandlerReport, families: &mut Families) {
    for version in &handler.versions {
        let labels = [
            ("handler", handler.name.as_str()),
            ("version", &version.version),
        ];
        for (outcome, count) in version.outcomes.by_name() {
            let labels = [labels[0], labels[1], ("outcome", outcome)];
            let help = "Outcomes of a handler's records";
            families.counter("sluicegate_handler_outcomes_total", help, &labels, count);
        }
        let help = "Contained panics of a handler";
        families.counter(
            "sluicegate_handler_panics_total",
            help,
            &labels,
            version.panics,
        );
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_engine::status::{DurationCounts, Durations, ServiceProblem, *};

    use super::*;

    fn durations() -> DurationCounts {
        let durations = Durations::new();
        durations.observe(256_000, 256);
        durations.observe(40_000_000_000, 1);
        durations.counts()
    }

    fn full_report() -> ServiceReport {
        let outcomes = OutcomeCounts {
            ack: 10,
            retry: 2,
            dead_letter: 1,
            drop: 4,
            skipped: 3,
        };
        let handler = HandlerReport {
            name: "relay".into(),
            state: HandlerState::Active,
            hung: 2,
            in_flight: 5,
            parked: 1,
            emitted: [("copies".to_owned(), 9)].into(),
            versions: vec![VersionReport {
                version: "1.2.0".into(),
                outcomes,
                panics: 7,
            }],
            durations: durations(),
            metrics: vec![UserMetric {
                name: "flights.seen".into(),
                kind: UserMetricKind::Counter { value: 12.0 },
            }],
            ..HandlerReport::default()
        };
        ServiceReport {
            facts: ServiceInfo {
                version: "0.1.0".into(),
                revision: 4,
                rejections: 2,
                problems: vec![ServiceProblem {
                    kind: ProblemKind::PartitionStopped,
                    what: "partition flights/3 is stopped".into(),
                    since_ms: 1,
                    count: 1,
                    cause: "gone".into(),
                    remedy: "commit another offset".into(),
                }],
                ..ServiceInfo::default()
            },
            in_flight_bytes: 4096,
            commits: CommitCounts {
                ok: 8,
                refused: 1,
                failed: 0,
            },
            topics: vec![TopicReport {
                topic: "fl\"ights".into(),
                consumed: 20,
                ..TopicReport::default()
            }],
            partitions: vec![PartitionReport {
                topic: "flights".into(),
                partition: 3,
                frontier: 100,
                lag: Some(17),
                gone: 40,
                ..PartitionReport::default()
            }],
            handlers: vec![handler],
            ..ServiceReport::default()
        }
    }

    #[test]
    fn every_metric_is_exported_with_its_labels() {
        let text = encode(&full_report());
        for line in [
            r#"sluicegate_records_consumed_total{topic="fl\"ights"} 20"#,
            r#"sluicegate_handler_outcomes_total{handler="relay",version="1.2.0",outcome="ack"} 10"#,
            r#"sluicegate_handler_outcomes_total{handler="relay",version="1.2.0",outcome="retry"} 2"#,
            r#"sluicegate_handler_outcomes_total{handler="relay",version="1.2.0",outcome="dead_letter"} 1"#,
            r#"sluicegate_handler_outcomes_total{handler="relay",version="1.2.0",outcome="drop"} 4"#,
            r#"sluicegate_handler_outcomes_total{handler="relay",version="1.2.0",outcome="skipped"} 3"#,
            r#"sluicegate_handler_panics_total{handler="relay",version="1.2.0"} 7"#,
            r#"sluicegate_handler_duration_seconds_bucket{handler="relay",le="0.000001"} 256"#,
            r#"sluicegate_handler_duration_seconds_bucket{handler="relay",le="30"} 256"#,
            r#"sluicegate_handler_duration_seconds_bucket{handler="relay",le="+Inf"} 257"#,
            r#"sluicegate_handler_duration_seconds_sum{handler="relay"} 40.000256"#,
            r#"sluicegate_handler_duration_seconds_count{handler="relay"} 257"#,
            r#"sluicegate_handler_hung_threads{handler="relay"} 2"#,
            r#"sluicegate_handler_in_flight_records{handler="relay"} 5"#,
            r#"sluicegate_handler_parked_records{handler="relay"} 1"#,
            r#"sluicegate_handler_state{handler="relay",state="ACTIVE"} 1"#,
            r#"sluicegate_partition_frontier{topic="flights",partition="3"} 100"#,
            r#"sluicegate_partition_lag_records{topic="flights",partition="3"} 17"#,
            r#"sluicegate_partition_state{topic="flights",partition="3",state="running"} 1"#,
            r#"sluicegate_records_gone_total{topic="flights",partition="3"} 40"#,
            "sluicegate_in_flight_bytes 4096",
            "sluicegate_kafka_unreachable_seconds 0",
            r#"sluicegate_problems{kind="partition_stopped"} 1"#,
            r#"sluicegate_problems{kind="group"} 0"#,
            r#"sluicegate_commits_total{result="ok"} 8"#,
            r#"sluicegate_commits_total{result="refused"} 1"#,
            r#"sluicegate_commits_total{result="failed"} 0"#,
            r#"sluicegate_emitted_records_total{handler="relay",topic="copies"} 9"#,
            "sluicegate_snapshot_revision 4",
            "sluicegate_snapshot_rejections_total 2",
            r#"sluicegate_build_info{version="0.1.0"} 1"#,
            "sluicegate_log_lines_lost_total 0",
            r#"sluicegate_user_flights_seen{handler="relay"} 12"#,
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no line {line}\nin\n{text}"
            );
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("sluicegate_"), "{line}");
        }
    }

    #[test]
    fn each_level_includes_the_metrics_of_the_previous_one() {
        let mut report = full_report();
        let mut names_at = |level| {
            report.facts.metrics_level = level;
            let text = encode(&report);
            let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
            lines.map(str::to_owned).collect::<Vec<String>>()
        };
        let levels = [
            MetricsLevel::Off,
            MetricsLevel::Basic,
            MetricsLevel::Handler,
            MetricsLevel::Partition,
        ]
        .map(&mut names_at);
        for pair in levels.windows(2) {
            assert!(pair[0].len() < pair[1].len());
            assert!(pair[0].iter().all(|name| pair[1].contains(name)));
        }
        let has = |names: &[String], part: &str| names.iter().any(|name| name.contains(part));
        assert!(!has(&levels[1], "handler") && has(&levels[2], "handler_outcomes"));
        assert!(!has(&levels[2], "partition") && has(&levels[3], "partition_lag"));
        assert!(has(&levels[0], "snapshot_revision"));
    }

    #[test]
    fn the_reference_page_has_every_metric() {
        let page = include_str!("../../../../docs/reference/admin.md");
        let text = encode(&full_report());
        let names = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let names = names.filter(|name| !name.starts_with("sluicegate_user_"));
        let missing: Vec<&str> = names
            .filter(|name| !page.contains(&format!("| `{name}` |")))
            .collect();
        assert!(
            missing.is_empty(),
            "docs/reference/admin.md lacks {missing:?}"
        );
    }

    #[test]
    fn a_family_is_announced_once_for_all_handlers() {
        let mut report = full_report();
        let mut other = report.handlers[0].clone();
        other.name = "second".into();
        report.handlers.push(other);
        let text = encode(&report);
        let announced: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("# TYPE"))
            .collect();
        let mut unique = announced.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), announced.len(), "{announced:?}");
    }
}
