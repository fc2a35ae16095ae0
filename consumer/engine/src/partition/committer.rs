//! The stream of commits of a pump: when one is due, what its result means, and whether revoked partitions have had their
//! last one.
//!
//! ```text
//!   due ── commits_due ──► in flight ── accepted ──► recorded
//!    ▲                        │
//!    └────── back-off ◄── refused
//! ```
//!
//! At most one commit is in flight, so an older one can never overtake a newer one. A commit is due at its interval,
//! and at once for a new token, for a partition with half of `max_uncommitted`, and for a drained partition: its last
//! commit is an ordinary one that does not wait for the interval.
//!
//! The result is compared with what was sent, partition by partition. A request that succeeds as a whole can reject
//! single partitions: recorded as accepted, such a commit would not be sent again. What resolves a rejection decides
//! who waits ([`CommitErrorKind`]): a rebalancing group rejects commits until its members have agreed on a new
//! generation and then accepts the same offsets, as long as this member still owns the partition (G3, G5); a missing
//! right on one topic concerns only its partitions, and the others do not back off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::commit_size::CommitSize;
use super::table::Partitions;
use super::trouble::{LogLimit, Trouble};
use crate::clock::WallClock;
use crate::random::Random;
use crate::source::{
    AssignmentId, CommitEntry, CommitError, CommitErrorKind, CommitResult, Rejection,
    TopicPartition,
};
use crate::status::{ProblemKind, ServiceProblem};

/// Delay after the first rejection; it doubles with each further one.
const INITIAL_RETRY_DELAY_MS: u64 = 50;
/// Maximum delay while only a commit keeps partitions from being handed over. A fraction of [`LAST_COMMIT_GRACE_MS`], so that
/// a last commit is tried several times.
const MAX_HAND_OVER_RETRY_DELAY_MS: u64 = 250;
/// Maximum delay otherwise.
const MAX_RETRY_DELAY_MS: u64 = 5_000;
/// Time past the drain deadline in which a last commit may still be accepted. Shorter than the pump's `LEAVE_GRACE`, which also
/// has to cover leaving the group.
pub const LAST_COMMIT_GRACE_MS: u64 = 2_000;
/// Rejections by a rebalancing group that last longer than this are logged as a warning.
const REBALANCE_GRACE_MS: u64 = 30_000;

/// If the group answers "unknown member" for this long and the client reports no lost partitions, the client has not
/// noticed that it has lost its membership.
const NOT_MEMBER_TIMEOUT_MS: u64 = 10_000;

/// Commits by result, counted per partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitCounts {
    /// Accepted.
    pub ok: u64,
    /// Rejected for one partition.
    pub refused: u64,
    /// Failed as a whole.
    pub failed: u64,
}

/// Progress of handing partitions over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// Some of their records are in flight.
    Draining,
    /// Nothing is left to do but the last commit, which the group has not accepted yet.
    Committing,
    /// They can be released.
    Ready {
        /// Partitions whose last commit was not accepted: their next owner reprocesses what it would have covered.
        uncommitted: usize,
    },
}

/// When commits are due.
#[derive(Clone, Debug)]
pub struct CommitSettings {
    /// The consumer group.
    pub group: Arc<str>,
    /// Time between commits.
    pub interval_ms: u64,
    /// Maximum uncommitted offsets per partition; a partition with half of them does not wait for the interval.
    pub max_uncommitted: i64,
}

/// The partitions at a time, on the engine's clock.
pub(crate) struct Moment<'p, R> {
    /// The partitions.
    pub(crate) partitions: &'p Partitions<R>,
    /// The time.
    pub(crate) ms: u64,
}

impl<R> Clone for Moment<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Moment<'_, R> {}

/// The stream of commits.
pub(crate) struct Committer {
    settings: CommitSettings,
    /// Contents of the commit in flight, without partitions released since.
    in_flight: Option<Vec<(AssignmentId, CommitEntry)>>,
    /// How many partitions it was sent for.
    sent_partitions: usize,
    /// When the last one was sent.
    sent_ms: u64,
    size: CommitSize,
    /// Rejections since the last commit that was accepted as a whole, or since the last rebalance ended.
    refusals: BackOff,
    /// Rejections that concerned single partitions only: the other partitions do not wait for these.
    rejections: BackOff,
    /// Since when the group has answered that this client is not a member.
    not_member_since_ms: Option<u64>,
    /// Why a partition's newest commit was rejected, and its offset.
    refused: BTreeMap<AssignmentId, (CommitError, i64)>,
    /// Rejections since the last accepted commit.
    trouble: Option<Refused>,
    /// Limits of the log lines about rejections, by kind.
    log: BTreeMap<CommitErrorKind, LogLimit>,
    pub(crate) counts: CommitCounts,
}

