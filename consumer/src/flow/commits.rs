//! The flow's one stream of commits: when one is due, what its answer means, and whether partitions that are given back
//! have had their last one.
//!
//! ```text
//!   due ── commits_due ──► in flight ── accepted ──► recorded
//!    ▲                        │
//!    └────── back-off ◄── refused
//! ```
//!
//! One commit is in flight at a time, so an older one can never overtake a newer one. The last commit of a partition is
//! an ordinary one that does not wait for the interval. A group that rebalances refuses commits until its members have
//! agreed on a new generation; the same offsets are then accepted from it, as long as the partition is ours (G3, G5).

use std::collections::{BTreeMap, BTreeSet};

use super::Flow;
use super::report::WallClock;
use crate::admin::{ProblemKind, ServiceProblem};
use crate::assignment::AssignmentState;
use crate::source::{
    AssignmentId, CommitEntry, CommitError, CommitErrorKind, CommitResult, Rejection,
};
use crate::trouble::{LogLimit, Trouble};

/// Wait after the first refusal; it doubles with each further one.
const FIRST_RETRY_MS: u64 = 50;
/// Longest wait while nothing but a commit holds partitions that are to be given back.
const HAND_OVER_RETRY_MS: u64 = 250;
/// Longest wait otherwise.
const RETRY_MS: u64 = 5_000;
/// Time beyond the drain's deadline in which a last commit may still be accepted.
pub const LAST_COMMIT_MS: u64 = 2_000;
/// Refusals of a rebalancing group that last longer than this are worth a warning.
const PERSISTS_MS: u64 = 30_000;

/// A client whose commits are refused for this long as those of no member, and that says nothing of lost partitions, has not
/// noticed that the group has lost it.
const FORGOTTEN_MS: u64 = 10_000;

/// Commits by result, counted per partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitCounts {
    /// Accepted.
    pub ok: u64,
    /// Refused for one partition.
    pub refused: u64,
    /// Failed as a whole.
    pub failed: u64,
}

/// How far giving partitions back has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// Something of them is under way.
    Draining,
    /// Everything that will be done is done; the group has not accepted the last commit yet.
    Committing,
    /// They can be given back.
    Ready {
        /// Partitions whose last commit was not accepted: their next owner repeats what it would have covered.
        uncommitted: usize,
    },
}

/// State of the stream of commits.
#[derive(Default)]
pub(super) struct Commits {
    /// What the commit in flight says of the partitions that are still ours.
    in_flight: Option<Vec<(AssignmentId, CommitEntry)>>,
    /// When the last one was sent.
    sent_ms: u64,
    /// Refusals since the last commit that was accepted whole, or since the group settled.
    refusals: BackOff,
    /// The same of commits that only held partitions up whose own fault it is: the others do not wait for these.
    rejections: BackOff,
    /// Since when the group says that we are no member of it.
    forgotten_ms: Option<u64>,
    /// Why a partition's newest commit was refused, and its offset.
    refused: BTreeMap<AssignmentId, (CommitError, i64)>,
    /// Refusals without an acceptance between them.
    trouble: Option<Refused>,
    /// Lines about refusals, by kind.
    log: BTreeMap<CommitErrorKind, LogLimit>,
    pub(super) counts: CommitCounts,
}

/// How often something was refused, and so when it is tried again.
#[derive(Default)]
struct BackOff {
    /// Refusals in a row.
    count: u32,
    /// When the last one came.
    last_ms: u64,
    /// Uniform in 0..1, drawn at the last one: members that are refused together do not try again together.
    jitter: f64,
}

impl BackOff {
    fn refused(&mut self, now_ms: u64, jitter: f64) {
        self.count = self.count.saturating_add(1);
        self.last_ms = now_ms;
        self.jitter = jitter;
    }

    /// When it is tried again.
    fn due_ms(&self, longest_ms: u64) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let doubled = FIRST_RETRY_MS << (self.count - 1).min(16);
        let wait = doubled.min(longest_ms) as f64 * (1.0 - 0.5 * self.jitter);
        self.last_ms + wait as u64
    }
}

/// Refusals without an acceptance between them.
struct Refused {
    kind: CommitErrorKind,
    /// A group that rebalances refuses commits for a while; so long that is nothing to tell of.
    benign_until_ms: u64,
    trouble: Trouble,
    logged: bool,
}

