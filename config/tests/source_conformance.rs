//! What every source of specs promises, whatever it reads from: each source runs the same scenario.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sluicegate_config::source::{
    FileSource, GateError, MemoryHandle, MemorySource, SpecSource, StoreSource,
    StoreSourceSettings, Update,
};
use sluicegate_config::store::{ControlKey, Expected, MemoryStore, Store as _};
use sluicegate_config::{Environment, HandlerSpec, Snapshot, read_spec};

const DEADLINE: Duration = Duration::from_secs(10);

/// How a scenario writes to what a source reads.
trait Store {
    /// Everything that is to stand there from now on: name and topic of each spec.
    fn hold(&mut self, specs: &[(&str, &str)]);
}

fn text(name: &str, topic: &str) -> String {
    format!("name: {name}\nplugin: relay\nroute: {{ topics: [{topic}] }}\n")
}

struct FolderStore {
    folder: tempfile::TempDir,
}

impl Store for FolderStore {
    fn hold(&mut self, specs: &[(&str, &str)]) {
        let path = |name: &str| self.folder.path().join(format!("{name}.yaml"));
        let kept: Vec<PathBuf> = specs.iter().map(|(name, _)| path(name)).collect();
        for (name, topic) in specs {
            let wanted = text(name, topic);
            if std::fs::read_to_string(path(name)).ok().as_deref() != Some(wanted.as_str()) {
                std::fs::write(path(name), wanted).unwrap();
            }
        }
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let file = entry.unwrap().path();
            if !kept.contains(&file) {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
}

impl Store for MemoryHandle {
    fn hold(&mut self, specs: &[(&str, &str)]) {
        let read = |(name, topic): &(&str, &str)| -> HandlerSpec {
            read_spec(&text(name, topic), None, &Environment::default()).unwrap()
        };
        self.replace(specs.iter().map(read));
    }
}

impl Store for MemoryStore {
    fn hold(&mut self, specs: &[(&str, &str)]) {
        for (name, topic) in specs {
            let key = ControlKey::spec(name).unwrap();
            let wanted = text(name, topic);
            self.write(&key, Some(wanted.as_bytes()), Expected::Any)
                .unwrap();
        }
        for key in self.list().unwrap().entries.keys() {
            let ControlKey::Spec(name) = key else {
                continue;
            };
            if !specs.iter().any(|(kept, _)| kept == name) {
                self.write(key, None, Expected::Any).unwrap();
            }
        }
    }
}

struct Observer {
    updates: Receiver<Update>,
    revision: u64,
}

impl Observer {
    fn until(&mut self, what: &str, fits: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let end = Instant::now() + DEADLINE;
        loop {
            match self
                .updates
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(Update::Snapshot(now)) => {
                    assert!(
                        now.revision >= self.revision,
                        "{what}: a revision went backwards"
                    );
                    self.revision = now.revision;
                    if fits(&now) {
                        return now;
                    }
                }
                Ok(_) => {}
                Err(_) => panic!("{what} did not come within {DEADLINE:?}"),
            }
        }
    }
}

fn holds(snapshot: &Snapshot, specs: &[(&str, &str)]) -> bool {
    let now = snapshot
        .handlers
        .values()
        .map(|spec| (spec.name.clone(), spec.route.topics[0].to_string()));
    let wanted = specs
        .iter()
        .map(|(name, topic)| ((*name).to_owned(), (*topic).to_owned()));
    now.eq(wanted)
}

/// List, add, change, delete, burst, gate, re-read, stop.
fn conforms(mut source: Box<dyn SpecSource>, store: &mut dyn Store) {
    assert!(!source.describe().is_empty());
    store.hold(&[("a", "one"), ("b", "one")]);
    let first = source.snapshot().unwrap();
    assert!(
        holds(&first, &[("a", "one"), ("b", "one")]) && first.revision > 0,
        "{first:?}"
    );
    let gates = source.gates();
    let (sender, updates) = channel();
    let watch = source
        .watch(Box::new(move |update| sender.send(update).unwrap()))
        .unwrap();
    let mut observer = Observer {
        updates,
        revision: first.revision,
    };
    let steps: [&[(&str, &str)]; 4] = [
        &[("a", "one"), ("b", "one"), ("c", "one")],
        &[("a", "two"), ("b", "one"), ("c", "one")],
        &[("a", "two"), ("c", "one")],
        &[],
    ];
    for step in steps {
        store.hold(step);
        observer.until("a step", |now| holds(now, step));
    }
    for round in 0..100 {
        let topic = format!("t{round}");
        store.hold(&[("a", &topic), ("b", "one")]);
    }
    observer.until("the end of a burst", |now| {
        holds(now, &[("a", "t99"), ("b", "one")])
    });

    assert!(gates.set_gate("a", false).unwrap().changed);
    observer.until("the shut gate", |now| {
        !now.handlers["a"].enabled && now.handlers["b"].enabled
    });
    assert!(!gates.set_gate("a", false).unwrap().changed);
    assert!(gates.set_gate("a", true).unwrap().changed);
    observer.until("the open gate", |now| now.handlers["a"].enabled);
    let unknown = gates.set_gate("x", true).unwrap_err();
    assert!(
        matches!(unknown, GateError::UnknownHandler { .. }),
        "{unknown}"
    );

    watch.reread();
    store.hold(&[("z", "last")]);
    observer.until("what came after a re-read", |now| {
        holds(now, &[("z", "last")])
    });
    drop(watch);
    store.hold(&[("y", "unseen")]);
    let unseen = observer
        .updates
        .try_iter()
        .any(|update| matches!(&update, Update::Snapshot(now) if now.handlers.contains_key("y")));
    assert!(!unseen, "a watch that was dropped still reports");
}

#[test]
fn the_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let source = FileSource::new(
        folder.path(),
        Duration::from_secs(3600),
        Environment::default(),
    );
    conforms(Box::new(source), &mut FolderStore { folder });
}

#[test]
fn the_folder_conforms_by_re_reading_alone_when_it_is_made_late() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("late");
    let source = FileSource::new(&path, Duration::from_millis(50), Environment::default());
    let (sender, updates) = channel();
    let watch = Box::new(source)
        .watch(Box::new(move |update| sender.send(update).unwrap()))
        .unwrap();
    let mut observer = Observer {
        updates,
        revision: 0,
    };
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("a.yaml"), text("a", "one")).unwrap();
    observer.until("the late folder's spec", |now| holds(now, &[("a", "one")]));
    drop(watch);
}

#[test]
fn memory_conforms() {
    let (source, mut handle) = MemorySource::new([]);
    conforms(Box::new(source), &mut handle);
}

#[test]
fn a_store_conforms() {
    let mut store = MemoryStore::new();
    let source = StoreSource::new(Arc::new(store.clone()), StoreSourceSettings::default());
    conforms(Box::new(source), &mut store);
}
