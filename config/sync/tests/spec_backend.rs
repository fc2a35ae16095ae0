//! Situation: operators and services write specs and gates to a folder or a store.
//! Property: the same steps have the same results and effects; where the kinds differ, each difference is listed here.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::sync::Arc;
use std::time::Duration;

use sluicegate_config::Environment;
use sluicegate_config::control::{ControlKey, Rollout};
use sluicegate_store::{Expected, MemoryStore, Store};
use sluicegate_sync::fleet::{FleetError, GateKeyPolicy, SpecBackend};
use sluicegate_sync::source::{
    FileSource, GateError, GateWriter, SpecSource, StoreSource, StoreSourceSettings,
};
use tempfile::TempDir;

const COPY: &str = "name: copy\nplugin: relay\nroute: { topics: [t] }\n";
const COPY_2: &str = "name: copy\nplugin: relay\nroute: { topics: [t] }\nworkers: 2\n";
const AUDIT: &str = "name: audit\nplugin: relay\nenabled: false\nroute: { topics: [t] }\n";

/// An empty folder or store.
enum Place {
    Folder(TempDir),
    Store(MemoryStore),
}

impl Place {
    fn both() -> [Self; 2] {
        let folder = TempDir::new().unwrap();
        [Self::Folder(folder), Self::Store(MemoryStore::new())]
    }

    fn backend(&self) -> SpecBackend {
        match self {
            Self::Folder(folder) => SpecBackend::in_folder(folder.path()),
            Self::Store(store) => SpecBackend::in_store(Arc::new(store.clone())),
        }
    }

    fn source(&self) -> Box<dyn SpecSource> {
        match self {
            Self::Folder(folder) => Box::new(FileSource::new(
                folder.path(),
                Duration::from_secs(3600),
                Environment::default(),
            )),
            Self::Store(store) => Box::new(StoreSource::new(
                Arc::new(store.clone()),
                StoreSourceSettings::default(),
            )),
        }
    }