impl Refused {
    fn is_benign(&self, now_ms: u64) -> bool {
        self.kind == CommitErrorKind::Rebalancing && now_ms < self.benign_until_ms
    }
}

/// What helps against a refusal.
fn remedy_of(error: &CommitError) -> &'static str {
    match error.kind {
        CommitErrorKind::Rebalancing => "the group does not settle: look after its other members",
        CommitErrorKind::Unavailable => {
            "the group's coordinator is away or busy: look after the brokers"
        }
        CommitErrorKind::NotMember => "the member joins the group again by itself",
        CommitErrorKind::Rejected(Rejection::Right) => {
            "grant the service READ on the group and on the topic"
        }
        CommitErrorKind::Rejected(Rejection::NoTopic) => {
            "the topic seems to be deleted: take it out of the routes, or create it again, if that was not meant"
        }
        CommitErrorKind::Rejected(Rejection::Other) => {
            "a setting of the cluster or of the group is in the way"
        }
    }
}

impl Commits {
    /// Partitions are to be given back: whatever was refused before, their last commit is tried.
    pub(super) fn start_drain(&mut self, slots: &[AssignmentId]) {
        self.refused.retain(|slot, _| !slots.contains(slot));
    }

    /// Forgets what was said of partitions that are not ours any more.
    pub(super) fn release(&mut self, slots: &[AssignmentId]) {
        self.forgotten_ms = None;
        if let Some(sent) = &mut self.in_flight {
            sent.retain(|(slot, _)| !slots.contains(slot));
        }
        self.refused.retain(|slot, _| !slots.contains(slot));
        if self.refused.is_empty() {
            self.trouble = None;
        }
    }
}

impl Flow {
    /// Commits that are due, unless one is in flight. The caller sends them and reports with [`Flow::committed`].
    pub fn commits_due(&mut self) -> Vec<CommitEntry> {
        if self.commits.in_flight.is_some() || !(self.hand_over_due() || self.commit_due()) {
            return Vec::new();
        }
        self.commits.sent_ms = self.now_ms;
        let entries = self.commit_entries();
        if entries.is_empty() {
            return Vec::new();
        }
        let sent = entries.iter().map(|(_, entry)| entry.clone()).collect();
        self.commits.in_flight = Some(entries);
        sent
    }

    /// Whether the interval is over or the uncommitted records of a partition press.
    fn commit_due(&self) -> bool {
        if self.now_ms < self.commits.refusals.due_ms(RETRY_MS) {
            return false;
        }
        let since = self.now_ms.saturating_sub(self.commits.sent_ms);
        let half = self.settings.max_uncommitted / 2;
        since >= self.settings.commit_interval_ms
            || self.current.values().any(|&slot| {
                let assignment = &self.assignments[slot.0 as usize];
                // The token of a new owner, and where it begins, are committed at once.
                let presses = !assignment.token_kept
                    || (assignment.uncommitted() >= half
                        && assignment.ledger.frontier() > assignment.committed);
                presses && !self.rests(slot)
            })
    }

    /// Whether a partition's commit waits, since the group refuses it whatever becomes of the others.
    fn rests(&self, slot: AssignmentId) -> bool {
        let refused = self.commits.refused.get(&slot);
        let rejected =
            |(error, _): &(CommitError, i64)| matches!(error.kind, CommitErrorKind::Rejected(_));
        refused.is_some_and(rejected)
            && self.assignments[slot.0 as usize].state == AssignmentState::Assigned
            && self.now_ms < self.commits.rejections.due_ms(RETRY_MS)
    }

    /// Whether partitions wait for nothing but their last commit.
    fn hand_over_due(&self) -> bool {
        self.now_ms >= self.commits.refusals.due_ms(HAND_OVER_RETRY_MS)
            && self.draining().any(|slot| self.waits_for_commit(slot))
    }

    pub(super) fn draining(&self) -> impl Iterator<Item = AssignmentId> {
        let ours = self.current.values().copied();
        ours.filter(|slot| self.assignments[slot.0 as usize].is_draining())
    }

    /// Whether a partition's drain is over and its last commit may still be accepted.
    fn waits_for_commit(&self, slot: AssignmentId) -> bool {
        let AssignmentState::Draining { deadline_ms } = self.assignments[slot.0 as usize].state
        else {
            return false;
        };
        self.now_ms < deadline_ms.saturating_add(LAST_COMMIT_MS)
            && self.is_drained(&[slot])
            && self
                .commit_entry(slot)
                .is_some_and(|entry| !self.is_hopeless(slot, &entry))
    }

