//! The service's own log: text for people or one JSON object per line, on stderr or in a file.
//!
//! A line about a record carries `topic`, `partition`, `offset` and `handler` as fields, and never the record's key,
//! value or headers. Logging never blocks on the log's reader (see `sink`), and text from outside can neither end a line nor
//! control a terminal (see `fields`).

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
    /// The level is invalid.
    #[error(
        "logging.level: `{level}` is not a level (error, warn, info, debug, trace) or a filter such as \
         `info,sluicegate_kafka::consumer=debug`: {reason}"
    )]
    BadLevel {
        /// The configured value.
        level: String,
        /// The parser's error.
        reason: String,
    },
    /// The file cannot be written.
    #[error("cannot write the log to `{file}`: {reason}")]
    Unwritable {
        /// The file.
        file: String,
        /// The system's error.
        reason: std::io::Error,
    },
    /// The thread or descriptor cannot be created.
    #[error("cannot start the log: {0}")]
    System(std::io::Error),
    /// Another subscriber is already installed in this process.
    #[error("logging is already started")]
    Twice,
}

/// The process's log, once it is started.
struct Started {
    sink: Sink,
    /// The log goes to stderr, like the messages of `say`.
    is_stderr: bool,
}

static STARTED: OnceLock<Started> = OnceLock::new();

/// How long a panicking thread waits for its message to be written: the process may be about to abort.
const PANIC_FLUSH_TIMEOUT: Duration = Duration::from_millis(200);
/// How long the exit of the process waits for the log to be written.
const EXIT_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Starts logging for the process: to `file`, or to stderr.
///
/// # Errors
/// [`LoggingError`].
pub fn start(config: &LoggingConfig, file: Option<&Path>) -> Result<(), LoggingError> {
    let (end, ansi) = match file {
        None => {
            let stderr = std::io::stderr();
            // A separate descriptor, so that a lock on the standard one cannot block the log thread.
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
            "log lines lost: the log was not read, its disk was full or its pipe was closed"
        );
    });
    let sink = sink.map_err(LoggingError::System)?;
    let subscriber = subscriber(config.format, filter, sink.clone(), ansi);
    // Also captures `log`, which the Kafka client logs through.
    use tracing_subscriber::util::SubscriberInitExt;
    subscriber.try_init().map_err(|_| LoggingError::Twice)?;
    let is_stderr = file.is_none();
    // Cannot be set already: `try_init` rejects another start.
    let _ = STARTED.set(Started { sink, is_stderr });
    log_panics();
    Ok(())
}

/// Sends panics to the log. The standard hook writes to stderr directly and blocks while stderr is not read.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let place = panic.location().map(tracing::field::display);
        let message = panic
            .payload_as_str()
            .unwrap_or("a panic without a message");
        tracing::error!(thread, place, "a thread panicked: {message}");
        flush(PANIC_FLUSH_TIMEOUT);
    }));
}

/// Log lines lost because the log was not read, its disk was full or its pipe was closed.
pub fn lost_lines() -> u64 {
    STARTED.get().map_or(0, |started| started.sink.lost())
}

/// Flushes the log before the process exits; blocks for 500 ms at most.
pub fn finish() {
    flush(EXIT_FLUSH_TIMEOUT);
}

fn flush(deadline: Duration) {
    if let Some(started) = STARTED.get() {
        started.sink.flush(deadline);
    }
}

/// Prints a line on stderr for the user, in order with the log's lines if those go to stderr too. A failed write is ignored:
/// it cannot be reported anywhere.
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
    // The bindings close a consumer again on drop, and log as an error that it was already closed.
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
        // Its message about a failed write goes to stderr through a call that panics if that write fails too.
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
    use sluicegate_kit::log_capture::Lines;

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
            "abandoned"
        );
        tracing::debug!("hidden");
    }

    #[test]
    fn json_lines_carry_topic_partition_and_offset_as_fields() {
        let text = logged(LogFormat::Json, "info", one_of_each);
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "abandoned");
        assert_eq!(
            (&line["topic"], &line["partition"], &line["offset"]),
            (&"flights".into(), &3.into(), &41.into())
        );
        assert_eq!(line["handler"], "relay");
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn text_lines_are_readable_and_a_filter_can_name_a_module() {
        let text = logged(
            LogFormat::Text,
            "error,sluicegate_admin::logging=debug",
            one_of_each,
        );
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.contains("abandoned topic=\"flights\" partition=3 offset=41 handler=\"relay\""),
            "{text}"
        );
    }

    #[test]
    fn an_invalid_level_is_rejected() {
        let error = filter("sluicegate=loud")
            .expect_err("it is not a level")
            .to_string();
        assert!(
            error.starts_with("logging.level: `sluicegate=loud` is not a level"),
            "{error}"
        );
    }

    /// An error with a cause, both with newlines in their messages.
    #[derive(Debug, thiserror::Error)]
    #[error("cannot\n2026-01-01T00:00:00Z  INFO forged")]
    struct Failed(#[source] std::io::Error);

    #[test]
    fn text_from_outside_cannot_forge_a_line_or_control_a_terminal() {
        let hostile =
            "a\n2026-01-01T00:00:00Z  INFO all healthy\r\u{1b}[2J\u{7}\0\u{9b}2J\u{2028}\u{202e}b";
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
            "its cause is logged too: {text}"
        );
        let json = logged(LogFormat::Json, "info", events);
        assert_eq!(json.lines().count(), 2, "{json:?}");
        for line in json.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        }
    }
}
