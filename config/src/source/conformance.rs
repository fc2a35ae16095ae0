//! What every [`SpecSource`] must do, as checks that a test runs against it: a folder, memory, etcd and ZooKeeper pass all of
//! them.
//!
//! Each check takes a [`Bench`] that holds no specs and uses its own names; it panics with what it saw.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{GateError, GateWriter, SpecSource, Update, WatchHandle};
use crate::snapshot::Snapshot;

/// How long anything may take: to be seen, to be noticed as away, or as back.
const SOON: Duration = Duration::from_secs(20);

/// What a source reads, in the hands of a test.
pub trait Bench {
    /// A source that reads it.
    fn open(&self) -> Box<dyn SpecSource>;
    /// Puts the spec of a handler there, or takes it away; however long that takes.
    fn write(&self, handler: &str, text: Option<&str>);
    /// Takes it away from all sources, or brings it back with everything it knew.
    fn set_away(&self, away: bool);
    /// Takes it away and brings it back at once, as a restart of a server does.
    fn restart(&self);
    /// Whether a text that is no spec can stand there.
    fn takes_garbage(&self) -> bool {
        true
    }
}

/// Something that every source must do.
pub type Check = fn(&dyn Bench);

/// Every check with its name.
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

/// Runs every check, each on an emptied bench.
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

/// A spec that reads `topic`.
#[must_use]
pub fn text(handler: &str, topic: &str) -> String {
    format!("name: {handler}\nplugin: relay\nroute: {{ topics: [{topic}] }}\n")
}

/// A source that is watched.
struct Observer {
    updates: Receiver<Update>,
    /// What is in effect.
    now: Arc<Snapshot>,
    gates: Arc<dyn GateWriter>,
    watch: Box<dyn WatchHandle>,
}

impl Observer {
    /// Watches what stands there, having read it first.
    fn start(bench: &dyn Bench) -> Self {
        let mut source = bench.open();
        assert!(!source.describe().is_empty(), "a source says what it reads");
        let now = source.snapshot().unwrap_or_else(|error| panic!("{error}"));
        let gates = source.gates();
        let (sender, updates) = channel();
        let watch = source.watch(Box::new(move |update| {
            // The check may be over.
            let _ = sender.send(update);
        }));
        Self {
            updates,
            now: Arc::new(now),
            gates,
            watch: watch.unwrap_or_else(|error| panic!("{error}")),
        }
    }

    /// Waits for an update that fits, and takes note of every snapshot until then: revisions never go backwards (G10).
    fn until(&mut self, what: &str, fits: impl Fn(&Update) -> bool) {
        let end = Instant::now() + SOON;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let update = self.updates.recv_timeout(left);
            let update =
                update.unwrap_or_else(|_| panic!("{what} did not come; there is {:?}", self.now));
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

    /// Waits until exactly these specs are in effect, by handler and topic.
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

/// Whether exactly these handlers are in a snapshot, each with its first topic.
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
    observer.until_specs("what came", &[("a", "one"), ("b", "one")]);
    put(bench, "a", "two");
    observer.until_specs("what changed", &[("a", "two"), ("b", "one")]);
}

fn delete(bench: &dyn Bench) {
    put(bench, "a", "one");
    put(bench, "b", "one");
    let mut observer = Observer::start(bench);
    bench.write("a", None);
    observer.until_specs("what went", &[("b", "one")]);
    bench.write("b", None);
    observer.until_specs("the last one's going", &[]);
    put(bench, "a", "two");
    observer.until_specs("its coming back", &[("a", "two")]);
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
    observer.until_snapshot("the shut gate", |now| {
        !now.handlers["a"].enabled && now.handlers["b"].enabled
    });
    assert!(!set(&observer, false), "it is shut already");
    assert!(set(&observer, true));
    observer.until_snapshot("the open gate", |now| now.handlers["a"].enabled);
    let unknown = observer.gates.set_gate("x", true);
    assert!(
        matches!(unknown, Err(GateError::UnknownHandler { .. })),
        "nobody is called x"
    );
}

/// What is no spec is refused with its place, and the last good one stays in effect.
fn garbage(bench: &dyn Bench) {
    if !bench.takes_garbage() {
        return;
    }
    put(bench, "a", "one");
    let mut observer = Observer::start(bench);
    bench.write("a", Some("name: a\nplugin: relay\nroute: [none\n"));
    observer.until_snapshot("the refusal", |now| {
        let refused = now.rejections.first();
        refused.is_some_and(|refused| !refused.origin.is_empty() && !refused.problems.is_empty())
    });
    assert!(holds(&observer.now, &[("a", "one")]), "{:?}", observer.now);
    put(bench, "a", "two");
    observer.until_specs("what was mended", &[("a", "two")]);
    assert!(observer.now.rejections.is_empty(), "{:?}", observer.now);
}

/// The order in which specs come makes no difference in the end.
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

/// While it is away the last snapshot stays in effect; what comes after is seen.
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
    observer.until_specs("what came then", &[("a", "two"), ("b", "one")]);
}

/// A source that was watched before a restart sees what comes after it, and one that is made then sees the same.
fn restart(bench: &dyn Bench) {
    put(bench, "a", "one");
    let mut observer = Observer::start(bench);
    bench.restart();
    put(bench, "a", "two");
    observer.until_specs("what came after a restart", &[("a", "two")]);
    assert_eq!(Observer::start(bench).now.handlers, observer.now.handlers);
}

/// A re-read that is asked for breaks nothing, and a watch that was dropped tells nothing more.
fn stop(bench: &dyn Bench) {
    put(bench, "a", "one");
    let mut observer = Observer::start(bench);
    observer.watch.reread();
    put(bench, "b", "one");
    observer.until_specs("what came after a re-read", &[("a", "one"), ("b", "one")]);
    let Observer { updates, watch, .. } = observer;
    drop(watch);
    put(bench, "c", "one");
    // The sink goes with the watch, so that the updates have an end.
    let end = Instant::now() + SOON;
    loop {
        match updates.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Update::Snapshot(now)) => assert!(!now.handlers.contains_key("c"), "it was dropped"),
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => panic!("a watch that was dropped keeps its sink"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;
    use crate::source::{FileSource, MemoryHandle, MemorySource, StoreSource, StoreSourceSettings};
    use crate::store::{ControlKey, Expected, MemoryStore, Store};
    use crate::{Environment, read_spec};

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
        fn specs(&self) -> Vec<crate::HandlerSpec> {
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

        /// It holds specs, not texts.
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
