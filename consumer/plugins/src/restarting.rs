//! Restarts on request: a new generation of the same spec replaces the active or failed one, with its own instances, threads
//! and restart backoff.

use std::time::Instant;

use sluicegate_pool::pool::relock;

use super::registry::Registry;

/// Why a restart is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestartRefusal {
    /// No handler of this name is declared.
    #[error("no handler `{0}`")]
    Unknown(String),
    /// It has no generation.
    #[error(
        "its gate has been closed since it was declared, so it has no instances; open its gate instead"
    )]
    NothingRuns,
}

/// Progress of a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartState {
    /// Instances of the new generation are being built and checked.
    UnderWay,
    /// This generation is active.
    Done(u64),
    /// The new generation was rejected for this reason; the previous one stays active.
    Refused(String),
}

impl Registry {
    /// Requests a new generation of a handler. Returns the number of the current generation, 0 if there is none. Call
    /// [`Registry::prepare_next`] next; [`Registry::restart_state`] reports the progress.
    ///
    /// # Errors
    /// [`RestartRefusal`]: the handler is unknown, or has no generation.
    pub fn restart(&self, handler: &str) -> Result<u64, RestartRefusal> {
        let mut inner = relock(&self.inner);
        let Some(live) = inner.live.get_mut(handler) else {
            return Err(RestartRefusal::Unknown(handler.to_owned()));
        };
        if live.generation.is_none() && live.applied.is_some() {
            return Err(RestartRefusal::NothingRuns);
        }
        live.restarting = true;
        live.restart_refused = None;
        if let Some(refused) = &mut live.refused {
            refused.again_at = Instant::now();
        }
        let before = live.generation.as_ref().map_or(0, |g| g.number);
        tracing::info!(handler, generation = before, "restart requested");
        self.converge(&mut inner);
        Ok(before)
    }

    /// Progress of the restart of a handler whose generation was number `before`.
    pub fn restart_state(&self, handler: &str, before: u64) -> RestartState {
        let inner = relock(&self.inner);
        let Some(live) = inner.live.get(handler) else {
            return RestartState::Refused("the handler was removed during the restart".to_owned());
        };
        let number = live.generation.as_ref().map_or(0, |g| g.number);
        match &live.restart_refused {
            _ if live.restarting => RestartState::UnderWay,
            Some(reason) if number == before => RestartState::Refused(reason.clone()),
            _ => RestartState::Done(number),
        }
    }
}
