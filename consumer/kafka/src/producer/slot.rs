//! A producer that is created on first use, and recreated with backoff after a fatal error.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientContext, Message};
use sluicegate_config::secret::Redaction;
use sluicegate_engine::emit::{Ticket, Way};

use crate::client_log::log;
use crate::producer::refusal;
use crate::producer::refusal::{Limits, Refused};

/// Delay before a broken producer is recreated; doubled each time that the next one breaks.
const INITIAL_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Maximum delay.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
/// A producer that lived this long was healthy: the delay starts again at its initial value.
const HEALTHY_LIFETIME: Duration = Duration::from_secs(120);
/// Minimum time between two log lines about the same kind of client error.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A librdkafka producer with our callbacks.
pub(super) type Client = ThreadedProducer<Answers>;

/// Holder of one producer.
pub(super) struct Slot {
    config: ClientConfig,
    way: Way,
    limits: Limits,
    client: ArcSwapOption<Client>,
    state: Mutex<State>,
    errors: Arc<ErrorLog>,
    secrets: Arc<Redaction>,
}

#[derive(Default)]
struct State {
    /// Producers that broke in short succession.
    broken: u32,
    made: Option<Instant>,
    /// Why there is currently no producer.
    reason: Option<Arc<str>>,
    /// The reason that was logged last.
    logged: Option<Arc<str>>,
}

impl Slot {
    /// An empty slot; messages of its producer are redacted with `secrets`.
    pub(super) fn new(config: ClientConfig, way: Way, secrets: Arc<Redaction>) -> Arc<Self> {
        let number = |key: &str| config.get(key).and_then(|text| text.parse::<u64>().ok());
        let limits = Limits {
            record: number("message.max.bytes").unwrap_or(1_000_000),
            queue: number("queue.buffering.max.kbytes").unwrap_or(1_048_576) * 1024,
        };
        Arc::new(Self {
            config,
            way,
            limits,
            client: ArcSwapOption::empty(),
            state: Mutex::default(),
            errors: Arc::default(),
            secrets,
        })
    }

    /// The limits of its producer.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// The producer, created now if there was none yet.
    ///
    /// # Errors
    /// Why there is none: librdkafka rejects the config, or the last producer broke and is not recreated yet.
    pub(super) fn get(&self) -> Result<Arc<Client>, Arc<str>> {
        if let Some(client) = self.client.load_full() {
            return Ok(client);
        }
        let mut state = self.lock();
        if let Some(client) = self.client.load_full() {
            return Ok(client);
        }
        match &state.reason {
            Some(reason) => Err(Arc::clone(reason)),
            None => self
                .make(&mut state)
                .map_err(|error| error.to_string().into()),
        }
    }

    /// Creates the producer, so that a config that librdkafka rejects is reported at once.
    ///
    /// # Errors
    /// If librdkafka rejects the config.
    pub(super) fn prepare(&self) -> Result<(), KafkaError> {
        self.make(&mut self.lock()).map(drop)
    }

    fn make(&self, state: &mut State) -> Result<Arc<Client>, KafkaError> {
        let answers = Answers {
            way: self.way,
            errors: Arc::clone(&self.errors),
            secrets: Arc::clone(&self.secrets),
            fatal: OnceLock::new(),
        };
        let client = Arc::new(Client::from_config_and_context(&self.config, answers)?);
        self.client.store(Some(Arc::clone(&client)));
        state.made = Some(Instant::now());
        state.reason = None;
        Ok(client)
    }

