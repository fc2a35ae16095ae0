//! The folder source on real folders: changes, deletions, invalid files, bursts, gates, outages. Every wait has a deadline.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use sluicegate_config::{Environment, RejectionEffect, Snapshot};
use sluicegate_sync::source::{FileSource, GateError, GateWriter, SpecSource, Update, WatchHandle};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(10);
/// So long that updates in a test come from events, not from re-reads.
const NO_RESCAN: Duration = Duration::from_secs(3600);

fn spec(name: &str, topic: &str) -> String {
    format!("# {name}\nname: {name}\nplugin: relay\nroute: {{ topics: [{topic}] }}\n")
}

fn write(folder: &Path, file: &str, text: &str) {
    std::fs::write(folder.join(file), text).unwrap();
}

struct Watched {
    folder: TempDir,
    updates: Receiver<Update>,
    watch: Box<dyn WatchHandle>,
    gates: Arc<dyn GateWriter>,
    seen: Vec<u64>,
}

impl Watched {
    fn start(files: &[(&str, String)], rescan: Duration) -> Self {
        let folder = TempDir::new().unwrap();
        for (file, text) in files {
            write(folder.path(), file, text);
        }
        let mut source = FileSource::new(folder.path(), rescan, Environment::default());
        source.snapshot().unwrap();
        let gates = source.gates();
        let (sender, updates) = channel();
        let watch = Box::new(source)
            .watch(Box::new(move |update| sender.send(update).unwrap()))
            .unwrap();
        Self {
            folder,
            updates,
            watch,
            gates,
            seen: Vec::new(),
        }
    }

    fn write(&self, file: &str, text: &str) {
        write(self.folder.path(), file, text);
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.folder.path().join(file)).unwrap();
    }

    /// The next snapshot that `fits`.
    fn until(&mut self, what: &str, fits: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.updates.recv_timeout(left) {
                Ok(Update::Snapshot(snapshot)) => {
                    assert!(
                        self.seen
                            .last()
                            .is_none_or(|last| *last < snapshot.revision),
                        "the revision decreased"
                    );
                    self.seen.push(snapshot.revision);
                    if fits(&snapshot) {
                        return snapshot;
                    }
                }
                Ok(_) => {}
                Err(_) => panic!("timed out after {DEADLINE:?} waiting for {what}"),
            }
        }
    }
}

fn topic_of(snapshot: &Snapshot, handler: &str) -> Option<String> {
    snapshot
        .handlers
        .get(handler)
        .map(|spec| spec.route.topics[0].to_string())
}

#[test]
fn created_changed_and_deleted_files_are_observed() {
    let mut watched = Watched::start(&[("a.yaml", spec("a", "one"))], NO_RESCAN);
    watched.write("b.yml", &spec("b", "two"));
    let first = watched.until("b", |now| now.handlers.contains_key("b"));
    watched.write(
        "c.json",
        "{\"name\": \"c\", \"plugin\": \"relay\", \"route\": {\"topics\": [\"x\"]}}",
    );
    watched.write("ignored.txt", "name: d");
    watched.write(".hidden.yaml", "name: e");
    watched.until("c", |now| {
        now.handlers.keys().map(String::as_str).eq(["a", "b", "c"])
    });
    watched.write("b.yml", &spec("b", "three"));
    let then = watched.until("b's change", |now| {
        topic_of(now, "b").as_deref() == Some("three")
    });
    assert!(
        Arc::ptr_eq(&first.handlers["a"], &then.handlers["a"]),
        "an unchanged spec is shared"
    );
    watched.remove("a.yaml");
    let last = watched.until("a's removal", |now| !now.handlers.contains_key("a"));
    assert!(last.rejections.is_empty());
}

#[test]
fn a_handler_whose_spec_is_a_link_stays_while_the_file_behind_it_is_missing() {
    let elsewhere = TempDir::new().unwrap();
    write(elsewhere.path(), "real.yaml", &spec("b", "one"));
    let mut watched = Watched::start(&[("a.yaml", spec("a", "one"))], NO_RESCAN);
    let link = watched.folder.path().join("b.yaml");
    std::os::unix::fs::symlink(elsewhere.path().join("real.yaml"), &link).unwrap();
    watched.until("b", |now| now.handlers.contains_key("b"));
    std::fs::remove_file(elsewhere.path().join("real.yaml")).unwrap();
    watched.write("a.yaml", &spec("a", "two"));
    let broken = watched.until("the rejection", |now| !now.rejections.is_empty());
    assert_eq!(topic_of(&broken, "b").as_deref(), Some("one"));
    let why = broken.rejections[0].problems.to_string();
    assert!(
        why.contains("is a link to a file that does not exist"),
        "{why}"
    );
    let mut fresh = FileSource::new(watched.folder.path(), NO_RESCAN, Environment::default());
    assert!(fresh.snapshot().is_err(), "a start would lose the handler");
    watched.remove("b.yaml");
    let last = watched.until("b's removal", |now| !now.handlers.contains_key("b"));
    assert!(last.rejections.is_empty());
}