/// Consecutive rejections, and the resulting retry time.
#[derive(Default)]
struct BackOff {
    /// Consecutive rejections.
    count: u32,
    /// When the last one arrived.
    last_ms: u64,
    /// Uniform in 0..1, drawn at the last one: members that are rejected together do not retry together.
    jitter: f64,
}

impl BackOff {
    fn refused(&mut self, now_ms: u64, jitter: f64) {
        self.count = self.count.saturating_add(1);
        self.last_ms = now_ms;
        self.jitter = jitter;
    }

    /// When to retry.
    fn due_ms(&self, longest_ms: u64) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let doubled = INITIAL_RETRY_DELAY_MS << (self.count - 1).min(16);
        let wait = doubled.min(longest_ms) as f64 * (1.0 - 0.5 * self.jitter);
        self.last_ms + wait as u64
    }
}

/// Rejections since the last accepted commit.
struct Refused {
    kind: CommitErrorKind,
    /// A rebalancing group rejects commits for a while; until this time that is not reported.
    benign_until_ms: u64,
    trouble: Trouble,
    logged: bool,
}

impl Refused {
    fn is_benign(&self, now_ms: u64) -> bool {
        self.kind == CommitErrorKind::Rebalancing && now_ms < self.benign_until_ms
    }
}

/// What to do about a rejection.
fn remedy_of(error: &CommitError) -> &'static str {
    match error.kind {
        CommitErrorKind::Rebalancing => "the group keeps rebalancing: check its other members",
        CommitErrorKind::Unavailable => "the group coordinator is unavailable: check the brokers",
        CommitErrorKind::NotMember => "the member rejoins the group automatically",
        CommitErrorKind::Rejected(Rejection::Right) => {
            "grant the service READ on the group and on the topic"
        }
        CommitErrorKind::Rejected(Rejection::NoTopic) => {
            "the topic seems to be deleted: remove it from the routes, or recreate it if that was not intended"
        }
        CommitErrorKind::Rejected(Rejection::MetadataSize) => {
            "set offset.metadata.max.bytes of the brokers to 4096, which is its default"
        }
        CommitErrorKind::Rejected(Rejection::RequestSize) => {
            "raise message.max.bytes of the brokers, or max.message.bytes of __consumer_offsets"
        }
        CommitErrorKind::Rejected(Rejection::Other) => {
            "check the settings of the cluster and of the group"
        }
    }
}

impl Committer {
    /// A stream without commits.
    pub(crate) fn new(settings: CommitSettings) -> Self {
        Self {
            settings,
            in_flight: None,
            sent_partitions: 0,
            sent_ms: 0,
            size: CommitSize::default(),
            refusals: BackOff::default(),
            rejections: BackOff::default(),
            not_member_since_ms: None,
            refused: BTreeMap::new(),
            trouble: None,
            log: BTreeMap::new(),
            counts: CommitCounts::default(),
        }
    }

    /// Partitions start to drain: their last commit is tried, whatever was rejected before.
    pub(crate) fn start_drain(&mut self, slots: &[AssignmentId]) {
        self.refused.retain(|slot, _| !slots.contains(slot));
    }

    /// Discards the results of partitions that are not owned any more.
    pub(crate) fn release(&mut self, slots: &[AssignmentId]) {
        self.not_member_since_ms = None;
        self.size.release(slots);
        if let Some(sent) = &mut self.in_flight {
            sent.retain(|(slot, _)| !slots.contains(slot));
        }
        self.refused.retain(|slot, _| !slots.contains(slot));
        if self.refused.is_empty() {
            self.trouble = None;
        }
    }

