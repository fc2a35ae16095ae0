//! What the demo shows: a table that is drawn over itself on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::admin::ServiceReport;
use crate::cli::table::Table;

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The screen.
pub(super) struct Screen {
    started: Instant,
    live: bool,
    /// Lines of the table that stands there.
    drawn: usize,
    last_line: Instant,
    /// When a rate was last taken, and the count then.
    last_count: (Instant, u64),
}

/// What a picture is made of.
pub(super) struct Moment<'a> {
    pub(super) report: &'a ServiceReport,
    /// Flights written.
    pub(super) written: u64,
    /// The feed waits for the service.
    pub(super) held: bool,
}

impl Moment<'_> {
    fn consumed(&self) -> u64 {
        self.report.topics.iter().map(|topic| topic.consumed).sum()
    }

    fn lag(&self) -> i64 {
        self.report
            .partitions
            .iter()
            .filter_map(|partition| partition.lag)
            .sum()
    }

    fn panics(&self) -> u64 {
        self.report
            .handlers
            .iter()
            .map(|handler| handler.panics)
            .sum()
    }

    /// Records that the frontiers have passed.
    fn frontier(&self) -> i64 {
        self.report
            .partitions
            .iter()
            .map(|partition| partition.frontier.max(0))
            .sum()
    }
}

impl Screen {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            live: io::stdout().is_terminal(),
            drawn: 0,
            last_line: now,
            last_count: (now, 0),
        }
    }

    /// Shows a moment.
    pub(super) fn show(&mut self, moment: &Moment<'_>) {
        let consumed = moment.consumed();
        let (then, before) = self.last_count;
        let rate = consumed.saturating_sub(before) as f64 / then.elapsed().as_secs_f64().max(0.001);
        if self.live {
            self.last_count = (Instant::now(), consumed);
            let text = format!("{}\n{}", self.headline(moment, rate), table(moment.report));
            let back = match self.drawn {
                0 => String::new(),
                lines => format!("\x1b[{lines}F\x1b[J"),
            };
            self.drawn = text.lines().count();
            // Without wrapping, a narrow terminal cuts lines off, and the count of lines stays right.
            write(&format!("{back}\x1b[?7l{text}\x1b[?7h"));
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            self.last_count = (Instant::now(), consumed);
            write(&format!("{}\n", self.headline(moment, rate)));
        }
    }

    fn headline(&self, moment: &Moment<'_>, rate: f64) -> String {
        let waiting = if moment.held {
            ", the feed waits for the service"
        } else {
            ""
        };
        format!(
            "{:>4} s  {rate:.0} records/s, {} written, {} read, frontier {}, lag {}, {} panics contained{waiting}",
            self.started.elapsed().as_secs(),
            moment.written,
            moment.consumed(),
            moment.frontier(),
            moment.lag(),
            moment.panics(),
        )
    }

    /// Shows the end.
    pub(super) fn summary(&mut self, moment: &Moment<'_>) {
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        write(&format!(
            "\nIn {seconds:.0} s: {} flights written, {} read, {} panics contained, lag {}, the service stayed up.\n{}",
            moment.written,
            moment.consumed(),
            moment.panics(),
            moment.lag(),
            table(moment.report),
        ));
    }
}

fn table(report: &ServiceReport) -> String {
    let mut handlers = Table::new(&[
        "HANDLER",
        "STATE",
        "GATE",
        "IN FLIGHT",
        "ACK",
        "RETRY",
        "DEAD LETTER",
        "DROP",
        "SKIPPED",
        "PANICS",
    ]);
    for handler in &report.handlers {
        let [ack, retry, dead_letter, drop, skipped] =
            handler.outcomes.by_name().map(|(_, n)| n.to_string());
        handlers.row([
            handler.name.clone(),
            handler.state.to_string(),
            handler.gate.to_string(),
            handler.in_flight.to_string(),
            ack,
            retry,
            dead_letter,
            drop,
            skipped,
            handler.panics.to_string(),
        ]);
    }
    let mut partitions = Table::new(&["TOPIC", "PARTITIONS", "FRONTIER", "LAG", "IN FLIGHT"]);
    for topic in &report.topics {
        let of_topic = || {
            report
                .partitions
                .iter()
                .filter(|partition| partition.topic == topic.topic)
        };
        partitions.row([
            topic.topic.clone(),
            of_topic().count().to_string(),
            of_topic()
                .map(|p| p.frontier.max(0))
                .sum::<i64>()
                .to_string(),
            of_topic().filter_map(|p| p.lag).sum::<i64>().to_string(),
            of_topic().map(|p| p.in_flight).sum::<u64>().to_string(),
        ]);
    }
    format!("{}\n{}", handlers.render(), partitions.render())
}

/// Prints; a reader that has gone away is no failure of the demo.
pub(super) fn write(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{HandlerReport, OutcomeCounts, PartitionReport, TopicReport};

    #[test]
    fn the_picture_has_rates_outcomes_panics_frontier_and_lag() {
        let partition = |number, frontier, lag| PartitionReport {
            topic: "flights".into(),
            partition: number,
            frontier,
            lag: Some(lag),
            ..PartitionReport::default()
        };
        let handler = HandlerReport {
            name: "clumsy".into(),
            panics: 3,
            outcomes: OutcomeCounts {
                ack: 97,
                ..OutcomeCounts::default()
            },
            ..HandlerReport::default()
        };
        let topic = TopicReport {
            topic: "flights".into(),
            consumed: 100,
            ..TopicReport::default()
        };
        let report = ServiceReport {
            handlers: vec![handler],
            partitions: vec![partition(0, 60, 4), partition(1, 30, 1)],
            topics: vec![topic],
            ..ServiceReport::default()
        };
        let moment = Moment {
            report: &report,
            written: 105,
            held: true,
        };
        let line = Screen::new().headline(&moment, 1999.6);
        let expected = "2000 records/s, 105 written, 100 read, frontier 90, lag 5, 3 panics contained, \
                        the feed waits for the service";
        assert!(line.ends_with(expected), "{line}");
        let text = table(&report);
        let row: Vec<&str> = text
            .lines()
            .nth(1)
            .expect("a row")
            .split_whitespace()
            .collect();
        assert_eq!(
            row,
            [
                "clumsy", "STARTING", "open", "0", "97", "0", "0", "0", "0", "3"
            ]
        );
        let row: Vec<&str> = text
            .lines()
            .last()
            .expect("a row")
            .split_whitespace()
            .collect();
        assert_eq!(row, ["flights", "2", "90", "5", "0"]);
    }
}
