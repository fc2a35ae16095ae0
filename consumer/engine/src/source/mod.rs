//! Where records come from: the [`Source`] trait and its data types.
//!
//! ```text
//!  events()  Assigned ─► find() ─► Found ─► start() ─► poll() … poll() ─► Revoked ─► (drain) ─► commit() ─► release()
//! ```
//!
//! A source is used only by the pump's thread. Callbacks of the client only record what happened; the pump reads it
//! with [`Source::events`] and acts: a callback runs inside the client's poll, which serves no other event before it
//! returns, so a drain in a callback would wait for the answers to its own commits. Implementations: `KafkaSource` of
//! `sluicegate-kafka` in production, and the scripted `MemorySource` of `sluicegate-kit` in tests.
//!
//! The group waits for `start` and `release`, which is what makes a graceful hand-over possible: between `Revoked` and
//! `release` this member still owns the partitions and may commit (G3). After `Revoked` with `lost`, and after
//! `release`, it must not (G5). Start offsets are queried without blocking and answered partition by partition, so
//! that one without a leader delays no other (ADR 0021). Records carry an [`AssignmentId`] and not only a partition: a
//! record of an earlier ownership must not enter the ledger of the present one.

pub mod starts;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::partition::commit::{ReadMetadata, TopicUuid};
pub use crate::partition::id::{AssignmentId, TopicPartition};
use crate::record::Record;

/// One fetched record.
#[derive(Debug)]
pub struct Delivery<R> {
    /// The assignment that delivered it.
    pub slot: AssignmentId,
    /// Kafka offset.
    pub offset: i64,
    /// Kafka timestamp in milliseconds; -1 if there is none.
    pub timestamp_ms: i64,
    /// Epoch of the leader that appended it; -1 if the broker provides none.
    pub leader_epoch: i32,
    /// Its bytes.
    pub lease: R,
}

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The oldest record.
    Earliest,
    /// After the newest record.
    Latest,
    /// The first record at or after a time, in Unix milliseconds.
    Time(i64),
    /// This offset.
    Offset(i64),
}

/// Why a partition starts at its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The group has committed this offset.
    Committed,
    /// Nothing is committed for the topic: the start position of a new group (`kafka.start`).
    NewGroup,
    /// Nothing is committed for the partition, but for others of the topic: it is new, and starts at its beginning.
    NewPartition,
    /// The commit belongs to an earlier topic of the same name, with this id: the new one starts at its beginning.
    Recreated(TopicUuid),
}

/// An owned partition: where it starts, and what its last owner left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The partition.
    pub at: TopicPartition,
    /// The id of its topic.
    pub topic_id: TopicUuid,
    /// First offset to read.
    pub offset: i64,
    /// Whether that is the oldest record, even if it moves until the first fetch.
    pub oldest: bool,
    /// Committed leader epoch of the record before it.
    pub leader_epoch: Option<i32>,
    /// Why it starts there.
    pub origin: Origin,
    /// The last commit's metadata; its list of settled records is empty unless `origin` is [`Origin::Committed`].
    pub read: ReadMetadata,
}

/// The client's membership in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Generation (classic protocol) or member epoch (KIP-848); `None` while it is not a member.
    pub generation: Option<i32>,
    /// Whether it keeps its partitions and the generation across a restart (`group.instance.id`).
    pub is_static: bool,
    /// Whether the broker assigns partitions (KIP-848): a member without any then gets no event about it.
    pub assigned_by_broker: bool,
}

/// Kind of a client error, by what clears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientErrorKind {
    /// No broker is connected any more.
    AllBrokersDown,
    /// A broker cannot be reached or does not answer.
    Connection,
    /// The brokers reject the login, or TLS fails.
    Login,
    /// The group does not accept the member.
    Group,
    /// A subscribed topic is missing or not authorized.
    Topic,
    /// Anything else.
    Other,
}

/// When an error of a partition counts as resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionFault {
    /// A record in the log cannot be read: resolved when a record is read.
    Damaged,
    /// The client is not authorized to read it: resolved when a record is read, or a fetch succeeds.
    Denied,
    /// Any other error: resolved when it does not recur.
    Passing,
}

/// State of the fetching of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FetchState {
    /// Unknown.
    #[default]
    Unknown,
    /// No error is known.
    Fetching,
    /// The last fetch was refused.
    Refused,
    /// The partition has no leader to fetch from.
    NoLeader,
}

