//! Mutants of configs, stores, spec sources and the bridge.

use super::super::Mutant;
use super::super::suites::{
    BRIDGE, BRIDGE_PATHS, BRIDGE_RUNNING, ETCD, FOLDER, HOSTILE, REFERENCES, SPECS, STORE_SOURCE,
    STORES, ZOOKEEPER,
};

pub(super) const CONFIG: &[Mutant] = &[
    Mutant {
        name: "unreadable-spec-is-deleted",
        what: "a spec file that cannot be examined counts as deleted, and its handler is removed",
        suite: FOLDER,
    },
    Mutant {
        name: "bridge-echo-not-recognised",
        what: "the bridge records its own write under the revision of the replaced value, so that its echo counts as a change",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-delete-lost",
        what: "a key that is missing on one side counts as unchanged there",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-overrules-unread",
        what: "the bridge writes without comparing with the value that it read",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-identity-not-compared",
        what: "a bridge continues on another store than its sync state describes",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-pair-not-compared",
        what: "an etcd without the sync state of a bridged ZooKeeper counts as a first start, and overrules it",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-name-not-compared",
        what: "a bridge with another name takes over bridged stores, as if only the sync state were missing",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-deleted-comes-back",
        what: "a key that was deleted on both sides comes back with a side that is restored",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-new-key-risen",
        what: "a key that is re-created in a restored side is deleted, as if it had come back with the restored state",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-lost-revision-trusted",
        what: "sync state written since a side went back still refers to a revision that the side has lost",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-standing-deletes",
        what: "keys that a halted bridge saw disappear are deleted once the side is accepted",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-accepted-store-wins",
        what: "a side that is accepted as restored overrules newer values, because it is the preferred side",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-paths-not-compared",
        what: "a bridge with other paths treats keys that it no longer sees as deleted (G10)",
        suite: BRIDGE_PATHS,
    },
    Mutant {
        name: "bridge-mark-not-compared",
        what: "a ZooKeeper that was restored and written to since counts as having deleted what it lacks",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-brake-off",
        what: "a listing that lacks most keys deletes them on the other side",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "other-store-applied",
        what: "a service applies the contents of another store without an operator's acceptance",
        suite: STORE_SOURCE,
    },
    Mutant {
        name: "alike-cluster-believed",
        what: "a store that went back and lacks specs is followed if its identity is the same",
        suite: STORE_SOURCE,
    },
    Mutant {
        name: "restart-takes-what-is-held",
        what: "a start applies the contents of the store and its cache, although they were held back before it",
        suite: STORE_SOURCE,
    },
    Mutant {
        name: "unnumbered-delete-suspected",
        what: "a delete reported by an unnumbered notification counts as not observed",
        suite: STORES,
    },
    Mutant {
        name: "older-revision-applied",
        what: "an event older than the known state of its key is applied",
        suite: STORES,
    },
    Mutant {
        name: "delete-filed-by-response",
        what: "a delete is recorded at the revision of the response that carries it, and hides the write after it",
        suite: STORES,
    },
    Mutant {
        name: "delete-at-the-headers-revision",
        what: "the etcd watch takes the revision of a delete from the response header",
        suite: ETCD,
    },
    Mutant {
        name: "lease-clock-restarted",
        what: "each report of a member restarts the timer that renews its lease",
        suite: STORES,
    },
    Mutant {
        name: "foreign-member-overwritten",
        what: "a member overwrites the key of another process with its id",
        suite: STORES,
    },
    Mutant {
        name: "watch-resumed-at-r",
        what: "an etcd watch starts at the listing's own revision",
        suite: STORES,
    },
    Mutant {
        name: "cancel-not-noticed",
        what: "an etcd watch keeps listening after the server has cancelled it",
        suite: ETCD,
    },
    Mutant {
        name: "not-reread-after-reconnect",
        what: "a ZooKeeper watch continues unchanged after the connection was lost",
        suite: ZOOKEEPER,
    },
    Mutant {
        name: "circle-not-refused",
        what: "specs whose dead letters form a cycle are accepted",
        suite: SPECS,
    },
    Mutant {
        name: "references-not-listed",
        what: "a store's value may refer to any environment variable",
        suite: REFERENCES,
    },
    Mutant {
        name: "reference-leads-out",
        what: "a link in the folder for references may point out of it",
        suite: REFERENCES,
    },
    Mutant {
        name: "aliases-without-bytes",
        what: "alias expansion is bounded in values but not in bytes",
        suite: HOSTILE,
    },
];
