//! The service's own log: text for people or one JSON object a line, on stderr or in a file.
//!
//! A line about a record carries `topic`, `partition`, `offset` and `handler` as fields, and never the record's key,
//! value or headers. Who logs never waits for the log's other end (see `sink`), and a text from outside can neither end a
//! line nor act on a terminal (see `fields`).

#[cfg(test)]
pub(crate) mod capture;
mod fields;
mod sink;

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use sluicegate_config::escape::escape_lines;
use sluicegate_config::service::{LogFormat, LoggingConfig};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use fields::EscapedFields;
use sink::Sink;

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is none.
    #[error(
        "logging.level: `{level}` is no level (error, warn, info, debug, trace) and no filter such as \
         `info,sluicegate::source=debug`: {reason}"
    )]
    BadLevel {
        /// What was given.
        level: String,
        /// What is wrong.
        reason: String,
    },
    /// The file cannot be written.
    #[error("cannot write the log to `{file}`: {reason}")]
    Unwritable {
        /// The file.
        file: String,
        /// The system's words.
        reason: std::io::Error,
    },
    /// The machine has no thread or descriptor for it.
    #[error("the log cannot be started: {0}")]
    System(std::io::Error),
    /// Somebody else has started it in this process.
    #[error("logging was started before")]
    Twice,
}

/// The process's log, once it is started.
struct Started {
    sink: Sink,
    /// It stands on stderr, where the program's last words go too.
    is_stderr: bool,
}

static STARTED: OnceLock<Started> = OnceLock::new();

/// How long a thread that panics waits for its words to be written: a panic may be the process's last moment.
const PANIC_FLUSH: Duration = Duration::from_millis(200);
/// How long the end of the process waits for the log's other end.
const END_FLUSH: Duration = Duration::from_millis(500);

/// Starts logging for the process: to `file`, or to stderr.
///
/// # Errors
/// [`LoggingError`].
pub fn start(config: &LoggingConfig, file: Option<&Path>) -> Result<(), LoggingError> {
    let (end, ansi) = match file {
        None => {
            let stderr = std::io::stderr();
            // A descriptor of its own: nobody's lock on the standard one is in the way.
            let end = stderr.as_fd().try_clone_to_owned();
            let end = File::from(end.map_err(LoggingError::System)?);
            (end, stderr.is_terminal())
        }
        Some(path) => {
            let opened = File::options().create(true).append(true).open(path);
            let opened = opened.map_err(|reason| LoggingError::Unwritable {
                file: path.display().to_string(),
                reason,
            })?;
            (opened, false)
        }
    };
    let filter = filter(&config.level)?;
    let sink = Sink::start(end, sink::CAPACITY, |lines| {
        tracing::warn!(
            lines,
            "log lines are lost: the log was not read, its disk was full or its pipe closed"
        );
    });
    let sink = sink.map_err(LoggingError::System)?;
    let subscriber = subscriber(config.format, filter, sink.clone(), ansi);
    // The Kafka client logs through `log`, which this takes over too.
    use tracing_subscriber::util::SubscriberInitExt;
    subscriber.try_init().map_err(|_| LoggingError::Twice)?;
    let is_stderr = file.is_none();
    // Nobody else has started it: that was refused above.
    let _ = STARTED.set(Started { sink, is_stderr });
    log_panics();
    Ok(())
}

/// Panics go to the log. The standard hook writes to stderr itself, and waits while that is not read.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let place = panic.location().map(tracing::field::display);
        let said = panic.payload_as_str().unwrap_or("a panic without text");
        tracing::error!(thread, place, "a thread panicked: {said}");
        flush(PANIC_FLUSH);
    }));
}

/// Lines of the log that nobody will see: its other end was not read, was full or was closed.
pub fn lost_lines() -> u64 {
    STARTED.get().map_or(0, |started| started.sink.lost())
}

/// Waits until the log is written, at most for a moment: before the process ends.
pub fn finish() {
    flush(END_FLUSH);
}

fn flush(deadline: Duration) {
    if let Some(started) = STARTED.get() {
        started.sink.flush(deadline);
    }
}