    /// Commits that are due, unless one is in flight. The caller sends them and reports with [`Committer::answered`].
    pub(crate) fn due<R>(&mut self, now: Moment<'_, R>) -> Vec<CommitEntry> {
        if self.in_flight.is_some() || !(self.hand_over_due(now) || self.commit_due(now)) {
            return Vec::new();
        }
        self.sent_ms = now.ms;
        let entries = self.entries(now);
        let entries = self.size.fitting(entries);
        if entries.is_empty() {
            return Vec::new();
        }
        self.sent_partitions = entries.len();
        let sent = entries.iter().map(|(_, entry)| entry.clone()).collect();
        self.in_flight = Some(entries);
        sent
    }

    /// Whether the interval has passed, or a partition has too many uncommitted records to wait for it.
    fn commit_due<R>(&self, now: Moment<'_, R>) -> bool {
        if now.ms < self.refusals.due_ms(MAX_RETRY_DELAY_MS) {
            return false;
        }
        let since = now.ms.saturating_sub(self.sent_ms);
        let half = self.settings.max_uncommitted / 2;
        since >= self.settings.interval_ms
            || self.size.left_some()
            || now.partitions.ids().any(|slot| {
                let assignment = &now.partitions[slot];
                // A new owner commits its token and start offset at once.
                let is_urgent = !assignment.token_kept()
                    || (assignment.uncommitted() >= half
                        && assignment.ledger().frontier() > assignment.committed());
                is_urgent && !self.is_backing_off(now, slot)
            })
    }

    /// Whether a partition's commit is backing off because the group rejects it independently of the others.
    fn is_backing_off<R>(&self, now: Moment<'_, R>, slot: AssignmentId) -> bool {
        let refused = self.refused.get(&slot);
        let rejected =
            |(error, _): &(CommitError, i64)| matches!(error.kind, CommitErrorKind::Rejected(_));
        refused.is_some_and(rejected)
            && now.partitions[slot].is_assigned()
            && now.ms < self.rejections.due_ms(MAX_RETRY_DELAY_MS)
    }

    /// Whether a partition waits for its last commit only.
    fn hand_over_due<R>(&self, now: Moment<'_, R>) -> bool {
        now.ms >= self.refusals.due_ms(MAX_HAND_OVER_RETRY_DELAY_MS)
            && now
                .partitions
                .draining()
                .any(|slot| self.waits_for_commit(now, slot))
    }

    /// Whether a partition is drained and its last commit may still be accepted.
    fn waits_for_commit<R>(&self, now: Moment<'_, R>, slot: AssignmentId) -> bool {
        let Some(deadline_ms) = now.partitions[slot].drains_until_ms() else {
            return false;
        };
        now.ms < deadline_ms.saturating_add(LAST_COMMIT_GRACE_MS)
            && now.partitions.is_drained(&[slot], now.ms)
            && self
                .entry(now, slot)
                .is_some_and(|entry| !self.cannot_succeed(slot, &entry))
    }

    /// Whether resending the commit cannot succeed.
    fn cannot_succeed(&self, slot: AssignmentId, entry: &CommitEntry) -> bool {
        let Some((error, offset)) = self.refused.get(&slot) else {
            return false;
        };
        match error.kind {
            CommitErrorKind::NotMember => true,
            CommitErrorKind::Rejected(_) => {
                // A commit sent after the rejection may still be accepted.
                let mut sent = self.in_flight.iter().flatten();
                *offset == entry.offset && !sent.any(|(other, _)| *other == slot)
            }
            CommitErrorKind::Rebalancing | CommitErrorKind::Unavailable => false,
        }
    }

    /// Progress of handing over these partitions, all of which drain.
    pub(crate) fn hand_over<R>(&self, now: Moment<'_, R>, slots: &[AssignmentId]) -> HandOver {
        if !now.partitions.is_drained(slots, now.ms) {
            return HandOver::Draining;
        }
        if slots.iter().any(|&slot| self.waits_for_commit(now, slot)) {
            return HandOver::Committing;
        }
        let ours = slots
            .iter()
            .filter(|&&slot| !now.partitions[slot].is_released());
        HandOver::Ready {
            uncommitted: ours
                .filter(|&&slot| self.entry(now, slot).is_some())
                .count(),
        }
    }

    /// When the last commit of draining partitions may be retried, if any is waiting.
    pub(crate) fn last_commit_due<R>(&self, partitions: &Partitions<R>) -> Option<u64> {
        let waits = self.refusals.count > 0 && partitions.draining().next().is_some();
        waits.then(|| self.refusals.due_ms(MAX_HAND_OVER_RETRY_DELAY_MS))
    }

