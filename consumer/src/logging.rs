//! The service's own log: text for people or one JSON object a line, on stderr or in a file.
//!
//! A line about a record carries `topic`, `partition`, `offset` and `handler` as fields, and never the record's key,
//! value or headers.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;

use sluicegate_config::service::{LogFormat, LoggingConfig};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

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
    /// Somebody else has started it in this process.
    #[error("logging was started before")]
    Twice,
}

/// Starts logging for the process: to `file`, or to stderr.
///
/// # Errors
/// [`LoggingError`].
pub fn start(config: &LoggingConfig, file: Option<&Path>) -> Result<(), LoggingError> {
    let (writer, ansi) = match file {
        None => (
            BoxMakeWriter::new(std::io::stderr),
            std::io::stderr().is_terminal(),
        ),
        Some(path) => {
            let opened = File::options().create(true).append(true).open(path);
            let opened = opened.map_err(|reason| LoggingError::Unwritable {
                file: path.display().to_string(),
                reason,
            })?;
            (BoxMakeWriter::new(Mutex::new(opened)), false)
        }
    };
    let subscriber = subscriber(config, writer, ansi)?;
    // The Kafka client logs through `log`, which this takes over too.
    use tracing_subscriber::util::SubscriberInitExt;
    subscriber.try_init().map_err(|_| LoggingError::Twice)
}

type Subscriber = Box<dyn tracing::Subscriber + Send + Sync>;

fn subscriber<W>(config: &LoggingConfig, writer: W, ansi: bool) -> Result<Subscriber, LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter =
        EnvFilter::builder()
            .parse(&config.level)
            .map_err(|error| LoggingError::BadLevel {
                level: config.level.clone(),
                reason: error.to_string(),
            })?;
    // The bindings close a consumer once more when it is dropped, and log as an error that it was closed already.
    let filter = filter.add_directive(
        "rdkafka::consumer::base_consumer=off"
            .parse()
            .expect("a fixed directive parses"),
    );
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(ansi);
    Ok(match config.format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Json => Box::new(
            builder
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .finish(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .expect("no panic while it was held")
                .write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str, work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let config = LoggingConfig {
            format,
            level: level.to_owned(),
        };
        let sink = lines.clone();
        let subscriber =
            subscriber(&config, move || sink.clone(), false).expect("the config is fine");
        tracing::subscriber::with_default(subscriber, work);
        let bytes = lines.0.lock().expect("no panic while it was held").clone();
        String::from_utf8(bytes).expect("a log is text")
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
        let config = LoggingConfig {
            format: LogFormat::Text,
            level: "sluicegate=loud".to_owned(),
        };
        let error = subscriber(&config, io::sink, false)
            .err()
            .expect("it is no level")
            .to_string();
        assert!(
            error.starts_with("logging.level: `sluicegate=loud` is no level"),
            "{error}"
        );
    }
}
