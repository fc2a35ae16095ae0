//! Log lines of a plugin's libraries: `tracing` events and `log` records reach the service's log, under the handler's name and with the record
//! that it is at.
//!
//! A plugin has its own copies of these libraries, to which the service's subscriber means nothing. The first instance installs this one,
//! unless the plugin has installed another.

use std::fmt;
use std::sync::Once;

use serde_json::{Map, Value};
use sluicegate_abi::plugin::{LogLine, current};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Dispatch, Event, Level, LevelFilter, Metadata, Subscriber, dispatcher};

/// Forwards events at least as severe as `INFO`.
struct Forward;

static FORWARD: Forward = Forward;
static INSTALLED: Once = Once::new();

/// Installs it, once per library.
pub(crate) fn install() {
    INSTALLED.call_once(|| {
        // An error means that the plugin has one of its own.
        let _own = dispatcher::set_global_default(Dispatch::new(Forward));
        if log::set_logger(&FORWARD).is_ok() {
            log::set_max_level(log::LevelFilter::Info);
        }
    });
}

/// Writes a line with the position of the record that is being handled.
fn write(level: u32, target: &str, message: &str, mut fields: Map<String, Value>) {
    current::with(|host, call| {
        if let Some(record) = call.and_then(|call| call.current()) {
            let raw = record.raw();
            let place = format!("{}/{}/{}", record.topic(), raw.partition, raw.offset);
            fields.insert("record".to_owned(), place.into());
        }
        let fields = match fields.is_empty() {
            true => String::new(),
            false => Value::Object(fields).to_string(),
        };
        host.write(&LogLine {
            level,
            target,
            message,
            fields: &fields,
        });
    });
}

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut seen = Seen::default();
        event.record(&mut seen);
        let level = match *event.metadata().level() {
            Level::ERROR => 0,
            Level::WARN => 1,
            Level::INFO => 2,
            Level::DEBUG => 3,
            Level::TRACE => 4,
        };
        write(level, event.metadata().target(), &seen.message, seen.fields);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Message and fields of an event.
#[derive(Default)]
struct Seen {
    message: String,
    fields: Map<String, Value>,
}

impl Seen {
    fn set(&mut self, field: &Field, value: Value) {
        self.fields.insert(field.name().to_owned(), value);
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => self.set(field, format!("{value:?}").into()),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            _ => self.set(field, value.into()),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
}

impl log::Log for Forward {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if !log::Log::enabled(self, record.metadata()) {
            return;
        }
        let level = record.level() as u32 - log::Level::Error as u32;
        let message = record.args().to_string();
        write(level, record.target(), &message, Map::new());
    }

    fn flush(&self) {}
}
