//! Validates `kafka.client` and `kafka.producer`: librdkafka keys are passed through, except keys that the service manages and
//! keys that belong in the other map.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::ClientValue;
use super::client_key_names::{CONSUMER_ONLY, KNOWN, PRODUCER_ONLY};
use crate::document::{Checker, Entry, Node, Scalar, Value, did_you_mean, join, nearest};
use crate::secret::Secret;

/// The clients that a map configures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientRole {
    /// `kafka.client`: consumers; its connection keys apply to all clients.
    Consumer,
    /// `kafka.producer`: the producers of emitted records and dead letters.
    Producer,
}

impl ClientRole {
    /// The other map.
    fn other(self) -> &'static str {
        match self {
            Self::Consumer => "kafka.producer",
            Self::Producer => "kafka.client",
        }
    }

    /// Keys that belong in the other map, and their error message.
    fn foreign(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Consumer => (
                PRODUCER_ONLY,
                "is a producer key; set it in `kafka.producer`",
            ),
            Self::Producer => (CONSUMER_ONLY, "is a consumer key; set it in `kafka.client`"),
        }
    }
}

const NO_KERBEROS: &str = "requires Kerberos, which this build of librdkafka lacks; use SCRAM, PLAIN, \
     OAUTHBEARER or a client's certificate";

/// Keys that the service manages or cannot support, each with a message that follows the key.
const OWNED: &[(&str, &str)] = &[
    (
        "acks",
        "is always `all`: a dead letter or emitted record counts only once all in-sync replicas have it",
    ),
    (
        "auto.commit.enable",
        "is managed by the service: only settled records are committed; see `processing.commit_interval`",
    ),
    (
        "auto.commit.interval.ms",
        "is managed by the service; set `processing.commit_interval`",
    ),
    (
        "auto.offset.reset",
        "is managed by the service; set `kafka.start` for partitions without a commit and `processing.offset_out_of_range` for lost offsets",
    ),
    (
        "bootstrap.servers",
        "is managed by the service; set `kafka.bootstrap_servers`",
    ),
    (
        "builtin.features",
        "describes librdkafka's build and cannot be set",
    ),
    (
        "consume.callback.max.messages",
        "is managed by the service: records are polled in batches, not delivered by callbacks",
    ),
    ("default_topic_conf", "cannot be set in a config"),
    (
        "delivery.report.only.error",
        "is managed by the service: every acknowledgement is awaited",
    ),
    (
        "enable.auto.commit",
        "is managed by the service: only settled records are committed; see `processing.commit_interval`",
    ),
    (
        "enable.auto.offset.store",
        "is managed by the service: an offset counts only once its record is settled",
    ),
    (
        "enable.gapless.guarantee",
        "is managed by the service: the producer's guarantee follows `processing.guarantee`",
    ),
    (
        "enable.idempotence",
        "is managed by the service: the producer is always idempotent",
    ),
    (
        "enable.partition.eof",
        "is managed by the service: the pump queries partition ends itself",
    ),
    (
        "enabled_events",
        "is managed by the service: the pump handles events",
    ),
    (
        "group.id",
        "is managed by the service; set `kafka.group_id`",
    ),
    (
        "group.protocol.type",
        "is managed by the service: it is a plain consumer group member",
    ),
    (
        "interceptors",
        "loads code into the service; write a handler instead",
    ),
    (
        "internal.termination.signal",
        "is managed by the service: signals stop it",
    ),
    (
        "log.queue",
        "is managed by the service: librdkafka logs to the service's own log; see `logging`",
    ),
    (
        "metadata.broker.list",
        "is managed by the service; set `kafka.bootstrap_servers`",
    ),
    ("msg_order_cmp", "cannot be set in a config"),
    (
        "offset.store.method",
        "is managed by the service: offsets are committed to the group",
    ),
    (
        "offset.store.path",
        "is managed by the service: offsets are committed to the group",
    ),
    (
        "offset.store.sync.interval.ms",
        "is managed by the service: offsets are committed to the group",
    ),
    ("opaque", "cannot be set in a config"),
    (
        "plugin.library.paths",
        "loads code into the service; provide handlers as plugins, see `plugins.folder`",
    ),
    (
        "produce.offset.report",
        "is managed by the service: every acknowledgement carries its offset",
    ),
    (
        "queuing.strategy",
        "is managed by the service: records are sent in the order in which they were emitted",
    ),
    (
        "request.required.acks",
        "is always `all`: a dead letter or emitted record counts only once all in-sync replicas have it",
    ),
    ("sasl.kerberos.keytab", NO_KERBEROS),
    ("sasl.kerberos.kinit.cmd", NO_KERBEROS),
    ("sasl.kerberos.min.time.before.relogin", NO_KERBEROS),
    ("sasl.kerberos.principal", NO_KERBEROS),
    ("sasl.kerberos.service.name", NO_KERBEROS),
    (
        "ssl.engine.id",
        "loads code into the service; set the key with `ssl.key.location`",
    ),
    (
        "ssl.engine.location",
        "loads code into the service; set the key with `ssl.key.location`",
    ),
    (
        "ssl.providers",
        "loads code into the service; configure OpenSSL outside the service",
    ),
    ("ssl_engine_callback_data", "cannot be set in a config"),
    (
        "transactional.id",
        "is managed by the service: exactly-once is not available yet",
    ),
];