/// A line on stderr for whoever has started the program; behind the log's lines if those stand there too. Nobody is left to
/// tell if it cannot be written.
pub fn say(text: &str) {
    let line = format!("{}\n", escape_lines(text));
    match STARTED.get() {
        Some(started) if started.is_stderr => started.sink.push(line.as_bytes()),
        _ => {
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

type Subscriber = Box<dyn tracing::Subscriber + Send + Sync>;

fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|error| LoggingError::BadLevel {
            level: level.to_owned(),
            reason: error.to_string(),
        })?;
    // The bindings close a consumer once more when it is dropped, and log as an error that it was closed already.
    Ok(filter.add_directive(
        "rdkafka::consumer::base_consumer=off"
            .parse()
            .expect("a fixed directive parses"),
    ))
}

fn subscriber<W>(format: LogFormat, filter: EnvFilter, writer: W, ansi: bool) -> Subscriber
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // Its own words about a failed write would go to stderr by a call that panics when that fails too.
        .log_internal_errors(false)
        .with_ansi(ansi);
    match format {
        LogFormat::Text => Box::new(builder.fmt_fields(EscapedFields).finish()),
        LogFormat::Json => Box::new(
            builder
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .finish(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::capture::Lines;
    use super::*;

    fn logged(format: LogFormat, level: &str, work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let sink = lines.clone();
        let filter = filter(level).expect("a level");
        let subscriber = subscriber(format, filter, move || sink.clone(), false);
        tracing::subscriber::with_default(subscriber, work);
        lines.text()
    }

    fn one_of_each() {
        tracing::warn!(
            topic = "flights",
            partition = 3,
            offset = 41_i64,
            handler = "relay",
            "given up"
        );
        tracing::debug!("hidden");
    }

    #[test]
    fn json_lines_carry_a_records_place_as_fields() {
        let text = logged(LogFormat::Json, "info", one_of_each);
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "given up");
        assert_eq!(
            (&line["topic"], &line["partition"], &line["offset"]),
            (&"flights".into(), &3.into(), &41.into())
        );
        assert_eq!(line["handler"], "relay");
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn text_lines_are_for_people_and_a_filter_can_name_a_module() {
        let text = logged(
            LogFormat::Text,
            "error,sluicegate::logging=debug",
            one_of_each,
        );
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.contains("given up topic=\"flights\" partition=3 offset=41 handler=\"relay\""),
            "{text}"
        );
    }

    #[test]
    fn a_bad_level_is_refused() {
        let error = filter("sluicegate=loud")
            .expect_err("it is no level")
            .to_string();
        assert!(
            error.starts_with("logging.level: `sluicegate=loud` is no level"),
            "{error}"
        );
    }

    /// A failure with a cause, both with a line's end in their words.
    #[derive(Debug, thiserror::Error)]
    #[error("cannot\n2026-01-01T00:00:00Z  INFO forged")]
    struct Failed(#[source] std::io::Error);

    #[test]
    fn a_text_from_outside_cannot_forge_a_line_or_act_on_a_terminal() {
        let hostile =
            "a\n2026-01-01T00:00:00Z  INFO all is well\r\u{1b}[2J\u{7}\0\u{9b}2J\u{2028}\u{202e}b";
        let events = || {
            tracing::error!(text = hostile, shown = %hostile, "panicked: {hostile}");
            let failed = Failed(std::io::Error::other(hostile));
            let error: &(dyn std::error::Error + 'static) = &failed;
            tracing::warn!(error, said = ?hostile);
        };
        let text = logged(LogFormat::Text, "info", events);
        assert_eq!(text.lines().count(), 2, "{text:?}");
        let shown = |c: char| c == '\n' || !(c.is_control() || c == '\u{2028}' || c == '\u{202e}');
        assert!(text.chars().all(shown), "{text:?}");
        assert!(
            text.contains("panicked: a\\n2026-01-01T00:00:00Z"),
            "{text}"
        );
        assert!(text.contains("error=cannot\\n2026"), "{text}");
        assert!(
            text.contains("forged: a\\n2026"),
            "its cause is told too: {text}"
        );
        let json = logged(LogFormat::Json, "info", events);
        assert_eq!(json.lines().count(), 2, "{json:?}");
        for line in json.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        }
    }
}