    fn entries<R>(&self, now: Moment<'_, R>) -> Vec<(AssignmentId, CommitEntry)> {
        let ours = now.partitions.ids();
        ours.filter(|&slot| !self.is_backing_off(now, slot))
            .filter_map(|slot| Some((slot, self.entry(now, slot)?)))
            .collect()
    }

    /// The commit of a partition, if it differs from the last accepted one.
    pub(crate) fn entry<R>(&self, now: Moment<'_, R>, slot: AssignmentId) -> Option<CommitEntry> {
        now.partitions[slot].commit(&self.settings.group, self.size.is_short(slot))
    }

    /// Handles the result of the commit in flight. A rejection leaves the previous commit in place; the next commit
    /// retries.
    pub(crate) fn answered<R>(
        &mut self,
        partitions: &mut Partitions<R>,
        (now_ms, random): (u64, &mut Random),
        results: &[CommitResult],
        error: Option<&CommitError>,
    ) {
        let Some(sent) = self.in_flight.take() else {
            return;
        };
        let mut refusals: Vec<(AssignmentId, i64, &CommitError)> = Vec::new();
        if let Some(error) = error {
            self.counts.failed += sent.len() as u64;
            refusals.extend(
                sent.iter()
                    .map(|(slot, entry)| (*slot, entry.offset, error)),
            );
        }
        for result in results {
            let Some((slot, entry)) = sent.iter().find(|(_, entry)| entry.at == result.at) else {
                continue;
            };
            match &result.error {
                None => self.accepted(partitions, *slot, entry),
                Some(error) => {
                    self.counts.refused += 1;
                    refusals.push((*slot, entry.offset, error));
                }
            }
        }
        self.make_smaller(partitions, &mut refusals);
        self.record_refusals(partitions, (now_ms, random), &refusals, error.is_some());
    }

    /// Makes commits smaller that were refused for their size, and takes them out of `refusals`: they are sent again at once.
    fn make_smaller<R>(
        &mut self,
        partitions: &Partitions<R>,
        refusals: &mut Vec<(AssignmentId, i64, &CommitError)>,
    ) {
        let mut halve = false;
        refusals.retain(|(slot, _, error)| {
            let CommitErrorKind::Rejected(rejection) = error.kind else {
                return true;
            };
            let was_short = self.size.is_short(*slot);
            let smaller = self.size.refused(*slot, rejection, self.sent_partitions);
            halve |= smaller && rejection == Rejection::RequestSize;
            if smaller && self.size.is_short(*slot) && !was_short {
                tracing::warn!(
                    at = %partitions[*slot].at(),
                    error = error.reason,
                    remedy = remedy_of(error),
                    "commits omit which records are finished beyond the committed offset: its next owner handles them again"
                );
            }
            !smaller
        });
        if halve {
            self.size.halve();
        }
    }

    fn accepted<R>(
        &mut self,
        partitions: &mut Partitions<R>,
        slot: AssignmentId,
        entry: &CommitEntry,
    ) {
        self.counts.ok += 1;
        self.not_member_since_ms = None;
        self.refused.remove(&slot);
        partitions[slot].accepted(entry);
    }

    /// The rebalance is over: rejected commits are resent at once.
    pub(crate) fn group_settled(&mut self) {
        self.not_member_since_ms = None;
        self.refusals = BackOff::default();
        self.rejections = BackOff::default();
    }

    /// Another client commits from now on, so the result of the commit in flight will not arrive. To be called while no
    /// partition is owned.
    pub(crate) fn client_renewed(&mut self) {
        self.in_flight = None;
        self.group_settled();
    }

