//! Restarting a handler on request: a new generation of the same spec takes the place of the one that serves or has failed,
//! with instances, counts of deaths and threads of its own.

use std::sync::Arc;
use std::time::Instant;

use sluicegate_config::HandlerSpec;

use super::managed::ManagedHandler;
use super::pool::relock;
use super::registry::Registry;

/// Why a handler is not restarted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestartRefusal {
    /// No handler of this name is declared.
    #[error("no handler `{0}`")]
    Unknown(String),
    /// Nothing of it runs.
    #[error(
        "its gate has been shut since it was declared, so nothing of it runs; open its gate instead"
    )]
    NothingRuns,
}

/// How far a restart has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartState {
    /// Instances of the new generation are being built and checked.
    UnderWay,
    /// This generation serves.
    Done(u64),
    /// The new generation was refused, for this reason; the earlier one stays.
    Refused(String),
}

impl Registry {
    /// Asks for a new generation of a handler. Gives the number of the one that it has now, 0 for none. Call
    /// [`Registry::prepare_next`] then; [`Registry::restart_state`] tells what became of it.
    ///
    /// # Errors
    /// [`RestartRefusal`].
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

    /// What became of the restart of a handler whose generation was number `before`.
    pub fn restart_state(&self, handler: &str, before: u64) -> RestartState {
        let inner = relock(&self.inner);
        let Some(live) = inner.live.get(handler) else {
            return RestartState::Refused("it was removed meanwhile".to_owned());
        };
        let number = live.generation.as_ref().map_or(0, |g| g.number);
        match &live.restart_refused {
            _ if live.restarting => RestartState::UnderWay,
            Some(reason) if number == before => RestartState::Refused(reason.clone()),
            _ => RestartState::Done(number),
        }
    }
}

impl ManagedHandler {
    /// The restart that was asked for, if one was, has taken place, or was refused.
    pub(super) fn end_restart(&mut self, refused: Option<&str>) {
        if std::mem::take(&mut self.restarting) {
            self.restart_refused = refused.map(str::to_owned);
        }
    }
}

/// A restart without the file that the code came from: the instances that there are may run again.
pub(super) fn reset_in_place(live: &mut ManagedHandler, spec: &Arc<HandlerSpec>) {
    if std::mem::take(&mut live.restarting)
        && let Some(generation) = &live.generation
    {
        tracing::warn!(
            handler = spec.name,
            "no artefact for it is in the plugins folder any more; its generation is reset instead of being built anew"
        );
        generation.pool.reset();
    }
}
