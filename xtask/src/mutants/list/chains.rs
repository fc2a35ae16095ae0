//! Mutants of lanes that continue while their emits are acknowledged, and of what follows a refusal.

use super::super::Mutant;
use super::super::suites::{COORDINATORS, EMIT, FLOW, SIMULATION};

pub(super) const CHAINS: &[Mutant] = &[
    Mutant {
        name: "followers-not-written-again",
        what: "what was written behind a refused emit stays there, so that an older value is last",
        suite: SIMULATION,
    },
    Mutant {
        name: "sent-again-out-of-turn",
        what: "a refused emit is sent again before those of earlier records of its lane",
        suite: FLOW,
    },
    Mutant {
        name: "settles-before-its-lane",
        what: "a record without emits settles before an earlier one of its lane whose emits are not acknowledged",
        suite: SIMULATION,
    },
    Mutant {
        name: "acknowledged-sent-again",
        what: "emits that are acknowledged and stand behind no refused one are sent again",
        suite: EMIT,
    },
    Mutant {
        name: "trouble-ends-under-a-call",
        what: "a lane continues although a call of it may have written before what was sent again",
        suite: FLOW,
    },
    Mutant {
        name: "producer-filled-by-one-handler",
        what: "a handler whose broker does not answer fills the producer's queue, which other handlers need",
        suite: FLOW,
    },
    Mutant {
        name: "each-follower-waits-its-backoff",
        what: "after a refusal each record of a key waits a delay of its own, also when the one before it was acknowledged",
        suite: FLOW,
    },
    Mutant {
        name: "kept-emits-not-counted",
        what: "emits that were refused or wait behind others do not count as used memory",
        suite: FLOW,
    },
    Mutant {
        name: "written-again-before-the-refused",
        what: "emits are written again that stand before the record that their topic refused",
        suite: FLOW,
    },
    Mutant {
        name: "refused-at-once-passes",
        what: "a record whose emits were refused when they were to be sent does not hold its lane",
        suite: FLOW,
    },
    Mutant {
        name: "not-run-overtaken",
        what: "a trouble that ends with a call releases its lane before the records that the call did not run are back",
        suite: FLOW,
    },
    Mutant {
        name: "lane-continues-after-a-timeout",
        what: "a record settles before an earlier one of its lane whose emits are stuck in a call that timed out",
        suite: FLOW,
    },
    Mutant {
        name: "each-follower-waits-when-off",
        what: "a handler that is off waits for the cluster with each record behind one that was refused",
        suite: FLOW,
    },
    Mutant {
        name: "lane-runs-again-in-part",
        what: "a newer generation runs only the first record of a lane again, behind the later ones",
        suite: FLOW,
    },
    Mutant {
        name: "pending-out-of-turn",
        what: "a record whose emits are acknowledged settles before an earlier one of its lane",
        suite: FLOW,
    },
    Mutant {
        name: "pending-not-in-trouble",
        what: "what waits for its acknowledgement behind a refused record is not written again",
        suite: FLOW,
    },
    Mutant {
        name: "pending-not-left",
        what: "records that wait for their acknowledgement stay here although their partition is left to its next owner",
        suite: FLOW,
    },
    Mutant {
        name: "pending-not-started",
        what: "a record whose emits are with the producer is left to the next owner, who writes them again",
        suite: FLOW,
    },
    Mutant {
        name: "pending-keeps-its-order",
        what: "records that wait for their acknowledgement do not move to their lanes of a new order",
        suite: SIMULATION,
    },
    Mutant {
        name: "ahead-of-an-unanswered",
        what: "what stands behind a refused record is written again although an earlier one is with the producer",
        suite: FLOW,
    },
    Mutant {
        name: "ahead-counts-after-a-refusal",
        what: "what was written again behind a record that is refused once more stays there",
        suite: FLOW,
    },
    Mutant {
        name: "ahead-in-another-way",
        what: "a record is sent again with others while one before it is sent alone, and can overtake it",
        suite: FLOW,
    },
    Mutant {
        name: "runs-admitted-again",
        what: "records that no handler takes are admitted twice, and count as repeats",
        suite: FLOW,
    },
    Mutant {
        name: "coordinator-remembered",
        what: "the coordinator of a group is that of the first request, wherever it has moved",
        suite: COORDINATORS,
    },
];
