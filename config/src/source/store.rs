//! Specs from a store of control keys: etcd, ZooKeeper, or a test's memory.
//!
//! ```text
//!  store's watch ─► tree ─► like the one before? ─► StoreMap::settle ─► Update to the sink
//!                                │ no                     └──────────► good values ─► cache on disk
//!                                ▼
//!                              held, until somebody accepts it or the store is as it was
//! ```
//!
//! A store that was restored with the specs as they are known is followed again. What another store says, a reading that lacks
//! most of the specs, and an earlier state that lacks one or has another one, would take handlers away from the whole fleet, and
//! their records would pass by: an operator has to say so (G10). A start compares with the cache, so that what was held before
//! it is held after it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::doubt::Known;
use super::spec_cache::{CacheWriter, Kept, SpecCache};
use super::store_gates::StoreGates;
use super::store_map::StoreMap;
use super::{
    GateWriter, OwnId, SnapshotError, SourceError, SpecSource, Update, UpdateSink, WatchHandle,
};
use crate::environment::Environment;
use crate::service::References;
use crate::snapshot::Snapshot;
use crate::store::{Cause, ControlKey, Store, StoreError, StoreUpdate, StoreWatch, Tree};

/// How a [`StoreSource`] reads its store.
#[derive(Clone, Debug, Default)]
pub struct StoreSourceSettings {
    /// References are looked up here.
    pub environment: Environment,
    /// What values may refer to.
    pub references: References,
    /// The own member id, by which rollouts are for this process or not.
    pub member: String,
    /// File that keeps the last good values for a start while the store is away.
    pub cache: Option<PathBuf>,
    /// Refuse such a start, and one while what stands in the store is held back.
    pub require_fresh: bool,
}

/// The control keys of a store as specs. A key that turns bad leaves its last good value in effect; each handler stands
/// for itself.
pub struct StoreSource {
    store: Arc<dyn Store>,
    map: StoreMap,
    own: OwnId,
    cache: Option<SpecCache>,
    require_fresh: bool,
    given: Option<Arc<Snapshot>>,
    /// What `map` was settled by, once it was.
    tree: Option<Arc<Tree>>,
    /// As of [`Known`].
    went_back: bool,
    held: Option<HeldBack>,
}

/// What stands in the store and is not applied, and why.
type HeldBack = (Arc<Tree>, String);

impl StoreSource {
    /// A source over `store`; nothing is read yet.
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
            tree: None,
            went_back: false,
            held: None,
            store,
        }
    }

    /// Takes over the cache of the store, which is of this `identity` now if that is known; when it was written.
    fn recall(&mut self, identity: Option<&str>) -> Option<Timestamp> {
        let cache = self.cache.as_ref()?;
        match cache.load(identity) {
            Ok(cached) => {
                let cached = cached?;
                settle(&mut self.map, &cached.tree, &self.store);
                self.tree = Some(Arc::new(cached.tree));
                self.went_back = cached.went_back;
                Some(cached.saved)
            }
            Err(reason) => {
                let file = cache.path().display();
                tracing::warn!(%file, reason, "the cache of handler specs is not used");
                None
            }
        }
    }

    /// Applies what stands in the store, or holds it back where the cache is reason to doubt it.
    ///
    /// # Errors
    /// [`SnapshotError::Unreachable`] where a start from the cache is forbidden.
    fn take_first(&mut self, tree: Tree) -> Result<Arc<Snapshot>, SnapshotError> {
        let tree = Arc::new(tree);
        let known = self.tree.as_ref().map(|applied| Known {
            applied,
            went_back: self.went_back,
        });
        let doubt = known
            .as_ref()
            .and_then(|known| known.doubt(&tree, &self.store.address()));
        let Some(reason) = doubt else {
            self.tree = Some(Arc::clone(&tree));
            self.went_back = false;
            return Ok(settle(&mut self.map, &tree, &self.store));
        };
        let cache = self.cache.as_ref().map(SpecCache::path);
        let cache = cache.unwrap_or(std::path::Path::new("")).display();
        if self.require_fresh {
            return Err(SnapshotError::Unreachable {
                what: self.store.describe(),
                reason: format!(
                    "{reason}; and `handlers.require_fresh` forbids to start from the cache; if what stands in the store is meant, delete {cache}"
                ),
            });
        }
        tracing::warn!(
            reason,
            %cache,
            "what stands in the store is not applied: starting from the last good specs on disk"
        );
        self.went_back = known.is_some_and(|known| known.is_behind(&tree));
        self.held = Some((tree, reason));
        Ok(self.map.last())
    }

    /// What a start runs by while the store does not answer.
    fn without_store(
        &self,
        saved: Option<Timestamp>,
        error: &StoreError,
    ) -> Result<(), SnapshotError> {
        let unreachable = |reason: String| SnapshotError::Unreachable {
            what: self.store.describe(),
            reason,
        };
        if !error.is_retryable() {
            return Err(unreachable(error.to_string()));
        }
        let Some((saved, cache)) = saved.zip(self.cache.as_ref()) else {
            return Err(unreachable(format!(
                "{error}; and there is no cache of an earlier run to start from"
            )));
        };
        if self.require_fresh {
            return Err(unreachable(format!(
                "{error}; `handlers.require_fresh` forbids to start from the cache"
            )));
        }
        let age_s = Timestamp::now().duration_since(saved).as_secs().max(0);
        tracing::warn!(
            store = self.store.describe(),
            %error,
            cache = %cache.path().display(),
            %saved,
            age_s,
            "the store is away: starting from the last good specs on disk"
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
                self.without_store(saved, &error)?;
                self.map.last()
            }
        };
        let unfit = self.map.unfit();
        if !unfit.is_empty() {
            return Err(SnapshotError::Problems(unfit));
        }
        self.given = Some(Arc::clone(&snapshot));
        Ok(Snapshot::clone(&snapshot))
    }

    fn watch(self: Box<Self>, mut sink: UpdateSink) -> Result<Box<dyn WatchHandle>, SourceError> {
        let what = self.describe();
        let failed = |reason: String| SourceError {
            what: what.clone(),
            reason,
        };
        let writer = self
            .cache
            .map(CacheWriter::start)
            .transpose()
            .map_err(|error| failed(format!("no thread can be started: {error}")))?;
        if let Some((_, reason)) = &self.held {
            let reason = reason.clone();
            sink(Update::Held { reason });
        }
        let desk = SpecWatcher {
            store: Arc::clone(&self.store),
            map: self.map,
            own: self.own.clone(),
            tree: self.tree,
            went_back: self.went_back,
            held: self.held,
            given: self.given,
            reachable: true,
            writer,
            sink,
        };
        if desk.went_back {
            // A later start finds the store further on.
            desk.keep();
        }
        let desk = Arc::new(Mutex::new(desk));
        let renamed = Arc::downgrade(&desk);
        self.own.on_change(move || {
            if let Some(desk) = renamed.upgrade() {
                lock(&desk).settle();
            }
        });
        let taker = Arc::clone(&desk);
        let watch = self
            .store
            .watch(Box::new(move |update| lock(&taker).take(update)))
            .map_err(|error| failed(error.to_string()))?;
        Ok(Box::new(SourceWatch { watch, desk }))
    }

    fn gates(&self) -> Arc<dyn GateWriter> {
        Arc::new(StoreGates {
            store: Arc::clone(&self.store),
        })
    }

    fn store(&self) -> Option<Arc<dyn Store>> {
        Some(Arc::clone(&self.store))
    }

    fn own_id(&self) -> Option<OwnId> {
        Some(self.own.clone())
    }
}

