//! Host services for a handler: rate-limited log lines, and the handler's own metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluicegate_config::secret::{Redaction, Redactor};
use sluicegate_engine::status::{UserMetric, UserMetricKind};
use sluicegate_pool::pool::relock;
use sluicegate_runtime::{HostServices, LogLevel, LogLine, MetricKind};

/// Log lines per second that a handler may write.
const LINES_PER_SECOND: u32 = 100;
/// Log lines that a handler may write in a burst.
const BURST_LINES: u32 = 500;
/// Maximum length of a line's message, of its target and of its fields, in bytes.
const MAX_LINE_BYTES: usize = 16 << 10;
/// Maximum number of metrics per handler and version.
const MAX_METRICS: usize = 256;
/// Maximum length of a metric's name, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// Upper bounds of a handler's histograms. The unit is unknown here, so they span seven decades with two buckets each.
const BOUNDS: [f64; 15] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1_000.0, 5_000.0,
    10_000.0,
];

/// The services of one handler.
pub struct HandlerServices {
    handler: Arc<str>,
    lines: Mutex<LineBudget>,
    metrics: Arc<UserMetrics>,
    redaction: Arc<Redaction>,
    /// The secrets of all handlers. A plugin that several use cannot tell for which of them a thread of its own logs: a line must not
    /// contain the secrets of any.
    of_all: Arc<Redaction>,
}

impl HandlerServices {
    /// Services under the handler's name. Metrics go to `metrics`; their names are redacted with the handler's secrets, log lines with
    /// those `of_all` handlers.
    pub fn new(
        handler: Arc<str>,
        metrics: Arc<UserMetrics>,
        redaction: Arc<Redaction>,
        of_all: Arc<Redaction>,
    ) -> Self {
        Self {
            handler,
            lines: Mutex::new(LineBudget::new(Instant::now())),
            metrics,
            redaction,
            of_all,
        }
    }
}

impl HostServices for HandlerServices {
    fn log(&self, line: &LogLine<'_>) {
        if !is_written(line.level) {
            return;
        }
        let budget = relock(&self.lines).take(Instant::now());
        let redacted = admit(budget, || {
            [line.message, line.target, line.fields].map(|text| {
                let cut = &text[..text.floor_char_boundary(MAX_LINE_BYTES)];
                self.of_all.redact(cut).into_owned()
            })
        });
        let Some((suppressed, [message, target, fields])) = redacted else {
            return;
        };
        let handler = &*self.handler;
        if suppressed > 0 {
            tracing::warn!(
                handler,
                lines = suppressed,
                "log lines suppressed: more than {LINES_PER_SECOND} per second"
            );
        }
        let given = |text: String| (!text.is_empty()).then_some(text);
        let (module, fields) = (given(target), given(fields));
        match line.level {
            LogLevel::Error => tracing::error!(handler, module, fields, "{message}"),
            LogLevel::Warn => tracing::warn!(handler, module, fields, "{message}"),
            LogLevel::Info => tracing::info!(handler, module, fields, "{message}"),
            LogLevel::Debug => tracing::debug!(handler, module, fields, "{message}"),
            LogLevel::Trace => tracing::trace!(handler, module, fields, "{message}"),
        }
    }

    fn metric(&self, kind: MetricKind, name: &str, value: f64) {
        if let Err(why) = self.metrics.record(kind, name, value, &self.redaction) {
            let message = format!("metric `{name}` is not recorded: {why}");
            self.log(&LogLine::new(LogLevel::Warn, &message));
        }
    }
}

/// Whether the log is enabled for this level.
fn is_written(level: LogLevel) -> bool {
    match level {
        LogLevel::Error => tracing::enabled!(tracing::Level::ERROR),
        LogLevel::Warn => tracing::enabled!(tracing::Level::WARN),
        LogLevel::Info => tracing::enabled!(tracing::Level::INFO),
        LogLevel::Debug => tracing::enabled!(tracing::Level::DEBUG),
        LogLevel::Trace => tracing::enabled!(tracing::Level::TRACE),
    }
}

/// The redacted texts of a line that may be written, and the number of lines suppressed before it. A suppressed line is not
/// searched for secrets, so that a flood of lines is cheap.
fn admit<T>(line: Line, redact: impl FnOnce() -> T) -> Option<(u64, T)> {
    match line {
        Line::Write { suppressed } => Some((suppressed, redact())),
        Line::Hold => None,
    }
}

/// Token bucket for log lines. Pure; time is passed in.
struct LineBudget {
    left: f64,
    at: Instant,
    suppressed: u64,
}

enum Line {
    Write { suppressed: u64 },
    Hold,
}

impl LineBudget {
    fn new(now: Instant) -> Self {
        Self {
            left: f64::from(BURST_LINES),
            at: now,
            suppressed: 0,
        }
    }

