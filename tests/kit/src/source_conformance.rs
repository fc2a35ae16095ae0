//! Conformance suite for [`SpecSource`], run against the folder, memory, etcd and ZooKeeper sources.
//!
//! Each check takes a [`Bench`] without specs and panics with what it observed.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use sluicegate_config::snapshot::Snapshot;
use sluicegate_sync::source::{GateError, GateWriter, SpecSource, Update, WatchHandle};

/// Maximum time until a change, an outage or a recovery is observed.
const DEADLINE: Duration = Duration::from_secs(20);

/// The backend of a source, controlled by a test.
pub trait Bench {
    /// Opens a source over the backend.
    fn open(&self) -> Box<dyn SpecSource>;
    /// Writes or deletes the spec of a handler; blocks until done.
    fn write(&self, handler: &str, text: Option<&str>);
    /// Makes the backend unreachable, or reachable again with its content unchanged.
    fn set_away(&self, away: bool);
    /// Restarts the backend: unreachable for a moment, with its content unchanged.
    fn restart(&self);
    /// Whether the backend can hold text that is not a spec.
    fn takes_garbage(&self) -> bool {
        true
    }
}

/// One conformance check.
pub type Check = fn(&dyn Bench);

/// All checks with their names.
pub const CHECKS: [(&str, Check); 10] = [
    ("list", list),
    ("change", change),
    ("delete", delete),
    ("burst", burst),
    ("gate", gate),
    ("garbage", garbage),
    ("reorder", reorder),
    ("outage", outage),
    ("restart", restart),
    ("stop", stop),
];

/// Runs every check, each on an empty bench.
///
/// # Panics
/// If one fails.
pub fn run_all(bench: &dyn Bench) {
    for (name, check) in CHECKS {
        for handler in ["a", "b", "c"] {
            bench.write(handler, None);
        }
        let begun = Instant::now();
        check(bench);
        println!("{name}: {:.2} s", begun.elapsed().as_secs_f32());
    }
}

/// A spec with a route to `topic`.
#[must_use]
pub fn text(handler: &str, topic: &str) -> String {
    format!("name: {handler}\nplugin: relay\nroute: {{ topics: [{topic}] }}\n")
}

/// A source under watch.
struct Observer {
    updates: Receiver<Update>,
    /// The active snapshot.
    now: Arc<Snapshot>,
    gates: Arc<dyn GateWriter>,
    watch: Box<dyn WatchHandle>,
}

impl Observer {
    /// Reads the initial snapshot, then watches.
    fn start(bench: &dyn Bench) -> Self {
        let mut source = bench.open();
        assert!(!source.describe().is_empty(), "a source says what it reads");
        let now = source.snapshot().unwrap_or_else(|error| panic!("{error}"));
        let gates = source.gates();
        let (sender, updates) = channel();
        let watch = source.watch(Box::new(move |update| {
            // The check may have ended.
            let _ = sender.send(update);
        }));
        Self {
            updates,
            now: Arc::new(now),
            gates,
            watch: watch.unwrap_or_else(|error| panic!("{error}")),
        }
    }

    /// Waits for a matching update. Checks that revisions of all snapshots until then do not decrease (G10).
    fn until(&mut self, what: &str, fits: impl Fn(&Update) -> bool) {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let update = self.updates.recv_timeout(left);
            let update = update.unwrap_or_else(|_| {
                panic!(
                    "timed out waiting for {what}; the snapshot is {:?}",
                    self.now
                )
            });
            if let Update::Snapshot(snapshot) = &update {
                let (before, after) = (self.now.revision, snapshot.revision);
                assert!(before <= after, "{what}: revision {after} after {before}");
                self.now = Arc::clone(snapshot);
            }
            if fits(&update) {
                return;
            }
        }
    }

    /// Waits until exactly these specs are active, by handler and topic.
    fn until_specs(&mut self, what: &str, specs: &[(&str, &str)]) {
        if !holds(&self.now, specs) {
            self.until_snapshot(what, |snapshot| holds(snapshot, specs));
        }
    }

    fn until_snapshot(&mut self, what: &str, fits: impl Fn(&Snapshot) -> bool) {
        self.until(
            what,
            |update| matches!(update, Update::Snapshot(snapshot) if fits(snapshot)),
        );
    }
}

/// Whether a snapshot has exactly these handlers, each with this first topic.
fn holds(snapshot: &Snapshot, specs: &[(&str, &str)]) -> bool {
    let now = snapshot.handlers.values();
    let now = now.map(|spec| (spec.name.clone(), spec.route.topics[0].to_string()));
    now.eq(specs
        .iter()
        .map(|(name, topic)| ((*name).to_owned(), (*topic).to_owned())))
}

