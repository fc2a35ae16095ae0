//! The demo's display: a table that is redrawn in place on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use sluicegate_engine::status::ServiceReport;

use crate::cli::table::Table;

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The display.
pub(super) struct Display {
    started: Instant,
    live: bool,
    /// Number of lines of the table on the terminal.
    drawn: usize,
    last_line: Instant,
    /// When the rate was last computed, and the count at that time.
    last_count: (Instant, u64),
}

/// The data of one frame.
pub(super) struct Frame<'a> {
    pub(super) report: &'a ServiceReport,
    /// Flights written.
    pub(super) written: u64,
    /// The load generator is paused until the service catches up.
    pub(super) held: bool,
}

impl Frame<'_> {
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

    /// Records passed by the frontiers.
    fn frontier(&self) -> i64 {
        self.report
            .partitions
            .iter()
            .map(|partition| partition.frontier.max(0))
            .sum()
    }
}

impl Display {
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

    /// Draws a frame.
    pub(super) fn show(&mut self, frame: &Frame<'_>) {
        let consumed = frame.consumed();
        let (then, before) = self.last_count;
        let rate = consumed.saturating_sub(before) as f64 / then.elapsed().as_secs_f64().max(0.001);
        if self.live {
            self.last_count = (Instant::now(), consumed);
            let text = format!("{}\n{}", self.headline(frame, rate), table(frame.report));
            let back = match self.drawn {
                0 => String::new(),
                lines => format!("\x1b[{lines}F\x1b[J"),
            };
            self.drawn = text.lines().count();
            // With wrapping off, a narrow terminal truncates lines, so the line count stays right.
            write(&format!("{back}\x1b[?7l{text}\x1b[?7h"));
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            self.last_count = (Instant::now(), consumed);
            write(&format!("{}\n", self.headline(frame, rate)));
        }
    }

    fn headline(&self, frame: &Frame<'_>, rate: f64) -> String {
        let waiting = if frame.held {
            ", load paused until the service catches up"
        } else {
            ""
        };
        format!(
            "{:>4} s  {rate:.0} records/s, {} written, {} read, frontier {}, lag {}, {} panics contained{waiting}",
            self.started.elapsed().as_secs(),
            frame.written,
            frame.consumed(),
            frame.frontier(),
            frame.lag(),
            frame.panics(),
        )
    }

    /// Prints the summary at the end.
    pub(super) fn summary(&mut self, frame: &Frame<'_>) {
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        write(&format!(
            "\nIn {seconds:.0} s: {} flights written, {} read, {} panics contained, lag {}, the service stayed up.\n{}",
            frame.written,
            frame.consumed(),
            frame.panics(),
            frame.lag(),
            table(frame.report),
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

/// Prints; a reader that has closed the pipe does not fail the demo.
pub(super) fn write(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use sluicegate_engine::status::{HandlerReport, OutcomeCounts, PartitionReport, TopicReport};

    use super::*;

    #[test]
    fn the_frame_has_rates_outcomes_panics_frontier_and_lag() {
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
        let frame = Frame {
            report: &report,
            written: 105,
            held: true,
        };
        let line = Display::new().headline(&frame, 1999.6);
        let expected = "2000 records/s, 105 written, 100 read, frontier 90, lag 5, 3 panics contained, \
                        load paused until the service catches up";
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
