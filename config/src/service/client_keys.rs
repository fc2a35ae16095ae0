//! `kafka.client`: librdkafka keys that pass, and those that do not because the service owns them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::ClientValue;
use super::client_key_names::KNOWN;
use crate::document::{Checker, Entry, Node, Scalar, Value, did_you_mean, join};
use crate::secret::Secret;

/// Keys that the service owns, with the sentence that goes on after the key.
const OWNED: &[(&str, &str)] = &[
    (
        "acks",
        "is always `all`: a dead letter or an emitted record counts once every replica has it",
    ),
    (
        "auto.commit.enable",
        "is owned: only settled records are committed; see `processing.commit_interval`",
    ),
    (
        "auto.commit.interval.ms",
        "is owned; set `processing.commit_interval`",
    ),
    (
        "auto.offset.reset",
        "is owned; set `kafka.start` for partitions without a commit and `processing.missing_offset` for lost offsets",
    ),
    (
        "bootstrap.servers",
        "is owned; set `kafka.bootstrap_servers`",
    ),
    (
        "builtin.features",
        "says how librdkafka was built and cannot be set",
    ),
    (
        "consume.callback.max.messages",
        "is owned: records are taken in batches, not by callbacks",
    ),
    ("default_topic_conf", "cannot be set from a text"),
    (
        "delivery.report.only.error",
        "is owned: every acknowledgement is awaited",
    ),
    (
        "enable.auto.commit",
        "is owned: only settled records are committed; see `processing.commit_interval`",
    ),
    (
        "enable.auto.offset.store",
        "is owned: an offset counts only once its record is settled",
    ),
    (
        "enable.gapless.guarantee",
        "is owned: the producer's guarantee follows `processing.guarantee`",
    ),
    (
        "enable.idempotence",
        "is owned: the producer is always idempotent",
    ),
    (
        "enable.partition.eof",
        "is owned: the pump reads the ends of partitions itself",
    ),
    ("enabled_events", "is owned: events are served by the pump"),
    ("group.id", "is owned; set `kafka.group_id`"),
    (
        "group.protocol.type",
        "is owned: the service is a plain consumer group member",
    ),
    (
        "interceptors",
        "loads code into the service; write a handler instead",
    ),
    (
        "internal.termination.signal",
        "is owned: signals stop the service",
    ),
    (
        "log.queue",
        "is owned: librdkafka's log goes to the service's own; see `logging`",
    ),
    (
        "metadata.broker.list",
        "is owned; set `kafka.bootstrap_servers`",
    ),
    ("msg_order_cmp", "cannot be set from a text"),
    (
        "offset.store.method",
        "is owned: offsets are committed to the group",
    ),
    (
        "offset.store.path",
        "is owned: offsets are committed to the group",
    ),
    (
        "offset.store.sync.interval.ms",
        "is owned: offsets are committed to the group",
    ),
    ("opaque", "cannot be set from a text"),
    (
        "plugin.library.paths",
        "loads code into the service; handlers come as plugins, see `plugins.folder`",
    ),
    (
        "produce.offset.report",
        "is owned: every acknowledgement carries its offset",
    ),
    (
        "queuing.strategy",
        "is owned: records are sent in the order in which they were emitted",
    ),
    (
        "request.required.acks",
        "is always `all`: a dead letter or an emitted record counts once every replica has it",
    ),
    (
        "sasl.kerberos.kinit.cmd",
        "runs a command on this machine; renew the ticket outside of the service",
    ),
    (
        "ssl.engine.id",
        "loads code into the service; give the key by `ssl.key.location`",
    ),
    (
        "ssl.engine.location",
        "loads code into the service; give the key by `ssl.key.location`",
    ),
    (
        "ssl.providers",
        "loads code into the service; configure OpenSSL outside of it",
    ),
    ("ssl_engine_callback_data", "cannot be set from a text"),
    (
        "transactional.id",
        "is owned: exactly once is not available yet",
    ),
];