fn put(bench: &dyn Bench, handler: &str, topic: &str) {
    bench.write(handler, Some(&text(handler, topic)));
}

fn list(bench: &dyn Bench) {
    put(bench, "a", "one");
    put(bench, "b", "one");
    let observer = Observer::start(bench);
    let now = &observer.now;
    assert!(holds(now, &[("a", "one"), ("b", "one")]), "{now:?}");
    assert!(now.revision > 0 && now.rejections.is_empty(), "{now:?}");
}

fn change(bench: &dyn Bench) {
    put(bench, "a", "one");
    let mut observer = Observer::start(bench);
    put(bench, "b", "one");
    observer.until_specs("a new spec", &[("a", "one"), ("b", "one")]);
    put(bench, "a", "two");
    observer.until_specs("a changed spec", &[("a", "two"), ("b", "one")]);
}

fn delete(bench: &dyn Bench) {
    put(bench, "a", "one");
    put(bench, "b", "one");
    let mut observer = Observer::start(bench);
    bench.write("a", None);
    observer.until_specs("a deleted spec", &[("b", "one")]);
    bench.write("b", None);
    observer.until_specs("the deletion of the last spec", &[]);
    put(bench, "a", "two");
    observer.until_specs("a re-created spec", &[("a", "two")]);
}

fn burst(bench: &dyn Bench) {
    let mut observer = Observer::start(bench);
    for round in 0..100 {
        put(bench, "a", &format!("t{round}"));
    }
    observer.until_specs("the end of a burst", &[("a", "t99")]);
}

fn gate(bench: &dyn Bench) {
    put(bench, "a", "one");
    put(bench, "b", "one");
    let mut observer = Observer::start(bench);
    let set = |observer: &Observer, open| {
        let set = observer.gates.set_gate("a", open);
        set.unwrap_or_else(|error| panic!("{error}")).changed
    };
    assert!(set(&observer, false));
    observer.until_snapshot("the closed gate", |now| {
        !now.handlers["a"].enabled && now.handlers["b"].enabled
    });
    assert!(!set(&observer, false), "already closed");
    assert!(set(&observer, true));
    observer.until_snapshot("the open gate", |now| now.handlers["a"].enabled);
    let unknown = observer.gates.set_gate("x", true);
    assert!(
        matches!(unknown, Err(GateError::UnknownHandler { .. })),
        "no handler has the name x"
    );
}

/// An invalid spec is rejected with its position, and the last good one stays active.
fn garbage(bench: &dyn Bench) {
    if !bench.takes_garbage() {
        return;
    }
    put(bench, "a", "one");
    let mut observer = Observer::start(bench);
    bench.write("a", Some("name: a\nplugin: relay\nroute: [none\n"));
    observer.until_snapshot("the rejection", |now| {
        let refused = now.rejections.first();
        refused.is_some_and(|refused| !refused.origin.is_empty() && !refused.problems.is_empty())
    });
    assert!(holds(&observer.now, &[("a", "one")]), "{:?}", observer.now);
    put(bench, "a", "two");
    observer.until_specs("the corrected spec", &[("a", "two")]);
    assert!(observer.now.rejections.is_empty(), "{:?}", observer.now);
}

/// The final state does not depend on the order in which specs arrive.
fn reorder(bench: &dyn Bench) {
    let mut ends = Vec::new();
    for order in [["a", "b", "c"], ["c", "a", "b"]] {
        let mut observer = Observer::start(bench);
        for handler in order {
            put(bench, handler, "one");
        }
        let all = [("a", "one"), ("b", "one"), ("c", "one")];
        observer.until_specs("all of them", &all);
        ends.push(observer.now.handlers.clone());
        for handler in order {
            bench.write(handler, None);
        }
        observer.until_specs("none of them", &[]);
    }
    assert_eq!(ends[0], ends[1]);
}

/// During an outage the last snapshot stays active; changes after it are observed.
fn outage(bench: &dyn Bench) {
    put(bench, "a", "one");
    let mut observer = Observer::start(bench);
    bench.set_away(true);
    observer.until("the loss", |update| {
        matches!(update, Update::Unreachable { .. })
    });
    assert!(holds(&observer.now, &[("a", "one")]), "{:?}", observer.now);
    bench.set_away(false);
    put(bench, "a", "two");
    put(bench, "b", "one");
    observer.until_specs("changes after the outage", &[("a", "two"), ("b", "one")]);
}

/// A watch that was open before a restart observes later changes, and a new source sees the same state.
fn restart(bench: &dyn Bench) {
    put(bench, "a", "one");
    let mut observer = Observer::start(bench);
    bench.restart();
    put(bench, "a", "two");
    observer.until_specs("a change after a restart", &[("a", "two")]);
    assert_eq!(Observer::start(bench).now.handlers, observer.now.handlers);
}

