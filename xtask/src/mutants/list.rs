//! The mutants, and the suite that must catch each.

use super::Mutant;
use super::suites::{
    ADMIN, BEGINNINGS, BRIDGE, BRIDGE_PATHS, BRIDGE_RUNNING, CLI, CONNECTIONS, EMIT, ENDING, ETCD,
    FIRST_JOIN, FLOW, GAP_DETECTOR, GENERATIONS, HANDLERS, HOSTILE, LEDGER, LOGGING, OVERRUN, PUMP,
    RAW, RECALL, REFERENCES, ROUTING, SDK_RULES, SETTLEMENT, SIMULATION, SOURCE, SPECS,
    STORE_SOURCE, STORES, ZOOKEEPER,
};

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "commit-highest-seen",
        what: "the highest delivered offset is committed instead of the frontier",
        suite: SIMULATION,
    },
    Mutant {
        name: "ack-after-revoke",
        what: "a revoked partition stays open for outcomes and commits",
        suite: SIMULATION,
    },
    Mutant {
        name: "recall-forgotten",
        what: "batches of a revoked partition stay queued behind a slow call",
        suite: RECALL,
    },
    Mutant {
        name: "drain-lets-calls-run",
        what: "a call goes on with records of a partition that drains",
        suite: FLOW,
    },
    Mutant {
        name: "drain-forgets-begun",
        what: "while calls are stopped, what only they had is handed out again",
        suite: FLOW,
    },
    Mutant {
        name: "hung-call-holds-drains",
        what: "a call that hangs after its partition was released holds what later drains have to finish",
        suite: FLOW,
    },
    Mutant {
        name: "renewal-awaits-commit",
        what: "a new client waits for the answer to a commit of the one before",
        suite: PUMP,
    },
    Mutant {
        name: "forgotten-member-stays",
        what: "a member that its group does not know handles records and never commits",
        suite: PUMP,
    },
    Mutant {
        name: "fence-not-raised",
        what: "calls that run go on with the records of a revoked partition",
        suite: SIMULATION,
    },
    Mutant {
        name: "fence-not-looked-at",
        what: "a handler is called for the next record although the call is cancelled",
        suite: SDK_RULES,
    },
    Mutant {
        name: "lent-record-freed",
        what: "a record that a hung call still reads is freed when its pump ends",
        suite: ENDING,
    },
    Mutant {
        name: "late-acks-believed",
        what: "a call that returns after it was given up is believed, its emits lost",
        suite: OVERRUN,
    },
    Mutant {
        name: "epoch-without-assignment",
        what: "a late outcome is matched by place alone, whoever has the place now",
        suite: SIMULATION,
    },
    Mutant {
        name: "refused-commit-is-success",
        what: "a partition's refusal inside an answered commit is recorded as success",
        suite: SIMULATION,
    },
    Mutant {
        name: "dead-letter-not-awaited",
        what: "a record settles when its dead letter is sent, not when it is acknowledged",
        suite: SIMULATION,
    },
    Mutant {
        name: "emit-not-awaited",
        what: "an acknowledged record settles before what it emitted is acknowledged",
        suite: SIMULATION,
    },
    Mutant {
        name: "emits-of-a-drop-lost",
        what: "what an attempt emits before a drop or a dead letter is not sent",
        suite: HANDLERS,
    },
    Mutant {
        name: "letter-before-its-emits",
        what: "a dead letter is written before what its attempt emitted is acknowledged",
        suite: SIMULATION,
    },
    Mutant {
        name: "target-refusal-gives-up",
        what: "a record is given up because its output topic is missing",
        suite: SIMULATION,
    },
    Mutant {
        name: "refused-batch-believed",
        what: "a refused batch gives up every record that was in it",
        suite: SIMULATION,
    },
    Mutant {
        name: "only-the-refused-sent-again",
        what: "of a record's emits only the refused one is sent again, behind later ones",
        suite: SIMULATION,
    },
    Mutant {
        name: "offset-off-by-one",
        what: "the commit names one offset too many",
        suite: SIMULATION,
    },
    Mutant {
        name: "gap-complete-too-early",
        what: "a gap settles what was delivered before it",
        suite: LEDGER,
    },
    Mutant {
        name: "gap-never-complete",
        what: "offsets that do not exist are waited for",
        suite: LEDGER,
    },
    Mutant {
        name: "repeat-handled-twice",
        what: "a record that the client delivers again is handled again",
        suite: SIMULATION,
    },
    Mutant {
        name: "not-forwarded-again",
        what: "a partition's queue is not forwarded when it is assigned again",
        suite: SOURCE,
    },
    Mutant {
        name: "skipped-after-error-entry",
        what: "records are skipped after a partition's error entry in a batch",
        suite: GAP_DETECTOR,
    },
    Mutant {
        name: "end-is-consumed",
        what: "the end of the log is taken for what was read of it",
        suite: SOURCE,
    },
    Mutant {
        name: "fetched-is-consumed",
        what: "the client's fetch position is taken for its consumed position",
        suite: SIMULATION,
    },
    Mutant {
        name: "consumed-passes-records-in-hand",
        what: "the consumed position passes records that wait for room in the ledger",
        suite: SIMULATION,
    },
    Mutant {
        name: "consumed-passes-dropped-records",
        what: "the consumed position passes what a drain drops",
        suite: SIMULATION,
    },
    Mutant {
        name: "control-records-never-passed",
        what: "control records at the end of a log hold its frontier",
        suite: SIMULATION,
    },
    Mutant {
        name: "position-inherited",
        what: "a position left over from an earlier assignment is believed",
        suite: GAP_DETECTOR,
    },
    Mutant {
        name: "position-after-error-entry",
        what: "a position that an error entry has moved is believed",
        suite: GAP_DETECTOR,
    },
    Mutant {
        name: "restart-over-in-flight",
        what: "a partition goes on elsewhere while records of it are in flight",
        suite: SIMULATION,
    },
    Mutant {
        name: "missing-without-bounds",
        what: "an offset counts as missing although the log has it",
        suite: PUMP,
    },
    Mutant {
        name: "cut-off-log-read-on",
        what: "a log that was cut off is read on where the old one was",
        suite: PUMP,
    },
    Mutant {
        name: "damaged-data-skipped",
        what: "what stands behind damaged data is handled in its place",
        suite: GAP_DETECTOR,
    },
    Mutant {
        name: "damage-not-looked-for",
        what: "checksums are not verified",
        suite: SOURCE,
    },
    Mutant {
        name: "library-path-reused",
        what: "a new generation's copy has the name of an earlier one",
        suite: GENERATIONS,
    },
    Mutant {
        name: "lane-released-early",
        what: "a lane is released while its record waits for a retry",
        suite: SIMULATION,
    },
    Mutant {
        name: "index-swapped-in-halves",
        what: "answers remembered from the old routing index outlive the swap",
        suite: ROUTING,
    },
    Mutant {
        name: "second-commit-in-flight",
        what: "giving a partition back lets a second commit go out beside the first",
        suite: SIMULATION,
    },
    Mutant {
        name: "last-commit-not-retried",
        what: "a last commit that a rebalancing group refuses is given up",
        suite: SIMULATION,
    },
    Mutant {
        name: "commit-after-lost",
        what: "commits name partitions that were lost or given back",
        suite: SIMULATION,
    },
    Mutant {
        name: "leave-not-sent",
        what: "a member that joins or owns nothing ends without leaving its group",
        suite: SOURCE,
    },
    Mutant {
        name: "ungraceful-stop-exits-zero",
        what: "a stop that leaves records to be handled again ends as a success",
        suite: CLI,
    },
    Mutant {
        name: "unheard-leave-is-graceful",
        what: "a stop whose leaving the group has not heard of counts as graceful",
        suite: PUMP,
    },
    Mutant {
        name: "close-overtakes-unsubscribe",
        what: "a member that stops within its first join hangs until its deadline, by an eager assignor",
        suite: FIRST_JOIN,
    },
    Mutant {
        name: "stop-forsakes-a-rebalance",
        what: "a stop gives back unread what a rebalance under way brings",
        suite: PUMP,
    },
    Mutant {
        name: "lost-in-a-stop-forgotten",
        what: "a stop that loses its partitions says that it left nothing (G3)",
        suite: PUMP,
    },
    Mutant {
        name: "delivered-is-served",
        what: "a stop takes a partition for served whose first record has come, but was not handled",
        suite: PUMP,
    },
    Mutant {
        name: "start-after-release",
        what: "a call that overruns after its partition was given back parks its record",
        suite: FLOW,
    },
    Mutant {
        name: "refused-config-kept",
        what: "a new config that the first instance refuses is given to the next ones",
        suite: HANDLERS,
    },
    Mutant {
        name: "bridge-echo-not-recognised",
        what: "the bridge notes its own write by the revision of what it replaced, so its echo is a change",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-delete-lost",
        what: "a key that is gone from one side counts as untouched there",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-overrules-unread",
        what: "the bridge writes without comparing with what it has read",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-identity-not-compared",
        what: "a bridge works on beside another store than its notes are about",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-pair-not-compared",
        what: "an etcd without the notes of a ZooKeeper that was bridged counts as a first start, and overrules it",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-name-not-compared",
        what: "a bridge of another name takes bridged stores over, as if only the notes were gone",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-deleted-comes-back",
        what: "a key that was deleted on both sides comes back with a side that is restored",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-new-key-risen",
        what: "a key that is made anew in a restored side is deleted, as if it had come back with the restored state",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-lost-revision-trusted",
        what: "a revision that a side lost with its state counts in what is noted of it since",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-standing-deletes",
        what: "what a bridge that stood still saw being emptied is deleted once the side is accepted",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "bridge-accepted-store-wins",
        what: "a side that is accepted as one that went back overrules what is newer, since it is the preferred side",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-paths-not-compared",
        what: "a bridge with other paths takes keys that it does not see any more for deleted ones (G10)",
        suite: BRIDGE_PATHS,
    },
    Mutant {
        name: "bridge-mark-not-compared",
        what: "a ZooKeeper that was restored, and written to since, counts as one that deleted what it lacks",
        suite: BRIDGE,
    },
    Mutant {
        name: "bridge-brake-off",
        what: "a listing that lacks most keys deletes them on the other side",
        suite: BRIDGE_RUNNING,
    },
    Mutant {
        name: "other-store-applied",
        what: "a service applies what another store says without being told to",
        suite: STORE_SOURCE,
    },
    Mutant {
        name: "alike-cluster-believed",
        what: "a store that went back and lacks specs is followed where its identity is the same",
        suite: STORE_SOURCE,
    },
    Mutant {
        name: "restart-takes-what-is-held",
        what: "a start takes what stands in the store, and its cache, whatever was held back before it",
        suite: STORE_SOURCE,
    },
    Mutant {
        name: "unnumbered-delete-doubted",
        what: "a delete that a notice without a number told of counts as seen by nobody",
        suite: STORES,
    },
    Mutant {
        name: "older-revision-applied",
        what: "a store's event that is older than what is known of its key is applied",
        suite: STORES,
    },
    Mutant {
        name: "delete-filed-by-response",
        what: "a delete counts as made at the revision of the response that brings it, so that it hides the write behind it",
        suite: STORES,
    },
    Mutant {
        name: "delete-at-the-headers-revision",
        what: "the watch of etcd takes the revision of a delete from the response's header",
        suite: ETCD,
    },
    Mutant {
        name: "lease-clock-restarted",
        what: "each report of a member restarts the clock by which its lease is kept alive",
        suite: STORES,
    },
    Mutant {
        name: "foreign-member-overwritten",
        what: "a member writes over the key of another process with its id",
        suite: STORES,
    },
    Mutant {
        name: "watch-resumed-at-r",
        what: "a watch of etcd begins with the listing's own revision",
        suite: STORES,
    },
    Mutant {
        name: "cancel-not-noticed",
        what: "a watch of etcd goes on listening after the server has cancelled it",
        suite: ETCD,
    },
    Mutant {
        name: "not-reread-after-reconnect",
        what: "a watch of ZooKeeper goes on as it is after the connection was lost",
        suite: ZOOKEEPER,
    },
    Mutant {
        name: "internal-topic-matched",
        what: "globs and regexes match the cluster's internal topics",
        suite: ROUTING,
    },
    Mutant {
        name: "dead-letter-name-in-part",
        what: "patterns leave out topics that only begin like a dead-letter topic",
        suite: ROUTING,
    },
    Mutant {
        name: "circle-not-refused",
        what: "specs whose dead letters go round are taken",
        suite: SPECS,
    },
    Mutant {
        name: "laps-not-bounded",
        what: "a record that comes back from its dead-letter topic goes there again without end",
        suite: SETTLEMENT,
    },
    Mutant {
        name: "header-fault-distrusts-all",
        what: "one record's odd header name turns off the reading of headers in place for the process",
        suite: RAW,
    },
    Mutant {
        name: "list-unbound",
        what: "the list of finished records counts beside any offset of its partition",
        suite: SIMULATION,
    },
    Mutant {
        name: "list-lost-when-settled",
        what: "an owner that has settled all that came forgets what is finished beyond it",
        suite: FLOW,
    },
    Mutant {
        name: "topic-id-not-compared",
        what: "a topic that was created again goes on at the committed offset of the one before",
        suite: SIMULATION,
    },
    Mutant {
        name: "token-not-kept",
        what: "the fencing token of the last commit is not looked at",
        suite: SIMULATION,
    },
    Mutant {
        name: "token-not-committed-first",
        what: "records run before a token that a restart could give again is committed",
        suite: SIMULATION,
    },
    Mutant {
        name: "new-partition-at-the-end",
        what: "a partition that is added to a topic begins where kafka.start says",
        suite: BEGINNINGS,
    },
    Mutant {
        name: "unfound-holds-all",
        what: "a partition of which nobody knows where it begins holds the whole assignment",
        suite: BEGINNINGS,
    },
    Mutant {
        name: "new-topic-believed",
        what: "records of a topic that was created again are taken for those of the one before",
        suite: BEGINNINGS,
    },
    Mutant {
        name: "closed-handler-keeps-records",
        what: "a handler that failed keeps its records when it is switched off or removed",
        suite: SIMULATION,
    },
    Mutant {
        name: "abandoned-call-not-ended",
        what: "the outcomes of an abandoned call of a closed handler count",
        suite: SIMULATION,
    },
    Mutant {
        name: "slow-partition-not-paused",
        what: "the partition of a held handler is not paused when it has filled the memory",
        suite: SIMULATION,
    },
    Mutant {
        name: "restart-undone",
        what: "a restart is forgotten because the spec needs no new generation",
        suite: HANDLERS,
    },
    Mutant {
        name: "awaited-record-not-stalled",
        what: "a record that the log has and that does not come is no stall (G8)",
        suite: PUMP,
    },
    Mutant {
        name: "unwanted-records-hide-a-stall",
        what: "records that no handler wants keep a partition that is held from being told as stalled (G8)",
        suite: FLOW,
    },
    Mutant {
        name: "refused-right-never-over",
        what: "a partition whose topic may be read again stays unreadable until a record comes (G8)",
        suite: PUMP,
    },
    Mutant {
        name: "one-held-handler-unready",
        what: "one handler that does not run makes the service unready",
        suite: ADMIN,
    },
    Mutant {
        name: "log-waits-for-its-reader",
        what: "who logs waits for room in the buffer of a log that nobody reads",
        suite: LOGGING,
    },
    Mutant {
        name: "half-open-keeps-others-out",
        what: "a connection that asks nothing makes no room for one that does",
        suite: CONNECTIONS,
    },
    Mutant {
        name: "unread-folder-is-empty",
        what: "a plugins folder that cannot be read has lost its plugins",
        suite: HANDLERS,
    },
    Mutant {
        name: "static-id-shared",
        what: "several clients of a process are static members of one id",
        suite: BEGINNINGS,
    },
    Mutant {
        name: "references-not-listed",
        what: "a store's value may refer to any environment variable",
        suite: REFERENCES,
    },
    Mutant {
        name: "reference-leads-out",
        what: "a link below the folder for references leads out of it",
        suite: REFERENCES,
    },
    Mutant {
        name: "secrets-not-redacted",
        what: "what a plugin says of its config is passed on with its secrets",
        suite: HANDLERS,
    },
    Mutant {
        name: "emit-topic-shown",
        what: "a topic to emit to that is a secret is told with what is refused",
        suite: EMIT,
    },
    Mutant {
        name: "deleted-letters-not-missed",
        what: "nobody looks after a dead-letter topic that was deleted in use",
        suite: FLOW,
    },
    Mutant {
        name: "aliases-without-bytes",
        what: "what aliases repeat is bounded in values and not in bytes",
        suite: HOSTILE,
    },
];