    /// Whether the group has rejected this member for so long that the client cannot have noticed: otherwise it would
    /// have reported lost partitions and rejoined.
    pub(crate) fn has_lost_membership(&self, now_ms: u64) -> bool {
        let since_ms = self.not_member_since_ms;
        since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= NOT_MEMBER_TIMEOUT_MS)
    }

    /// `whole`: the request failed as a whole, not for single partitions.
    fn record_refusals<R>(
        &mut self,
        partitions: &Partitions<R>,
        (now_ms, random): (u64, &mut Random),
        refusals: &[(AssignmentId, i64, &CommitError)],
        whole: bool,
    ) {
        let Some(&(_, _, first)) = refusals.first() else {
            self.refusals = BackOff::default();
            if !self.refused.is_empty() {
                return;
            }
            self.rejections = BackOff::default();
            if let Some(refused) = self.trouble.take()
                && refused.logged
            {
                let trouble = refused.trouble;
                tracing::info!(
                    refused = trouble.count,
                    seconds = now_ms.saturating_sub(trouble.since_ms) / 1_000,
                    "commits are accepted again"
                );
            }
            return;
        };
        let jitter = random.unit();
        self.not_member_since_ms = match first.kind {
            CommitErrorKind::NotMember => self.not_member_since_ms.or(Some(now_ms)),
            _ => None,
        };
        let own = |(_, _, error): &(AssignmentId, i64, &CommitError)| {
            matches!(error.kind, CommitErrorKind::Rejected(_))
        };
        if !whole && refusals.iter().all(own) {
            self.refusals = BackOff::default();
            self.rejections.refused(now_ms, jitter);
        } else {
            self.refusals.refused(now_ms, jitter);
        }
        let refused = refusals
            .iter()
            .map(|(slot, offset, error)| (*slot, ((*error).clone(), *offset)));
        self.refused.extend(refused);
        // Logs each kind separately; the first refusal is logged last, so that it stays as the reported reason.
        let mut logged = BTreeSet::new();
        let mut kinds: Vec<_> = refusals
            .iter()
            .filter(|(_, _, error)| logged.insert(error.kind))
            .collect();
        kinds.reverse();
        for (slot, _, error) in kinds {
            let of_kind =
                |(_, _, other): &&(AssignmentId, i64, &CommitError)| other.kind == error.kind;
            let partition_count = refusals.iter().filter(of_kind).count();
            self.log_refusals(partitions[*slot].at(), now_ms, error, partition_count);
        }
    }

    /// Logs one line per commit and kind, however many partitions it concerns: a warning at first, then once per minute
    /// while it lasts.
    fn log_refusals(
        &mut self,
        at: &TopicPartition,
        now_ms: u64,
        first: &CommitError,
        partitions: usize,
    ) {
        let cause = match partitions {
            1 => format!("{at}: {}", first.reason),
            _ => format!(
                "{at} and {} more partitions: {}",
                partitions - 1,
                first.reason
            ),
        };
        let remedy = remedy_of(first);
        let refused = self.trouble.get_or_insert_with(|| Refused {
            kind: first.kind,
            benign_until_ms: now_ms + REBALANCE_GRACE_MS,
            trouble: Trouble {
                count: 0,
                ..Trouble::new(&cause, remedy, now_ms)
            },
            logged: false,
        });
        refused.kind = first.kind;
        refused.trouble.again(&cause, remedy, now_ms);
        if refused.is_benign(now_ms) {
            tracing::debug!(cause, "commit rejected; retrying");
            return;
        }
        let limit = self.log.entry(first.kind).or_default();
        let Some(refusals) = limit.count(now_ms) else {
            tracing::debug!(cause, "commit rejected; retrying");
            return;
        };
        refused.logged = true;
        tracing::warn!(
            partitions,
            first = %at,
            error = first.reason,
            refusals,
            seconds = now_ms.saturating_sub(refused.trouble.since_ms) / 1_000,
            remedy,
            "commit rejected; retrying until it is accepted"
        );
    }

    /// The problem that keeps commits from being accepted, if there is one.
    pub(crate) fn problem(&self, now_ms: u64, clock: WallClock) -> Option<ServiceProblem> {
        let refused = self.trouble.as_ref();
        let refused = refused.filter(|refused| !refused.is_benign(now_ms))?;
        let what = format!("group {} rejects commits", self.settings.group);
        let kind = ProblemKind::CommitsRefused;
        Some(refused.trouble.problem(kind, what, clock))
    }

    /// The same for one partition, as a sentence.
    pub(crate) fn why_not(
        &self,
        slot: AssignmentId,
        now_ms: u64,
        clock: WallClock,
    ) -> Option<String> {
        let (error, _) = self.refused.get(&slot)?;
        let mut problem = self.problem(now_ms, clock)?;
        // The group may have rejected other partitions for another reason.
        problem.cause.clone_from(&error.reason);
        remedy_of(error).clone_into(&mut problem.remedy);
        Some(problem.sentence(clock.at(now_ms)))
    }
}
