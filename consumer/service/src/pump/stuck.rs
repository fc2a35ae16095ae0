//! Finds a client that stays unreachable although the cluster answers others, so that it is replaced.
//!
//! ```text
//!  no broker connected for a minute ─► probe: do the cluster's brokers answer a client of its own?
//!                                        twice, 30 s or more apart ─► stuck: a new client
//! ```
//!
//! librdkafka keeps a broker that it no longer uses as long as anything refers to it, such as a fetch buffer whose record a
//! hung call still borrows, and does not connect to it again until then. Such a client recovers only when the process
//! restarts, while its partitions wait. A client that just reconnects slowly is not replaced: between two answers it
//! has had several attempts ([`Probe::interval`]). A replacement that does not help doubles the wait for the next one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

use sluicegate_engine::event::Event;

use super::Pump;

/// How long a client is unreachable before the cluster is probed: outages usually end by themselves.
const UNREACHABLE_FOR_MS: u64 = 60_000;
/// Minimum time between two probes, also for a client that is set to reconnect at once: brokers that have just come back do
/// not answer every client at the same time.
const MIN_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum number of doublings of the time until a replacement.
const MAX_DOUBLINGS: u32 = 5;

/// Asks whether the cluster answers another client.
#[derive(Clone)]
pub struct Probe {
    /// Whether the cluster's brokers answer a client made for this question. Blocks for up to 10 s, on a thread of its own.
    pub ask: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Time between two probes; longer than the client's own attempts to reconnect are apart.
    pub interval: Duration,
}

impl Probe {
    /// A probe for a client that waits at most `reconnect_max` before it reconnects to a broker.
    pub fn new(ask: Arc<dyn Fn() -> bool + Send + Sync>, reconnect_max: Duration) -> Self {
        Self {
            ask,
            interval: (reconnect_max * 3).max(MIN_INTERVAL),
        }
    }
}

/// What is known about an outage.
#[derive(Default)]
pub(super) struct StuckClient {
    /// When the outage began; another time is another outage.
    since_ms: Option<u64>,
    /// From when the wait for the next replacement counts.
    from_ms: u64,
    /// The running probe's answer; at most one runs.
    running: Option<Receiver<bool>>,
    /// The running probe belongs to an earlier outage.
    is_stale: bool,
    /// The last probe of this outage was answered.
    answered: bool,
    next_ms: u64,
    /// Replacements in this outage; none of them has reached a broker.
    replaced: u32,
}

impl StuckClient {
    /// Forgets the answers so far: what they were about is over, or nothing is to be replaced now.
    fn reset(&mut self, since_ms: Option<u64>, now_ms: u64) {
        if since_ms != self.since_ms {
            self.replaced = 0;
        }
        self.since_ms = since_ms;
        self.from_ms = now_ms;
        self.is_stale = self.running.is_some();
        self.answered = false;
    }

    /// Whether the client, unreachable since `since_ms`, has to be replaced. Starts probes.
    fn is_stuck(&mut self, since_ms: Option<u64>, now_ms: u64, probe: &Probe) -> bool {
        let answer = self.finished();
        if since_ms != self.since_ms {
            self.reset(since_ms, now_ms);
        }
        if since_ms.is_none() {
            return false;
        }
        let wait_ms = UNREACHABLE_FOR_MS << self.replaced.min(MAX_DOUBLINGS);
        if now_ms.saturating_sub(self.from_ms) < wait_ms {
            return false;
        }
        if let Some(answers) = answer {
            if answers && self.answered {
                self.reset(since_ms, now_ms);
                self.replaced += 1;
                return true;
            }
            self.answered = answers;
        }
        if self.running.is_none() && now_ms >= self.next_ms {
            // Members that lost the cluster at the same time do not probe it at the same time.
            let jitter_ms = fastrand::u64(0..5_000);
            self.next_ms = now_ms + probe.interval.as_millis() as u64 + jitter_ms;
            self.start(probe);
        }
        false
    }

    /// The answer of a probe of this outage that has finished since the last call.
    fn finished(&mut self) -> Option<bool> {
        let answer = match self.running.as_ref()?.try_recv() {
            Err(TryRecvError::Empty) => return None,
            answer => answer == Ok(true),
        };
        self.running = None;
        (!std::mem::take(&mut self.is_stale)).then_some(answer)
    }

    fn start(&mut self, probe: &Probe) {
        let (tell, answer) = sync_channel(1);
        let ask = Arc::clone(&probe.ask);
        let started = std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || {
                // The pump may have ended.
                let _ = tell.send(ask());
            });
        match started {
            Ok(_) => self.running = Some(answer),
            Err(error) => tracing::warn!(%error, "cannot start a thread that probes the cluster"),
        }
    }
}

impl Pump {
    /// Replaces a client that alone cannot reach the cluster. Records that are not committed are processed again, by the
    /// next owner of their partitions: within the session timeout that is usually this member.
    pub(super) fn replace_stuck_client(&mut self) {
        let now_ms = self.now_ms();
        let since_ms = self.client.unreachable_ms();
        if self.engine.is_stopping()
            || self.topics.is_empty()
            || self.client.is_login_refused(now_ms)
        {
            self.stuck.reset(since_ms, now_ms);
            return;
        }
        if !self.stuck.is_stuck(since_ms, now_ms, &self.settings.probe) {
            return;
        }
        tracing::warn!(
            seconds = now_ms.saturating_sub(since_ms.unwrap_or(now_ms)) / 1_000,
            partitions = self.engine.slots().len(),
            replacements = self.stuck.replaced,
            "this client reaches no broker although the cluster answers another one; replacing it, uncommitted records are \
             reprocessed"
        );
        self.step(Event::ClientStuck);
    }
}

#[cfg(test)]
#[path = "stuck_tests.rs"]
mod tests;
