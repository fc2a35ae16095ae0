//! Spec source for a store of control keys: etcd, ZooKeeper, or memory in tests.
//!
//! ```text
//!  store's watch ─► tree ─► plausible? ─ yes ─► StoreMap::settle ─► Update to the sink
//!                             │ no                   └──────────► good values ─► cache on disk
//!                             ▼
//!                           held back, until an operator accepts it or the store is back to its earlier content
//! ```
//!
//! A restored store that still has the known specs is followed again. The content of another store, a listing that lacks most of
//! the specs, and an earlier state that lacks or changes one would remove handlers from the whole fleet, and their records would
//! be skipped: such content is held back until an operator accepts it (G10). A start compares with the cache, so that content
//! that was held back before a restart is held back after it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use sluicegate_config::Environment;
use sluicegate_config::control::ControlKey;
use sluicegate_config::service::References;
use sluicegate_config::snapshot::Snapshot;
use sluicegate_store::{Cause, Store, StoreError, StoreUpdate, StoreWatch, Tree};

use super::spec_cache::{CacheWriter, Kept, SpecCache};
use super::store_map::StoreMap;
use super::suspicion::Known;
use super::{
    GateWriter, OwnId, SnapshotError, SourceError, SpecSource, UnreachableCause, Update,
    UpdateSink, WatchHandle,
};
use crate::fleet::SpecBackend;

/// Settings of a [`StoreSource`].
#[derive(Clone, Debug, Default)]
pub struct StoreSourceSettings {
    /// Environment for references.
    pub environment: Environment,
    /// Variables and files that values may reference.
    pub references: References,
    /// This process's member id, which selects rollouts.
    pub member: String,
    /// Cache file with the last good values, for a start while the store is unreachable.
    pub cache: Option<PathBuf>,
    /// Refuse to start from the cache, also when the store's content is held back.
    pub require_fresh: bool,
}

/// Reads specs from the control keys of a store. An invalid key keeps its last good value active; handlers do not affect each
/// other.
pub struct StoreSource {
    store: Arc<dyn Store>,
    map: StoreMap,
    own: OwnId,
    cache: Option<SpecCache>,
    require_fresh: bool,
    given: Option<Arc<Snapshot>>,
    /// What `map` was last settled with.
    known: Option<Known>,
    held: Option<HeldBack>,
}

/// Content of the store that is not applied, and why.
type HeldBack = (Arc<Tree>, String);

impl StoreSource {
    /// A source for `store`; reads nothing yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, settings: StoreSourceSettings) -> Self {
        let cache = settings
            .cache
            .map(|path| SpecCache::new(path, store.address()));
        Self {
            own: OwnId::new(settings.member.as_str()),
            map: StoreMap::new(settings.environment, settings.references, settings.member),
            cache,
            require_fresh: settings.require_fresh,
            given: None,
            known: None,
            held: None,
            store,
        }
    }

    /// Loads the cache of the store, whose current `identity` is given if known. Returns when the cache was written.
    fn recall(&mut self, identity: Option<&str>) -> Option<Timestamp> {
        let cache = self.cache.as_ref()?;
        match cache.load(identity) {
            Ok(cached) => {
                let cached = cached?;
                settle(&mut self.map, &cached.tree, &self.store);
                self.known = Some(Known {
                    applied: Arc::new(cached.tree),
                    went_back: cached.went_back,
                });
                Some(cached.saved)
            }
            Err(error) => {
                let (file, reason) = (cache.path().display(), error.to_string());
                tracing::warn!(%file, reason, "ignoring the cache of handler specs");
                None
            }
        }
    }

    /// Applies the store's content at start, or holds it back if the comparison with the cache suggests a loss.
    ///
    /// # Errors
    /// [`SnapshotError::Unreachable`] if it is held back and a start from the cache is forbidden.
    fn take_first(&mut self, tree: Tree) -> Result<Arc<Snapshot>, SnapshotError> {
        let tree = Arc::new(tree);
        let known = self.known.as_ref();
        let suspicion = known.and_then(|known| known.suspicion(&tree, &self.store.address()));
        let Some(reason) = suspicion else {
            self.known = Some(Known::new(Arc::clone(&tree)));
            return Ok(settle(&mut self.map, &tree, &self.store));
        };
        let cache = self.cache.as_ref().map(SpecCache::path);
        let cache = cache.unwrap_or(std::path::Path::new(""));
        if self.require_fresh {
            let cache = cache.to_path_buf();
            return Err(self.unreachable(UnreachableCause::Held { reason, cache }));
        }
        tracing::warn!(
            reason,
            cache = %cache.display(),
            "the store's content is held back: starting from the last good specs on disk"
        );
        if let Some(known) = &mut self.known {
            known.went_back = known.is_behind(&tree);
        }
        self.held = Some((tree, reason));
        Ok(self.map.last())
    }

    fn unreachable(&self, cause: UnreachableCause) -> SnapshotError {
        let what = self.store.describe();
        SnapshotError::Unreachable { what, cause }
    }

    /// Checks whether a start may use the cache while the store is unreachable.
    fn without_store(
        &self,
        saved: Option<Timestamp>,
        error: StoreError,
    ) -> Result<(), SnapshotError> {
        if !error.is_retryable() {
            return Err(self.unreachable(UnreachableCause::Refused(error)));
        }
        let Some((saved, cache)) = saved.zip(self.cache.as_ref()) else {
            return Err(self.unreachable(UnreachableCause::NoCache(error)));
        };
        if self.require_fresh {
            return Err(self.unreachable(UnreachableCause::CacheForbidden(error)));
        }
        let age_s = Timestamp::now().duration_since(saved).as_secs().max(0);
        tracing::warn!(
            store = self.store.describe(),
            %error,
            cache = %cache.path().display(),
            %saved,
            age_s,
            "the store is unreachable: starting from the last good specs on disk"
        );
        Ok(())
    }
}

