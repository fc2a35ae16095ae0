//! The handler table that the registry gives to every pump: the handlers of one revision, each with its worker pool.
//!
//! A pump swaps the whole table between two polls. An old pool is released when the last clone of its `Arc` is dropped:
//! for a replaced one at the swap, while its batches return to the pump's inbox; for a removed handler once the pool has
//! returned all its batches.

use std::fmt;
use std::sync::Arc;

use sluicegate_config::HandlerSpec;
use sluicegate_engine::dispatch::{HandlerIx, WorkerPool};
use sluicegate_engine::routing::{RouteError, RoutingIndex};

use super::generation::CodeOrigin;

/// The handlers of one applied revision.
#[derive(Clone, Debug, Default)]
pub struct HandlerTable {
    /// Revision of the last snapshot that is applied completely; parts of a later one may already be applied.
    pub revision: u64,
    /// Every declared handler, open or closed, sorted by name.
    pub handlers: Vec<HandlerPlan>,
}

impl HandlerTable {
    /// Compiles its routes into an index. Patterns do not match the dead-letter topics of its handlers.
    ///
    /// # Errors
    /// [`RouteError`] names the invalid route.
    pub fn routes(&self) -> Result<Arc<RoutingIndex>, RouteError> {
        let routes = self
            .handlers
            .iter()
            .map(|handler| (handler.ix, handler.spec.route.clone()));
        let dead_letters = self
            .handlers
            .iter()
            .map(|handler| handler.spec.dead_letter.topic.as_str());
        RoutingIndex::compile_apart_from(self.revision, routes.collect(), dead_letters)
    }

    /// The handler with that name.
    #[must_use]
    pub fn handler(&self, name: &str) -> Option<&HandlerPlan> {
        let at = self.handlers.binary_search_by(|one| (*one.name).cmp(name));
        at.ok().map(|at| &self.handlers[at])
    }
}

/// One handler of a table.
#[derive(Clone)]
pub struct HandlerPlan {
    /// Its index in the pump's table: fixed per name for the lifetime of the process.
    pub ix: HandlerIx,
    /// Its name in the spec.
    pub name: Arc<str>,
    /// Number of its active generation, unique within the process; 0 if there is none.
    pub generation: u64,
    /// The plugin's version; empty without a generation.
    pub version: Arc<str>,
    /// Where its code is from; `None` without a generation.
    pub origin: Option<Arc<CodeOrigin>>,
    /// The applied spec; after a rejection, the last accepted one. Its `enabled` is the gate.
    pub spec: Arc<HandlerSpec>,
    /// The pool that runs it; `None` only if the gate has been closed since the handler was declared.
    pub pool: Option<Arc<dyn WorkerPool>>,
    /// See [`sluicegate_runtime::HandlerInfo::takes_batches`].
    pub takes_batches: bool,
    /// See [`sluicegate_runtime::HandlerInfo::concurrency`].
    pub concurrency: u32,
    /// See [`sluicegate_runtime::HandlerInfo::keeps_key_state`].
    pub keeps_key_state: bool,
}

impl fmt::Debug for HandlerPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerPlan")
            .field("ix", &self.ix)
            .field("name", &self.name)
            .field("generation", &self.generation)
            .field("version", &self.version)
            .field("enabled", &self.spec.enabled)
            .finish_non_exhaustive()
    }
}
