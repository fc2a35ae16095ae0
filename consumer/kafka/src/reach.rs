//! Waits until the cluster answers at the configured address, and reports a wrong address, the most likely first
//! mistake, early.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

use crate::ffi::brokers_answer;

/// How long the cluster has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// When to report that every address has refused a connection. Not at once: a name can have several addresses.
const REFUSED_AFTER: Duration = Duration::from_secs(2);
/// When to report that nothing has answered yet: another kind of server may accept the connection and send nothing, and
/// a network may drop packets.
const SILENT_AFTER: Duration = Duration::from_millis(2_500);
/// Time between two checks of the client's connection state.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// No broker answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no broker {} `{brokers}` within {within_s} s ({reason}); {}", refusal(*.login_rejected), remedy(*.login_rejected))]
pub struct NoBroker {
    /// The bootstrap servers.
    pub brokers: String,
    /// How long it was tried, in seconds.
    pub within_s: u64,
    /// The client's last connection error.
    pub reason: String,
    /// A broker has answered, and rejected the login.
    pub login_rejected: bool,
}

fn refusal(login_rejected: bool) -> &'static str {
    match login_rejected {
        true => "accepts the login at",
        false => "answers at",
    }
}

fn remedy(login_rejected: bool) -> &'static str {
    match login_rejected {
        true => {
            "correct security.protocol, sasl.mechanism, sasl.username and sasl.password under kafka.client"
        }
        false => "check the address and that the cluster runs",
    }
}

/// Connection state of a client.
#[derive(Default)]
struct Met {
    /// No address of a broker could be connected to.
    all_down: AtomicBool,
    errors: Mutex<Errors>,
}

/// The last errors.
#[derive(Clone, Debug, Default)]
struct Errors {
    /// The last rejected login.
    login: Option<String>,
    /// The last error of any kind.
    last: Option<String>,
}

impl ClientContext for Met {
    fn log(&self, _level: rdkafka::config::RDKafkaLogLevel, _facility: &str, _text: &str) {
        // The error callback reports the same, once.
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.all_down.store(true, Ordering::Release);
        } else {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Authentication) {
                errors.login = Some(reason.to_owned());
            }
            errors.last = Some(reason.to_owned());
        }
    }
}

impl ProducerContext for Met {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, (): ()) {}
}

/// Minimum and maximum reconnect backoff in milliseconds: a broker that starts during the wait is found. The client's
/// default grows to the length of the whole wait.
const RECONNECT_MS: (&str, &str) = ("100", "1000");

/// Time after which a client has dropped the bootstrap addresses for the brokers that they name.
const LEARN_DELAY: Duration = Duration::from_millis(500);

/// Whether brokers of the cluster answer a client made for this question. Blocks for up to 10 s.
///
/// The first answer may come from a bootstrap address, such as a load balancer, while the brokers that it names cannot be
/// reached. The client then drops that address, so the second answer comes from one of these brokers.
pub fn answers(config: &ClientConfig) -> bool {
    let client = config
        .clone()
        .set("reconnect.backoff.ms", RECONNECT_MS.0)
        .set("reconnect.backoff.max.ms", RECONNECT_MS.1)
        // It would return to the bootstrap addresses as soon as no broker is connected.
        .set("metadata.recovery.strategy", "none")
        .create_with_context(Met::default());
    let Ok(client): Result<BaseProducer<Met>, _> = client else {
        return false;
    };
    let start = Instant::now();
    let answer = || {
        let left = ANSWER_TIMEOUT.saturating_sub(start.elapsed());
        // Without a topic that it knows, it asks for the brokers alone: cheap on a cluster of any size.
        brokers_answer(client.client(), left)
    };
    if !answer() {
        return false;
    }
    std::thread::sleep(LEARN_DELAY);
    answer()
}