    /// Whether sending the commit once more cannot help.
    fn is_hopeless(&self, slot: AssignmentId, entry: &CommitEntry) -> bool {
        let Some((error, offset)) = self.commits.refused.get(&slot) else {
            return false;
        };
        match error.kind {
            CommitErrorKind::NotMember => true,
            CommitErrorKind::Rejected(_) => {
                // One that was sent after the refusal may still be accepted.
                let mut sent = self.commits.in_flight.iter().flatten();
                *offset == entry.offset && !sent.any(|(other, _)| *other == slot)
            }
            CommitErrorKind::Rebalancing | CommitErrorKind::Unavailable => false,
        }
    }

    /// How far giving back these partitions has come. They were all given to [`Flow::start_drain`].
    pub fn hand_over(&self, slots: &[AssignmentId]) -> HandOver {
        if !self.is_drained(slots) {
            return HandOver::Draining;
        }
        if slots.iter().any(|&slot| self.waits_for_commit(slot)) {
            return HandOver::Committing;
        }
        let ours = slots
            .iter()
            .filter(|&&slot| self.assignments[slot.0 as usize].state != AssignmentState::Released);
        HandOver::Ready {
            uncommitted: ours
                .filter(|&&slot| self.commit_entry(slot).is_some())
                .count(),
        }
    }

    /// Whether partitions wait for their last commit, and when it may be tried again.
    pub(super) fn last_commit_due(&self) -> Option<u64> {
        let waits = self.commits.refusals.count > 0 && self.draining().next().is_some();
        waits.then(|| self.commits.refusals.due_ms(HAND_OVER_RETRY_MS))
    }

    fn commit_entries(&self) -> Vec<(AssignmentId, CommitEntry)> {
        let ours = self.current.values().copied();
        ours.filter(|&slot| !self.rests(slot))
            .filter_map(|slot| Some((slot, self.commit_entry(slot)?)))
            .collect()
    }

