//! Mutants of calls: how long they are, and what counts of those that end early.

use super::{FLOW, Mutant, PLUGINS, POOL, QUEUE, SDK_RULES};

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
];