#[test]
fn an_invalid_file_keeps_its_handlers_last_good_version_until_it_is_corrected() {
    let files = [("a.yaml", spec("a", "one")), ("b.yaml", spec("b", "one"))];
    let mut watched = Watched::start(&files, NO_RESCAN);
    watched.write(
        "a.yaml",
        "name: a\nplugin: relay\nroutes: { topics: [two] }\n",
    );
    let bad = watched.until("the rejection", |now| !now.rejections.is_empty());
    assert_eq!(topic_of(&bad, "a").as_deref(), Some("one"));
    let [rejection] = bad.rejections.as_slice() else {
        panic!("{:?}", bad.rejections)
    };
    assert_eq!(
        (rejection.effect, rejection.handlers.as_slice()),
        (RejectionEffect::LastGoodSpec, &["a".to_owned()][..])
    );
    assert!(rejection.origin.ends_with("a.yaml"));
    let text = rejection.problems.to_string();
    assert!(
        text.contains("a.yaml:3:1: routes: `routes` is unknown; did you mean `route`?"),
        "{text}"
    );

    watched.write("b.yaml", &spec("b", "two"));
    let during = watched.until("b's change", |now| {
        topic_of(now, "b").as_deref() == Some("two")
    });
    assert_eq!(during.rejections.len(), 1);

    watched.write("a.yaml", &spec("a", "three"));
    let corrected = watched.until("the end of the rejection", |now| now.rejections.is_empty());
    assert_eq!(topic_of(&corrected, "a").as_deref(), Some("three"));

    watched.write("new.yaml", "name: [");
    let new = watched.until("the new file's rejection", |now| !now.rejections.is_empty());
    assert_eq!(new.rejections[0].effect, RejectionEffect::NotRunning);
    assert_eq!(new.handlers.len(), 2);
}

#[test]
fn two_files_with_one_name_keep_its_last_good_version() {
    let mut watched = Watched::start(&[("a.yaml", spec("a", "one"))], NO_RESCAN);
    watched.write("z.yaml", &spec("a", "two"));
    let torn = watched.until("the rejection", |now| !now.rejections.is_empty());
    assert_eq!(topic_of(&torn, "a").as_deref(), Some("one"));
    let [of_a, of_z] = torn.rejections.as_slice() else {
        panic!("{:?}", torn.rejections)
    };
    for (rejection, file, other) in [(of_a, "a.yaml", "z.yaml"), (of_z, "z.yaml", "a.yaml")] {
        assert_eq!(rejection.effect, RejectionEffect::LastGoodSpec);
        assert_eq!(rejection.handlers, ["a"]);
        assert!(rejection.origin.ends_with(file), "{}", rejection.origin);
        let text = rejection.problems.to_string();
        let says = format!("{file}:2:7: name: `a` is also the name in");
        assert!(text.contains(&says) && text.contains(other), "{text}");
    }
    watched.remove("a.yaml");
    let healed = watched.until("the end of the rejection", |now| now.rejections.is_empty());
    assert_eq!(topic_of(&healed, "a").as_deref(), Some("two"));
}

