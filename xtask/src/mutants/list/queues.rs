//! Mutants of the queues of handlers: runs of records, retries, orders, waiting records and their memory, commit sizes.

use super::super::Mutant;
use super::super::suites::{COMMIT, FLOW, PUMP, QUEUE, RAW, READING, SIMULATION, STATUS};

pub(super) const QUEUES: &[Mutant] = &[
    Mutant {
        name: "abandoned-call-holds-restart",
        what: "a partition whose offset is out of range waits for a call that was abandoned",
        suite: FLOW,
    },
    Mutant {
        name: "target-blocks-all",
        what: "a full pool of one target holds the keys of all targets of its handler",
        suite: FLOW,
    },
    Mutant {
        name: "moved-keys-not-placed-again",
        what: "queued records stay with the target that had their keys before",
        suite: FLOW,
    },
    Mutant {
        name: "outcomes-count-for-the-present-version",
        what: "what a call of another version did counts for the present one",
        suite: FLOW,
    },
    Mutant {
        name: "key-has-several-targets",
        what: "records of one key go to several generations",
        suite: SIMULATION,
    },
    Mutant {
        name: "old-panic-hides-errors",
        what: "a panic stays the last error of a handler although records have failed since",
        suite: STATUS,
    },
    Mutant {
        name: "failing-never-over",
        what: "a handler whose attempts failed is still reported after a record succeeded",
        suite: QUEUE,
    },
    Mutant {
        name: "alternating-reasons-logged",
        what: "a reason for a refusal is logged again whenever another one came between",
        suite: QUEUE,
    },
    Mutant {
        name: "late-batch-of-a-predecessor",
        what: "a late batch of a handler that was removed counts for the handler that is declared again under its name",
        suite: FLOW,
    },
    Mutant {
        name: "run-over-finished-offsets",
        what: "a run of records is taken as new although an earlier owner finished some of them",
        suite: SIMULATION,
    },
    Mutant {
        name: "run-settles-a-gap",
        what: "offsets that settle together need not be consecutive",
        suite: SIMULATION,
    },
    Mutant {
        name: "run-beyond-the-bound",
        what: "a run of records is admitted beyond the bound on uncommitted offsets",
        suite: FLOW,
    },
    Mutant {
        name: "queued-again-out-of-order",
        what: "records for which their partition had no room after all are queued again in another order",
        suite: SIMULATION,
    },
    Mutant {
        name: "commit-in-one-request",
        what: "all partitions are committed in one request, however large",
        suite: COMMIT,
    },
    Mutant {
        name: "long-metadata-for-ever",
        what: "metadata that the broker finds too long is sent again and again",
        suite: COMMIT,
    },
    Mutant {
        name: "requested-delay-unbounded",
        what: "a handler can request any delay of a retry",
        suite: FLOW,
    },
    Mutant {
        name: "fruitless-calls-unpaused",
        what: "a handler whose calls run no record is called again at once",
        suite: FLOW,
    },
    Mutant {
        name: "run-again-leaves-its-share",
        what: "a record whose emits were refused and that is run again leaves a share behind, which later records of its key wait for",
        suite: FLOW,
    },
    Mutant {
        name: "unrun-batches-out-of-order",
        what: "records without a lane that calls returned unrun keep their order of return when another order applies",
        suite: FLOW,
    },
    Mutant {
        name: "frontiers-searched-at-each-report",
        what: "every report searches all records for those at the frontiers",
        suite: FLOW,
    },
    Mutant {
        name: "failed-handler-dead-letters-anyway",
        what: "a failed handler dead-letters its records although `on_failure` says hold",
        suite: SIMULATION,
    },
    Mutant {
        name: "closing-skips-dead-letters",
        what: "a failed handler that is switched off skips records that `on_failure` sends to the dead-letter topic",
        suite: SIMULATION,
    },
    Mutant {
        name: "first-attempt-lane-forgotten",
        what: "a first attempt that is made again does not release the records that wait in its lane",
        suite: FLOW,
    },
    Mutant {
        name: "finished-in-a-hung-call-repeats",
        what: "what a hung call has finished does not count when a drain times out",
        suite: FLOW,
    },
    Mutant {
        name: "late-ack-counts",
        what: "a record that the next owner handles again is counted as acknowledged",
        suite: FLOW,
    },
    Mutant {
        name: "due-before-messages",
        what: "what a call has finished before a drain deadline does not count if the pump learns of it after it",
        suite: PUMP,
    },
    Mutant {
        name: "letter-for-what-is-left",
        what: "a dead letter is written for a record that is left to the next owner, which writes another",
        suite: FLOW,
    },
    Mutant {
        name: "handled-again-unsaid",
        what: "records whose call timed out in a drain after it had handled them are not reported as unfinished",
        suite: FLOW,
    },
    Mutant {
        name: "published-emits-count",
        what: "a record of a hung call counts as finished although its emits are still in the call",
        suite: FLOW,
    },
    Mutant {
        name: "batch-outcomes-count-early",
        what: "what a batch handler has published counts when a drain times out, although it may still replace it",
        suite: FLOW,
    },
    Mutant {
        name: "overtaken-not-deferred",
        what: "after a change of order a parked record runs before one of its lane that has not run",
        suite: FLOW,
    },
    Mutant {
        name: "order-changes-at-once",
        what: "another order applies to new records while records of the order before are under way",
        suite: SIMULATION,
    },
    Mutant {
        name: "order-changes-between-retries",
        what: "retries are started under the old order while another one waits for calls",
        suite: FLOW,
    },
    Mutant {
        name: "deferred-shares-keep-their-lane",
        what: "deferred shares keep the lanes of the order before",
        suite: FLOW,
    },
    Mutant {
        name: "moved-shares-do-not-follow",
        what: "deferred shares that get one lane by another order are run again in any order",
        suite: FLOW,
    },
    Mutant {
        name: "released-lane-is-forgotten",
        what: "a lane that is released while the order changes stays closed if the change is reverted",
        suite: FLOW,
    },
    Mutant {
        name: "batches-keep-their-worker",
        what: "batches that were filled for another number of workers keep their worker",
        suite: FLOW,
    },
    Mutant {
        name: "due-records-cost-the-square",
        what: "each record that is due for a retry is compared with all deferred ones",
        suite: FLOW,
    },
    Mutant {
        name: "failed-together-run-together",
        what: "records of a lane that failed in one call are run again without waiting for one another",
        suite: FLOW,
    },
    Mutant {
        name: "waiting-records-pin-buffers",
        what: "records that wait for long stay in the client's fetch buffers",
        suite: READING,
    },
    Mutant {
        name: "pinned-memory-not-measured",
        what: "few records of many keep fetch buffers alive until they have waited for long",
        suite: READING,
    },
    Mutant {
        name: "pinned-memory-not-counted",
        what: "fetch buffers that calls keep alive do not count as used memory",
        suite: READING,
    },
    Mutant {
        name: "calls-pin-buffers",
        what: "records are not copied out of fetch buffers while calls keep too many of these alive",
        suite: READING,
    },
    Mutant {
        name: "reserve-not-kept",
        what: "partitions of a held handler fill the part of the memory that is for the others",
        suite: FLOW,
    },
    Mutant {
        name: "buffer-share-is-the-buffer",
        what: "each record counts its whole fetch buffer as pinned",
        suite: RAW,
    },
];