/// A partition to start reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPartition {
    /// The slot under which its records are delivered.
    pub slot: AssignmentId,
    /// The partition.
    pub at: TopicPartition,
    /// First offset.
    pub start: StartAt,
    /// The offset that `start` resolves to, if it was queried: the first expected record.
    pub due: Option<i64>,
    /// Leader epoch of the record before it, if known: the client then detects a log truncated below it.
    pub leader_epoch: Option<i32>,
    /// The id of its topic.
    pub topic_id: TopicUuid,
}

/// The commit of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitEntry {
    /// The partition.
    pub at: TopicPartition,
    /// Next offset to read: the frontier.
    pub offset: i64,
    /// Leader epoch of the record before it, which detects a log truncated below the commit (KIP-320).
    pub leader_epoch: Option<i32>,
    /// [`crate::partition::commit::CommitMetadata`], encoded.
    pub metadata: String,
}

/// The broker's result for one partition of a commit: a commit that succeeds as a whole can contain rejections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitResult {
    /// The partition.
    pub at: TopicPartition,
    /// The offset that was sent.
    pub offset: i64,
    /// The broker's error, if it rejected the partition.
    pub error: Option<CommitError>,
}

/// Why a commit, or one partition of it, was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitError {
    /// What resolves it.
    pub kind: CommitErrorKind,
    /// The broker's error text.
    pub reason: String,
}

/// What resolves the rejection of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommitErrorKind {
    /// The group has another generation or is rebalancing: the same commit is accepted after that.
    Rebalancing,
    /// The coordinator is unavailable: the same commit is accepted once it is back.
    Unavailable,
    /// The client has lost its membership in the group: its partitions are lost (G5).
    NotMember,
    /// Something other than the group has to change.
    Rejected(Rejection),
}

/// What has to change before a commit is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// The authorization of the service.
    Right,
    /// The topic does not exist.
    NoTopic,
    /// The metadata of the partition is longer than the broker accepts.
    MetadataSize,
    /// The request is larger than the broker can write.
    RequestSize,
    /// The configuration of the cluster or of the service.
    Other,
}

/// An event since the last call of [`Source::events`].
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// The group assigns these partitions; they are read once [`Source::start`] is called for them.
    Assigned(Vec<TopicPartition>),
    /// Start offsets that [`Source::find`] has found.
    Found(Vec<Found>),
    /// The start of a partition is not known yet; the source keeps retrying. The others do not wait for it.
    NotFound {
        /// The partition.
        at: TopicPartition,
        /// Why not.
        reason: String,
    },
    /// A topic was deleted and recreated: our offsets belong to a deleted log, and none of its records is delivered any
    /// more.
    TopicRecreated {
        /// The topic.
        topic: Arc<str>,
    },
    /// Another cluster answers at the configured addresses: none of its data belongs to what was read.
    ClusterChanged {
        /// The cluster's id before.
        was: String,
        /// The cluster's id now.
        is: String,
    },
    /// The group revokes these partitions; they are handed over once [`Source::release`] is called.
    Revoked {
        /// The partitions.
        partitions: Vec<TopicPartition>,
        /// They are already lost: nothing may be committed for them (G5).
        lost: bool,
    },
    /// The result of the commit in flight; empty results with an error mean that it failed as a whole.
    Committed {
        /// Results by partition.
        results: Vec<CommitResult>,
        /// Why the request as a whole failed.
        error: Option<CommitError>,
    },
    /// The broker rejected the offset to read: it has left the log or is not yet in it, or the client's state was wrong
    /// (G12). Nothing of the partition is delivered until [`Source::start`] is called for it again.
    OffsetMissing {
        /// The partition.
        at: TopicPartition,
        /// The next expected offset, if known.
        asked: Option<i64>,
        /// The offset that the client fetched from.
        fetched: Option<i64>,
        /// The log was truncated below the expected offset.
        truncated: bool,
        /// The broker's error text.
        reason: String,
    },
    /// The result of [`Source::ask_bounds`]: the first offset of a partition's log and its end offset, or why they are
    /// not available.
    Bounds {
        /// The partition.
        at: TopicPartition,
        /// Its bounds.
        bounds: Result<Range<i64>, BoundsError>,
    },
    /// An error of one partition; the client keeps retrying.
    PartitionError {
        /// The partition.
        at: TopicPartition,
        /// The broker's error text.
        reason: String,
        /// When it counts as resolved.
        fault: PartitionFault,
    },
    /// An error of the client or its connection.
    ClientError {
        /// Its kind.
        kind: ClientErrorKind,
        /// The client's error text.
        reason: String,
        /// What to do.
        remedy: &'static str,
        /// Only a new client can continue.
        fatal: bool,
    },
    /// The client's statistics, as JSON.
    Statistics(Box<str>),
}