fn lock(desk: &Mutex<SpecWatcher>) -> MutexGuard<'_, SpecWatcher> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the watch works on.
struct SpecWatcher {
    store: Arc<dyn Store>,
    map: StoreMap,
    own: OwnId,
    /// What is applied.
    tree: Option<Arc<Tree>>,
    /// As of [`Known`].
    went_back: bool,
    held: Option<HeldBack>,
    /// What was handed out last.
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
                self.look_at(tree, cause);
            }
            StoreUpdate::Unreachable { reason } => {
                self.reachable = false;
                (self.sink)(Update::Unreachable { reason });
            }
            StoreUpdate::Reachable => self.be_reachable(),
        }
    }

    /// Applies what stands in the store, or holds it back.
    fn look_at(&mut self, tree: Arc<Tree>, cause: Cause) {
        // What a watch of the same store tells piece by piece is meant.
        let is_told = cause == Cause::Event && self.held.is_none();
        let known = self.tree.as_ref().filter(|_| !is_told);
        let known = known.map(|applied| Known {
            applied,
            went_back: self.went_back,
        });
        let doubt = known
            .as_ref()
            .and_then(|known| known.doubt(&tree, &self.store.address()));
        let Some(reason) = doubt else {
            self.apply(tree);
            return;
        };
        let went_back = known.is_some_and(|known| known.is_behind(&tree));
        if went_back != self.went_back {
            self.went_back = went_back;
            // A later start finds the store further on.
            self.keep();
        }
        let told = self.held.as_ref().map(|(_, told)| told);
        let news = told != Some(&reason);
        self.held = Some((tree, reason.clone()));
        if news {
            (self.sink)(Update::Held { reason });
        }
    }

    fn apply(&mut self, tree: Arc<Tree>) {
        if let Some(before) = &self.tree
            && tree.revision < before.revision
        {
            tracing::warn!(
                store = self.store.describe(),
                before = before.revision,
                now = tree.revision,
                "the store went back to an earlier revision: it was restored, and is followed from there"
            );
        }
        self.tree = Some(tree);
        self.went_back = false;
        if self.held.take().is_some() {
            (self.sink)(Update::Released);
        }
        self.settle();
    }

    fn accept(&mut self) -> bool {
        let Some((tree, reason)) = self.held.clone() else {
            return false;
        };
        tracing::warn!(reason, "accepted: what stands in the store is applied");
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
        let Some(tree) = &self.tree else {
            return;
        };
        self.map.be_member(&self.own.get());
        let snapshot = settle(&mut self.map, tree, &self.store);
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
    /// Has what is applied kept for the next start.
    fn keep(&self) {
        if let Some((writer, tree)) = self.writer.as_ref().zip(self.tree.as_ref()) {
            writer.keep(Kept {
                revision: tree.revision,
                identity: tree.identity.clone(),
                went_back: self.went_back,
                values: self.map.good_values(),
            });
        }
    }
}

/// The watch ends before what it works on.
struct SourceWatch {
    watch: Box<dyn StoreWatch>,
    desk: Arc<Mutex<SpecWatcher>>,
}

impl WatchHandle for SourceWatch {
    fn reread(&self) {
        self.watch.reread();
        let mut desk = lock(&self.desk);
        desk.map.forget_references();
        desk.settle();
    }

    fn accept(&self) -> bool {
        lock(&self.desk).accept()
    }
}
