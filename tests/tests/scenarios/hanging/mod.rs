//! Shared by the scenario `hangs`: handlers that hang at random, their neighbours, and what is measured of them.

pub(crate) mod account;
pub(crate) mod bounds;
pub(crate) mod samples;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use e2e::artefacts;
use e2e::client::{Client, Outgoing};
use e2e::workdir::Workdir;
use e2e::{now_ms, unique};

/// Partitions of every topic.
pub(crate) const PARTITIONS: u64 = 6;
/// A multiple of `PARTITIONS`: a key is in one partition.
const KEYS: u64 = 60;
/// Records per second and topic.
pub(crate) const RATE: u64 = 120;
/// Records of a burst.
pub(crate) const BURST: u64 = 5_000;
/// `processing.drain_timeout`.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A handler that hangs.
pub(crate) struct Hanging {
    pub(crate) name: &'static str,
    /// Its name in the plugin.
    exported: &'static str,
    pub(crate) workers: u64,
    /// Further lines of its spec.
    more: &'static str,
}

impl Hanging {
    const fn new(
        name: &'static str,
        exported: &'static str,
        workers: u64,
        more: &'static str,
    ) -> Self {
        Self {
            name,
            exported,
            workers,
            more,
        }
    }
}

const PER_RECORD: &str = "misbehave-hang";
const BATCH: &str = "misbehave-hang-batch";
/// Never dead-letters what hangs.
const HOLD: &str = "retry: { max_attempts: 1000000, backoff: { delay: 50ms, max_delay: 1s } }\n";
const HOLD_SHARED: &str =
    "pool: both\nretry: { max_attempts: 1000000, backoff: { delay: 50ms, max_delay: 1s } }\n";
const HOLD_PARTITION: &str =
    "order: partition\nretry: { max_attempts: 1000000, backoff: { delay: 50ms, max_delay: 1s } }\n";
/// Dead-letters what hangs twice, and everything while it is tripped.
const LETTERS: &str = "on_failure: dead_letter\nretry: { max_attempts: 2, backoff: { delay: 50ms } }\n\
                       dead_letter: { topic: \"{topic}.letters\" }\n";

/// The handlers that hang, all on one topic.
pub(crate) const HANGING: [Hanging; 9] = [
    Hanging::new("single", PER_RECORD, 1, HOLD),
    Hanging::new("several", PER_RECORD, 4, HOLD),
    Hanging::new("strict", PER_RECORD, 2, HOLD_PARTITION),
    Hanging::new("batch", BATCH, 2, HOLD),
    Hanging::new(OVERLAP, "misbehave-hang-async", 2, HOLD),
    Hanging::new("shared-a", PER_RECORD, 3, HOLD_SHARED),
    Hanging::new("shared-b", BATCH, 3, HOLD_SHARED),
    Hanging::new(DEAD_LETTERS, PER_RECORD, 2, LETTERS),
    Hanging::new(TOGGLED, PER_RECORD, 2, HOLD),
];
/// The async one.
pub(crate) const OVERLAP: &str = "overlap";
/// The one with a dead-letter topic.
pub(crate) const DEAD_LETTERS: &str = "letters";
/// The one whose gate is closed now and then: it skips records.
pub(crate) const TOGGLED: &str = "toggled";

/// Well-behaved handlers: on the topic of the hanging ones, on another one, there with the plugin of the hanging ones, and
/// on a topic that is written in bursts.
pub(crate) const NEIGHBOURS: [&str; 4] = ["same", "other", "steady", "burst"];
/// Workers of each.
const NEIGHBOUR_WORKERS: u64 = 2;

/// Number of worker threads that all handlers may have, without abandoned ones.
pub(crate) fn all_workers() -> u64 {
    // The two of a shared pool have the same threads.
    let hanging: u64 = HANGING.iter().map(|one| one.workers).sum();
    hanging - 3 + NEIGHBOURS.len() as u64 * NEIGHBOUR_WORKERS
}

