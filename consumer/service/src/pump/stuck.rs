//! Finds a client that stays unreachable although the cluster answers others, so that it is replaced.
//!
//! ```text
//!  no broker connected for a minute ─► probe: does the cluster answer a client of its own? ─ twice, 30 s apart ─► stuck
//! ```
//!
//! librdkafka keeps a broker that it has given up as long as anything refers to it, such as a fetch buffer whose record a
//! hung call still borrows, and does not connect to it again until then. Such a client recovers only when the process
//! restarts, while its partitions wait. A client that just reconnects slowly is not replaced: between two answers it
//! has had several attempts (`reconnect.backoff.max.ms`, 10 s).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use super::Pump;
use sluicegate_engine::source::AssignmentId;

/// How long a client is unreachable before the cluster is probed: outages usually end by themselves.
const UNREACHABLE_FOR_MS: u64 = 60_000;
/// Time between two probes.
const PROBE_INTERVAL_MS: u64 = 30_000;

/// Whether the cluster answers a client made for this question. Blocks for up to 10 s, on a thread of its own.
pub type Probe = Arc<dyn Fn() -> bool + Send + Sync>;

/// What is known about an outage.
#[derive(Default)]
pub(super) struct StuckClient {
    /// The running probe's answer.
    answer: Option<Receiver<bool>>,
    next_ms: u64,
    /// The last probe was answered.
    answered: bool,
}

impl StuckClient {
    /// Whether the client, unreachable since `since_ms`, has to be replaced. Starts probes.
    fn is_stuck(&mut self, since_ms: Option<u64>, now_ms: u64, probe: &Probe) -> bool {
        let Some(since_ms) = since_ms else {
            *self = Self::default();
            return false;
        };
        if now_ms.saturating_sub(since_ms) < UNREACHABLE_FOR_MS {
            return false;
        }
        match self.answer.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return false,
            Some(answer) => {
                self.answer = None;
                let answers = answer == Ok(true);
                if answers && self.answered {
                    *self = Self::default();
                    return true;
                }
                self.answered = answers;
            }
            None => {}
        }
        if now_ms >= self.next_ms {
            self.next_ms = now_ms + PROBE_INTERVAL_MS;
            self.start(probe);
        }
        false
    }

    fn start(&mut self, probe: &Probe) {
        let (tell, answer) = sync_channel(1);
        let probe = Arc::clone(probe);
        let started = std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || {
                // The pump may have ended.
                let _ = tell.send(probe());
            });
        match started {
            Ok(_) => self.answer = Some(answer),
            Err(error) => tracing::warn!(%error, "cannot start a thread that probes the cluster"),
        }
    }
}

impl Pump {
    /// Replaces a client that alone cannot reach the cluster. Its session has timed out, so its partitions have other
    /// owners by now, and the uncommitted records are theirs.
    pub(super) fn replace_stuck_client(&mut self) {
        if self.is_stopping() || self.topics.is_empty() {
            return;
        }
        let (since_ms, now_ms) = (self.client.unreachable_ms(), self.now_ms());
        if !self.stuck.is_stuck(since_ms, now_ms, &self.settings.probe) {
            return;
        }
        let slots: Vec<AssignmentId> = self.flow.partitions().map(|(_, slot)| slot).collect();
        tracing::warn!(
            seconds = now_ms.saturating_sub(since_ms.unwrap_or(now_ms)) / 1_000,
            partitions = slots.len(),
            "this client reaches no broker although the cluster answers another one; replacing it, uncommitted records are \
             reprocessed"
        );
        self.rejoin_without(&slots);
    }
}

#[cfg(test)]
#[path = "stuck_tests.rs"]
mod tests;
