//! Where records come from: the [`Source`] trait and what passes through it.
//!
//! ```text
//!  events()  Assigned ─► find() ─► Found ─► start() ─► poll() … poll() ─► Revoked ─► (drain) ─► commit() ─► release()
//! ```
//!
//! A source lives on the pump's thread and is called by it alone. Callbacks of the client only record what happened;
//! the pump reads it with [`Source::events`] and acts. Implementations: `kafka` (the real client) and `memory`
//! (scripted, for tests).

pub(crate) mod callbacks;
mod client_check;
pub mod client_config;
mod client_errors;
pub(crate) mod client_log;
mod gap_detector;
pub mod kafka;
pub mod memory;
pub mod mock;
pub(crate) mod raw;
pub mod reach;
mod rebalance;
pub mod record_buf;
pub mod starts;
#[cfg(test)]
pub(crate) mod testing;
mod wake;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::commit::{ReadNote, TopicUuid};

pub use client_check::ConfigRefusal;
pub use client_config::ClientSettings;
pub use kafka::KafkaSource;
pub use record_buf::RecordBuf;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number.
    pub partition: i32,
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// Index of an assignment in the pump's table; a partition gets a new slot each time it is assigned.
///
/// A slot is never reused while a record of its assignment is alive, so a late record or outcome of a revoked
/// assignment cannot be taken for one of its successor (G5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssignmentId(pub u32);

/// One fetched record.
#[derive(Debug)]
pub struct Delivery {
    /// The assignment that it came in.
    pub slot: AssignmentId,
    /// Kafka offset.
    pub offset: i64,
    /// Kafka timestamp in milliseconds, -1 when there is none.
    pub timestamp_ms: i64,
    /// Epoch of the leader that took it, -1 when the broker gives none.
    pub leader_epoch: i32,
    /// Its bytes.
    pub lease: RecordBuf,
}

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The oldest record there is.
    Earliest,
    /// After the newest record there is.
    Latest,
    /// The first record at or after a time, in milliseconds since the epoch.
    Time(i64),
    /// This offset.
    Offset(i64),
}

/// Why a partition begins where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The group has committed this offset.
    Committed,
    /// Nothing is committed for the topic: where a new group is to begin (`kafka.start`).
    NewGroup,
    /// Nothing is committed for the partition, but for others of the topic: it is new, and begins at its beginning.
    NewPartition,
    /// What is committed belongs to an earlier topic of the same name, with this id: the new one begins at its
    /// beginning.
    Recreated(TopicUuid),
}

/// A partition of ours: where it begins, and what its last owner left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The partition.
    pub at: TopicPartition,
    /// The topic that it is a partition of now.
    pub topic_id: TopicUuid,
    /// First offset to read.
    pub offset: i64,
    /// Whether that is the oldest record there is, even if it moves until the first fetch.
    pub oldest: bool,
    /// Leader epoch of the record before it, as committed.
    pub leader_epoch: Option<i32>,
    /// Why it begins there.
    pub origin: Origin,
    /// The last commit's metadata; its list of finished records is empty unless `origin` is [`Origin::Committed`].
    pub read: ReadNote,
}

/// As what the client is a member of its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Generation (classic protocol) or member epoch (KIP-848); `None` while it is no member.
    pub generation: Option<i32>,
    /// Whether it keeps its partitions, and the generation, over a restart (`group.instance.id`).
    pub is_static: bool,
    /// Whether the broker assigns partitions (KIP-848): a member without any is then not told so by an event.
    pub assigned_by_broker: bool,
}

/// What a client's error is about: what clears it, and what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientErrorKind {
    /// No broker is connected any more.
    AllBrokersDown,
    /// A broker cannot be reached or does not answer.
    Connection,
    /// The brokers refuse the login, or the encryption fails.
    Login,
    /// The group does not take the member.
    Group,
    /// A subscribed topic is missing or may not be read.
    Topic,
    /// Anything else.
    Other,
}

/// When the trouble of a partition is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionFault {
    /// What stands in the log cannot be read as it is: when something is read.
    Damaged,
    /// The client may not read it: when something is read, or a fetch succeeds.
    Denied,
    /// Anything else: when it is not repeated.
    Passing,
}

/// How the client fares with the fetching of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FetchState {
    /// That is not known.
    #[default]
    Unknown,
    /// Nothing is known against it.
    Fetching,
    /// The last fetch was refused.
    Refused,
    /// The partition has no leader to fetch from.
    NoLeader,
}

