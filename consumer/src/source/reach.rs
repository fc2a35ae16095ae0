//! Whether the cluster answers at the address that it was given: the likeliest first mistake, told soon and with its address.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

/// How long the cluster has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it has when every address of it has refused a connection. Not at once: a name can have several addresses.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(2);
/// When it is told that nothing has answered yet: an address of another server takes the connection and says nothing, and a
/// network may drop what is sent to it.
const SILENT_AFTER: Duration = Duration::from_millis(2_500);
/// Between two looks at what the client has met.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// No broker answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no broker answers at `{brokers}` within {within_s} s ({reason}); check the address and that the cluster runs"
)]
pub struct NoBroker {
    /// The bootstrap servers.
    pub brokers: String,
    /// How long it was tried, in seconds.
    pub within_s: u64,
    /// The last thing that the client said of a connection.
    pub reason: String,
}

/// What a client meets while it connects.
#[derive(Default)]
struct Met {
    /// No address of a broker could be connected to.
    all_down: AtomicBool,
    last_error: Mutex<Option<String>>,
}

impl ClientContext for Met {
    fn log(&self, _level: rdkafka::config::RDKafkaLogLevel, _facility: &str, _text: &str) {
        // The error says the same, and is told once.
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.all_down.store(true, Ordering::Release);
        } else {
            let mut last = self
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *last = Some(reason.to_owned());
        }
    }
}

impl ProducerContext for Met {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, (): ()) {}
}

/// Waits until a broker of `config` tells of `topic`, or of all topics: 10 s, or 2 s if every address refuses. A cluster that
/// has said nothing after 2.5 s is told of in a sentence, once: what is far away or large may still answer. Uses a client of
/// its own, so that what it meets is told here and nowhere else.
///
/// # Errors
/// [`NoBroker`]; also when librdkafka refuses the config.
pub fn wait_for_broker(
    config: &ClientConfig,
    topic: Option<&str>,
    tell: impl FnOnce(&str),
) -> Result<(), NoBroker> {
    let start = Instant::now();
    let brokers = config.get("bootstrap.servers").unwrap_or_default();
    let no_broker = |reason: String| NoBroker {
        brokers: brokers.to_owned(),
        within_s: start.elapsed().as_secs().max(1),
        reason,
    };
    let client: BaseProducer<Met> = config
        .create_with_context(Met::default())
        .map_err(|error| no_broker(error.to_string()))?;
    let mut tell = Some(tell);
    loop {
        // Before the question, which waits long from then on.
        let passed = start.elapsed();
        if passed >= SILENT_AFTER
            && let Some(tell) = tell.take()
        {
            tell(&format!(
                "no broker has answered at `{brokers}` yet; waiting up to {} s; check the address",
                ANSWER_TIMEOUT.as_secs()
            ));
        }
        let answer = client.client().fetch_metadata(topic, patience(passed));
        // Hands over what was met.
        client.poll(Duration::ZERO);
        let Err(error) = answer else {
            return Ok(());
        };
        let met = client.context();
        let passed = start.elapsed();
        let refused = met.all_down.load(Ordering::Acquire) && passed >= REFUSED_TIMEOUT;
        if refused || passed >= ANSWER_TIMEOUT {
            let last = met.last_error.lock();
            let last = last.unwrap_or_else(PoisonError::into_inner).clone();
            return Err(no_broker(last.unwrap_or_else(|| error.to_string())));
        }
    }
}

/// How long one question waits: a large cluster, or one far away, takes longer for its answer than a refusal does.
fn patience(passed: Duration) -> Duration {
    if passed < REFUSED_TIMEOUT {
        POLL_INTERVAL
    } else if passed < SILENT_AFTER {
        SILENT_AFTER - passed
    } else {
        ANSWER_TIMEOUT.saturating_sub(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent(text: &str) {
        panic!("told that nothing answers: {text}");
    }

    #[test]
    fn an_address_that_refuses_is_told_soon_and_one_that_answers_is_found() {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1");
        let start = Instant::now();
        let refused = wait_for_broker(&config, None, silent).expect_err("nobody listens");
        assert!(start.elapsed() < Duration::from_secs(3), "{refused}");
        let said = refused.to_string();
        for words in [
            "at `127.0.0.1:1` within 2 s",
            "refused",
            "check the address",
        ] {
            assert!(said.contains(words), "no `{words}` in: {said}");
        }
        let cluster = rdkafka::mocking::MockCluster::new(1).expect("an in-process cluster");
        config.set("bootstrap.servers", cluster.bootstrap_servers());
        assert_eq!(wait_for_broker(&config, None, silent), Ok(()));
    }

    #[test]
    fn an_address_that_says_nothing_is_told_of_once_within_three_seconds() {
        // Connections are taken by the system and nothing reads from them.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = mute.local_addr().expect("its address").to_string();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &address);
        let start = Instant::now();
        let mut told = None;
        let tell = |text: &str| told = Some((start.elapsed(), text.to_owned()));
        let refused = wait_for_broker(&config, None, tell).expect_err("nobody answers");
        let (after, text) = told.expect("it is told before the wait ends");
        assert!(after < Duration::from_secs(3), "told after {after:?}");
        assert!(text.contains(&address), "{text}");
        assert!(refused.to_string().contains(&address), "{refused}");
        assert!(start.elapsed() < Duration::from_secs(12), "{refused}");
    }
}