    /// The answer to the commit in flight. A refusal leaves the earlier commit standing; the next one tries again.
    pub fn committed(&mut self, results: &[CommitResult], error: Option<&CommitError>) {
        let Some(sent) = self.commits.in_flight.take() else {
            return;
        };
        let mut refusals: Vec<(AssignmentId, i64, &CommitError)> = Vec::new();
        if let Some(error) = error {
            self.commits.counts.failed += sent.len() as u64;
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
                None => self.accepted(*slot, entry),
                Some(error) => {
                    self.commits.counts.refused += 1;
                    refusals.push((*slot, entry.offset, error));
                }
            }
        }
        self.note_refusals(&refusals, error.is_some());
        self.admit_overflow();
    }

    fn accepted(&mut self, slot: AssignmentId, entry: &CommitEntry) {
        self.commits.counts.ok += 1;
        self.commits.forgotten_ms = None;
        self.commits.refused.remove(&slot);
        let assignment = &mut self.assignments[slot.0 as usize];
        if assignment.state != AssignmentState::Released && entry.offset >= assignment.committed {
            assignment.committed = entry.offset;
            assignment.committed_metadata.clone_from(&entry.metadata);
            assignment.token_kept = true;
            assignment.leader_epochs.forget_before(entry.offset - 1);
        }
    }

    /// The commit could not be sent.
    pub fn commit_not_sent(&mut self, error: &CommitError) {
        self.committed(&[], Some(error));
    }

    /// Whether a commit is in flight.
    pub fn is_committing(&self) -> bool {
        self.commits.in_flight.is_some()
    }

    /// The group has settled on who owns what: what it refused until now is sent again at once.
    pub fn group_settled(&mut self) {
        self.commits.forgotten_ms = None;
        self.commits.refusals = BackOff::default();
        self.commits.rejections = BackOff::default();
    }

    /// Another client commits from now on: what the one before was sent last is not answered any more. To be called when
    /// nothing is ours.
    pub fn client_renewed(&mut self) {
        self.commits.in_flight = None;
        self.group_settled();
    }

    /// Whether the group has not known us for so long that the client cannot have noticed: it would have lost its
    /// partitions and joined again.
    pub fn is_forgotten(&self) -> bool {
        let since_ms = self.commits.forgotten_ms;
        since_ms.is_some_and(|since_ms| self.now_ms.saturating_sub(since_ms) >= FORGOTTEN_MS)
    }

    /// `whole`: the request failed, not what it said of these partitions.
    fn note_refusals(&mut self, refusals: &[(AssignmentId, i64, &CommitError)], whole: bool) {
        let Some(&(_, _, first)) = refusals.first() else {
            self.commits.refusals = BackOff::default();
            if !self.commits.refused.is_empty() {
                return;
            }
            self.commits.rejections = BackOff::default();
            if let Some(refused) = self.commits.trouble.take()
                && refused.logged
            {
                let trouble = refused.trouble;
                tracing::info!(
                    refused = trouble.count,
                    seconds = self.now_ms.saturating_sub(trouble.since_ms) / 1_000,
                    "commits are accepted again"
                );
            }
            return;
        };
        let (now_ms, jitter) = (self.now_ms, self.random());
        self.commits.forgotten_ms = match first.kind {
            CommitErrorKind::NotMember => self.commits.forgotten_ms.or(Some(now_ms)),
            _ => None,
        };
        let own = |(_, _, error): &(AssignmentId, i64, &CommitError)| {
            matches!(error.kind, CommitErrorKind::Rejected(_))
        };
        if !whole && refusals.iter().all(own) {
            self.commits.refusals = BackOff::default();
            self.commits.rejections.refused(now_ms, jitter);
        } else {
            self.commits.refusals.refused(now_ms, jitter);
        }
        let refused = refusals
            .iter()
            .map(|(slot, offset, error)| (*slot, ((*error).clone(), *offset)));
        self.commits.refused.extend(refused);
        // Those of each kind by themselves; what comes first stands as the reason.
        let mut told = BTreeSet::new();
        let mut kinds: Vec<_> = refusals
            .iter()
            .filter(|(_, _, error)| told.insert(error.kind))
            .collect();
        kinds.reverse();
        for (slot, _, error) in kinds {
            let of_kind =
                |(_, _, other): &&(AssignmentId, i64, &CommitError)| other.kind == error.kind;
            self.log_refusals(*slot, error, refusals.iter().filter(of_kind).count());
        }
    }

    /// One line for a commit however many partitions are refused in this way: a warning at first and once a minute while it lasts.
    fn log_refusals(&mut self, slot: AssignmentId, first: &CommitError, partitions: usize) {
        let now_ms = self.now_ms;
        let at = &self.assignments[slot.0 as usize].at;
        let cause = match partitions {
            1 => format!("{at}: {}", first.reason),
            _ => format!(
                "{at} and {} more partitions: {}",
                partitions - 1,
                first.reason
            ),
        };
        let remedy = remedy_of(first);
        let refused = self.commits.trouble.get_or_insert_with(|| Refused {
            kind: first.kind,
            benign_until_ms: now_ms + PERSISTS_MS,
            trouble: Trouble {
                count: 0,
                ..Trouble::new(&cause, remedy, now_ms)
            },
            logged: false,
        });
        refused.kind = first.kind;
        refused.trouble.again(&cause, remedy, now_ms);
        if refused.is_benign(now_ms) {
            tracing::debug!(cause, "commit refused; it is sent again");
            return;
        }
        let limit = self.commits.log.entry(first.kind).or_default();
        let Some(refusals) = limit.count(now_ms) else {
            tracing::debug!(cause, "commit refused; it is sent again");
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
            "commit refused; it is sent again until it is accepted"
        );
    }

    /// What keeps commits from being accepted, if anything does.
    pub(super) fn commit_problem(&self, clock: WallClock) -> Option<ServiceProblem> {
        let refused = self.commits.trouble.as_ref();
        let refused = refused.filter(|refused| !refused.is_benign(self.now_ms))?;
        let what = format!("group {} does not take commits", self.settings.group);
        let kind = ProblemKind::CommitsRefused;
        Some(refused.trouble.problem(kind, what, clock))
    }

    /// The same for one partition, as a sentence.
    pub(super) fn why_not_committed(&self, slot: AssignmentId, clock: WallClock) -> Option<String> {
        let (error, _) = self.commits.refused.get(&slot)?;
        let mut problem = self.commit_problem(clock)?;
        // The group may have something else against other partitions.
        problem.cause.clone_from(&error.reason);
        remedy_of(error).clone_into(&mut problem.remedy);
        Some(problem.sentence())
    }
}