#[test]
fn conflicting_files_freeze_only_the_handlers_that_they_name() {
    let pooled = |name: &str, workers: u32| {
        format!("{}pool: small\nworkers: {workers}\n", spec(name, "one"))
    };
    let files = [
        ("a.yaml", spec("a", "one")),
        ("b.yaml", spec("b", "one")),
        ("p.yaml", pooled("p", 2)),
        ("q.yaml", pooled("q", 2)),
    ];
    let mut watched = Watched::start(&files, NO_RESCAN);
    watched.write("z.yaml", &spec("a", "two"));
    watched.write("q.yaml", &pooled("q", 3));
    watched.write("r.yaml", &pooled("r", 2));
    let dead = |name: &str, topics: &str, dead: &str| {
        format!(
            "name: {name}\nplugin: relay\nroute: {{ topics: [{topics}] }}\ndead_letter: {{ topic: {dead} }}\n"
        )
    };
    watched.write("x.yaml", &dead("x", "x.in, y.dead", "x.dead"));
    watched.write("y.yaml", &dead("y", "x.dead", "y.dead"));
    watched.write("b.yaml", &spec("b", "two"));
    let now = watched.until("b's change and r", |now| {
        topic_of(now, "b").as_deref() == Some("two")
            && now.handlers.contains_key("r")
            && now.rejections.len() >= 4
    });
    assert_eq!(topic_of(&now, "a").as_deref(), Some("one"));
    assert_eq!(now.handlers["q"].workers, 2);
    let circle = ["x", "y"].map(|name| now.handlers.contains_key(name));
    assert_ne!(circle, [true, true], "a dead-letter cycle");
    let of: Vec<&str> = now
        .rejections
        .iter()
        .flat_map(|one| &one.handlers)
        .map(String::as_str)
        .collect();
    assert!(
        of.iter().all(|name| ["a", "q", "x", "y"].contains(name)),
        "{of:?}"
    );

    // Gates are still applied, also that of a handler with conflicting files.
    watched.gates.set_gate("b", false).unwrap();
    watched.until("b's gate", |now| !now.handlers["b"].enabled);
    let written = watched.gates.set_gate("a", false).unwrap();
    assert!(written.origin.contains("a.yaml") && written.origin.contains("z.yaml"));
    let now = watched.until("a's gate", |now| !now.handlers["a"].enabled);
    assert_eq!(topic_of(&now, "a").as_deref(), Some("one"));
    let text = std::fs::read_to_string(watched.folder.path().join("q.yaml")).unwrap();
    watched.write("q.yaml", &format!("{text}enabled: false\n"));
    let now = watched.until("q's gate", |now| !now.handlers["q"].enabled);
    assert_eq!(now.handlers["q"].workers, 2);
}

#[test]
fn a_rejected_file_can_close_its_gate_but_not_open_it() {
    let files = [("a.yaml", spec("a", "one")), ("b.yaml", spec("b", "one"))];
    let mut watched = Watched::start(&files, NO_RESCAN);
    for bad in [
        format!("{}enabled: false\nwrokers: 3\n", spec("a", "two")),
        format!(
            "{}enabled: false # off\nconfig: {{ x: [1 }}\n",
            spec("a", "two")
        ),
    ] {
        watched.write("a.yaml", &bad);
        let now = watched.until("the closed gate", |now| !now.handlers["a"].enabled);
        assert_eq!(
            topic_of(&now, "a").as_deref(),
            Some("one"),
            "the rest is unchanged"
        );
        assert!(now.handlers["b"].enabled);
        assert_eq!(now.rejections.len(), 1);
        // Without `enabled`, the gate of the last good version applies again.
        watched.write("a.yaml", &bad.replace("enabled: false", "enabled: true"));
        watched.until("the open gate", |now| now.handlers["a"].enabled);
    }
    // A rejected text does not open a gate that the last good version closes.
    watched.write("a.yaml", &format!("{}enabled: false\n", spec("a", "one")));
    watched.until("the end of the rejection", |now| now.rejections.is_empty());
    watched.write(
        "a.yaml",
        &format!("{}enabled: true\nwrokers: 3\n", spec("a", "one")),
    );
    let now = watched.until("the rejection", |now| !now.rejections.is_empty());
    assert!(!now.handlers["a"].enabled);
}

#[test]
fn a_gate_written_to_a_rejected_file_is_applied() {
    let mut watched = Watched::start(&[("a.yaml", spec("a", "one"))], NO_RESCAN);
    watched.write("a.yaml", &format!("{}wrokers: 3\n", spec("a", "two")));
    watched.until("the rejection", |now| !now.rejections.is_empty());
    watched.gates.set_gate("a", false).unwrap();
    watched.until("the closed gate", |now| !now.handlers["a"].enabled);
    watched.gates.set_gate("a", true).unwrap();
    watched.until("the open gate", |now| now.handlers["a"].enabled);
    // Not YAML: the gate cannot be written, and the error names the file instead of a missing handler.
    watched.write(
        "a.yaml",
        &format!("{}config: {{ x: [1 }}\n", spec("a", "one")),
    );
    let refused = watched.gates.set_gate("a", false).unwrap_err();
    assert!(
        matches!(&refused, GateError::NotWritable { .. }),
        "{refused}"
    );
    assert!(
        refused
            .to_string()
            .contains("a.yaml: it is not valid YAML; correct it first"),
        "{refused}"
    );
}

