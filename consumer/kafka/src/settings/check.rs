//! Whether librdkafka accepts the clients' configs: only librdkafka knows which values are valid and how they fit
//! together, and it reports errors only when a client is created.

use rdkafka::ClientConfig;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaType;

use crate::settings::ClientSettings;

/// A rejection of a client's config by librdkafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRefusal {
    /// The map that it concerns, such as `kafka.client`.
    pub path: &'static str,
    /// The key, if it concerns a single one.
    pub key: Option<String>,
    /// librdkafka's error text.
    pub reason: String,
}

impl ClientSettings {
    /// Checks the config of each client. Returns librdkafka's rejections, with the path of the map that each concerns.
    /// The clients created for the check have no brokers, and are dropped at once.
    pub fn refusals(&self) -> Vec<ConfigRefusal> {
        let checks = [
            (
                "kafka.client",
                self.consumer(),
                RDKafkaType::RD_KAFKA_CONSUMER,
            ),
            (
                "kafka.producer",
                self.producer(),
                RDKafkaType::RD_KAFKA_PRODUCER,
            ),
            (
                "kafka.producer",
                self.lone_producer(),
                RDKafkaType::RD_KAFKA_PRODUCER,
            ),
        ];
        let mut refusals: Vec<ConfigRefusal> = Vec::new();
        for (path, config, kind) in checks {
            let Err(error) = make(config, kind) else {
                continue;
            };
            // An invalid connection setting affects every client; report it once.
            let reason = reason_of(&error);
            if refusals.iter().all(|told| told.reason != reason) {
                let key = match &error {
                    KafkaError::ClientConfig(_, _, key, _) => Some(key.clone()),
                    // An error about a combination of keys does not say which one was set.
                    _ => self.set_key_in(&reason),
                };
                refusals.push(ConfigRefusal { path, key, reason });
            }
        }
        refusals
    }

    /// The longest key set by the user that occurs in a text.
    fn set_key_in(&self, text: &str) -> Option<String> {
        let keys = self.client.keys().chain(self.producer.keys());
        let named = keys.filter(|key| text.contains(key.as_str()));
        named.max_by_key(|key| key.len()).cloned()
    }
}

fn make(mut config: ClientConfig, kind: RDKafkaType) -> Result<(), KafkaError> {
    config.remove("bootstrap.servers");
    if fetches_tokens(&config) {
        // A client requests its first token at once, and its end waits for the response; this scheme makes the request
        // fail.
        config.set(TOKEN_ENDPOINT, "none:");
    }
    config.set_log_level(RDKafkaLogLevel::Emerg);
    let native = config.create_native_config()?;
    Client::new(&config, native, kind, DefaultClientContext).map(drop)
}

const TOKEN_ENDPOINT: &str = "sasl.oauthbearer.token.endpoint.url";

/// Whether a client of this config fetches tokens itself.
fn fetches_tokens(config: &ClientConfig) -> bool {
    let has = |key: &str| config.get(key).is_some();
    // Without an endpoint only this kind of metadata service provides one; otherwise the missing endpoint must be
    // reported.
    has(TOKEN_ENDPOINT) || has("sasl.oauthbearer.metadata.authentication.type")
}

/// The reason without the value, which may be secret.
fn reason_of(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, reason, key, value) => {
            let reason = reason.trim_end();
            let reason = match value.is_empty() {
                true => reason.to_owned(),
                false => reason.replace(value.as_str(), "…"),
            };
            format!("`{key}` is rejected by librdkafka: {reason}")
        }
        KafkaError::ClientCreation(reason) => format!("rejected by librdkafka: {reason}"),
        error => format!("rejected by librdkafka: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_config::service::ClientValue;

    use super::*;
    use crate::testing::settings;

    fn refusals(client: &[(&str, &str)], producer: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let map = |keys: &[(&str, &str)]| {
            let plain = |text: &str| ClientValue::Plain(text.to_owned());
            keys.iter()
                .map(|(key, text)| ((*key).to_owned(), plain(text)))
                .collect()
        };
        let settings = ClientSettings {
            client: map(client),
            producer: map(producer),
            ..settings("127.0.0.1:1")
        };
        let refusals = settings.refusals().into_iter();
        refusals.map(|one| (one.path, one.reason)).collect()
    }

    #[test]
    fn the_shipped_config_and_common_changes_are_accepted() {
        assert_eq!(refusals(&[], &[]), []);
        let client = [
            ("group.protocol", "consumer"),
            ("message.max.bytes", "20000000"),
        ];
        let producer = [
            ("message.max.bytes", "200000000"),
            ("linger.ms", "20"),
            ("compression.type", "lz4"),
        ];
        assert_eq!(refusals(&client, &producer), []);
    }

    #[test]
    fn invalid_values_are_reported_with_their_map_and_key() {
        for (client, producer, path, word) in [
            (
                &[("session.timeout.ms", "abc")][..],
                &[][..],
                "kafka.client",
                "session.timeout.ms",
            ),
            (
                &[("partition.assignment.strategy", "nonsense")],
                &[],
                "kafka.client",
                "partition.assignment.strategy",
            ),
            (
                &[
                    ("max.poll.interval.ms", "1000"),
                    ("session.timeout.ms", "6000"),
                ],
                &[],
                "kafka.client",
                "max.poll.interval.ms",
            ),
            (
                &[
                    ("message.max.bytes", "20000000"),
                    ("fetch.max.bytes", "1000000"),
                ],
                &[],
                "kafka.client",
                "fetch.max.bytes",
            ),
            (
                &[],
                &[("message.timeout.ms", "-1")],
                "kafka.producer",
                "message.timeout.ms",
            ),
            (
                &[],
                &[("max.in.flight", "6")],
                "kafka.producer",
                "max.in.flight",
            ),
        ] {
            let found = refusals(client, producer);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].0, path, "{found:?}");
            assert!(found[0].1.contains(word), "{found:?}");
        }
    }

    #[test]
    fn a_token_login_is_checked_without_requesting_a_token() {
        use std::net::TcpListener;
        use std::time::{Duration, Instant};
        // Accepts connections and answers nothing.
        let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token", endpoint.local_addr().unwrap());
        let login = [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "OAUTHBEARER"),
            ("sasl.oauthbearer.method", "oidc"),
            ("sasl.oauthbearer.client.id", "service"),
            ("sasl.oauthbearer.client.secret", "hunter2-hunter2"),
            ("sasl.oauthbearer.token.endpoint.url", &url),
        ];
        let begun = Instant::now();
        assert_eq!(refusals(&login, &[]), []);
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        endpoint.set_nonblocking(true).unwrap();
        assert!(endpoint.accept().is_err(), "it has requested a token");
        for missing in 3..login.len() {
            let mut login = login.to_vec();
            let (key, _) = login.remove(missing);
            let found = refusals(&login, &[]);
            assert_eq!(found.len(), 1, "{key}: {found:?}");
            assert!(found[0].1.contains(key), "{key}: {found:?}");
        }
    }

    #[test]
    fn an_invalid_file_is_reported_once_and_no_value_is_shown() {
        let keys = [
            ("security.protocol", "ssl"),
            ("ssl.ca.location", "/nowhere/ca.pem"),
        ];
        let found = refusals(&keys, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].1.contains("ssl.ca.location"), "{found:?}");
        let found = refusals(&[("sasl.mechanism", "hunter2-hunter2")], &[]);
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
    }
}
