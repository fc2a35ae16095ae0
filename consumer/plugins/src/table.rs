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
use sluicegate_runtime::HandlerInfo;

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
    /// The applied spec; after a rejection, the last accepted one. Its `enabled` is the gate.
    pub spec: Arc<HandlerSpec>,
    /// What runs its records, and which share of the keys each gets; none only if the gate has been closed since the handler was
    /// declared.
    pub targets: Vec<HandlerTarget>,
}

impl HandlerPlan {
    /// Number of its present generation; 0 if there is none.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.targets.first().map_or(0, |target| target.generation)
    }
}

/// A generation that runs some of a handler's records.
#[derive(Clone)]
pub struct HandlerTarget {
    /// Its number, unique within the process.
    pub generation: u64,
    /// The plugin's version.
    pub version: Arc<str>,
    /// Where its code is from.
    pub origin: Arc<CodeOrigin>,
    /// What the plugin says about the handler.
    pub info: Arc<HandlerInfo>,
    /// Its pool.
    pub pool: Arc<dyn WorkerPool>,
    /// Number of key buckets that it gets ([`sluicegate_engine::queue::Target::buckets`]).
    pub buckets: u16,
}

impl fmt::Debug for HandlerPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerPlan")
            .field("ix", &self.ix)
            .field("name", &self.name)
            .field("generation", &self.generation())
            .field("enabled", &self.spec.enabled)
            .finish_non_exhaustive()
    }
}