/// Every managed key with its message.
pub(crate) fn owned_client_keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    OWNED.iter().copied()
}

/// Why a key is rejected; `None` if it is accepted.
fn refusal(key: &str, role: ClientRole) -> Option<String> {
    let (foreign, reason) = role.foreign();
    if foreign.contains(&key) {
        return Some(format!("`{key}` {reason}"));
    }
    if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| *owned == key) {
        return Some(format!("`{key}` {reason}"));
    }
    if key.ends_with("_cb") {
        return Some(format!(
            "`{key}` is a callback and cannot be set in a config"
        ));
    }
    if KNOWN.contains(&key) {
        return None;
    }
    let owned = |known: &&str| OWNED.iter().any(|(owned, _)| owned == known);
    let passes =
        |known: &&str| !owned(known) && !known.ends_with("_cb") && !foreign.contains(known);
    let mut hint = did_you_mean(key, KNOWN.iter().copied().filter(passes));
    if hint.is_empty()
        && let Some(near) = nearest(key, foreign.iter().copied())
    {
        hint = format!("; did you mean `{near}` in `{}`?", role.other());
    }
    Some(format!("`{key}` is not a librdkafka key{hint}"))
}

/// Whether a key's value is always secret.
pub(super) fn is_sensitive(key: &str) -> bool {
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

/// Whether a key's value is a local path.
fn is_path(key: &str) -> bool {
    key.ends_with(".location") || key.ends_with(".file")
}

/// Parses the map; relative paths are resolved against `base`.
pub(crate) fn read(
    node: &Node,
    path: &str,
    role: ClientRole,
    base: &Path,
    checker: &mut Checker<'_>,
) -> BTreeMap<String, ClientValue> {
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        _ if node.is_null() => &[],
        _ => {
            checker.refuse_unquoted(node, "a map of librdkafka keys", path);
            &[]
        }
    };
    let mut client = BTreeMap::new();
    for entry in entries {
        let path = join(path, &entry.key);
        if let Some(reason) = refusal(&entry.key, role) {
            checker.report(&entry.key_place, &path, reason);
            continue;
        }
        match &entry.value.value {
            Value::Scalar(scalar) if !entry.value.is_null() => {
                client.insert(entry.key.clone(), read_value(entry, scalar, base));
            }
            _ => checker.refuse(&entry.value, "a string, number or boolean", &path),
        }
    }
    let refusals = login_refusals(&client, role).into_iter();
    for (key, reason) in refusals.chain(statistics_refusal(&client)) {
        if let Some(entry) = entries.iter().find(|entry| entry.key == key) {
            checker.report(&entry.value.place, &join(path, key), reason);
        }
    }
    client
}