/// What changes in a spec.
#[derive(Clone, Copy)]
struct Change {
    note: u64,
    timeout_ms: u64,
    enabled: bool,
}

/// The topics, the folder of the service and the current specs.
pub(crate) struct Stage {
    pub(crate) client: Client,
    pub(crate) workdir: Workdir,
    pub(crate) group: String,
    topics: [String; 3],
    changes: RefCell<BTreeMap<&'static str, Change>>,
    /// Hangs of a hundred that last until they are released.
    endless_percent: Cell<u64>,
    /// Which of two builds of the plugin is in the plugins folder.
    second_build: Cell<bool>,
}

impl Stage {
    pub(crate) fn new(bootstrap: &str) -> Self {
        let client = Client::new(bootstrap);
        let group = unique("hangs");
        // A member that joins gets the first half of the partitions in the order of these names: that of `burst`, and half of
        // that on which calls hang.
        let topics = ["hung", "other", "burst"].map(unique);
        for topic in &topics {
            client.create_topic(topic, PARTITIONS as i32);
        }
        client.create_topic(&format!("{}.letters", topics[0]), PARTITIONS as i32);
        let workdir = Workdir::new(
            bootstrap,
            &group,
            &format!("  drain_timeout: {DRAIN_TIMEOUT:?}\n"),
        );
        std::fs::create_dir(workdir.path().join("marks")).expect("a folder in a fresh folder");
        workdir.plugins(&["relay", "misbehave"]);
        let changes = HANGING.iter().map(|one| {
            let change = Change {
                note: 0,
                timeout_ms: 500,
                enabled: true,
            };
            (one.name, change)
        });
        let stage = Self {
            changes: RefCell::new(changes.collect()),
            endless_percent: Cell::new(0),
            second_build: Cell::new(false),
            client,
            workdir,
            group,
            topics,
        };
        // The append time of a copy is the time at which its record was handled.
        let handled_at = [("message.timestamp.type", "LogAppendTime")];
        for name in NEIGHBOURS.iter().chain(HANGING.iter().map(|one| &one.name)) {
            let copies = stage.copies(name);
            let partitions = PARTITIONS as i32;
            stage
                .client
                .create_topic_with(&copies, partitions, 1, &handled_at);
        }
        stage.write_neighbours();
        for one in &HANGING {
            stage.write(one);
        }
        stage
    }

    /// The topic that the handlers hang on, another one, and the one for bursts.
    pub(crate) fn topics(&self) -> &[String; 3] {
        &self.topics
    }

    /// The topic with the copies of a handler.
    pub(crate) fn copies(&self, handler: &str) -> String {
        format!("{}-{handler}", self.group)
    }

    /// The dead-letter topic.
    pub(crate) fn letters(&self) -> String {
        format!("{}.letters", self.topics[0])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.workdir.path().join(name)
    }

    /// Changes how many hangs last until they are released: another config for every handler that hangs.
    pub(crate) fn endless(&self, percent: u64) {
        self.endless_percent.set(percent);
        for one in &HANGING {
            self.write(one);
        }
    }

    /// Lets calls hang, or lets all of those that hang return.
    pub(crate) fn storm(&self, blows: bool) {
        match blows {
            true => self.workdir.write("storm", ""),
            false => self.workdir.remove("storm"),
        }
    }

    /// Folder with a file per call that hangs.
    pub(crate) fn marks(&self) -> PathBuf {
        self.path("marks")
    }

    fn write_neighbours(&self) {
        let [hung, other, burst] = &self.topics;
        for (name, topic) in [("same", hung), ("other", other), ("burst", burst)] {
            let copies = self.copies(name);
            self.workdir.spec(
                name,
                &format!("plugin: relay\nversion: \"*\"\nroute: {{ topics: [{topic}] }}\nworkers: {NEIGHBOUR_WORKERS}\nconfig: {{ topic: {copies} }}\n"),
            );
        }
        let config = self.config("steady", "");
        self.workdir.spec(
            "steady",
            &format!("plugin: misbehave/{PER_RECORD}\nversion: \"*\"\nroute: {{ topics: [{other}] }}\nworkers: {NEIGHBOUR_WORKERS}\n{config}"),
        );
    }

