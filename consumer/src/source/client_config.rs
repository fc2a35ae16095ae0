//! From the service's config to librdkafka's: tuned defaults, then the user's keys, then the keys that we own.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use sluicegate_config::service::{ClientValue, KafkaConfig};

/// What one client needs to know.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Comma-separated `host:port` list.
    pub bootstrap_servers: String,
    /// Consumer group.
    pub group_id: String,
    /// Further librdkafka keys, none of which the service owns; secret ones do not show.
    pub client: BTreeMap<String, ClientValue>,
    /// Bytes that this client may hold in records that nobody has asked for yet.
    pub prefetch_bytes: u64,
    /// How long a question to the broker may take.
    pub request_timeout: Duration,
}

/// Keys that decide what a commit means: whatever else stands in the config, these hold.
const OWNED: [(&str, &str); 4] = [
    // The ledger's frontier is what is committed (G2).
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // Each end of partition would be an error entry, which moves the position (rule 2).
    ("enable.partition.eof", "false"),
    // A missing offset is the service's decision (G12).
    ("auto.offset.reset", "error"),
];

/// What was measured to be fast; each can be set otherwise.
const TUNED: [(&str, &str); 8] = [
    ("isolation.level", "read_committed"),
    ("client.id", "sluicegate"),
    // Small enough that a fetch buffer comes from the allocator's free lists instead of fresh pages.
    ("fetch.max.bytes", "4194304"),
    // How long a partition rests after its queue was found full; the default of 1 s empties the pipe.
    ("fetch.queue.backoff.ms", "2"),
    // Topics that a pattern matches are found within this.
    ("topic.metadata.refresh.interval.ms", "30000"),
    ("statistics.interval.ms", "10000"),
    ("socket.keepalive.enable", "true"),
    ("partition.assignment.strategy", "cooperative-sticky"),
];

/// Keys of the connection, which hold for producers and admin requests as well as for consumers.
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

/// Bytes that librdkafka needs for a record besides its payload.
const RECORD_OVERHEAD: u64 = 304;

impl ClientSettings {
    /// Settings of one of the service's clients. An eighth of the byte budget is spent on records that are fetched
    /// ahead, shared by the clients.
    pub fn new(kafka: &KafkaConfig, memory: u64) -> Self {
        Self {
            bootstrap_servers: kafka.bootstrap_servers.clone(),
            group_id: kafka.group_id.clone(),
            client: kafka.client.clone(),
            prefetch_bytes: memory / 8 / kafka.clients.max(1) as u64,
            request_timeout: Duration::from_secs(10),
        }
    }

    /// librdkafka's config for a consumer.
    pub fn consumer(&self) -> ClientConfig {
        let mut config = self.base();
        for (key, value) in TUNED {
            config.set(key, value);
        }
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
        if self
            .client
            .get("group.protocol")
            .is_some_and(|protocol| protocol.expose() == "consumer")
        {
            // The broker assigns; librdkafka refuses the key.
            config.remove("partition.assignment.strategy");
        }
        config.set("group.id", &self.group_id);
        for (key, value) in OWNED {
            config.set(key, value);
        }
        config
    }

    /// How often the cluster is asked for topics that patterns could take in: the client's own interval.
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
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set_log_level(RDKafkaLogLevel::Info);
        config
    }
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
            prefetch_bytes: 32 << 20,
            request_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_user_outranks_the_tuning_and_we_outrank_the_user() {
        let config = settings(&[
            ("fetch.max.bytes", "1000000"),
            ("enable.auto.commit", "true"),
        ]);
        let config = config.consumer();
        assert_eq!(config.get("fetch.max.bytes"), Some("1000000"));
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
        assert_eq!(config.get("auto.offset.reset"), Some("error"));
        assert_eq!(
            config.get("partition.assignment.strategy"),
            Some("cooperative-sticky")
        );
    }

    #[test]
    fn the_consumer_protocol_takes_no_assignment_strategy() {
        let config = settings(&[("group.protocol", "consumer")]).consumer();
        assert_eq!(config.get("partition.assignment.strategy"), None);
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
    fn what_is_fetched_ahead_is_bounded_by_the_budget() {
        let config = settings(&[]).consumer();
        assert_eq!(config.get("queued.max.messages.kbytes"), Some("32768"));
        assert_eq!(config.get("queued.min.messages"), Some("83886"));
    }
}