    fn take(&mut self, now: Instant) -> Line {
        let passed = now
            .saturating_duration_since(self.at)
            .min(Duration::from_secs(3600));
        self.at = now;
        let earned = passed.as_secs_f64() * f64::from(LINES_PER_SECOND);
        self.left = (self.left + earned).min(f64::from(BURST_LINES));
        if self.left < 1.0 {
            self.suppressed += 1;
            return Line::Hold;
        }
        self.left -= 1.0;
        Line::Write {
            suppressed: std::mem::take(&mut self.suppressed),
        }
    }
}

/// Why a value of a handler's metric is not recorded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MetricError {
    /// The value is infinite or not a number.
    #[error("{0} is not a finite number")]
    NotFinite(f64),
    /// The name is not valid in an exposition.
    #[error("use at most {MAX_NAME_BYTES} letters, digits and `_`, not starting with a digit")]
    Name,
    /// One more metric than a handler may have.
    #[error("a handler may have {MAX_METRICS} metrics at most")]
    TooMany,
    /// The name would show a secret.
    #[error("its name contains a secret of the config")]
    SecretName,
    /// A negative value for a counter.
    #[error("a counter cannot decrease")]
    Decrease,
    /// The name belongs to a metric of another kind.
    #[error("it was first used as another kind of metric")]
    OtherKind,
}

/// The metrics of one handler and version, by name.
#[derive(Debug, Default)]
pub struct UserMetrics {
    /// `None` for a name that contains a secret, so that each name is searched only once.
    by_name: Mutex<BTreeMap<String, Option<UserMetricKind>>>,
}

impl UserMetrics {
    /// Adds to a counter, sets a gauge, or observes a value in a histogram.
    ///
    /// # Errors
    /// [`MetricError`] if the name or the value is invalid, or the handler has too many metrics.
    pub fn record(
        &self,
        kind: MetricKind,
        name: &str,
        value: f64,
        redaction: &Redaction,
    ) -> Result<(), MetricError> {
        if !value.is_finite() {
            return Err(MetricError::NotFinite(value));
        }
        let mut by_name = relock(&self.by_name);
        if !by_name.contains_key(name) {
            check_name(name)?;
            if by_name.len() >= MAX_METRICS {
                return Err(MetricError::TooMany);
            }
            let secrets = redaction.current();
            let shows = secrets.is_some_and(|secrets| secrets.shows_in_name(name));
            by_name.insert(name.to_owned(), (!shows).then(|| new_metric(kind)));
        }
        let Some(metric) = by_name.get_mut(name).and_then(Option::as_mut) else {
            return Err(MetricError::SecretName);
        };
        match (kind, metric) {
            (MetricKind::Counter, UserMetricKind::Counter { .. }) if value < 0.0 => {
                Err(MetricError::Decrease)
            }
            (MetricKind::Counter, UserMetricKind::Counter { value: sum }) => {
                *sum += value;
                Ok(())
            }
            (MetricKind::Gauge, UserMetricKind::Gauge { value: last }) => {
                *last = value;
                Ok(())
            }
            (
                MetricKind::Histogram,
                UserMetricKind::Histogram {
                    buckets,
                    beyond,
                    sum,
                },
            ) => {
                *sum += value;
                match buckets.iter_mut().find(|(bound, _)| value <= *bound) {
                    Some((_, count)) => *count += 1,
                    None => *beyond += 1,
                }
                Ok(())
            }
            _ => Err(MetricError::OtherKind),
        }
    }

    /// Hides metrics whose name contains one of these secrets from now on.
    pub fn hide(&self, secrets: &Redactor) {
        let mut by_name = relock(&self.by_name);
        for (name, metric) in &mut *by_name {
            if metric.is_some() && secrets.shows_in_name(name) {
                *metric = None;
            }
        }
    }

    /// The current metrics, without hidden ones.
    pub fn snapshot(&self) -> Vec<UserMetric> {
        let metric = |(name, kind): (&String, &Option<UserMetricKind>)| {
            kind.as_ref().map(|kind| UserMetric {
                name: name.clone(),
                kind: kind.clone(),
            })
        };
        relock(&self.by_name).iter().filter_map(metric).collect()
    }
}

fn check_name(name: &str) -> Result<(), MetricError> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let valid_start = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if valid_start && name.len() <= MAX_NAME_BYTES && name.chars().all(word) {
        return Ok(());
    }
    Err(MetricError::Name)
}

