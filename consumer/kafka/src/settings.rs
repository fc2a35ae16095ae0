//! From the service's config to librdkafka's: tuned defaults, overridden by the user's keys, overridden by the keys
//! that the service owns.

mod check;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use sluicegate_config::Secret;
use sluicegate_config::service::{ClientValue, KafkaConfig};

pub use check::ConfigRefusal;

/// librdkafka's default of `reconnect.backoff.max.ms`.
const RECONNECT_BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Settings of one client.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Comma-separated `host:port` list.
    pub bootstrap_servers: String,
    /// Consumer group.
    pub group_id: String,
    /// Further librdkafka keys, none of which the service owns; secret ones are not shown.
    pub client: BTreeMap<String, ClientValue>,
    /// The same for producers; they take precedence over the connection keys of `client`.
    pub producer: BTreeMap<String, ClientValue>,
    /// Maximum bytes of prefetched records in this client's queues.
    pub prefetch_bytes: u64,
    /// Timeout of a request to the broker.
    pub request_timeout: Duration,
}

/// Keys that determine the meaning of a commit: they override the user's config.
const OWNED: [(&str, &str); 4] = [
    // The service commits the ledger's frontier (G2).
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // Each end of partition would be an error entry, which moves the position (rule 2).
    ("enable.partition.eof", "false"),
    // The service decides about a missing offset (G12).
    ("auto.offset.reset", "error"),
];

