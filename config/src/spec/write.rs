//! Serialises a spec back into a document, for the API, listings and stores.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

use super::{HandlerSpec, PartitionTest, Predicate, Test};
use crate::document::{ChoiceValue, format_duration, format_size};

impl HandlerSpec {
    /// The whole spec with explicit defaults. Parsing it gives the same spec; secrets stay references.
    pub fn to_document(&self) -> Json {
        let mut route = json!({ "topics": self.route.topics.iter().map(ToString::to_string).collect::<Vec<_>>() });
        if self.route.when != Predicate::always() {
            route["when"] = self.route.when.to_document();
        }
        let backoff = &self.retry.backoff;
        let mut document = json!({
            "name": self.name,
            "plugin": self.plugin,
            "version": self.version.as_str(),
            "enabled": self.enabled,
            "route": route,
            "order": self.order.word(),
            "workers": self.workers,
            "max_in_flight": {
                "records": self.max_in_flight.records,
                "bytes": format_size(self.max_in_flight.bytes),
            },
            "timeout": format_duration(self.timeout),
            "retry": {
                "max_attempts": self.retry.max_attempts,
                "backoff": {
                    "delay": format_duration(backoff.delay),
                    "multiplier": backoff.multiplier,
                    "max_delay": format_duration(backoff.max_delay),
                    "jitter": backoff.jitter,
                },
            },
            "dead_letter": { "topic": self.dead_letter.topic, "create": self.dead_letter.create },
            "on_failure": self.on_failure.word(),
            "restart": {
                "max_restarts": self.restart.max_restarts,
                "restart_window": format_duration(self.restart.restart_window),
            },
            "config": self.config.declared(),
        });
        if let Some(pool) = &self.pool {
            document["pool"] = json!(pool);
        }
        document
    }
}

impl Serialize for HandlerSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_document().serialize(serializer)
    }
}

impl Predicate {
    /// The tree as written in a spec.
    pub fn to_document(&self) -> Json {
        match self {
            Self::All(all) => {
                json!({ "all": all.iter().map(Self::to_document).collect::<Vec<_>>() })
            }
            Self::Any(any) => {
                json!({ "any": any.iter().map(Self::to_document).collect::<Vec<_>>() })
            }
            Self::Not(inner) => json!({ "not": inner.to_document() }),
            Self::Header { name, test } => atom("header", json!(name), test.member()),
            Self::Key(test) => atom("key", json!(true), test.member()),
            Self::Partition(test) => atom("partition", json!(true), test.member()),
        }
    }
}

impl Serialize for Predicate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_document().serialize(serializer)
    }
}

fn atom(subject: &str, marker: Json, (test, value): (&str, Json)) -> Json {
    let members = [(subject.to_owned(), marker), (test.to_owned(), value)];
    Json::Object(Map::from_iter(members))
}

impl Test {
    /// Name and value of the test.
    fn member(&self) -> (&'static str, Json) {
        let text = |bytes: &Vec<u8>| json!(String::from_utf8_lossy(bytes));
        match self {
            Self::Equals(bytes) => ("equals", text(bytes)),
            Self::In(values) => ("in", values.iter().map(text).collect()),
            Self::Exists(exists) => ("exists", json!(exists)),
            Self::Prefix(bytes) => ("prefix", text(bytes)),
            Self::Suffix(bytes) => ("suffix", text(bytes)),
            Self::Regex(pattern) => ("regex", json!(pattern)),
            Self::Lt(number) => ("lt", json!(number)),
            Self::Le(number) => ("le", json!(number)),
            Self::Gt(number) => ("gt", json!(number)),
            Self::Ge(number) => ("ge", json!(number)),
        }
    }
}

impl PartitionTest {
    fn member(&self) -> (&'static str, Json) {
        match self {
            Self::Equals(number) => ("equals", json!(number)),
            Self::In(numbers) => ("in", json!(numbers)),
            Self::Lt(number) => ("lt", json!(number)),
            Self::Le(number) => ("le", json!(number)),
            Self::Gt(number) => ("gt", json!(number)),
            Self::Ge(number) => ("ge", json!(number)),
        }
    }
}
