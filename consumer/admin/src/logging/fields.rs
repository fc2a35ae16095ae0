//! Fields of a text line in `tracing`'s format, with every value escaped: one event is always one line.

use std::error::Error;
use std::fmt::{self, Write as _};

use sluicegate_config::escape::Escaping;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// Formats fields as `message name=value name="text"`.
pub(super) struct EscapedFields;

impl<'w> FormatFields<'w> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = FieldLine {
            writer,
            begun: false,
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

struct FieldLine<'w> {
    writer: Writer<'w>,
    begun: bool,
    result: fmt::Result,
}

impl FieldLine<'_> {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // The metadata fields of `log` records are already part of the line.
        if self.result.is_err() || field.name().starts_with("log.") {
            return;
        }
        self.result = self.try_add(field.name(), value);
    }

    fn try_add(&mut self, name: &str, value: fmt::Arguments<'_>) -> fmt::Result {
        if std::mem::replace(&mut self.begun, true) {
            self.writer.write_char(' ')?;
        }
        if name != "message" {
            let name = name.trim_start_matches("r#");
            match self.writer.has_ansi_escapes() {
                true => write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
                false => write!(self.writer, "{name}=")?,
            }
        }
        Escaping(&mut self.writer).write_fmt(value)
    }
}

impl Visit for FieldLine<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.add(field, format_args!("{value}")),
            _ => self.add(field, format_args!("{value:?}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut message = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            // Writing to a string cannot fail.
            let _ = write!(message, ": {cause}");
            source = cause.source();
        }
        self.add(field, format_args!("{message}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}