#[test]
fn a_file_that_is_renamed_and_broken_at_once_keeps_its_handler() {
    let mut watched = Watched::start(&[("a.yaml", spec("a", "one"))], NO_RESCAN);
    watched.write("b.yaml", &format!("{}wrokers: 3\n", spec("a", "two")));
    watched.remove("a.yaml");
    let now = watched.until("the rejection", |now| {
        now.rejections.len() == 1 && now.rejections[0].handlers == ["a"]
    });
    assert_eq!(topic_of(&now, "a").as_deref(), Some("one"));
    watched.remove("b.yaml");
    watched.until("a's removal", |now| now.handlers.is_empty());
}

#[test]
fn a_burst_ends_with_the_last_state() {
    let mut watched = Watched::start(&[("a.yaml", spec("a", "t0"))], NO_RESCAN);
    for round in 1..=200 {
        watched.write("a.yaml", &spec("a", &format!("t{round}")));
        watched.write(
            &format!("h{}.yaml", round % 20),
            &spec(&format!("h{}", round % 20), &format!("t{round}")),
        );
    }
    let last = watched.until("the last state", |now| {
        topic_of(now, "a").as_deref() == Some("t200")
    });
    assert!(last.rejections.is_empty(), "{:?}", last.rejections);
    let all = watched.until_or(last, |now| {
        now.handlers.len() == 21 && topic_of(now, "h0").as_deref() == Some("t200")
    });
    assert_eq!(all.handlers.len(), 21);
    assert!(
        watched.seen.len() < 100,
        "{} updates for one burst",
        watched.seen.len()
    );
}

#[test]
fn a_folder_created_late_is_found() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("late");
    let source = FileSource::new(&path, Duration::from_millis(50), Environment::default());
    let (sender, updates) = channel();
    let watch = Box::new(source)
        .watch(Box::new(move |update| sender.send(update).unwrap()))
        .unwrap();
    std::fs::create_dir(&path).unwrap();
    write(&path, "a.yaml", &spec("a", "one"));
    let end = Instant::now() + DEADLINE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match updates
            .recv_timeout(left)
            .expect("the spec of the new folder")
        {
            Update::Snapshot(now) if topic_of(&now, "a").as_deref() == Some("one") => break,
            _ => {}
        }
    }
    drop(watch);
}

#[test]
fn a_rescan_finds_changes_without_events() {
    // A symlinked folder: the watch is on the link's target, and the link is moved to another target.
    let root = TempDir::new().unwrap();
    for (version, topic) in [("v1", "one"), ("v2", "two")] {
        std::fs::create_dir(root.path().join(version)).unwrap();
        write(&root.path().join(version), "a.yaml", &spec("a", topic));
    }
    let link = root.path().join("current");
    std::os::unix::fs::symlink(root.path().join("v1"), &link).unwrap();
    let source = FileSource::new(&link, Duration::from_millis(100), Environment::default());
    let (sender, updates) = channel();
    let watch = Box::new(source)
        .watch(Box::new(move |update| sender.send(update).unwrap()))
        .unwrap();
    let wait = |topic: &str| {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match updates
                .recv_timeout(left)
                .expect("the state did not come in time")
            {
                Update::Snapshot(now) if topic_of(&now, "a").as_deref() == Some(topic) => return,
                _ => {}
            }
        }
    };
    wait("one");
    let new = root.path().join("new");
    std::os::unix::fs::symlink(root.path().join("v2"), &new).unwrap();
    std::fs::rename(&new, &link).unwrap();
    wait("two");
    drop(watch);
}

#[test]
fn a_removed_folder_keeps_everything_active_and_is_found_again() {
    let mut watched = Watched::start(&[("a.yaml", spec("a", "one"))], Duration::from_millis(100));
    let path = watched.folder.path().to_path_buf();
    let aside = path.with_extension("aside");
    std::fs::rename(&path, &aside).unwrap();
    let end = Instant::now() + DEADLINE;
    loop {
        match watched
            .updates
            .recv_timeout(end.saturating_duration_since(Instant::now()))
            .unwrap()
        {
            Update::Unreachable { reason } => {
                assert!(
                    reason.contains("cannot be read") && reason.contains("handlers.file.folder"),
                    "{reason}"
                );
                break;
            }
            Update::Snapshot(now) => assert_eq!(now.handlers.len(), 1),
            other => panic!("{other:?} before the outage"),
        }
    }
    std::fs::rename(&aside, &path).unwrap();
    watched.write("b.yaml", &spec("b", "two"));
    let back = watched.until("b", |now| now.handlers.contains_key("b"));
    assert!(back.handlers.contains_key("a"));
}

