//! Mutants of calls: how long they are, and what counts of those that end early.

use super::{
    FLOW, Mutant, NATIVE, PLUGINS, POOL, QUEUE, RUNTIME, SDK_OUTAGES, SDK_ROOM, SDK_RULES,
    SERVICE_LIB,
};

/// Of calls that end early.
pub(super) const CALLS: &[Mutant] = &[
    Mutant {
        name: "long-call-runs-on",
        what: "a call that takes long because some of its records are slow keeps all of them",
        suite: POOL,
    },
    Mutant {
        name: "late-emit-not-run",
        what: "a record that emits after its timeout is handled again as the same attempt, for ever",
        suite: SDK_RULES,
    },
    Mutant {
        name: "others-threads-forgotten",
        what: "a handler that was tripped because threads of others hang stays tripped when these return",
        suite: POOL,
    },
    Mutant {
        name: "fruitless-calls-stay-large",
        what: "records that emit too much together are called together again",
        suite: FLOW,
    },
    Mutant {
        name: "settled-batch-hangs-for-ever",
        what: "the records of a batch handler that hangs after its last outcome are handled again as the same attempt",
        suite: FLOW,
    },
    Mutant {
        name: "slow-fixed-cost-not-tried",
        what: "the fixed cost of calls above 100 ms is never found out",
        suite: QUEUE,
    },
    Mutant {
        name: "line-hides-own-secrets-only",
        what: "a line that a thread of a shared plugin writes contains the secrets of another handler",
        suite: PLUGINS,
    },
    Mutant {
        name: "slow-call-takes-all",
        what: "one call of slow records gets all that a handler may have in flight, and the other workers none",
        suite: QUEUE,
    },
    Mutant {
        name: "wish-of-a-batch-ignored",
        what: "a call gets more records than its handler wishes for",
        suite: QUEUE,
    },
    Mutant {
        name: "call-emits-without-bound",
        what: "a call emits until memory is exhausted",
        suite: RUNTIME,
    },
    Mutant {
        name: "hung-process-not-killed",
        what: "a call that could be ended by force costs a thread",
        suite: POOL,
    },
    Mutant {
        name: "unknown-service-promised",
        what: "a plugin is loaded although the service lacks what it needs",
        suite: NATIVE,
    },
    Mutant {
        name: "outage-is-an-attempt",
        what: "a record that finds a dependency away has failed an attempt",
        suite: SDK_OUTAGES,
    },
    Mutant {
        name: "outage-trips-its-handler",
        what: "a handler whose dependency is away for long is tripped",
        suite: POOL,
    },
    Mutant {
        name: "long-overlapping-call-runs-on",
        what: "a call of an async handler whose records become slow keeps all of them, for minutes",
        suite: POOL,
    },
    Mutant {
        name: "unrun-of-a-batch-overtaken",
        what: "a failed record of a batch runs before an earlier one of its key that was not run",
        suite: FLOW,
    },
    Mutant {
        name: "backlog-sorted-by-offset",
        what: "a partition with high offsets waits behind all others of a slow handler",
        suite: FLOW,
    },
    Mutant {
        name: "batch-emits-behind-no-room",
        what: "what a batch emits behind a record without room is written before it",
        suite: SDK_ROOM,
    },
    Mutant {
        name: "refused-user-keeps-code-running",
        what: "code without users and instances keeps running because its last user was refused",
        suite: NATIVE,
    },
    Mutant {
        name: "hung-rebuild-at-each-check",
        what: "an instance that hangs while it is built is built again at each health check",
        suite: POOL,
    },
    Mutant {
        name: "hung-check-at-each-check",
        what: "an instance whose health check hangs is built again at each health check",
        suite: POOL,
    },
    Mutant {
        name: "wish-does-not-reach-the-pumps",
        what: "the number of records that a batch handler wishes for is lost between its plugin and the pumps",
        suite: SERVICE_LIB,
    },
    Mutant {
        name: "kit-ignores-the-wish",
        what: "the test kit calls a batch handler with more records than it wishes for",
        suite: SDK_ROOM,
    },
    Mutant {
        name: "share-of-one-worker",
        what: "a call takes what may be in flight at all the workers of its handler",
        suite: FLOW,
    },
];