/// Every owned key with its sentence.
pub(crate) fn owned_client_keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    OWNED.iter().copied()
}

/// Why a key is refused, if it is.
fn refusal(key: &str) -> Option<String> {
    if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| *owned == key) {
        return Some(format!("`{key}` {reason}"));
    }
    if key.ends_with("_cb") {
        return Some(format!(
            "`{key}` is a callback and cannot be set from a text"
        ));
    }
    if KNOWN.contains(&key) {
        return None;
    }
    let owned =
        |known: &&str| OWNED.iter().any(|(owned, _)| owned == known) || known.ends_with("_cb");
    let hint = did_you_mean(key, KNOWN.iter().copied().filter(|known| !owned(known)));
    Some(format!("`{key}` is no librdkafka key{hint}"))
}

/// Whether a key's value is secret whatever it is.
fn is_sensitive(key: &str) -> bool {
    let marks = [
        "password",
        "secret",
        "passphrase",
        ".pem",
        "ssl_key",
        "oauthbearer.config",
        "private.key",
    ];
    marks.iter().any(|mark| key.contains(mark))
}

/// Whether a key names a file of this machine.
fn is_path(key: &str) -> bool {
    key.ends_with(".location") || key.ends_with(".file") || key == "sasl.kerberos.keytab"
}

/// Reads the map; relative file names are resolved against `base`.
pub(crate) fn read(
    node: &Node,
    path: &str,
    base: &Path,
    checker: &mut Checker<'_>,
) -> BTreeMap<String, ClientValue> {
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        _ if node.is_null() => &[],
        _ => {
            checker.refuse(node, "a map of librdkafka keys", path);
            &[]
        }
    };
    let mut client = BTreeMap::new();
    for entry in entries {
        let path = join(path, &entry.key);
        if let Some(reason) = refusal(&entry.key) {
            checker.report(&entry.key_place, &path, reason);
            continue;
        }
        match &entry.value.value {
            Value::Scalar(scalar) if !entry.value.is_null() => {
                client.insert(entry.key.clone(), read_value(entry, scalar, base));
            }
            _ => checker.refuse(&entry.value, "a text, number or flag", &path),
        }
    }
    client
}

fn read_value(entry: &Entry, scalar: &Scalar, base: &Path) -> ClientValue {
    let text = if is_path(&entry.key) && scalar.text != "probe" {
        base.join(&scalar.text).to_string_lossy().into_owned()
    } else {
        scalar.text.clone()
    };
    if is_sensitive(&entry.key) || scalar.reference.is_some() {
        ClientValue::Secret(Secret::new(text))
    } else {
        ClientValue::Plain(text)
    }
}

/// The map's JSON Schema.
pub(crate) fn schema() -> Json {
    let refused: Vec<&str> = OWNED.iter().map(|(key, _)| *key).collect();
    json!({
        "type": "object",
        "propertyNames": { "not": { "anyOf": [{ "enum": refused }, { "pattern": "_cb$" }] } },
        "additionalProperties": { "type": ["string", "number", "boolean"] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_owned_key_is_one_of_librdkafkas() {
        for (key, _) in OWNED {
            assert!(KNOWN.contains(key), "{key} is unknown to librdkafka");
        }
        assert!(KNOWN.is_sorted());
    }

    #[test]
    fn tuning_keys_pass_and_owned_ones_name_their_substitute() {
        for key in [
            "session.timeout.ms",
            "sasl.password",
            "ssl.ca.location",
            "client.id",
            "group.protocol",
        ] {
            assert_eq!(refusal(key), None, "{key}");
        }
        assert!(refusal("group.id").unwrap().contains("kafka.group_id"));
        assert!(refusal("rebalance_cb").unwrap().contains("callback"));
        assert!(
            refusal("sesion.timeout.ms")
                .unwrap()
                .contains("did you mean `session.timeout.ms`")
        );
    }
}
