//! A producer that is made when it is first needed, and again, with growing pauses, after an error that it cannot survive.

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

use super::refusal::{self, Limits, Refused};
use super::{Ticket, Way};
use crate::source::client_log::log;

/// Pause before a broken producer is made again for the first time; doubled each time that the next one breaks.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A producer that lived this long was well: the pauses begin small again.
const LIVED_WELL: Duration = Duration::from_secs(120);
/// Between two lines about the same kind of client error.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A librdkafka producer with our callbacks.
pub(super) type Client = ThreadedProducer<Answers>;

/// Where one producer lives.
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
    /// Producers that broke one soon after the other.
    broken: u32,
    made: Option<Instant>,
    /// Why there is no producer just now.
    reason: Option<Arc<str>>,
    /// What was logged last.
    logged: Option<Arc<str>>,
}

impl Slot {
    /// An empty slot whose producer's words show none of `secrets`.
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

    /// What its producer takes at most.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// The producer, made now if there was none yet.
    ///
    /// # Errors
    /// Why there is none: librdkafka refuses the config, or the last producer broke and the next one is not made yet.
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

    /// Makes the producer, so that a config that librdkafka refuses is known at once.
    ///
    /// # Errors
    /// When librdkafka refuses the config.
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

    /// Takes a broken producer out; another one is made in its place after a pause, on a thread of its own: neither
    /// ending a client nor making one is the caller's time.
    pub(super) fn retire(self: &Arc<Self>, broken: Arc<Client>, reason: &str) {
        let pause = {
            let mut state = self.lock();
            let current = self.client.load_full();
            if !current.is_some_and(|current| Arc::ptr_eq(&current, &broken)) {
                return;
            }
            self.client.store(None);
            let lived_well = state.made.is_some_and(|made| made.elapsed() >= LIVED_WELL);
            state.broken = if lived_well { 1 } else { state.broken + 1 };
            let reason: Arc<str> = reason.into();
            let pause = pause_after(state.broken);
            if state.logged.as_ref() != Some(&reason) || lived_well {
                tracing::error!(
                    reason = &*reason,
                    pause_ms = pause.as_millis() as u64,
                    "the producer failed for good; it is made again, with growing pauses"
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
            tracing::error!(%error, "no thread to make a producer on; it is made by the next record");
            self.lock().reason = None;
        }
    }

    fn renew(&self) {
        let mut state = self.lock();
        if let Err(error) = self.make(&mut state) {
            // The next record tries again and is told why.
            tracing::error!(%error, "no new producer");
            state.reason = None;
        }
    }

    /// Waits until everything is answered. What is left at the deadline is given up: its tickets are answered so.
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

/// The pause before the producer after the `broken`-th broken one is made.
fn pause_after(broken: u32) -> Duration {
    let doublings = broken.saturating_sub(1).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

/// Passes the brokers' answers on.
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
        self.errors.tell(code, &error, &reason);
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

fn is_of_connection(code: Option<RDKafkaErrorCode>) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, Resolve};
    matches!(
        code,
        Some(AllBrokersDown | BrokerTransportFailure | Resolve)
    )
}

/// Errors of a connection that come again for so long are told here too: the pump's client may need other brokers.
const OF_PRODUCER_ALONE: Duration = Duration::from_secs(30);

/// Client errors, one line a kind and minute: they come again with every try to connect.
#[derive(Default)]
struct ErrorLog {
    told: Mutex<BTreeMap<Option<i32>, (Instant, u64)>>,
    /// When an error of a connection came first and last, without a minute's quiet between them.
    connection: Mutex<Option<(Instant, Instant)>>,
}

impl ErrorLog {
    fn tell(&self, code: Option<RDKafkaErrorCode>, error: &KafkaError, reason: &str) {
        let now = Instant::now();
        // The pump's own client meets the same brokers at the start, and says so with what helps.
        if is_of_connection(code) && self.connection_fails_since(now) < OF_PRODUCER_ALONE {
            tracing::debug!(%error, reason, "producer");
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = code.map(|code| code as i32);
        let untold = match told.get_mut(&kind) {
            Some((last, untold)) if now.duration_since(*last) < ERROR_LOG_INTERVAL => {
                *untold += 1;
                return;
            }
            Some((_, untold)) => *untold,
            None => 0,
        };
        told.insert(kind, (now, 0));
        tracing::warn!(%error, reason, untold, "producer");
    }

    /// Notes an error of a connection, and gives for how long they have come.
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
    fn pauses_double_up_to_the_longest() {
        let seconds = [1, 2, 3, 5, 6, 60].map(|broken| pause_after(broken).as_secs());
        assert_eq!(seconds, [1, 2, 4, 16, 30, 30]);
    }

    #[test]
    fn a_connection_that_fails_again_and_again_is_counted_from_its_first_failure() {
        let (log, start) = (ErrorLog::default(), Instant::now());
        let after = |seconds| log.connection_fails_since(start + Duration::from_secs(seconds));
        let waited = [0, 20, 40, 95, 200].map(|seconds| after(seconds).as_secs());
        assert_eq!(
            waited,
            [0, 20, 40, 95, 0],
            "a minute's quiet is a new beginning"
        );
    }
}