fn settle(map: &mut StoreMap, tree: &Tree, store: &Arc<dyn Store>) -> Arc<Snapshot> {
    map.settle(tree, &|key: &ControlKey| store.locate(key))
}

impl SpecSource for StoreSource {
    fn describe(&self) -> String {
        self.store.describe()
    }

    fn snapshot(&mut self) -> Result<Snapshot, SnapshotError> {
        let listed = self.store.list();
        let identity = listed.as_ref().ok().and_then(|tree| tree.identity.clone());
        let saved = self.recall(identity.as_deref());
        let snapshot = match listed {
            Ok(tree) => self.take_first(tree)?,
            Err(error) => {
                self.without_store(saved, error)?;
                self.map.last()
            }
        };
        let problems = self.map.blocking_problems();
        if !problems.is_empty() {
            return Err(SnapshotError::Problems(problems));
        }
        self.given = Some(Arc::clone(&snapshot));
        Ok(Snapshot::clone(&snapshot))
    }

    fn watch(self: Box<Self>, mut sink: UpdateSink) -> Result<Box<dyn WatchHandle>, SourceError> {
        let what = self.describe();
        let writer = self
            .cache
            .map(CacheWriter::start)
            .transpose()
            .map_err(|error| SourceError::Thread {
                what: what.clone(),
                error,
            })?;
        if let Some((_, reason)) = &self.held {
            let reason = reason.clone();
            sink(Update::Held { reason });
        }
        let watcher = SpecWatcher {
            store: Arc::clone(&self.store),
            map: self.map,
            own: self.own.clone(),
            known: self.known,
            held: self.held,
            given: self.given,
            reachable: true,
            writer,
            sink,
        };
        if watcher.known.as_ref().is_some_and(|known| known.went_back) {
            // By a later start the store's revision may have grown past the applied one.
            watcher.keep();
        }
        let watcher = Arc::new(Mutex::new(watcher));
        let renamed = Arc::downgrade(&watcher);
        self.own.on_change(move || {
            if let Some(watcher) = renamed.upgrade() {
                lock(&watcher).settle();
            }
        });
        let taker = Arc::clone(&watcher);
        let watch = self
            .store
            .watch(Box::new(move |update| lock(&taker).take(update)))
            .map_err(|error| SourceError::Store { what, error })?;
        Ok(Box::new(SourceWatch { watch, watcher }))
    }

    fn gates(&self) -> Arc<dyn GateWriter> {
        Arc::new(SpecBackend::in_store(Arc::clone(&self.store)))
    }

    fn store(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::clone(&self.store))
    }

    fn own_id(&self) -> Option<OwnId> {
        Some(self.own.clone())
    }
}