    /// What a service reads, such as `audit x4 closed, copy x1 open`.
    fn read(&self) -> String {
        let handlers = self.source().snapshot().unwrap().handlers;
        let handlers = handlers.iter().map(|(name, spec)| {
            let gate = if spec.enabled { "open" } else { "closed" };
            format!("{name} x{} {gate}", spec.workers)
        });
        handlers.collect::<Vec<_>>().join(", ")
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Apply(&'static str),
    Delete(&'static str),
    /// A gate written by an operator's command.
    Gate(&'static str, bool),
    /// A gate written by a running service.
    ServiceGate(&'static str, bool),
}

impl Step {
    fn run(self, place: &Place) -> String {
        let backend = place.backend();
        let changed = match self {
            Self::Apply(text) => backend.apply(text, None, None).map(|done| done.changed),
            Self::Delete(name) => backend.delete(name).map(|done| !done.places.is_empty()),
            Self::Gate(name, open) => backend
                .write_gate(name, open, GateKeyPolicy::Always)
                .map(|done| done.changed),
            Self::ServiceGate(name, open) => {
                let gates = place.source().gates();
                let written = gates.set_gate(name, open).map(|done| done.changed);
                written.map_err(FleetError::from)
            }
        };
        match changed {
            Ok(true) => "changed".to_owned(),
            Ok(false) => "unchanged".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

const NO_HANDLER: &str = "no handler `cpoy`; did you mean `copy`?";

/// Each step with its result and what a service reads after it.
const STEPS: [(Step, &str, &str); 18] = [
    (Step::Apply(COPY), "changed", "copy x4 open"),
    (Step::Apply(COPY), "unchanged", "copy x4 open"),
    (
        Step::Apply("plugin: relay\n"),
        "has no readable `name`; a spec starts with `name: …`",
        "copy x4 open",
    ),
    (Step::Apply(COPY_2), "changed", "copy x2 open"),
    (Step::ServiceGate("copy", true), "unchanged", "copy x2 open"),
    (
        Step::ServiceGate("copy", false),
        "changed",
        "copy x2 closed",
    ),
    (
        Step::ServiceGate("copy", false),
        "unchanged",
        "copy x2 closed",
    ),
    (Step::Gate("copy", false), "unchanged", "copy x2 closed"),
    (Step::Gate("copy", true), "changed", "copy x2 open"),
    (Step::Gate("copy", true), "unchanged", "copy x2 open"),
    (Step::Gate("cpoy", true), NO_HANDLER, "copy x2 open"),
    (Step::ServiceGate("cpoy", true), NO_HANDLER, "copy x2 open"),
    (Step::Delete("cpoy"), NO_HANDLER, "copy x2 open"),
    (
        Step::Apply(AUDIT),
        "changed",
        "audit x4 closed, copy x2 open",
    ),
    (Step::Delete("copy"), "changed", "audit x4 closed"),
    (Step::Delete("copy"), "no handler `copy`", "audit x4 closed"),
    (
        Step::ServiceGate("copy", false),
        "no handler `copy`",
        "audit x4 closed",
    ),
    (Step::Gate("audit", true), "changed", "audit x4 open"),
];

#[test]
fn the_same_steps_have_the_same_results_in_a_folder_and_a_store() {
    for place in Place::both() {
        for (step, result, reads) in STEPS {
            let what = format!("{step:?} in {}", place.source().describe());
            assert_eq!(step.run(&place), result, "{what}");
            assert_eq!(place.read(), reads, "{what}");
        }
    }
}

#[test]
fn only_a_store_has_revisions_members_and_gate_keys() {
    let [folder, store] = Place::both();
    for place in [&folder, &store] {
        place.backend().apply(COPY, None, None).unwrap();
    }
    let refused = folder.backend().apply(COPY_2, None, Some(1)).unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("which has no members to wait for and no revisions; this requires `handlers.etcd` or `handlers.zookeeper`"),
        "{refused}"
    );
    assert!(folder.backend().store("rollouts").is_err());
    assert_eq!(folder.read(), "copy x4 open");
    // The same text, so that only the revision is compared.
    let moved = store.backend().apply(COPY, None, Some(9)).unwrap_err();
    assert!(matches!(moved, FleetError::Moved { .. }), "{moved}");
    assert!(store.backend().store("rollouts").is_ok());

    // An open gate that no one has closed: only an operator's command creates the key, which then overrides the spec.
    for (place, policy, changed) in [
        (&folder, GateKeyPolicy::Always, false),
        (&store, GateKeyPolicy::UnlessDeclared, false),
        (&store, GateKeyPolicy::Always, true),
    ] {
        let written = place.backend().write_gate("copy", true, policy).unwrap();
        assert_eq!(written.changed, changed, "{policy:?}");
    }
    let closed = format!("{COPY}enabled: false\n");
    let applied = folder.backend().apply(&closed, None, None).unwrap();
    assert_eq!((applied.revision, applied.overridden_by.len()), (0, 0));
    assert_eq!(folder.read(), "copy x4 closed");
    let applied = store.backend().apply(&closed, None, None).unwrap();
    assert_eq!(applied.overridden_by, ["copy/enabled"]);
    assert_eq!(store.read(), "copy x4 open");
}

#[test]
fn a_rollout_prevents_changes_of_its_spec_but_not_of_its_gate() {
    let store = MemoryStore::new();
    let place = Place::Store(store.clone());
    place.backend().apply(COPY, None, None).unwrap();
    let key = ControlKey::rollout("copy").unwrap();
    let rollout = Rollout {
        id: "r".to_owned(),
        ..Rollout::default()
    };
    store
        .write(&key, Some(&rollout.to_json()), Expected::Absent)
        .unwrap();
    for step in [Step::Apply(COPY), Step::Apply(COPY_2), Step::Delete("copy")] {
        let refused = step.run(&place);
        assert!(
            refused.starts_with("a rollout of `copy`, started by an unknown operator"),
            "{step:?}: {refused}"
        );
    }
    // What the spec declares is not what members of the rollout run.
    assert_eq!(Step::ServiceGate("copy", true).run(&place), "changed");
    assert_eq!(Step::Gate("copy", false).run(&place), "changed");
}

#[test]
fn an_invalid_name_is_an_unknown_handler_except_to_operators_of_a_store() {
    for place in Place::both() {
        let refused = place.backend().set_gate("No Name", true).unwrap_err();
        let is_unknown =
            matches!(&refused, GateError::UnknownHandler { hint, .. } if hint.is_empty());
        assert!(is_unknown, "{refused}");
        let operator = [
            place
                .backend()
                .write_gate("No Name", true, GateKeyPolicy::Always)
                .unwrap_err(),
            place.backend().delete("No Name").unwrap_err(),
        ];
        for refused in operator {
            match (&place, &refused) {
                (Place::Folder(_), FleetError::Unknown { .. })
                | (Place::Store(_), FleetError::Name(_)) => {}
                _ => panic!("{refused}"),
            }
        }
    }
}

#[test]
fn an_unavailable_place_is_named() {
    let [folder, store] = Place::both();
    if let Place::Store(store) = &store {
        store.handle().set_away(true);
    }
    let Place::Folder(root) = &folder else {
        unreachable!("the first is a folder");
    };
    let missing = root.path().join("none");
    let shown = missing.display();
    let folder = SpecBackend::in_folder(&missing);
    let store = store.backend();
    let spec = |backend: &SpecBackend| backend.apply(COPY, None, None).unwrap_err().to_string();
    let gate = |backend: &SpecBackend| {
        let written = backend.write_gate("copy", true, GateKeyPolicy::Always);
        written.unwrap_err().to_string()
    };
    let service = |backend: &SpecBackend| backend.set_gate("copy", true).unwrap_err().to_string();
    for (error, start) in [
        (
            spec(&folder),
            format!("the folder {shown} of handler specs cannot be read: "),
        ),
        (gate(&folder), format!("cannot write the gate in {shown}: ")),
        (
            service(&folder),
            format!("cannot write the gate in {shown}: "),
        ),
        (spec(&store), "memory cannot be reached".to_owned()),
        (gate(&store), "memory cannot be reached".to_owned()),
        (
            service(&store),
            "cannot write the gate in copy/enabled: memory cannot be reached".to_owned(),
        ),
    ] {
        assert!(error.starts_with(&start), "{error}");
    }
}

#[test]
fn a_file_that_is_not_yaml_declares_a_gate_but_no_spec() {
    let [place, _] = Place::both();
    let Place::Folder(folder) = &place else {
        unreachable!("the first is a folder");
    };
    let broken = "name: copy\nroute: { topics: [t }\n";
    std::fs::write(folder.path().join("copy.yaml"), broken).unwrap();
    let unknown = place.backend().delete("copy").unwrap_err();
    assert!(matches!(unknown, FleetError::Unknown { .. }), "{unknown}");
    let exists = place.backend().apply(COPY, None, None).unwrap_err();
    assert!(matches!(exists, FleetError::Store(_)), "{exists}");
    let refused = place.backend().set_gate("copy", false).unwrap_err();
    assert!(
        matches!(refused, GateError::NotWritable { .. }),
        "{refused}"
    );
    let kept = std::fs::read_to_string(folder.path().join("copy.yaml")).unwrap();
    assert_eq!(kept, broken);
}