/// A partition whose reading begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPartition {
    /// The slot under which its records are delivered.
    pub slot: AssignmentId,
    /// The partition.
    pub at: TopicPartition,
    /// First offset.
    pub start: StartAt,
    /// The offset behind `start`, if it was looked up: the record that is due first.
    pub due: Option<i64>,
    /// Leader epoch of the record before it, if it is known: the client then notices a log that was cut off below it.
    pub leader_epoch: Option<i32>,
    /// The topic that it is a partition of.
    pub topic_id: TopicUuid,
}

/// What a commit says of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitEntry {
    /// The partition.
    pub at: TopicPartition,
    /// Next offset to read: the frontier.
    pub offset: i64,
    /// Leader epoch of the record before it, by which a log that was cut off below the commit is noticed (KIP-320).
    pub leader_epoch: Option<i32>,
    /// [`crate::commit::CommitNote`], encoded.
    pub metadata: String,
}

/// The broker's answer to a commit, partition by partition: a commit that succeeded as a whole can hide refusals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitResult {
    /// The partition.
    pub at: TopicPartition,
    /// The offset that was sent.
    pub offset: i64,
    /// The broker's error, if it refused.
    pub error: Option<CommitError>,
}

/// Why a commit, or one partition of it, was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitError {
    /// What helps.
    pub kind: CommitErrorKind,
    /// The broker's words.
    pub reason: String,
}

/// What helps against the refusal of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommitErrorKind {
    /// The group has another generation by now or is agreeing on one: the same commit is accepted after that.
    Rebalancing,
    /// The coordinator is away or busy: the same commit is accepted once it is back.
    Unavailable,
    /// The client is not a member of the group any more: its partitions are gone (G5).
    NotMember,
    /// Something other than the group has to change.
    Rejected(Rejection),
}

/// What has to change before a commit is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// The rights of the service.
    Right,
    /// The topic is not there.
    NoTopic,
    /// The commit is not to the cluster's liking: its configuration, or ours.
    Other,
}

/// What happened to the source since it was last asked.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// These partitions are ours once [`Source::start`] is called for them.
    Assigned(Vec<TopicPartition>),
    /// Where partitions begin that [`Source::find`] was asked for.
    Found(Vec<Found>),
    /// It is not known yet where a partition begins; the source goes on asking. The others do not wait for it.
    NotFound {
        /// The partition.
        at: TopicPartition,
        /// Why not.
        reason: String,
    },
    /// A topic was deleted and created again: the offsets that we have of it belong to a log that is gone, and nothing of
    /// it is delivered any more.
    TopicRecreated {
        /// The topic.
        topic: Arc<str>,
    },
    /// Another cluster answers at the configured addresses: nothing here belongs to what was read.
    ClusterChanged {
        /// The cluster's id before.
        was: String,
        /// The cluster's id now.
        is: String,
    },
    /// These partitions go to somebody else once [`Source::release`] is called.
    Revoked {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// They are gone already: nothing may be committed for them (G5).
        lost: bool,
    },
    /// The commit in flight was answered; empty results with an error stand for a commit that failed as a whole.
    Committed {
        /// Answers by partition.
        results: Vec<CommitResult>,
        /// Why the request as a whole failed.
        error: Option<CommitError>,
    },
    /// The client was refused the offset to read: it is not there any more, or not yet, or something was wrong with the
    /// client's own (G12). Nothing of the partition comes until [`Source::start`] is called for it again.
    OffsetMissing {
        /// The partition.
        at: TopicPartition,
        /// The offset that is due next, if that is known.
        asked: Option<i64>,
        /// The offset that the client fetched from.
        fetched: Option<i64>,
        /// The log was cut off before what was due.
        truncated: bool,
        /// The broker's words.
        reason: String,
    },
    /// The answer to [`Source::ask_bounds`]: the first offset of a partition's log and one past the last, or why they are
    /// not to be had.
    Bounds {
        /// The partition.
        at: TopicPartition,
        /// Its bounds.
        bounds: Result<Range<i64>, String>,
    },
    /// Something is wrong with one partition; the client goes on trying.
    PartitionError {
        /// The partition.
        at: TopicPartition,
        /// The broker's words.
        reason: String,
        /// When it is over.
        fault: PartitionFault,
    },
    /// Something is wrong with the client or its connection.
    ClientError {
        /// What it is about.
        kind: ClientErrorKind,
        /// The client's words.
        reason: String,
        /// What helps.
        remedy: &'static str,
        /// Only a new client can go on.
        fatal: bool,
    },
    /// The client's statistics, as JSON.
    Statistics(Box<str>),
}