    /// Removes a broken producer and recreates it after a delay on a separate thread, because dropping and creating a
    /// client may block the caller.
    pub(super) fn retire(self: &Arc<Self>, broken: Arc<Client>, reason: &str) {
        let pause = {
            let mut state = self.lock();
            let current = self.client.load_full();
            if !current.is_some_and(|current| Arc::ptr_eq(&current, &broken)) {
                return;
            }
            self.client.store(None);
            let was_healthy = state
                .made
                .is_some_and(|made| made.elapsed() >= HEALTHY_LIFETIME);
            state.broken = if was_healthy { 1 } else { state.broken + 1 };
            let reason: Arc<str> = reason.into();
            let pause = pause_after(state.broken);
            if state.logged.as_ref() != Some(&reason) || was_healthy {
                tracing::error!(
                    reason = &*reason,
                    pause_ms = pause.as_millis() as u64,
                    "fatal producer error; recreating the producer with backoff"
                );
                state.logged = Some(Arc::clone(&reason));
            }
            state.reason = Some(reason);
            pause
        };
        let slot = Arc::downgrade(self);
        let renew = move || {
            broken.purge(PurgeConfig::default().queue().inflight());
            std::thread::sleep(pause);
            drop(broken);
            if let Some(slot) = slot.upgrade() {
                slot.renew();
            }
        };
        let spawned = std::thread::Builder::new()
            .name("producer-renew".to_owned())
            .spawn(renew);
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread to recreate the producer; the next record creates it");
            self.lock().reason = None;
        }
    }

    fn renew(&self) {
        let mut state = self.lock();
        if let Err(error) = self.make(&mut state) {
            // The next record retries and gets the error.
            tracing::error!(%error, "cannot recreate the producer");
            state.reason = None;
        }
    }

    /// Waits until everything is answered. Records that are unanswered at the deadline are abandoned, and their tickets
    /// are failed.
    pub(super) fn flush(&self, deadline: Duration) {
        let Some(client) = self.client.load_full() else {
            return;
        };
        if client.flush(deadline).is_err() {
            tracing::warn!(
                records = client.in_flight_count(),
                "emitted records were not acknowledged in time"
            );
            client.purge(PurgeConfig::default().queue().inflight());
            let _ = client.flush(Duration::from_secs(1));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The delay before the producer after the `broken`-th broken one is created.
fn pause_after(broken: u32) -> Duration {
    let doublings = broken.saturating_sub(1).min(16);
    (INITIAL_RETRY_DELAY * 2_u32.pow(doublings)).min(MAX_RETRY_DELAY)
}

/// Passes the brokers' responses on to tickets and log.
pub(super) struct Answers {
    way: Way,
    errors: Arc<ErrorLog>,
    secrets: Arc<Redaction>,
    fatal: OnceLock<String>,
}

impl ClientContext for Answers {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, &self.secrets.redact(text));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let reason = self.secrets.redact(reason);
        if code == Some(RDKafkaErrorCode::Fatal) {
            let _ = self.fatal.set(reason.clone().into_owned());
        }
        self.errors.log(code, &error, &reason);
    }
}

impl ProducerContext for Answers {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let (error, record) = match result {
            Ok(_) => return ticket.acknowledged(),
            Err((error, record)) => (error, record),
        };
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let ended = matches!(
            code,
            RDKafkaErrorCode::Fatal
                | RDKafkaErrorCode::PurgeQueue
                | RDKafkaErrorCode::PurgeInflight
        );
        ticket.failed(match self.fatal.get() {
            Some(reason) if ended => refusal::no_producer(record.topic(), reason),
            _ => {
                let bytes = record.key_len() + record.payload_len();
                let refused = Refused {
                    topic: record.topic(),
                    bytes: bytes as u64,
                };
                refusal::answered(code, refused, self.way)
            }
        });
    }
}

fn is_connection_error(code: Option<RDKafkaErrorCode>) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, Resolve};
    matches!(
        code,
        Some(AllBrokersDown | BrokerTransportFailure | Resolve)
    )
}

/// Connection errors are logged here only if they last this long: the pump's client reports the first ones, but may use
/// other brokers.
const CONNECTION_ERROR_GRACE: Duration = Duration::from_secs(30);

/// Client errors, one line per kind and minute: they recur with every connection attempt.
#[derive(Default)]
struct ErrorLog {
    logged: Mutex<BTreeMap<Option<i32>, (Instant, u64)>>,
    /// When a connection error occurred first and last, in a series without a gap of a minute.
    connection: Mutex<Option<(Instant, Instant)>>,
}

impl ErrorLog {
    fn log(&self, code: Option<RDKafkaErrorCode>, error: &KafkaError, reason: &str) {
        let now = Instant::now();
        // The pump's own client connects to the same brokers at startup, and reports the failure with a remedy.
        if is_connection_error(code) && self.connection_fails_since(now) < CONNECTION_ERROR_GRACE {
            tracing::debug!(%error, reason, "producer");
            return;
        }
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = code.map(|code| code as i32);
        let suppressed = match logged.get_mut(&kind) {
            Some((last, suppressed)) if now.duration_since(*last) < ERROR_LOG_INTERVAL => {
                *suppressed += 1;
                return;
            }
            Some((_, suppressed)) => *suppressed,
            None => 0,
        };
        logged.insert(kind, (now, 0));
        tracing::warn!(%error, reason, suppressed, "producer");
    }

    /// Records a connection error, and returns for how long the series has lasted.
    fn connection_fails_since(&self, now: Instant) -> Duration {
        let mut noted = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = noted.filter(|(_, last)| now.duration_since(*last) < ERROR_LOG_INTERVAL);
        let first = before.map_or(now, |(first, _)| first);
        *noted = Some((first, now));
        now.duration_since(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let seconds = [1, 2, 3, 5, 6, 60].map(|broken| pause_after(broken).as_secs());
        assert_eq!(seconds, [1, 2, 4, 16, 30, 30]);
    }

    #[test]
    fn a_series_of_connection_errors_counts_from_its_first_one() {
        let (log, start) = (ErrorLog::default(), Instant::now());
        let after = |seconds| log.connection_fails_since(start + Duration::from_secs(seconds));
        let waited = [0, 20, 40, 95, 200].map(|seconds| after(seconds).as_secs());
        assert_eq!(
            waited,
            [0, 20, 40, 95, 0],
            "a minute without errors starts a new series"
        );
    }
}