#[test]
fn reread_is_immediate() {
    let mut watched = Watched::start(&[("a.yaml", spec("a", "one"))], NO_RESCAN);
    // Changes of a referenced file cause no events in the watched folder.
    let outside = TempDir::new().unwrap();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "first\n").unwrap();
    let text = format!(
        "{}config: {{ password: \"${{file:{}}}\" }}\n",
        spec("a", "one"),
        secret.display()
    );
    watched.write("a.yaml", &text);
    watched.until("the secret", |now| {
        now.handlers["a"].config.expose()["password"] == "first"
    });
    std::fs::write(&secret, "second\n").unwrap();
    watched.watch.reread();
    watched.until("the new secret", |now| {
        now.handlers["a"].config.expose()["password"] == "second"
    });
}

#[test]
fn gates_are_written_to_the_file_and_observed() {
    let text = "# the auditor\nname: auditor # who\nplugin: relay\nenabled: true   # the gate\nroute: { topics: [t] }\n";
    let mut watched = Watched::start(
        &[("a.yaml", text.to_owned()), ("b.yaml", spec("b", "t"))],
        NO_RESCAN,
    );
    let written = watched.gates.set_gate("auditor", false).unwrap();
    assert!(written.changed && written.origin.ends_with("a.yaml"));
    watched.until("the closed gate", |now| !now.handlers["auditor"].enabled);
    let now = std::fs::read_to_string(watched.folder.path().join("a.yaml")).unwrap();
    assert_eq!(now, text.replace("true", "false"));
    assert!(!watched.gates.set_gate("auditor", false).unwrap().changed);
    watched.gates.set_gate("b", false).unwrap();
    watched.until("b's closed gate", |now| !now.handlers["b"].enabled);
    watched.gates.set_gate("auditor", true).unwrap();
    watched.until("the open gate", |now| now.handlers["auditor"].enabled);

    let unknown = watched.gates.set_gate("auditer", true).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "no handler `auditer`; did you mean `auditor`?"
    );
    watched.write("z.yaml", &spec("b", "t"));
    let twice = watched.gates.set_gate("b", true).unwrap_err();
    assert!(matches!(twice, GateError::NotWritable { .. }), "{twice}");
    let names: Vec<_> = std::fs::read_dir(watched.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "no temporary files remain: {names:?}");
}

#[test]
fn every_problem_of_every_file_is_an_error_at_start() {
    let folder = TempDir::new().unwrap();
    write(
        folder.path(),
        "a.yaml",
        "name: A\nplugin: relay\nroute: { topics: [] }\n",
    );
    write(folder.path(), "b.yaml", &spec("b", "t"));
    write(folder.path(), "c.yaml", &spec("b", "t"));
    let mut source = FileSource::new(folder.path(), NO_RESCAN, Environment::default());
    let problems = source.snapshot().unwrap_err().into_problems();
    assert_eq!(problems.len(), 4, "{problems}");
    let mut missing = FileSource::new(
        folder.path().join("none"),
        NO_RESCAN,
        Environment::default(),
    );
    assert!(
        missing
            .snapshot()
            .unwrap_err()
            .to_string()
            .contains("cannot be read")
    );
}

#[test]
fn one_pool_with_two_limits_is_a_conflict() {
    let folder = TempDir::new().unwrap();
    write(
        folder.path(),
        "a.yaml",
        &format!("{}pool: small\nworkers: 2\n", spec("a", "t")),
    );
    write(
        folder.path(),
        "b.yaml",
        &format!("{}pool: small\nworkers: 3\n", spec("b", "t")),
    );
    let mut source = FileSource::new(folder.path(), NO_RESCAN, Environment::default());
    let text = source.snapshot().unwrap_err().to_string();
    assert!(
        text.contains("b.yaml:5:7: pool: `small` is shared with `a`"),
        "{text}"
    );
    assert!(text.contains("different `workers`"), "{text}");

    for name in ["c", "d", "e"] {
        let more = format!("{}pool: small\nworkers: 3\n", spec(name, "t"));
        write(folder.path(), &format!("{name}.yaml"), &more);
    }
    let problems = source.snapshot().unwrap_err().into_problems();
    assert_eq!(
        problems.len(),
        1,
        "only the minority is reported: {problems}"
    );
    assert!(
        problems.to_string().contains("a.yaml:5:7: pool:"),
        "{problems}"
    );
}

impl Watched {
    /// `now` if it fits, else the next snapshot that does.
    fn until_or(&mut self, now: Arc<Snapshot>, fits: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        if fits(&now) {
            now
        } else {
            self.until("the expected state", fits)
        }
    }
}