/// Why a source could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Trying again later may help.
    #[error("{0}")]
    Retryable(String),
    /// Only a change of configuration or a new client helps.
    #[error("{0}")]
    Terminal(String),
}

/// Ends a [`Source::wait`] from any thread.
pub trait Wake: Send + Sync {
    /// Ends the current wait, or else the next one, at once.
    fn wake(&self);
}

/// Where records come from. Called by the pump's thread alone.
pub trait Source {
    /// Subscribes to `topics`: names, and regular expressions that begin with `^`. Replaces the earlier subscription.
    ///
    /// # Errors
    /// When the client refuses the subscription.
    fn subscribe(&mut self, topics: &[String]) -> Result<(), SourceError>;

    /// Appends what happened since the last call. Serves the client's callbacks until none is left.
    fn events(&mut self, out: &mut Vec<SourceEvent>);

    /// Whether the group agrees on a new assignment just now, from this member's request to join until it has taken what it
    /// was given. It cannot leave meanwhile. `false` where the client does not know.
    fn is_rebalancing(&self) -> bool {
        false
    }

    /// As what the client is a member of its group just now.
    fn membership(&mut self) -> Membership;

    /// Begins to find out where partitions begin; those without a commit at `start`. The answers come as
    /// [`SourceEvent::Found`] and [`SourceEvent::NotFound`], each partition for itself; asking goes on until a partition
    /// is found or given back. It does not wait for the broker.
    fn find(&mut self, partitions: &[TopicPartition], start: StartAt);

    /// Accepts an assignment: records of these partitions come once all partitions of the [`SourceEvent::Assigned`]
    /// were started. A partition that runs already under this slot is moved to the given start instead.
    ///
    /// # Errors
    /// When the client refuses.
    fn start(&mut self, partitions: &[StartPartition]) -> Result<(), SourceError>;

    /// Gives partitions back after their drain; no record of their slots comes any more. The group hears of it once
    /// all partitions of the [`SourceEvent::Revoked`] are back.
    ///
    /// # Errors
    /// When the client refuses; the partitions count as gone all the same.
    fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError>;

    /// Appends up to `max` fetched records without waiting. Fewer than `max` means that there were no more just now.
    fn poll(&mut self, max: usize, out: &mut Vec<Delivery>);

    /// Stops or resumes the fetching of one partition.
    fn pause(&mut self, slot: AssignmentId, paused: bool);

    /// Sends a commit; the answer comes as [`SourceEvent::Committed`]. The pump keeps one in flight at most.
    ///
    /// # Errors
    /// When it could not be sent.
    fn commit(&mut self, entries: &[CommitEntry]) -> Result<(), SourceError>;

    /// How far partitions were read in their present assignments, control records and aborted data included: one past
    /// the last of them that [`Self::poll`] has passed. Appends only what is certain, which is never beyond a record that
    /// `poll` has still to give. Does not ask the broker.
    fn consumed(&mut self, slots: &[AssignmentId], out: &mut Vec<(AssignmentId, i64)>);

    /// Asks the cluster for the bounds of partitions' logs; each is answered by [`SourceEvent::Bounds`].
    fn ask_bounds(&mut self, partitions: &[TopicPartition]);

    /// One past the newest offset of a partition, as far as the client knows.
    fn end_offset(&self, slot: AssignmentId) -> Option<i64>;

    /// How the client fares with the fetching of a partition, as far as it knows. Does not ask the broker.
    fn fetch_state(&self, slot: AssignmentId) -> FetchState {
        let _ = slot;
        FetchState::Unknown
    }

    /// Sleeps until there is something to do, a [`Wake::wake`], or the timeout.
    fn wait(&mut self, timeout: Duration);

    /// The handle that ends a wait.
    fn waker(&self) -> Arc<dyn Wake>;

    /// Leaves the group, by `deadline` at the latest. A join that is under way is finished first, else the group would
    /// wait for this member until its session ends. Everything assigned was released before, or is lost. `false`: it is not certain that the group
    /// was left, so that the partitions may have no owner until the session ends.
    fn close(&mut self, deadline: Instant) -> bool;
}