    fn config(&self, name: &str, more: &str) -> String {
        let (storm, marks) = (self.path("storm"), self.marks());
        format!(
            "config: {{ emit_to: {}, while_exists: {}, marks: {}{more} }}\n",
            self.copies(name),
            storm.display(),
            marks.display()
        )
    }

    fn write(&self, one: &Hanging) {
        let Change {
            note,
            timeout_ms,
            enabled,
        } = self.changes.borrow()[one.name];
        let endless = self.endless_percent.get();
        let hangs = format!(
            ", note: {note}, endless_percent: {endless}, longest: 3s, per_mille: {{ new: 80, reconfigure: 400, health: 60, \
             assigned: 10, revoked: 150, lost: 500, handle: 20, drain: 200, drop: 150 }}"
        );
        let config = self.config(one.name, &hangs);
        let Hanging {
            exported,
            workers,
            more,
            ..
        } = one;
        self.workdir.spec(
            one.name,
            &format!(
                "plugin: misbehave/{exported}\nversion: \"*\"\nroute: {{ topics: [{}] }}\nworkers: {workers}\n\
                 enabled: {enabled}\ntimeout: {timeout_ms}ms\n{more}{config}",
                self.topics[0]
            ),
        );
    }

    fn change(&self, at: u64, change: impl FnOnce(&mut Change)) -> &'static str {
        let one = &HANGING[at as usize % HANGING.len()];
        change(
            self.changes
                .borrow_mut()
                .get_mut(one.name)
                .expect("it has a spec"),
        );
        self.write(one);
        one.name
    }

    /// Gives a handler another config, which its instances can take in place.
    pub(crate) fn reconfigure(&self, at: u64) -> &'static str {
        self.change(at, |change| change.note += 1)
    }

    /// Changes a spec so that a new generation is needed.
    pub(crate) fn renew(&self, at: u64) -> &'static str {
        self.change(at, |change| change.timeout_ms = 1_100 - change.timeout_ms)
    }

    /// Closes or opens the gate of the handler for that.
    pub(crate) fn toggle(&self) {
        let at = HANGING.iter().position(|one| one.name == TOGGLED);
        self.change(at.expect("it exists") as u64, |change| {
            change.enabled = !change.enabled;
        });
    }

    /// Opens every gate.
    pub(crate) fn open_all(&self) {
        if !self.changes.borrow()[TOGGLED].enabled {
            self.toggle();
        }
    }

    /// Replaces the plugin by another build: all of its handlers get a new generation.
    pub(crate) fn upgrade(&self) {
        let second = !self.second_build.replace(!self.second_build.get());
        let file = artefacts::plugin("misbehave");
        let mut bytes = std::fs::read(&file).expect("a readable plugin");
        if second {
            // Behind what the loader reads: the same code with another digest.
            bytes.extend_from_slice(b"the other build");
        }
        let build = self.path("build.so");
        std::fs::write(&build, bytes).expect("a writable folder");
        self.workdir
            .plugin_file(&build, &artefacts::library_name("misbehave"));
    }
}

/// Milliseconds since the epoch.
pub(crate) fn record(number: u64) -> Outgoing {
    let value = format!("{number} {}", now_ms());
    Outgoing::new(&format!("k{}", number % KEYS), value).partition((number % PARTITIONS) as i32)
}

/// Writes the records of burst `index` at once.
pub(crate) fn burst(client: &Client, topic: &str, index: u64) {
    let numbers = index * BURST..(index + 1) * BURST;
    client.produce(topic, numbers.map(record));
}
