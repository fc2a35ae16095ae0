//! What the engine is told, and what it wants done: [`Engine::step`](crate::engine::Engine::step) takes an [`Event`] and
//! appends [`Effect`]s.
//!
//! ```text
//!  pump ── Clock, Message, Tick, Source, Observed, Records, Polled, TurnEnd ──► step ──► Effect ──► the client
//!    ▲                                                                                                 │
//!    └────────────────────── Positions, Sought, Left: completions ◄────────────────────────────────────┘
//! ```
//!
//! Effects are carried out in order, each before the next event. None of them waits for a broker, except
//! [`Effect::Leave`]; what a broker answers arrives as a later event.

use crate::dispatch::PumpMessage;
use crate::source::{
    AssignmentId, CommitEntry, Delivery, FetchState, Membership, SourceError, SourceEvent, StartAt,
    StartPartition, TopicPartition,
};

/// What the client knows about an owned partition, without asking a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Its assignment.
    pub slot: AssignmentId,
    /// The end of its log.
    pub end: Option<i64>,
    /// Whether it is fetched.
    pub fetch: FetchState,
}

/// What has happened.
pub enum Event<'a, R> {
    /// Time has passed. It is in milliseconds since the engine's start and never decreases. Nothing that is due runs before
    /// the next tick: messages that arrived in time come first, or a call that ended before a deadline would be too late.
    Clock(u64),
    /// Time has passed, and everything that is due runs.
    Tick(u64),
    /// A message of a worker or the producer.
    Message(PumpMessage),
    /// An event of the source, and the membership at that time.
    Source(SourceEvent, Membership),
    /// The state of all owned partitions, about once per second (see [`Engine::observation_due`]).
    ///
    /// [`Engine::observation_due`]: crate::engine::Engine::observation_due
    Observed(&'a [Observation]),
    /// Fetched records, in order; they are taken out.
    Records(&'a mut Vec<Delivery<R>>),
    /// All records that were polled have been passed on.
    Polled,
    /// Completes [`Effect::LearnPositions`]: one past the last offset that the client has passed. Partitions whose
    /// position is not certain are left out.
    Positions(&'a [(AssignmentId, i64)]),
    /// Completes [`Effect::Seek`].
    Sought(AssignmentId, Result<(), SourceError>),
    /// The service stops. `rebalancing`: the group is rebalancing, so this member cannot leave yet.
    Stop {
        /// Whether the group is rebalancing.
        rebalancing: bool,
    },
    /// The client alone cannot reach the cluster, and is to be replaced.
    ClientStuck,
    /// Completes [`Effect::Leave`]. `confirmed`: the group was left.
    Left {
        /// Whether the group was left.
        confirmed: bool,
    },
    /// A new client has taken the place of the one that has left.
    ClientRenewed,
    /// The turn ends: commits, hand-overs and stops progress.
    TurnEnd {
        /// Whether the group is rebalancing; only asked while [`Engine::awaits_rebalance`].
        ///
        /// [`Engine::awaits_rebalance`]: crate::engine::Engine::awaits_rebalance
        rebalancing: bool,
    },
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Find where these partitions start; those without a commit at `start`.
    Find {
        /// The partitions.
        partitions: Vec<TopicPartition>,
        /// The start of a partition without a commit.
        start: StartAt,
    },
    /// Read these assigned partitions. A failure is one of the client as a whole.
    Start(Vec<StartPartition>),
    /// Reposition a partition that is read; answered by [`Event::Sought`].
    Seek(StartPartition),
    /// Hand these partitions over.
    Release(Vec<TopicPartition>),
    /// Ask for the bounds of these partitions' logs.
    AskBounds(Vec<TopicPartition>),
    /// Say how far these partitions were read, before anything else is polled; answered by [`Event::Positions`].
    LearnPositions(Vec<AssignmentId>),
    /// Pause or resume the fetching of a partition.
    Pause(AssignmentId, bool),
    /// Send a commit. One that cannot be sent is answered as rejected as a whole.
    Commit(Vec<CommitEntry>),
    /// List the cluster's topics early: one of them is missing, or denies writes.
    ListTopics,
    /// Leave the group by `deadline_ms`; answered by [`Event::Left`]. With `renew`, a new client then joins it.
    Leave {
        /// On the engine's clock.
        deadline_ms: u64,
        /// Whether a new client takes over.
        renew: bool,
    },
    /// The client is unusable and the process has to end.
    Fail(String),
}