/// Waits up to 10 s until a broker of `config` returns the metadata of `topic`, or of all topics. Reports once that
/// every address has refused (after 2 s) or that nothing has answered (after 2.5 s): a broker may be starting, or be
/// far away. Uses a client of its own, so that its errors are reported here and nowhere else.
///
/// # Errors
/// [`NoBroker`]; also if librdkafka rejects the config.
pub fn wait_for_broker(
    config: &ClientConfig,
    topic: Option<&str>,
    tell: impl FnOnce(&str),
) -> Result<(), NoBroker> {
    let start = Instant::now();
    let brokers = config.get("bootstrap.servers").unwrap_or_default();
    let no_broker = |reason: String, login_rejected: bool| NoBroker {
        brokers: brokers.to_owned(),
        within_s: start.elapsed().as_secs().max(1),
        reason,
        login_rejected,
    };
    let client: BaseProducer<Met> = config
        .clone()
        .set("reconnect.backoff.ms", RECONNECT_MS.0)
        .set("reconnect.backoff.max.ms", RECONNECT_MS.1)
        .create_with_context(Met::default())
        .map_err(|error| no_broker(error.to_string(), false))?;
    let mut tell = Some(tell);
    loop {
        // Before the request, which blocks for long from then on.
        let passed = start.elapsed();
        if let Some(said) = client.context().message(passed)
            && let Some(tell) = tell.take()
        {
            tell(&format!(
                "no broker at `{brokers}` {said}; waiting up to {} s; {}",
                ANSWER_TIMEOUT.as_secs(),
                remedy(client.context().errors().login.is_some())
            ));
        }
        let answer = client
            .client()
            .fetch_metadata(topic, request_timeout(passed, tell.is_none()));
        // Delivers the error callbacks.
        client.poll(Duration::ZERO);
        let Err(error) = answer else {
            return Ok(());
        };
        if start.elapsed() >= ANSWER_TIMEOUT {
            let errors = client.context().errors();
            let refuses_login = errors.login.is_some();
            let reason = errors.login.or(errors.last);
            let reason = reason.unwrap_or_else(|| error.to_string());
            return Err(no_broker(reason, refuses_login));
        }
    }
}