/// Values that were measured to be fast; the user may override each.
const TUNED: [(&str, &str); 9] = [
    ("isolation.level", "read_committed"),
    // Data that was damaged in transit or on disk holds its partition instead of being handled.
    ("check.crcs", "true"),
    ("client.id", "sluicegate"),
    // Fetch backoff of a partition whose queue was full; the default of 1 s lets the queue run empty.
    ("fetch.queue.backoff.ms", "2"),
    // New topics that match a pattern are found within this time.
    ("topic.metadata.refresh.interval.ms", "30000"),
    ("statistics.interval.ms", "10000"),
    ("socket.keepalive.enable", "true"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    // Members learn of a rebalance from a heartbeat response, so that a partition of a member that stops has no owner
    // for two or three intervals. The client's default of 3 s made that 6 to 9 s.
    ("heartbeat.interval.ms", "1000"),
];

/// With the newer group protocol the broker sets these; librdkafka then rejects them.
const CLASSIC_PROTOCOL_ONLY: [&str; 2] = ["partition.assignment.strategy", "heartbeat.interval.ms"];

/// Small enough that a fetch buffer comes from the allocator's free lists instead of fresh pages.
const FETCH_MAX_BYTES: u64 = 4 << 20;

/// Connection keys, which apply to producers and admin requests as well as to consumers.
const CONNECTION: [&str; 13] = [
    "security.",
    "ssl.",
    "sasl.",
    "enable.sasl.",
    "enable.ssl.",
    "https.",
    "socket.",
    "broker.",
    "reconnect.",
    "client.id",
    "client.dns.lookup",
    "connections.max.idle.ms",
    "debug",
];

/// Producer keys that override any setting: a record counts as produced once every replica has it, exactly once.
const PRODUCER_OWNED: [(&str, &str); 2] = [("enable.idempotence", "true"), ("acks", "all")];

/// Producer keys that the user may override. The linger is librdkafka's own, named because it is a decision (ADR 0037); keys map
/// to the partitions that the Java client would choose; a missing topic is reported soon, because its records only wait. For
/// a cluster that is away, records wait without limit: it causes backpressure and not refusals.
const PRODUCER_TUNED: [(&str, &str); 5] = [
    ("linger.ms", "5"),
    ("message.timeout.ms", "0"),
    ("partitioner", "murmur2_random"),
    ("queue.buffering.max.messages", "100000"),
    ("topic.metadata.propagation.max.ms", "5000"),
];

/// Aliases of tuned keys.
const PRODUCER_ALIASES: [(&str, &str); 2] = [
    ("queue.buffering.max.ms", "linger.ms"),
    ("delivery.timeout.ms", "message.timeout.ms"),
];

/// Settings of a producer that sends every record in a batch of its own.
const UNBATCHED: [(&str, &str); 3] = [
    ("batch.num.messages", "1"),
    ("linger.ms", "0"),
    ("queue.buffering.max.messages", "20000"),
];

/// librdkafka's default maximum size of a fetch response, which bounds a record.
const DEFAULT_MAX_RESPONSE_BYTES: u64 = 100_000_000;
/// Maximum `message.max.bytes` of librdkafka's producer.
const MAX_MESSAGE_BYTES: u64 = 1_000_000_000;
/// Room for the headers that the service adds to a forwarded record.
const ADDED_HEADERS_BYTES: u64 = 1 << 20;
/// Size of the producer's queue in KiB, unless one record needs more.
const PRODUCER_QUEUE_KIB: u64 = 64 << 10;

/// Bytes that librdkafka needs per record besides its payload.
const RECORD_OVERHEAD: u64 = 304;

impl ClientSettings {
    /// Settings of one of the service's clients. An eighth of the byte budget is used for prefetched records, shared by
    /// the clients.
    pub fn new(kafka: &KafkaConfig, memory: u64) -> Self {
        Self {
            bootstrap_servers: kafka.bootstrap_servers.clone(),
            group_id: kafka.group_id.clone(),
            client: kafka.client.clone(),
            producer: kafka.producer.clone(),
            prefetch_bytes: memory / 8 / kafka.clients.max(1) as u64,
            request_timeout: Duration::from_secs(10),
        }
    }

    /// The settings of one of `clients` clients of a process. Each static member needs an id of its own: two members
    /// with one id would fence each other.
    pub fn of_client(&self, number: usize, clients: usize) -> Self {
        const KEY: &str = "group.instance.id";
        let mut settings = self.clone();
        if clients > 1
            && let Some(id) = settings.client.get_mut(KEY)
        {
            let own = format!("{}-{number}", id.expose());
            *id = match id {
                ClientValue::Plain(_) => ClientValue::Plain(own),
                ClientValue::Secret(_) => ClientValue::Secret(Secret::new(own)),
            };
        }
        settings
    }

    /// librdkafka's config for a consumer.
    pub fn consumer(&self) -> ClientConfig {
        let mut config = self.base();
        for (key, value) in TUNED {
            config.set(key, value);
        }
        config.set("fetch.max.bytes", FETCH_MAX_BYTES.to_string());
        let records = self.prefetch_bytes / (RECORD_OVERHEAD + 96);
        config
            .set(
                "queued.min.messages",
                records.clamp(1_000, 100_000).to_string(),
            )
            .set(
                "queued.max.messages.kbytes",
                (self.prefetch_bytes / 1024)
                    .clamp(1_024, 2_097_151)
                    .to_string(),
            );
        for (key, value) in &self.client {
            config.set(key, value.expose());
        }
        if !self.client.contains_key("fetch.max.bytes")
            && let Some(message) = self.client.get("message.max.bytes")
            && number(message).is_some_and(|message| message > FETCH_MAX_BYTES)
        {
            // librdkafka requires a fetch to have room for a message; the user did not choose this value, our tuning
            // did.
            config.set("fetch.max.bytes", message.expose());
        }
        if self
            .client
            .get("group.protocol")
            .is_some_and(|protocol| protocol.expose() == "consumer")
        {
            for key in CLASSIC_PROTOCOL_ONLY {
                if !self.client.contains_key(key) {
                    config.remove(key);
                }
            }
        }
        config.set("group.id", &self.group_id);
        for (key, value) in OWNED {
            config.set(key, value);
        }
        config
    }

    /// As [`ClientSettings::consumer`], for a client whose debug lines about its group are parsed: only they tell when
    /// a join is in progress. Other debug lines are enabled only by the user.
    pub fn member(&self) -> ClientConfig {
        let mut config = self.consumer();
        let lines: Vec<&str> = self.debug().into_iter().chain(["cgrp"]).collect();
        config
            .set("debug", lines.join(","))
            .set_log_level(RDKafkaLogLevel::Debug);
        config
    }

    /// The debug contexts that the user has enabled.
    fn debug(&self) -> Option<&str> {
        let lines = self.client.get("debug").map(ClientValue::expose);
        lines.filter(|lines| !lines.is_empty())
    }

    /// Whether the client's debug lines are logged.
    pub fn shows_debug(&self) -> bool {
        self.debug().is_some()
    }

    /// Interval between queries for topics that match patterns: the client's own interval.
    pub fn metadata_interval(&self) -> Duration {
        const KEY: &str = "topic.metadata.refresh.interval.ms";
        let tuned = TUNED.iter().find(|(key, _)| *key == KEY);
        let set = self.client.get(KEY).map(|value| value.expose());
        let interval_ms = set
            .or(tuned.map(|(_, value)| *value))
            .and_then(|value| value.parse::<u64>().ok())
            .unwrap_or(30_000);
        Duration::from_millis(interval_ms.max(1_000))
    }

    /// librdkafka's config for a producer. It sends whatever a consumer of `client` can read, with our headers added;
    /// its queue holds one such record, and so bounds the memory used for producing.
    pub fn producer(&self) -> ClientConfig {
        let mut config = self.connection();
        for (key, value) in PRODUCER_TUNED {
            config.set(key, value);
        }
        let response = self
            .client
            .get("receive.message.max.bytes")
            .and_then(number);
        let readable = response.unwrap_or(DEFAULT_MAX_RESPONSE_BYTES) + ADDED_HEADERS_BYTES;
        let largest = readable.min(MAX_MESSAGE_BYTES);
        config.set("message.max.bytes", largest.to_string());
        for (key, value) in &self.producer {
            if let Some((_, tuned)) = PRODUCER_ALIASES.iter().find(|(alias, _)| alias == key) {
                config.remove(tuned);
            }
            config.set(key, value.expose());
        }
        if !self.producer.contains_key("queue.buffering.max.kbytes") {
            let given = self.producer.get("message.max.bytes").and_then(number);
            let needed = given.unwrap_or(largest).div_ceil(1024);
            config.set(
                "queue.buffering.max.kbytes",
                needed.max(PRODUCER_QUEUE_KIB).to_string(),
            );
        }
        for (key, value) in PRODUCER_OWNED {
            config.set(key, value);
        }
        config
    }

    /// As [`ClientSettings::producer`], for one that sends every record in a batch of its own.
    pub fn lone_producer(&self) -> ClientConfig {
        let mut config = self.producer();
        let set_here = |key: &str| UNBATCHED.iter().any(|(set, _)| *set == key);
        for (alias, _) in PRODUCER_ALIASES.iter().filter(|(_, key)| set_here(key)) {
            config.remove(alias);
        }
        for (key, value) in UNBATCHED {
            config.set(key, value);
        }
        config
    }

    /// Maximum time between two attempts of the client to reconnect to a broker.
    pub fn reconnect_backoff_max(&self) -> Duration {
        let set = self.client.get("reconnect.backoff.max.ms");
        let set = set.and_then(|value| value.expose().parse().ok());
        set.map_or(RECONNECT_BACKOFF_MAX, Duration::from_millis)
    }

    /// librdkafka's config for a producer or an admin client: the same cluster and credentials.
    pub fn connection(&self) -> ClientConfig {
        let mut config = self.base();
        config.set("client.id", "sluicegate");
        for (key, value) in &self.client {
            if CONNECTION.iter().any(|prefix| key.starts_with(prefix)) {
                config.set(key, value.expose());
            }
        }
        config
    }

    fn base(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        // Lines enabled by `kafka.client: {debug: …}` arrive at this level; the service's own filter decides what is
        // written.
        let level = if tracing::enabled!(target: "librdkafka", tracing::Level::DEBUG) {
            RDKafkaLogLevel::Debug
        } else {
            RDKafkaLogLevel::Info
        };
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set_log_level(level);
        config
    }
}

/// The numeric value, if it is a number.
fn number(value: &ClientValue) -> Option<u64> {
    value.expose().trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(client: &[(&str, &str)]) -> ClientSettings {
        ClientSettings {
            bootstrap_servers: "127.0.0.1:9092".into(),
            group_id: "flights".into(),
            client: client
                .iter()
                .map(|(key, value)| (key.to_string(), ClientValue::Plain(value.to_string())))
                .collect(),
            producer: BTreeMap::new(),
            prefetch_bytes: 32 << 20,
            request_timeout: Duration::from_secs(1),
        }
    }

    fn producing(client: &[(&str, &str)], producer: &[(&str, &str)]) -> ClientSettings {
        ClientSettings {
            producer: settings(producer).client,
            ..settings(client)
        }
    }

    fn get(config: &ClientConfig, key: &str) -> u64 {
        config.get(key).and_then(|text| text.parse().ok()).unwrap()
    }

    #[test]
    fn a_producer_sends_whatever_a_consumer_can_read_with_our_headers() {
        for (client, readable) in [
            (&[][..], 100_000_000),
            (&[("receive.message.max.bytes", "300000000")], 300_000_000),
        ] {
            let config = producing(client, &[]).producer();
            let most = get(&config, "message.max.bytes");
            assert_eq!(most, readable + (1 << 20));
            assert!(get(&config, "queue.buffering.max.kbytes") * 1024 >= most);
            config.create_native_config().unwrap();
        }
        let huge = [("receive.message.max.bytes", "2000000000")];
        let config = producing(&huge, &[]).producer();
        assert_eq!(get(&config, "message.max.bytes"), 1_000_000_000);
    }

    #[test]
    fn producer_keys_override_the_tuning_and_the_connection_keys_but_not_owned_keys() {
        let client = [("socket.timeout.ms", "1000"), ("ssl.ca.location", "a")];
        let producer = [
            ("socket.timeout.ms", "2000"),
            ("queue.buffering.max.ms", "20"),
            ("message.max.bytes", "200000000"),
            ("acks", "0"),
        ];
        let config = producing(&client, &producer).producer();
        assert_eq!(config.get("socket.timeout.ms"), Some("2000"));
        assert_eq!(config.get("ssl.ca.location"), Some("a"));
        assert_eq!(config.get("linger.ms"), None, "its alias is set");
        assert_eq!(config.get("acks"), Some("all"));
        assert!(get(&config, "queue.buffering.max.kbytes") * 1024 >= 200_000_000);
        let lone = producing(&client, &producer).lone_producer();
        assert_eq!(lone.get("batch.num.messages"), Some("1"));
        assert_eq!(lone.get("queue.buffering.max.ms"), None);
        let timeout = [("delivery.timeout.ms", "1000")];
        for (producer, expected) in [
            (&timeout[..], (Some("1000"), None)),
            (&[], (None, Some("0"))),
        ] {
            let settings = producing(&[], producer);
            for config in [settings.producer(), settings.lone_producer()] {
                let keys = ["delivery.timeout.ms", "message.timeout.ms"];
                let [set, tuned] = keys.map(|key| config.get(key));
                assert_eq!((set, tuned), expected);
                config.create_native_config().unwrap();
            }
        }
    }

    #[test]
    fn each_of_several_clients_is_a_static_member_of_its_own() {
        let secret = ClientValue::Secret(Secret::new("vm-1".to_owned()));
        let mut settings = settings(&[("group.instance.id", "vm-1")]);
        let id = |settings: ClientSettings| {
            settings
                .consumer()
                .get("group.instance.id")
                .map(str::to_owned)
        };
        assert_eq!(id(settings.of_client(0, 1)).as_deref(), Some("vm-1"));
        assert_eq!(id(settings.of_client(0, 2)).as_deref(), Some("vm-1-0"));
        assert_eq!(id(settings.of_client(1, 2)).as_deref(), Some("vm-1-1"));
        settings.client.insert("group.instance.id".into(), secret);
        let secret = settings.of_client(1, 2);
        assert!(!format!("{secret:?}").contains("vm-1"), "{secret:?}");
        assert_eq!(id(secret).as_deref(), Some("vm-1-1"));
        settings.client.clear();
        assert_eq!(id(settings.of_client(1, 2)), None);
    }

    #[test]
    fn a_larger_message_size_raises_the_fetch_size_unless_that_is_set() {
        let large = [("message.max.bytes", "20000000")];
        let config = settings(&large).consumer();
        assert_eq!(config.get("fetch.max.bytes"), Some("20000000"));
        let both = [("message.max.bytes", "20000000"), ("fetch.max.bytes", "1")];
        assert_eq!(settings(&both).consumer().get("fetch.max.bytes"), Some("1"));
    }

    #[test]
    fn user_keys_override_the_tuning_and_owned_keys_override_user_keys() {
        let config = settings(&[
            ("fetch.max.bytes", "1000000"),
            ("enable.auto.commit", "true"),
        ]);
        let config = config.consumer();
        assert_eq!(config.get("fetch.max.bytes"), Some("1000000"));
        assert_eq!(config.get("check.crcs"), Some("true"));
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
        assert_eq!(config.get("auto.offset.reset"), Some("error"));
        assert_eq!(
            config.get("partition.assignment.strategy"),
            Some("cooperative-sticky")
        );
    }

    #[test]
    fn the_consumer_protocol_gets_no_keys_of_the_classic_one() {
        let config = settings(&[("group.protocol", "consumer")]).consumer();
        for key in CLASSIC_PROTOCOL_ONLY {
            assert_eq!(config.get(key), None, "{key}");
        }
        config
            .create_native_config()
            .expect("librdkafka knows every key");
    }

    #[test]
    fn credentials_go_to_the_producer_and_fetch_keys_do_not() {
        let given = [
            ("security.protocol", "sasl_ssl"),
            ("sasl.username", "u"),
            ("ssl.ca.location", "ca.pem"),
            ("fetch.max.bytes", "1"),
            ("session.timeout.ms", "6000"),
        ];
        let config = settings(&given).connection();
        for (key, value) in &given[..3] {
            assert_eq!(config.get(key), Some(*value));
        }
        assert_eq!(config.get("fetch.max.bytes"), None);
        assert_eq!(config.get("session.timeout.ms"), None);
    }

    #[test]
    fn prefetching_is_bounded_by_the_budget() {
        let config = settings(&[]).consumer();
        assert_eq!(config.get("queued.max.messages.kbytes"), Some("32768"));
        assert_eq!(config.get("queued.min.messages"), Some("83886"));
    }
}
