//! The mutants, each with the suite that must catch it.

use std::sync::LazyLock;

use super::Mutant;
use super::suites::{
    ABI, CLI, CONNECTIONS, EMIT, ENDING, FIRST_JOIN, FLOW, GAP_DETECTOR, GENERATIONS, KAFKA,
    LEDGER, LOGGING, NATIVE, NATIVE_ABI, OUTAGE, PLUGINS, POOL, PUMP, QUEUE, RAW, READING, RECALL,
    ROUTING, RUNTIME, SDK_OUTAGES, SDK_ROOM, SDK_RULES, SERVICE_LIB, SETTLEMENT, SIMULATION,
    SOURCE, STARTS, STATUS, WATCHDOG,
};

mod calls;
mod chains;
mod config;
mod plugins;
mod queues;

/// All mutants.
pub(super) static MUTANTS: LazyLock<Vec<Mutant>> = LazyLock::new(|| {
    [
        SERVICE,
        chains::CHAINS,
        queues::QUEUES,
        config::CONFIG,
        plugins::FOLDER,
        calls::CALLS,
    ]
    .concat()
});

/// Of the service and of what handlers are built with.
const SERVICE: &[Mutant] = &[
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
        what: "a call continues with records of a partition that drains",
        suite: FLOW,
    },
    Mutant {
        name: "drain-forgets-begun",
        what: "while calls are being stopped, records that only they held are dispatched again",
        suite: FLOW,
    },
    Mutant {
        name: "hung-call-holds-drains",
        what: "a call that hangs after its partition was released adds its records to what later drains have to finish",
        suite: FLOW,
    },
    Mutant {
        name: "renewal-awaits-commit",
        what: "a new client waits for the response to a commit of its predecessor",
        suite: PUMP,
    },
    Mutant {
        name: "bootstrap-answers-for-the-cluster",
        what: "an answer of a bootstrap address counts as one of the cluster's brokers",
        suite: KAFKA,
    },
    Mutant {
        name: "stuck-client-stays",
        what: "a client that alone reaches no broker is kept, however often the cluster answers another one",
        suite: PUMP,
    },
    Mutant {
        name: "forgotten-member-stays",
        what: "a member unknown to its group handles records and never commits",
        suite: PUMP,
    },
    Mutant {
        name: "fence-not-raised",
        what: "running calls continue with the records of a revoked partition",
        suite: SIMULATION,
    },
    Mutant {
        name: "fence-not-checked",
        what: "a handler is called for the next record although the call is cancelled",
        suite: SDK_RULES,
    },
    Mutant {
        name: "hang-of-a-batch-blames-one",
        what: "after a hang of a batch handler only the last record has failed, and the others run together again",
        suite: FLOW,
    },
    Mutant {
        name: "layout-checked-backwards",
        what: "a service with a function more than a plugin refuses it, and one with a function less loads it",
        suite: NATIVE_ABI,
    },
    Mutant {
        name: "fixed-cost-ignored",
        what: "calls with a fixed cost are sized by the time per record alone, and shrink to one record",
        suite: QUEUE,
    },
    Mutant {
        name: "outages-trip",
        what: "instances that cannot be built for a while trip their handler",
        suite: POOL,
    },
    Mutant {
        name: "only-hung-calls-bounded",
        what: "threads that hang are not bounded",
        suite: POOL,
    },
    Mutant {
        name: "record-fence-not-checked",
        what: "a record is started although its partition was revoked since it was delivered",
        suite: ABI,
    },
    Mutant {
        name: "fence-stays-open",
        what: "records of a revoked partition that a call has are still admitted",
        suite: FLOW,
    },
    Mutant {
        name: "deadline-not-renewed",
        what: "the deadline of a record counts from the start of its call",
        suite: SDK_RULES,
    },
    Mutant {
        name: "lost-told-as-revoked",
        what: "an instance is told that a lost partition was revoked",
        suite: POOL,
    },
    Mutant {
        name: "lent-record-freed",
        what: "a record that a hung call still reads is freed when its pump ends",
        suite: ENDING,
    },
    Mutant {
        name: "late-acks-believed",
        what: "the outcomes of an abandoned call that returns late are accepted, and its emits are lost",
        suite: WATCHDOG,
    },
    Mutant {
        name: "epoch-without-assignment",
        what: "a late outcome is matched by slot alone, even if the slot has a new owner",
        suite: SIMULATION,
    },
    Mutant {
        name: "refused-commit-is-success",
        what: "a partition's error inside a commit response is recorded as success",
        suite: SIMULATION,
    },
    Mutant {
        name: "dead-letter-not-awaited",
        what: "a record settles when its dead letter is sent, not when it is acknowledged",
        suite: SIMULATION,
    },
    Mutant {
        name: "emit-not-awaited",
        what: "an acknowledged record settles before its emits are acknowledged",
        suite: SIMULATION,
    },
    Mutant {
        name: "emits-of-a-drop-lost",
        what: "emits of an attempt that ends in a drop or a dead letter are not sent",
        suite: POOL,
    },
    Mutant {
        name: "letter-before-its-emits",
        what: "a dead letter is written before the emits of its attempt are acknowledged",
        suite: SIMULATION,
    },
    Mutant {
        name: "target-refusal-dead-letters",
        what: "a record is dead-lettered because its output topic is missing",
        suite: SIMULATION,
    },
    Mutant {
        name: "refused-batch-believed",
        what: "a refused batch dead-letters every record in it",
        suite: SIMULATION,
    },
    Mutant {
        name: "refused-keeps-its-call",
        what: "a refused emit keeps everything alive that its call has emitted",
        suite: EMIT,
    },
    Mutant {
        name: "acknowledged-emits-kept",
        what: "acknowledged emits stay in memory while another one of their call waits",
        suite: EMIT,
    },
    Mutant {
        name: "answered-after-the-flush",
        what: "a flush of the producer returns before its answers are passed on",
        suite: KAFKA,
    },
    Mutant {
        name: "producer-lines-lost",
        what: "log lines of the producer are dropped",
        suite: KAFKA,
    },
    Mutant {
        name: "early-answers-lost",
        what: "what the producer answers before the call has ended is lost, so that its record waits for ever",
        suite: EMIT,
    },
    Mutant {
        name: "only-the-refused-sent-again",
        what: "of a record's emits only the refused one is sent again, behind later ones",
        suite: SIMULATION,
    },
    Mutant {
        name: "offset-off-by-one",
        what: "the committed offset is one too high",
        suite: SIMULATION,
    },
    Mutant {
        name: "gap-complete-too-early",
        what: "a gap settles records that were delivered before it",
        suite: LEDGER,
    },
    Mutant {
        name: "gap-never-complete",
        what: "the frontier waits for offsets that do not exist",
        suite: LEDGER,
    },
    Mutant {
        name: "repeat-handled-twice",
        what: "a record that the client delivers twice is handled twice",
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
        what: "the end of the log is taken for the consumed position",
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
        what: "the consumed position passes records that a drain drops",
        suite: SIMULATION,
    },
    Mutant {
        name: "control-records-never-passed",
        what: "control records at the end of a log hold its frontier",
        suite: SIMULATION,
    },
    Mutant {
        name: "position-inherited",
        what: "a position left over from an earlier assignment is trusted",
        suite: GAP_DETECTOR,
    },
    Mutant {
        name: "position-after-error-entry",
        what: "a position that an error entry has moved is trusted",
        suite: GAP_DETECTOR,
    },
    Mutant {
        name: "restart-over-in-flight",
        what: "a partition continues at another offset while its records are in flight",
        suite: SIMULATION,
    },
    Mutant {
        name: "missing-without-bounds",
        what: "an offset that is in the log counts as missing",
        suite: PUMP,
    },
    Mutant {
        name: "cut-off-log-read-on",
        what: "a truncated log is read from the old position",
        suite: PUMP,
    },
    Mutant {
        name: "damaged-data-skipped",
        what: "records after corrupt data are handled in its place",
        suite: GAP_DETECTOR,
    },
    Mutant {
        name: "checksums-not-verified",
        what: "checksums are not verified",
        suite: SOURCE,
    },
    Mutant {
        name: "library-path-reused",
        what: "a new generation's copy has the file name of an earlier one",
        suite: GENERATIONS,
    },
    Mutant {
        name: "lane-released-early",
        what: "a lane is released while its record waits for a retry",
        suite: SIMULATION,
    },
    Mutant {
        name: "index-swapped-in-halves",
        what: "cached answers of the old routing index outlive the swap",
        suite: ROUTING,
    },
    Mutant {
        name: "released-assignments-kept",
        what: "the place of a released assignment is never used again",
        suite: FLOW,
    },
    Mutant {
        name: "assignment-freed-with-records",
        what: "the place of a released assignment is used again while a call has its records",
        suite: SIMULATION,
    },
    Mutant {
        name: "committed-lookup-times-out",
        what: "a request for committed offsets times out while its coordinator is away, after which the client uses freed memory",
        suite: OUTAGE,
    },
    Mutant {
        name: "instance-on-abandoned-thread-forgotten",
        what: "a handler with an instance on an abandoned thread is released as clean",
        suite: POOL,
    },
    Mutant {
        name: "released-twice",
        what: "the place of an assignment that is released twice is used by two partitions",
        suite: FLOW,
    },
    Mutant {
        name: "poisoned-instance-stays",
        what: "an instance whose health check panicked is kept, and checked again for ever",
        suite: POOL,
    },
    Mutant {
        name: "slot-without-thread-unchecked",
        what: "an unhealthy worker whose thread could not be started is never checked again",
        suite: POOL,
    },
    Mutant {
        name: "hang-outside-a-call-forgotten",
        what: "a handler that hangs in a health check is released as clean, and its plugin ends under that call",
        suite: POOL,
    },
    Mutant {
        name: "counts-move-to-the-next-version",
        what: "a new version takes over the outcome counts of the one before",
        suite: FLOW,
    },
    Mutant {
        name: "lost-is-handed-over-again",
        what: "a partition that is lost during its hand-over is released again later, when the group may have assigned it again",
        suite: SIMULATION,
    },
    Mutant {
        name: "resumes-before-what-was-read",
        what: "an out-of-range offset behind what was read resets the partition to the start of its log",
        suite: PUMP,
    },
    Mutant {
        name: "found-after-the-stop-is-started",
        what: "a start offset that is found after the stop has begun starts its partition",
        suite: SIMULATION,
    },
    Mutant {
        name: "second-commit-in-flight",
        what: "releasing a partition sends another commit while one is in flight",
        suite: SIMULATION,
    },
    Mutant {
        name: "last-commit-not-retried",
        what: "a last commit that a rebalancing group refuses is not retried",
        suite: SIMULATION,
    },
    Mutant {
        name: "commit-after-lost",
        what: "commits name partitions that were lost or released",
        suite: SIMULATION,
    },
    Mutant {
        name: "commit-after-a-fault",
        what: "commits are sent in the turn that found a violated invariant",
        suite: FLOW,
    },
    Mutant {
        name: "leave-not-sent",
        what: "a member that is joining or owns nothing ends without leaving its group",
        suite: SOURCE,
    },
    Mutant {
        name: "ungraceful-stop-exits-zero",
        what: "a stop that leaves records to be handled again exits with success",
        suite: CLI,
    },
    Mutant {
        name: "unheard-leave-is-graceful",
        what: "a stop whose leave request the group has not received counts as graceful",
        suite: PUMP,
    },
    Mutant {
        name: "close-overtakes-unsubscribe",
        what: "with an eager assignor, a member that stops within its first join hangs until its deadline",
        suite: FIRST_JOIN,
    },
    Mutant {
        name: "stop-forsakes-a-rebalance",
        what: "a stop returns unread what a rebalance in progress assigns",
        suite: PUMP,
    },
    Mutant {
        name: "lost-in-a-stop-forgotten",
        what: "a stop that loses its partitions reports that it left nothing (G3)",
        suite: PUMP,
    },
    Mutant {
        name: "delivered-is-served",
        what: "a stop counts a partition as served when its first record is delivered, not when it is handled",
        suite: PUMP,
    },
    Mutant {
        name: "start-after-release",
        what: "a call that times out after its partition was released parks its record",
        suite: FLOW,
    },
    Mutant {
        name: "refused-config-kept",
        what: "a new config that the first instance refuses is given to the next ones",
        suite: POOL,
    },
    Mutant {
        name: "internal-topic-matched",
        what: "globs and regexes match the cluster's internal topics",
        suite: ROUTING,
    },
    Mutant {
        name: "dead-letter-name-in-part",
        what: "patterns leave out topics whose names only start like a dead-letter topic",
        suite: ROUTING,
    },
    Mutant {
        name: "laps-not-bounded",
        what: "a record that returns from its dead-letter topic goes there again without limit",
        suite: SETTLEMENT,
    },
    Mutant {
        name: "header-fault-distrusts-all",
        what: "one record's malformed header name disables in-place header access for the process",
        suite: RAW,
    },
    Mutant {
        name: "list-unbound",
        what: "the list of finished records is applied at any offset of its partition",
        suite: SIMULATION,
    },
    Mutant {
        name: "list-lost-when-settled",
        what: "an owner that has settled all delivered records forgets those finished beyond them",
        suite: FLOW,
    },
    Mutant {
        name: "topic-id-not-compared",
        what: "a re-created topic is read from the committed offset of its predecessor",
        suite: SIMULATION,
    },
    Mutant {
        name: "token-not-kept",
        what: "the fencing token of the last commit is ignored",
        suite: SIMULATION,
    },
    Mutant {
        name: "token-not-committed-first",
        what: "records run before a token that a restart could issue again is committed",
        suite: FLOW,
    },
    Mutant {
        name: "new-partition-at-the-end",
        what: "a partition that is added to a topic starts where kafka.start says",
        suite: STARTS,
    },
    Mutant {
        name: "unfound-holds-all",
        what: "a partition whose starting offset is unknown holds the whole assignment",
        suite: KAFKA,
    },
    Mutant {
        name: "new-topic-believed",
        what: "records of a re-created topic are taken for those of its predecessor",
        suite: KAFKA,
    },
    Mutant {
        name: "closed-handler-keeps-records",
        what: "a failed handler keeps its records when it is switched off or removed",
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
        name: "no-leader-fails-the-topic",
        what: "partitions without a commit wait for the one that has no leader",
        suite: READING,
    },
    Mutant {
        name: "restart-undone",
        what: "a restart is dropped because the spec needs no new generation",
        suite: PLUGINS,
    },
    Mutant {
        name: "awaited-record-not-stalled",
        what: "a record that is in the log but is not delivered does not count as a stall (G8)",
        suite: PUMP,
    },
    Mutant {
        name: "unwanted-records-hide-a-stall",
        what: "records that no handler wants keep a held partition from being reported as stalled (G8)",
        suite: FLOW,
    },
    Mutant {
        name: "refused-right-never-over",
        what: "a partition whose topic is readable again stays unreadable until a record is delivered (G8)",
        suite: PUMP,
    },
    Mutant {
        name: "one-held-handler-unready",
        what: "one handler that does not run makes the service unready",
        suite: STATUS,
    },
    Mutant {
        name: "log-waits-for-its-reader",
        what: "logging threads wait for room in the buffer of an unread log",
        suite: LOGGING,
    },
    Mutant {
        name: "half-open-keeps-others-out",
        what: "a connection that sends no request makes no room for one that does",
        suite: CONNECTIONS,
    },
    Mutant {
        name: "unread-folder-is-empty",
        what: "a plugins folder that cannot be read loses its plugins",
        suite: PLUGINS,
    },
    Mutant {
        name: "static-id-shared",
        what: "several clients of a process share one static member id",
        suite: KAFKA,
    },
    Mutant {
        name: "secrets-not-redacted",
        what: "text from a plugin about its config is passed on with its secrets",
        suite: PLUGINS,
    },
    Mutant {
        name: "emit-topic-shown",
        what: "an emit topic that is a secret is shown in refusals",
        suite: EMIT,
    },
    Mutant {
        name: "deleted-letters-not-missed",
        what: "a dead-letter topic that is deleted in use is not noticed",
        suite: FLOW,
    },
];