fn new_metric(kind: MetricKind) -> UserMetricKind {
    match kind {
        MetricKind::Counter => UserMetricKind::Counter { value: 0.0 },
        MetricKind::Gauge => UserMetricKind::Gauge { value: 0.0 },
        MetricKind::Histogram => UserMetricKind::Histogram {
            buckets: BOUNDS.iter().map(|&bound| (bound, 0)).collect(),
            beyond: 0,
            sum: 0.0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl UserMetrics {
        fn add(&self, kind: MetricKind, name: &str, value: f64) -> Result<(), MetricError> {
            self.record(kind, name, value, &Redaction::default())
        }
    }

    #[test]
    fn a_line_contains_the_secrets_of_no_handler() {
        let of_all = Arc::new(Redaction::default());
        // One begins as the other does: what is left of the longer one must not be shown.
        let mut services = ["hunter2-one", "hunter2-one-database"].map(|secret| {
            let redactor = Redactor::new(&[secret]);
            of_all.add(&redactor);
            let own = Arc::new(Redaction::new(redactor));
            HandlerServices::new("a".into(), Arc::default(), own, Arc::clone(&of_all))
        });
        services.reverse();
        for services in services {
            let log = sluicegate_kit::log_capture::captured(|| {
                let text = "connects with hunter2-one-database and hunter2-one";
                services.log(&LogLine::new(LogLevel::Error, text));
            });
            assert!(log.contains("connects with *** and ***"), "{log}");
        }
    }

    #[test]
    fn metrics_add_set_and_observe_and_keep_their_kind() {
        let metrics = UserMetrics::default();
        for value in [1.0, 2.0] {
            metrics.add(MetricKind::Counter, "seen", value).unwrap();
            metrics.add(MetricKind::Gauge, "level", value).unwrap();
            metrics
                .add(MetricKind::Histogram, "took", value * 6e3)
                .unwrap();
        }
        assert!(metrics.add(MetricKind::Gauge, "seen", 1.0).is_err());
        assert!(metrics.add(MetricKind::Counter, "seen", -1.0).is_err());
        assert!(metrics.add(MetricKind::Gauge, "level", f64::NAN).is_err());
        let all = metrics.snapshot();
        assert_eq!(all[0].kind, UserMetricKind::Gauge { value: 2.0 });
        assert_eq!(all[1].kind, UserMetricKind::Counter { value: 3.0 });
        let UserMetricKind::Histogram {
            buckets,
            beyond,
            sum,
        } = &all[2].kind
        else {
            panic!("another kind: {:?}", all[2]);
        };
        assert_eq!((buckets[14], *beyond, *sum), ((1e4, 1), 1, 18e3));
    }

    #[test]
    fn names_are_checked_and_bounded_in_number() {
        let metrics = UserMetrics::default();
        for bad in ["", "1st", "with space", "a-b", &"x".repeat(129)] {
            assert!(metrics.add(MetricKind::Counter, bad, 1.0).is_err(), "{bad}");
        }
        for n in 0..MAX_METRICS {
            metrics
                .add(MetricKind::Counter, &format!("m{n}"), 1.0)
                .unwrap();
        }
        assert!(metrics.add(MetricKind::Counter, "one_more", 1.0).is_err());
        assert!(metrics.add(MetricKind::Counter, "m0", 1.0).is_ok());
    }

    #[test]
    fn lines_beyond_the_rate_are_suppressed_and_counted() {
        let start = Instant::now();
        let mut budget = LineBudget::new(start);
        let written = (0..1_000).filter(|_| matches!(budget.take(start), Line::Write { .. }));
        assert_eq!(written.count(), BURST_LINES as usize);
        let Line::Write { suppressed } = budget.take(start + Duration::from_secs(1)) else {
            panic!("one second allows more lines");
        };
        assert_eq!(suppressed, 500);
    }

    #[test]
    fn a_suppressed_line_is_not_searched_for_secrets() {
        let start = Instant::now();
        let mut budget = LineBudget::new(start);
        let mut searched = 0;
        for _ in 0..10_000 {
            admit(budget.take(start), || {
                searched += 1;
                "text"
            });
        }
        assert_eq!(searched, BURST_LINES);
    }

    #[test]
    fn a_metric_whose_name_contains_a_secret_is_hidden() {
        let metrics = UserMetrics::default();
        let redaction = Redaction::new(Redactor::new(&["hunter2_pass", "en", "prod"]));
        let record = |name: &str| metrics.record(MetricKind::Counter, name, 1.0, &redaction);
        for name in ["seen", "en", "produced", "later_secret_9"] {
            record(name).unwrap_or_else(|why| panic!("{name}: {why}"));
        }
        for _ in 0..2 {
            assert!(record("for_hunter2_pass").is_err());
        }
        let more = Redactor::new(&["later_secret"]);
        redaction.add(&more);
        metrics.hide(&more);
        assert!(record("later_secret_9").is_err());
        let shown = metrics.snapshot();
        let shown: Vec<&str> = shown.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(shown, ["en", "produced", "seen"]);
    }
}