/// Why an operation of a source failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A later retry may succeed.
    #[error("{0}")]
    Retryable(String),
    /// Only a change of configuration or a new client helps.
    #[error("{0}")]
    Terminal(String),
}

/// Why the bounds of a partition's log are not available; a later query may succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoundsError {
    /// The client could not send the query.
    #[error("cannot query offsets of the cluster")]
    NotSent,
    /// The error text of the broker or the client.
    #[error("{0}")]
    Refused(String),
    /// The response names no offset of the partition.
    #[error("the leader returned no offset")]
    NoOffset,
    /// A response to another kind of request.
    #[error("unexpected response type")]
    UnexpectedResponse,
}

/// Ends a [`Source::wait`] from any thread.
pub trait Wake: Send + Sync {
    /// Ends the current wait, or else the next one, at once.
    fn wake(&self);
}

/// Where records come from. Used only by the pump's thread.
pub trait Source {
    /// A record's bytes.
    type Record: Record;

    /// Subscribes to `topics`: names, and regular expressions that start with `^`. Replaces the earlier subscription.
    ///
    /// # Errors
    /// If the client rejects the subscription.
    fn subscribe(&mut self, topics: &[String]) -> Result<(), SourceError>;

    /// Appends the events since the last call. Serves the client's callbacks until none is left.
    fn events(&mut self, out: &mut Vec<SourceEvent>);

    /// Whether the group is rebalancing, from this member's join request until it has applied its assignment. It cannot
    /// leave during that time. `false` if the client does not know.
    fn is_rebalancing(&self) -> bool {
        false
    }

    /// The client's current membership in its group.
    fn membership(&mut self) -> Membership;

    /// Starts to find where partitions start; those without a commit at `start`. The results are
    /// [`SourceEvent::Found`] and [`SourceEvent::NotFound`], for each partition separately; a lookup is retried until
    /// the partition is found or released. Does not block on the broker.
    fn find(&mut self, partitions: &[TopicPartition], start: StartAt);

    /// Accepts an assignment: records of these partitions are delivered once all partitions of the
    /// [`SourceEvent::Assigned`] were started. A partition that is already running under this slot is repositioned to
    /// the given start instead.
    ///
    /// # Errors
    /// If the client fails.
    fn start(&mut self, partitions: &[StartPartition]) -> Result<(), SourceError>;

    /// Releases partitions after their drain; no record of their slots is delivered any more. The group is answered
    /// once all partitions of the [`SourceEvent::Revoked`] are released.
    ///
    /// # Errors
    /// If the client fails; the partitions count as released all the same.
    fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError>;

    /// Appends up to `max` fetched records without blocking. Fewer than `max` means that no more are available.
    fn poll(&mut self, max: usize, out: &mut Vec<Delivery<Self::Record>>);

    /// Pauses or resumes the fetching of one partition.
    fn pause(&mut self, slot: AssignmentId, paused: bool);

    /// Sends a commit; the result is a [`SourceEvent::Committed`]. The pump keeps at most one in flight.
    ///
    /// # Errors
    /// If it could not be sent.
    fn commit(&mut self, entries: &[CommitEntry]) -> Result<(), SourceError>;

    /// How far partitions were read in their current assignments, control records and aborted data included: one past
    /// the last offset that [`Self::poll`] has passed. Appends only positions that are certain, which are never beyond
    /// a record that `poll` has yet to return. Does not query the broker.
    fn consumed(&mut self, slots: &[AssignmentId], out: &mut Vec<(AssignmentId, i64)>);

    /// Queries the bounds of partitions' logs; each result is a [`SourceEvent::Bounds`].
    fn ask_bounds(&mut self, partitions: &[TopicPartition]);

    /// The log end offset of a partition, as far as the client knows.
    fn end_offset(&self, slot: AssignmentId) -> Option<i64>;

    /// State of the fetching of a partition, as far as the client knows. Does not query the broker.
    fn fetch_state(&self, slot: AssignmentId) -> FetchState {
        let _ = slot;
        FetchState::Unknown
    }

    /// Blocks until there is something to do, a [`Wake::wake`], or the timeout.
    fn wait(&mut self, timeout: Duration);

    /// The handle that ends a wait.
    fn waker(&self) -> Arc<dyn Wake>;

    /// Leaves the group, by `deadline` at the latest. A join in progress is finished first, or else the group would
    /// wait for this member until its session times out. All partitions must be released before, or are lost. `false`:
    /// it is uncertain whether the group was left, so that the partitions may have no owner until the session times
    /// out.
    fn close(&mut self, deadline: Instant) -> bool;
}