/// Login settings that cannot work but that librdkafka accepts when it creates a client: for example a mechanism without a
/// token endpoint, whose tokens it would wait for indefinitely.
fn login_refusals(
    client: &BTreeMap<String, ClientValue>,
    role: ClientRole,
) -> Vec<(&'static str, String)> {
    let given = |key: &'static str| Some((key, client.get(key)?.expose()));
    let is = |value: &str, word: &str| value.trim().eq_ignore_ascii_case(word);
    let mut refusals = Vec::new();
    let mechanism = given("sasl.mechanism").or_else(|| given("sasl.mechanisms"));
    match mechanism {
        Some((key, value)) if is(value, "GSSAPI") => {
            refusals.push((key, format!("`GSSAPI` {NO_KERBEROS}")));
        }
        Some((key, value)) if is(value, "OAUTHBEARER") => {
            let method = given("sasl.oauthbearer.method");
            if !method.is_some_and(|(_, method)| is(method, "oidc")) {
                let reason = "`OAUTHBEARER` takes its tokens from an OpenID Connect endpoint: set \
                              `sasl.oauthbearer.method: oidc`, `sasl.oauthbearer.token.endpoint.url`, \
                              `sasl.oauthbearer.client.id` and `sasl.oauthbearer.client.secret`";
                refusals.push((key, reason.to_owned()));
            }
        }
        Some(_) => {}
        None => {
            let protocol = given("security.protocol").filter(|_| role == ClientRole::Consumer);
            if let Some((key, value)) = protocol
                && value.trim().to_ascii_lowercase().starts_with("sasl_")
            {
                let reason =
                    "requires `sasl.mechanism`: SCRAM-SHA-512, SCRAM-SHA-256, PLAIN or OAUTHBEARER";
                refusals.push((key, reason.to_owned()));
            }
        }
    }
    if let Some((key, url)) = given("sasl.oauthbearer.token.endpoint.url")
        && !["http://", "https://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
    {
        refusals.push((
            key,
            "is not a token endpoint URL; write it as https://login.example.com/token".to_owned(),
        ));
    }
    refusals
}

/// Maximum interval of the client's statistics, in milliseconds.
const MOST_STATISTICS_MS: u64 = 60_000;

/// Statistics show that brokers answer again even while no records arrive: without them an idle service would stay unready
/// forever.
fn statistics_refusal(client: &BTreeMap<String, ClientValue>) -> Option<(&'static str, String)> {
    const KEY: &str = "statistics.interval.ms";
    let wished: u64 = client.get(KEY)?.expose().trim().parse().ok()?;
    let reason = format!(
        "must be from 1 to {MOST_STATISTICS_MS}: the statistics tell the service that brokers answer again"
    );
    (!(1..=MOST_STATISTICS_MS).contains(&wished)).then_some((KEY, reason))
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

/// The JSON Schema of `kafka.client`.
pub(crate) fn consumer_schema() -> Json {
    schema(ClientRole::Consumer)
}

/// The JSON Schema of `kafka.producer`.
pub(crate) fn producer_schema() -> Json {
    schema(ClientRole::Producer)
}

fn schema(role: ClientRole) -> Json {
    let owned = OWNED.iter().map(|(key, _)| *key);
    let refused: Vec<&str> = owned.chain(role.foreign().0.iter().copied()).collect();
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
    fn every_managed_key_is_a_librdkafka_key() {
        for (key, _) in OWNED {
            assert!(KNOWN.contains(key), "{key} is unknown to librdkafka");
        }
        assert!(KNOWN.is_sorted());
    }

    #[test]
    fn every_kerberos_key_is_rejected_by_name() {
        let keys: Vec<_> = KNOWN
            .iter()
            .filter(|key| key.contains("kerberos"))
            .collect();
        assert_eq!(keys.len(), 5);
        for key in keys {
            assert!(OWNED.contains(&(key, NO_KERBEROS)), "{key} is accepted");
        }
    }

    #[test]
    fn every_key_of_one_role_is_known_and_not_managed() {
        for key in CONSUMER_ONLY.iter().chain(PRODUCER_ONLY) {
            assert!(KNOWN.contains(key), "{key} is unknown to librdkafka");
            assert!(OWNED.iter().all(|(owned, _)| owned != key), "{key}");
        }
    }

    #[test]
    fn statistics_cannot_be_disabled_or_infrequent() {
        for (wished, refused) in [
            ("0", true),
            ("1", false),
            ("60000", false),
            ("60001", true),
            ("x", false),
        ] {
            let key = "statistics.interval.ms".to_owned();
            let client = BTreeMap::from([(key, ClientValue::Plain(wished.to_owned()))]);
            assert_eq!(statistics_refusal(&client).is_some(), refused, "{wished}");
        }
        assert!(statistics_refusal(&BTreeMap::new()).is_none());
    }

    #[test]
    fn a_login_that_cannot_work_is_rejected_by_key() {
        let map = |keys: &[(&str, &str)]| -> BTreeMap<String, ClientValue> {
            let plain = |text: &str| ClientValue::Plain(text.to_owned());
            keys.iter()
                .map(|(key, text)| ((*key).to_owned(), plain(text)))
                .collect()
        };
        let sasl = ("security.protocol", "SASL_SSL");
        let bearer = ("sasl.mechanism", "OAUTHBEARER");
        let oidc = ("sasl.oauthbearer.method", "OIDC");
        let url = |url| ("sasl.oauthbearer.token.endpoint.url", url);
        for (keys, refused) in [
            (&[][..], &[][..]),
            (&[("security.protocol", "SSL")], &[]),
            (&[sasl], &["security.protocol"]),
            (&[sasl, ("sasl.mechanisms", "PLAIN")], &[]),
            (&[sasl, ("sasl.mechanism", "gssapi")], &["sasl.mechanism"]),
            (&[sasl, ("sasl.mechanisms", "GSSAPI")], &["sasl.mechanisms"]),
            (&[sasl, bearer], &["sasl.mechanism"]),
            (
                &[sasl, bearer, ("sasl.oauthbearer.method", "default")],
                &["sasl.mechanism"],
            ),
            (
                &[
                    sasl,
                    bearer,
                    ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
                ],
                &["sasl.mechanism"],
            ),
            (&[sasl, bearer, oidc, url("https://a/token")], &[]),
            (
                &[sasl, bearer, oidc, url("a/token")],
                &["sasl.oauthbearer.token.endpoint.url"],
            ),
        ] {
            let found = login_refusals(&map(keys), ClientRole::Consumer);
            let found: Vec<&str> = found.iter().map(|(key, _)| *key).collect();
            assert_eq!(found, refused, "{keys:?}");
        }
        assert!(login_refusals(&map(&[sasl]), ClientRole::Producer).is_empty());
        for role in [ClientRole::Consumer, ClientRole::Producer] {
            let refused = refusal("sasl.kerberos.keytab", role).expect("a rejected key");
            assert!(refused.contains("Kerberos"), "{refused}");
        }
    }

    #[test]
    fn tuning_keys_pass_and_managed_ones_name_their_substitute() {
        let (consumer, producer) = (ClientRole::Consumer, ClientRole::Producer);
        for key in ["session.timeout.ms", "group.protocol"] {
            assert_eq!(refusal(key, consumer), None, "{key}");
            assert!(refusal(key, producer).unwrap().contains("kafka.client"));
        }
        for key in ["batch.size", "linger.ms", "message.timeout.ms"] {
            assert_eq!(refusal(key, producer), None, "{key}");
            assert!(refusal(key, consumer).unwrap().contains("kafka.producer"));
        }
        for role in [consumer, producer] {
            for key in [
                "sasl.password",
                "ssl.ca.location",
                "client.id",
                "message.max.bytes",
            ] {
                assert_eq!(refusal(key, role), None, "{key}");
            }
            assert!(
                refusal("group.id", role)
                    .unwrap()
                    .contains("kafka.group_id")
            );
            assert!(refusal("acks", role).unwrap().contains("always `all`"));
            assert!(refusal("rebalance_cb", role).unwrap().contains("callback"));
        }
        let hint = |key, role| refusal(key, role).unwrap();
        assert!(hint("sesion.timeout.ms", consumer).contains("did you mean `session.timeout.ms`"));
        assert!(hint("batch.sizes", producer).contains("did you mean `batch.size`"));
        let elsewhere = hint("linger", consumer);
        assert!(
            elsewhere.contains("did you mean `linger.ms` in `kafka.producer`"),
            "{elsewhere}"
        );
    }
}
