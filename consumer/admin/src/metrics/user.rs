//! A handler's own metrics, as `sluicegate_user_<name>{handler}`.

use sluicegate_engine::status::{HandlerReport, UserMetricKind};

use super::family::{Families, histogram};

/// Adds the metrics of `handler`. A metric whose name another handler uses with another type is omitted.
pub(super) fn add(handler: &HandlerReport, families: &mut Families) {
    let labels = [("handler", handler.name.as_str())];
    let mut taken = Vec::new();
    for metric in &handler.metrics {
        let name = format!("sluicegate_user_{}", legal(&metric.name));
        if taken.contains(&name) {
            continue;
        }
        let help = "Metric defined by the handler";
        match &metric.kind {
            UserMetricKind::Counter { value } => families.counter_f64(&name, help, &labels, *value),
            UserMetricKind::Gauge { value } => families.gauge(&name, help, &labels, *value),
            UserMetricKind::Histogram {
                buckets,
                beyond,
                sum,
            } => {
                let count = buckets.iter().map(|(_, within)| within).sum::<u64>() + beyond;
                families.histogram(&name, help, &labels, histogram(buckets, count, *sum))
            }
        };
        taken.push(name);
    }
}

/// The name with characters that Prometheus does not allow replaced by `_`.
fn legal(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use sluicegate_engine::status::UserMetric;

    use super::*;

    fn handler(name: &str, metrics: Vec<UserMetric>) -> HandlerReport {
        HandlerReport {
            name: name.into(),
            metrics,
            ..HandlerReport::default()
        }
    }

    fn metric(name: &str, kind: UserMetricKind) -> UserMetric {
        UserMetric {
            name: name.into(),
            kind,
        }
    }

    #[test]
    fn names_are_sanitized_and_keep_the_type_of_their_first_user() {
        let histogram = UserMetricKind::Histogram {
            buckets: vec![(1.0, 2), (5.0, 1)],
            beyond: 4,
            sum: 100.0,
        };
        let mut families = Families::default();
        let counter = UserMetricKind::Counter { value: 1.5 };
        add(
            &handler(
                "a",
                vec![
                    metric("späte-flüge", counter.clone()),
                    metric("sp_te_fl_ge", counter),
                    metric("size", histogram),
                ],
            ),
            &mut families,
        );
        add(
            &handler(
                "b",
                vec![metric("size", UserMetricKind::Gauge { value: 3.0 })],
            ),
            &mut families,
        );
        let text = families.encode();
        assert!(
            text.contains("sluicegate_user_sp_te_fl_ge{handler=\"a\"} 1.5\n"),
            "{text}"
        );
        assert_eq!(text.matches("sp_te_fl_ge{").count(), 1, "{text}");
        assert!(
            text.contains("sluicegate_user_size_bucket{handler=\"a\",le=\"5\"} 3\n"),
            "{text}"
        );
        assert!(
            text.contains("sluicegate_user_size_count{handler=\"a\"} 7\n"),
            "{text}"
        );
        assert!(!text.contains("handler=\"b\""), "{text}");
    }
}