/// A requested re-read is harmless, and a dropped watch sends no more updates.
fn stop(bench: &dyn Bench) {
    put(bench, "a", "one");
    let mut observer = Observer::start(bench);
    observer.watch.reread();
    put(bench, "b", "one");
    observer.until_specs("a change after a re-read", &[("a", "one"), ("b", "one")]);
    let Observer { updates, watch, .. } = observer;
    drop(watch);
    put(bench, "c", "one");
    // The sink is dropped with the watch, which disconnects the channel.
    let end = Instant::now() + DEADLINE;
    loop {
        match updates.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Update::Snapshot(now)) => assert!(!now.handlers.contains_key("c"), "watch dropped"),
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => panic!("a dropped watch keeps its sink"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use sluicegate_config::control::ControlKey;
    use sluicegate_config::{Environment, read_spec};
    use sluicegate_store::{Expected, MemoryStore, Store};
    use sluicegate_sync::source::{
        FileSource, MemoryHandle, MemorySource, StoreSource, StoreSourceSettings,
    };

    use super::*;

    struct FolderBench {
        root: tempfile::TempDir,
    }

    impl FolderBench {
        fn folder(&self) -> PathBuf {
            self.root.path().join("handlers.d")
        }
    }

    impl Bench for FolderBench {
        fn open(&self) -> Box<dyn SpecSource> {
            let often = Duration::from_millis(100);
            let source = FileSource::new(self.folder(), often, Environment::default());
            Box::new(source)
        }

        fn write(&self, handler: &str, text: Option<&str>) {
            let file = self.folder().join(format!("{handler}.yaml"));
            match text {
                Some(text) => std::fs::write(file, text).unwrap(),
                None if file.exists() => std::fs::remove_file(file).unwrap(),
                None => {}
            }
        }

        fn set_away(&self, away: bool) {
            let aside = self.root.path().join("aside");
            match away {
                true => std::fs::rename(self.folder(), aside).unwrap(),
                false => std::fs::rename(aside, self.folder()).unwrap(),
            }
        }

        fn restart(&self) {
            self.set_away(true);
            self.set_away(false);
        }
    }

    #[derive(Default)]
    struct MemoryBench {
        texts: RefCell<BTreeMap<String, String>>,
        handles: RefCell<Vec<MemoryHandle>>,
    }

    impl MemoryBench {
        fn specs(&self) -> Vec<sluicegate_config::HandlerSpec> {
            let texts = self.texts.borrow();
            let read = |text: &String| read_spec(text, None, &Environment::default()).unwrap();
            texts.values().map(read).collect()
        }
    }

    impl Bench for MemoryBench {
        fn open(&self) -> Box<dyn SpecSource> {
            let (source, handle) = MemorySource::new(self.specs());
            self.handles.borrow_mut().push(handle);
            Box::new(source)
        }

        fn write(&self, handler: &str, text: Option<&str>) {
            let mut texts = self.texts.borrow_mut();
            match text {
                Some(text) => texts.insert(handler.to_owned(), text.to_owned()),
                None => texts.remove(handler),
            };
            drop(texts);
            for handle in &*self.handles.borrow() {
                handle.replace(self.specs());
            }
        }

        fn set_away(&self, away: bool) {
            for handle in &*self.handles.borrow() {
                handle.set_away(away);
            }
        }

        fn restart(&self) {
            self.set_away(true);
            self.set_away(false);
        }

        /// It holds parsed specs, not text.
        fn takes_garbage(&self) -> bool {
            false
        }
    }

    struct StoreBench(MemoryStore);

    impl Bench for StoreBench {
        fn open(&self) -> Box<dyn SpecSource> {
            let store = Arc::new(self.0.clone());
            Box::new(StoreSource::new(store, StoreSourceSettings::default()))
        }

        fn write(&self, handler: &str, text: Option<&str>) {
            let key = ControlKey::spec(handler).unwrap();
            let written = self.0.write(&key, text.map(str::as_bytes), Expected::Any);
            written.unwrap();
        }

        fn set_away(&self, away: bool) {
            self.0.handle().set_away(away);
        }

        fn restart(&self) {
            self.set_away(true);
            self.set_away(false);
        }
    }

    #[test]
    fn a_folder_conforms() {
        let root = tempfile::tempdir().unwrap();
        let bench = FolderBench { root };
        std::fs::create_dir(bench.folder()).unwrap();
        run_all(&bench);
    }

    #[test]
    fn memory_conforms() {
        run_all(&MemoryBench::default());
    }

    #[test]
    fn a_store_conforms() {
        run_all(&StoreBench(MemoryStore::new()));
    }
}
