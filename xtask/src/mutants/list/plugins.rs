//! Mutants of the plugins folder and of loading.

use super::super::suites::{AUDITOR, NATIVE};
use super::{GENERATIONS, Mutant, PLUGINS, POOL};

/// Of the plugins folder and of loading.
pub(super) const FOLDER: &[Mutant] = &[
    Mutant {
        name: "exporter-takes-over-a-name",
        what: "a plugin that exports a handler of another plugin's name is chosen for it",
        suite: PLUGINS,
    },
    Mutant {
        name: "unread-file-passed-over",
        what: "an older version is chosen while the newest file cannot be read",
        suite: PLUGINS,
    },
    Mutant {
        name: "builds-of-a-version-mixed",
        what: "one of several builds of a version is chosen by its age",
        suite: PLUGINS,
    },
    Mutant {
        name: "folder-swap-not-seen",
        what: "a folder that another one has replaced stays the watched one",
        suite: PLUGINS,
    },
    Mutant {
        name: "gates-wait-for-the-folder",
        what: "a gate acts once the plugins folder has been read",
        suite: PLUGINS,
    },
    Mutant {
        name: "digest-compared-after-loading",
        what: "the digest of a plugin file is compared once its code has run",
        suite: GENERATIONS,
    },
    Mutant {
        name: "each-load-is-an-image",
        what: "a build that is loaded already is mapped again for each generation",
        suite: GENERATIONS,
    },
    Mutant {
        name: "shutdown-under-other-users",
        what: "a generation that ends shuts down the code that another one uses",
        suite: NATIVE,
    },
    Mutant {
        name: "shutdown-under-an-abandoned-call",
        what: "code gets its shutdown while an instance of it is on an abandoned thread",
        suite: NATIVE,
    },
    Mutant {
        name: "hung-call-keeps-code-running",
        what: "code is not shut down once the call that hung in it has returned",
        suite: NATIVE,
    },
    Mutant {
        name: "users-cost-a-thread",
        what: "each generation of loaded code keeps a thread",
        suite: NATIVE,
    },
    Mutant {
        name: "foreign-files-cleaned-up",
        what: "files of others in the folder of private copies are removed",
        suite: NATIVE,
    },
    Mutant {
        name: "quarantined-code-shut-down",
        what: "a quarantined generation ends its use of the code although one of its calls still runs",
        suite: PLUGINS,
    },
    Mutant {
        name: "hung-handler-is-built",
        what: "generations of a handler whose threads hang are built although as many hang in the process as may",
        suite: PLUGINS,
    },
    Mutant {
        name: "untried-code-runs",
        what: "code that ended the process in which it was tried is loaded by the service",
        suite: PLUGINS,
    },
    Mutant {
        name: "full-process-keeps-handlers-tripped",
        what: "a handler whose threads have returned waits for the hung ones of others",
        suite: POOL,
    },
    Mutant {
        name: "bound-of-hung-threads-per-generation",
        what: "each generation of a handler may abandon as many threads again",
        suite: POOL,
    },
    Mutant {
        name: "refused-rows-of-a-read-only-server",
        what: "auditor makes attempts while its database is in no state to take any row",
        suite: AUDITOR,
    },
];