impl Met {
    fn errors(&self) -> Errors {
        let errors = self.errors.lock();
        errors.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The message to report after this wait, if any.
    fn message(&self, passed: Duration) -> Option<String> {
        if self.all_down.load(Ordering::Acquire) && passed >= REFUSED_AFTER {
            let errors = self.errors();
            return Some(match errors.login {
                Some(refused) => format!("accepts the login ({refused})"),
                None => format!(
                    "can be connected to yet ({})",
                    errors
                        .last
                        .unwrap_or_else(|| "every address refuses".to_owned())
                ),
            });
        }
        (passed >= SILENT_AFTER).then(|| "has answered yet".to_owned())
    }
}

/// Timeout of one request: a large or distant cluster takes longer to answer than to refuse a connection.
fn request_timeout(passed: Duration, reported: bool) -> Duration {
    if reported {
        ANSWER_TIMEOUT.saturating_sub(passed)
    } else if passed < REFUSED_AFTER {
        POLL_INTERVAL
    } else {
        SILENT_AFTER.saturating_sub(passed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn silent(text: &str) {
        panic!("reported that nothing answers: {text}");
    }

    #[test]
    fn an_address_that_refuses_is_reported_once_within_three_seconds() {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1");
        let start = Instant::now();
        let mut told = None;
        let tell = |text: &str| told = Some((start.elapsed(), text.to_owned()));
        let refused = wait_for_broker(&config, None, tell).expect_err("nothing listens");
        let (after, text) = told.expect("it is reported before the wait ends");
        assert!(after < Duration::from_secs(3), "reported after {after:?}");
        let ended = start.elapsed();
        assert!(ended > Duration::from_secs(9), "ended after {ended:?}");
        assert!(ended < Duration::from_secs(12), "ended after {ended:?}");
        let said = refused.to_string();
        for words in ["at `127.0.0.1:1` ", "efused", "check the address"] {
            assert!(text.contains(words), "no `{words}` in: {text}");
            assert!(said.contains(words), "no `{words}` in: {said}");
        }
    }

    /// Brokers and services are often started together.
    #[test]
    fn a_broker_that_starts_after_it_refused_is_found() {
        let cluster = rdkafka::mocking::MockCluster::new(1).expect("an in-process cluster");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers());
        assert_eq!(wait_for_broker(&config, None, silent), Ok(()));
        cluster.broker_down(1).expect("the broker is there");
        let start = Instant::now();
        let comes_up = |_: &str| cluster.broker_up(1).expect("the broker is there");
        assert_eq!(wait_for_broker(&config, None, comes_up), Ok(()));
        assert!(start.elapsed() >= REFUSED_AFTER, "it was reported first");
    }

    #[test]
    fn an_address_that_does_not_answer_is_reported_once_within_three_seconds() {
        // The system accepts connections and nothing reads from them.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = mute.local_addr().expect("its address").to_string();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &address);
        let start = Instant::now();
        let mut told = None;
        let tell = |text: &str| told = Some((start.elapsed(), text.to_owned()));
        let refused = wait_for_broker(&config, None, tell).expect_err("nothing answers");
        let (after, text) = told.expect("it is reported before the wait ends");
        assert!(after < Duration::from_secs(3), "reported after {after:?}");
        assert!(text.contains(&address), "{text}");
        assert!(refused.to_string().contains(&address), "{refused}");
        assert!(start.elapsed() < Duration::from_secs(12), "{refused}");
    }

    /// A broker that answers metadata requests, on any number of connections: the cluster has one broker, at `port`, or at
    /// its own address.
    fn bootstrap(port: Option<u16>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let port = port.unwrap_or(own);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream, port));
            }
        });
        own
    }

    /// Answers the requests of one connection until it is closed.
    fn serve(mut stream: TcpStream, port: u16) -> Option<()> {
        loop {
            let mut size = [0; 4];
            stream.read_exact(&mut size).ok()?;
            let mut request = vec![0; u32::from_be_bytes(size) as usize];
            stream.read_exact(&mut request).ok()?;
            let (key, version) = (request[1], request[3]);
            let mut answer = request[4..8].to_vec();
            match key {
                // ApiVersions: other versions than 0 are refused in the form of version 0, as KIP-511 says.
                18 => {
                    let refused: u16 = if version == 0 { 0 } else { 35 };
                    answer.extend(refused.to_be_bytes());
                    answer.extend(2u32.to_be_bytes());
                    for (key, newest) in [(3u16, 1u16), (18, 0)] {
                        answer.extend([key, 0, newest].into_iter().flat_map(u16::to_be_bytes));
                    }
                }
                // Metadata, version 1: one broker without a rack, which is the controller, and no topics.
                3 => {
                    answer.extend([1u32, 7].into_iter().flat_map(u32::to_be_bytes));
                    answer.extend(9u16.to_be_bytes());
                    answer.extend(b"127.0.0.1");
                    answer.extend(u32::from(port).to_be_bytes());
                    answer.extend(u16::MAX.to_be_bytes());
                    answer.extend([7u32, 0].into_iter().flat_map(u32::to_be_bytes));
                }
                _ => return None,
            }
            stream
                .write_all(&(answer.len() as u32).to_be_bytes())
                .ok()?;
            stream.write_all(&answer).ok()?;
        }
    }

    fn config(port: u16) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", format!("127.0.0.1:{port}"));
        config
    }

    #[test]
    fn a_cluster_answers_if_a_broker_that_it_names_does() {
        assert!(answers(&config(bootstrap(None))));
    }

    #[test]
    fn a_bootstrap_address_alone_is_not_an_answer_of_the_cluster() {
        let closed = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let nowhere = closed.local_addr().expect("an address").port();
        drop(closed);
        assert!(!answers(&config(bootstrap(Some(nowhere)))));
    }
}