fn lock(watcher: &Mutex<SpecWatcher>) -> MutexGuard<'_, SpecWatcher> {
    watcher.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State of the watch.
struct SpecWatcher {
    store: Arc<dyn Store>,
    map: StoreMap,
    own: OwnId,
    /// What was applied last.
    known: Option<Known>,
    held: Option<HeldBack>,
    /// The snapshot sent last.
    given: Option<Arc<Snapshot>>,
    reachable: bool,
    writer: Option<CacheWriter>,
    sink: UpdateSink,
}

impl SpecWatcher {
    fn take(&mut self, update: StoreUpdate) {
        match update {
            StoreUpdate::Tree {
                tree,
                changes,
                cause,
            } => {
                if cause == Cause::MissedUpdate {
                    let keys = changes.len();
                    (self.sink)(Update::Repaired { keys });
                }
                self.be_reachable();
                self.evaluate(tree, cause);
            }
            StoreUpdate::Unreachable { reason } => {
                self.reachable = false;
                (self.sink)(Update::Unreachable { reason });
            }
            StoreUpdate::Reachable => self.be_reachable(),
        }
    }

    /// Applies the store's content, or holds it back.
    fn evaluate(&mut self, tree: Arc<Tree>, cause: Cause) {
        // Changes that a watch of the same store delivers one by one are intended.
        let is_event = cause == Cause::Event && self.held.is_none();
        let known = self.known.as_ref().filter(|_| !is_event);
        let suspicion = known.and_then(|known| known.suspicion(&tree, &self.store.address()));
        let Some(reason) = suspicion else {
            self.apply(tree);
            return;
        };
        if let Some(known) = &mut self.known
            && !known.went_back
            && known.is_behind(&tree)
        {
            known.went_back = true;
            // By a later start the store's revision may have grown past the applied one.
            self.keep();
        }
        let reported = self.held.as_ref().map(|(_, reported)| reported);
        let is_new = reported != Some(&reason);
        self.held = Some((tree, reason.clone()));
        if is_new {
            (self.sink)(Update::Held { reason });
        }
    }

    fn apply(&mut self, tree: Arc<Tree>) {
        if let Some(known) = &self.known
            && tree.revision < known.applied.revision
        {
            tracing::warn!(
                store = self.store.describe(),
                before = known.applied.revision,
                now = tree.revision,
                "the store went back to an earlier revision: it was restored; following it from there"
            );
        }
        self.known = Some(Known::new(tree));
        if self.held.take().is_some() {
            (self.sink)(Update::Released);
        }
        self.settle();
    }

    fn accept(&mut self) -> bool {
        let Some((tree, reason)) = self.held.clone() else {
            return false;
        };
        tracing::warn!(
            reason,
            "held content accepted: applying the store's content"
        );
        self.apply(tree);
        true
    }

    fn be_reachable(&mut self) {
        if !self.reachable {
            self.reachable = true;
            (self.sink)(Update::Reachable);
        }
    }

    fn settle(&mut self) {
        let Some(known) = &self.known else {
            return;
        };
        self.map.set_member(&self.own.get());
        let snapshot = settle(&mut self.map, &known.applied, &self.store);
        self.keep();
        let same =
            |given: &Arc<Snapshot>| given.revision == snapshot.revision && *given == snapshot;
        if !self.given.as_ref().is_some_and(same) {
            self.given = Some(Arc::clone(&snapshot));
            (self.sink)(Update::Snapshot(snapshot));
        }
    }
}

impl SpecWatcher {
    /// Saves the applied state for the next start.
    fn keep(&self) {
        if let Some((writer, known)) = self.writer.as_ref().zip(self.known.as_ref()) {
            writer.keep(Kept {
                revision: known.applied.revision,
                identity: known.applied.identity.clone(),
                went_back: known.went_back,
                values: self.map.good_values(),
            });
        }
    }
}

/// Field order matters: the watch is dropped before its state.
struct SourceWatch {
    watch: Box<dyn StoreWatch>,
    watcher: Arc<Mutex<SpecWatcher>>,
}

impl WatchHandle for SourceWatch {
    fn reread(&self) {
        self.watch.reread();
        let mut watcher = lock(&self.watcher);
        watcher.map.forget_references();
        watcher.settle();
    }

    fn accept(&self) -> bool {
        lock(&self.watcher).accept()
    }
}
