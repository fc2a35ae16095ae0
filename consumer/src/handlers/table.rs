//! What the registry hands to every pump: the handlers of one revision, each with the pool that runs it.
//!
//! A pump swaps the whole plan between two polls. An old pool is released when the last clone of its `Arc` is gone:
//! a pump keeps one until every batch that it gave to that pool is back.

use std::fmt;
use std::sync::Arc;

use sluicegate_config::HandlerSpec;

use crate::dispatch::{HandlerIx, WorkerPool};
use crate::routing::RoutingIndex;

/// The handlers of one applied revision.
#[derive(Clone, Debug, Default)]
pub struct HandlerTable {
    /// The store's number of the last snapshot that is in force whole; parts of a later one may be in force already.
    pub revision: u64,
    /// Every declared handler, open or shut, in the order of their names.
    pub handlers: Vec<HandlerPlan>,
}

impl HandlerTable {
    /// Its routes as an index. Patterns of it match no dead-letter topic of its handlers.
    ///
    /// # Errors
    /// Why a route is none.
    pub fn routes(&self) -> Result<Arc<RoutingIndex>, String> {
        let routes = self
            .handlers
            .iter()
            .map(|handler| (handler.ix, handler.spec.route.clone()));
        let dead_letters = self
            .handlers
            .iter()
            .map(|handler| handler.spec.dead_letter.topic.as_str());
        RoutingIndex::compile_apart_from(self.revision, routes.collect(), dead_letters)
            .map_err(|error| error.to_string())
    }

    /// The handler of that name.
    #[must_use]
    pub fn handler(&self, name: &str) -> Option<&HandlerPlan> {
        let at = self.handlers.binary_search_by(|one| (*one.name).cmp(name));
        at.ok().map(|at| &self.handlers[at])
    }
}

/// One handler of a plan.
#[derive(Clone)]
pub struct HandlerPlan {
    /// Its place in the pump's table: the same for a name as long as the process runs.
    pub ix: HandlerIx,
    /// Its name in the spec.
    pub name: Arc<str>,
    /// The number of the generation that serves it, counted over the process; 0 while it has none.
    pub generation: u64,
    /// The plugin's version; empty while it has no generation.
    pub version: Arc<str>,
    /// Its spec as applied: where a newer one was refused, the one that stands. Its `enabled` is the gate.
    pub spec: Arc<HandlerSpec>,
    /// Who runs it; `None` only when the gate has been shut since the handler was declared.
    pub pool: Option<Arc<dyn WorkerPool>>,
    /// See [`sluicegate_runtime::HandlerInfo::takes_batches`].
    pub takes_batches: bool,
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
