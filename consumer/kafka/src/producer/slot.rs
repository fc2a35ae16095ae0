//! A producer that is created on first use, and recreated with backoff after a fatal error.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwapOption, Guard};
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use sluicegate_config::secret::Redaction;
use sluicegate_engine::emit::Way;

use super::answers::{Answers, Pumps};
use super::client::Client;
use super::error_log::ErrorLog;
use super::refusal::Limits;

/// Delay before a broken producer is recreated; doubled each time that the next one breaks.
const INITIAL_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Maximum delay.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
/// How long the end of the service waits for a producer's last answers.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// A producer that lived this long was healthy: the delay starts again at its initial value.
const HEALTHY_LIFETIME: Duration = Duration::from_secs(120);
/// Holder of one producer.
pub(super) struct Slot {
    config: ClientConfig,
    way: Way,
    limits: Limits,
    client: ArcSwapOption<Client>,
    state: Mutex<State>,
    pumps: Arc<Pumps>,
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
    pub(super) fn new(
        config: ClientConfig,
        way: Way,
        pumps: Arc<Pumps>,
        secrets: Arc<Redaction>,
    ) -> Arc<Self> {
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
            pumps,
            errors: Arc::default(),
            secrets,
        })
    }

    /// The limits of its producer.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// The producer, if there is one.
    pub(super) fn present(&self) -> Guard<Option<Arc<Client>>> {
        self.client.load()
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
        let answers = Answers::new(
            self.way,
            Arc::clone(&self.pumps),
            Arc::clone(&self.errors),
            Arc::clone(&self.secrets),
        );
        let client = Client::start(&self.config, answers)?;
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
        broken.end();
        let renew = move || {
            broken.abandon();
            drop(broken);
            std::thread::sleep(pause);
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

    /// Waits until everything is answered. Records that are unanswered at the deadline are abandoned, and answered as
    /// failed.
    pub(super) fn flush(&self, deadline: Duration) {
        let Some(client) = self.client.load_full() else {
            return;
        };
        if !client.flush(deadline) {
            tracing::warn!(
                records = client.unanswered(),
                "emitted records were not acknowledged in time"
            );
            client.abandon();
            client.flush(Duration::from_secs(1));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(client) = self.client.swap(None) {
            client.end();
            client.abandon();
            client.wait_for_end(END_TIMEOUT);
        }
    }
}

/// The delay before the producer after the `broken`-th broken one is created.
fn pause_after(broken: u32) -> Duration {
    let doublings = broken.saturating_sub(1).min(16);
    (INITIAL_RETRY_DELAY * 2_u32.pow(doublings)).min(MAX_RETRY_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let seconds = [1, 2, 3, 5, 6, 60].map(|broken| pause_after(broken).as_secs());
        assert_eq!(seconds, [1, 2, 4, 16, 30, 30]);
    }
}
