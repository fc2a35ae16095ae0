//! Producer refusals that a handler's records wait for, by topic: for the log (a line when one starts, changes or ends,
//! with counts), for reports and metrics, and for the bytes that they hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::deferred::Refusal;
use crate::emit::{EmitFailure, FailureKind};

/// Maximum number of topics tracked separately; a handler can emit to any number of names.
const MAX_TARGETS: usize = 256;
/// Name under which further topics are counted.
const OTHER_TOPICS: &str = "(other)";
/// Maximum number of reasons remembered per topic.
const MAX_REASONS: usize = 8;
/// Minimum time between two equal lines about one handler and topic.
const LOG_INTERVAL_MS: u64 = 60_000;
/// Minimum time before a line about another reason.
const CHANGE_INTERVAL_MS: u64 = 5_000;

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProduceKind {
    /// A record that a handler emitted.
    Emits,
    /// A dead letter.
    DeadLetter,
}

impl std::fmt::Display for ProduceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Emits => "emitted record",
            Self::DeadLetter => "dead letter",
        })
    }
}

/// Refusals of one topic.
#[derive(Default)]
struct Target {
    /// Records that currently wait for a resend.
    held: u64,
    /// Since when at least one record has waited.
    since_ms: u64,
    /// Refusals since then.
    refused: u64,
    /// Records that have stopped waiting since then without being written: left to the next owner, or skipped.
    unwritten: u64,
    /// The last one.
    failure: Option<EmitFailure>,
    /// The reasons logged last, with the time of each; the latest last.
    logged: Vec<(u64, Reason)>,
    /// Its start was logged, so its end is logged too.
    told: bool,
}

impl Target {
    /// Whether this reason is to be logged now; it is taken as logged then. Reasons can alternate (a batch refused, each of
    /// its records refused alone), so that each has its own interval.
    fn is_line_due(&mut self, reason: Reason, now_ms: u64) -> bool {
        let waited_ms = |at_ms: u64| now_ms.saturating_sub(at_ms);
        let is_fresh = |(at_ms, known): &(u64, Reason)| {
            waited_ms(*at_ms) < CHANGE_INTERVAL_MS
                || (*known == reason && waited_ms(*at_ms) < LOG_INTERVAL_MS)
        };
        if self.logged.iter().any(is_fresh) {
            return false;
        }
        self.logged.retain(|(_, known)| *known != reason);
        if self.logged.len() == MAX_REASONS {
            self.logged.remove(0);
        }
        self.logged.push((now_ms, reason));
        true
    }
}

/// Records that wait for one topic to accept them.
pub(crate) struct HeldRecords<'a> {
    pub(super) what: ProduceKind,
    pub(super) topic: &'a str,
    pub(super) records: u64,
    /// On the flow's clock.
    pub(super) since_ms: u64,
    /// Refusals since then.
    pub(super) refused: u64,
    /// The last refusal.
    pub(super) failure: &'a EmitFailure,
}

/// Why a record was refused, as far as it is the same for every record.
type Reason = (FailureKind, Arc<str>);

type Place = (ProduceKind, Arc<str>);

/// All refusals that a handler's records wait for.
#[derive(Default)]
pub(super) struct Refusals {
    targets: BTreeMap<Place, Target>,
    /// Total refusals; only grows.
    total: u64,
    /// The last record that waited for some target has stopped waiting.
    may_be_over: bool,
}

impl Refusals {
    /// Total refusals of the handler's emits and dead letters.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Counts a refusal that no record waits for.
    pub(super) fn count(&mut self) {
        self.total += 1;
    }

    /// A record starts to wait, or waits again.
    pub(super) fn begin(
        &mut self,
        handler: &str,
        what: ProduceKind,
        refusal: &mut Refusal,
        now_ms: u64,
    ) {
        self.count();
        let place = self.place_of(what, &refusal.failure.topic);
        refusal.counted_as = place.1.clone();
        let target = self.targets.entry(place).or_default();
        if target.held == 0 && refusal.tries == 1 {
            target.since_ms = now_ms;
            target.refused = 0;
            target.unwritten = 0;
        }
        target.held += 1;
        target.refused += 1;
        target.failure = Some(refusal.failure.clone());
        let failure = &refusal.failure;
        // The remedy identifies the reason: the error may contain the size of one record.
        let reason = (failure.kind, failure.remedy.clone());
        if !target.is_line_due(reason, now_ms) {
            return;
        }
        target.told = true;
        let (records, refused) = (target.held, target.refused);
        let (topic, error, remedy) = (&*failure.topic, &*failure.error, &*failure.remedy);
        match failure.kind {
            FailureKind::Batch => tracing::warn!(
                handler,
                topic,
                records,
                refused,
                error,
                remedy,
                "a batch that contains {what}s was refused; each record is resent alone"
            ),
            _ => tracing::error!(
                handler,
                topic,
                records,
                refused,
                error,
                remedy,
                "{what} refused; it holds its lane and is retried with backoff"
            ),
        }
    }

    /// A record that is about to stop waiting is left to the next owner, or skipped.
    pub(super) fn leave_unwritten(&mut self, refusal: &Refusal) {
        if let Some(target) = self.target_of(refusal) {
            target.unwritten += 1;
        }
    }

    fn target_of(&mut self, refusal: &Refusal) -> Option<&mut Target> {
        let what = match refusal.emits {
            Some(_) => ProduceKind::Emits,
            None => ProduceKind::DeadLetter,
        };
        self.targets.get_mut(&(what, refusal.counted_as.clone()))
    }

    /// A record has stopped waiting, or is about to wait again. Returns whether the refusals of its topic may have ended.
    pub(super) fn end(&mut self, refusal: &Refusal) -> bool {
        let Some(target) = self.target_of(refusal) else {
            return false;
        };
        target.held = target.held.saturating_sub(1);
        let is_last = target.held == 0;
        self.may_be_over |= is_last;
        is_last
    }

    /// Logs refusals that have ended, once. Cheap while there are none.
    pub(super) fn log_ended(&mut self, handler: &str, now_ms: u64) {
        if !std::mem::take(&mut self.may_be_over) {
            return;
        }
        for ((what, topic), target) in &mut self.targets {
            if target.held > 0 || !std::mem::take(&mut target.told) {
                continue;
            }
            tracing::info!(
                handler,
                topic = &**topic,
                refused = target.refused,
                unwritten = target.unwritten,
                after_ms = now_ms.saturating_sub(target.since_ms),
                "no refused {what} is waiting any more"
            );
        }
    }

    /// The refusals that records wait for.
    pub(super) fn held(&self) -> impl Iterator<Item = HeldRecords<'_>> {
        self.targets.iter().filter_map(|((what, topic), target)| {
            let failure = target.failure.as_ref().filter(|_| target.held > 0)?;
            Some(HeldRecords {
                what: *what,
                topic,
                records: target.held,
                since_ms: target.since_ms,
                refused: target.refused,
                failure,
            })
        })
    }

    fn place_of(&mut self, what: ProduceKind, topic: &Arc<str>) -> Place {
        let place = (what, topic.clone());
        if self.targets.contains_key(&place) {
            return place;
        }
        if self.targets.len() >= MAX_TARGETS {
            self.targets.retain(|_, target| target.held > 0);
        }
        if self.targets.len() < MAX_TARGETS {
            return place;
        }
        (what, OTHER_TOPICS.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emit::Way;

    fn refusal(topic: &str, tries: u32) -> Refusal {
        Refusal {
            failure: EmitFailure {
                kind: FailureKind::Target,
                topic: topic.into(),
                error: "no such topic".into(),
                remedy: "create the topic".into(),
            },
            since_ms: 0,
            tries,
            way: Way::Batched,
            emits: None,
            at_once: false,
            counted_as: topic.into(),
        }
    }

    const WHAT: ProduceKind = ProduceKind::DeadLetter;

    #[test]
    fn topics_beyond_the_bound_are_counted_together_and_end_where_they_began() {
        let mut refusals = Refusals::default();
        let mut held: Vec<Refusal> = (0..MAX_TARGETS + 5)
            .map(|i| refusal(&format!("t{i}"), 1))
            .collect();
        for one in &mut held {
            refusals.begin("h", WHAT, one, 0);
        }
        assert_eq!(refusals.targets.len(), MAX_TARGETS + 1);
        assert_eq!(&*held[MAX_TARGETS + 4].counted_as, OTHER_TOPICS);
        for one in &held {
            refusals.leave_unwritten(one);
            refusals.end(one);
        }
        let unwritten = refusals.targets.values().map(|target| target.unwritten);
        assert_eq!(unwritten.sum::<u64>(), held.len() as u64);
        assert_eq!(refusals.held().count(), 0);
        assert_eq!(refusals.total(), held.len() as u64);
    }

    #[test]
    fn a_reason_is_logged_once_per_interval_and_its_end_only_if_it_was() {
        let mut refusals = Refusals::default();
        let mut told = 0;
        for now_ms in (0..=LOG_INTERVAL_MS).step_by(1_000) {
            let mut one = refusal("t", 1);
            refusals.begin("h", WHAT, &mut one, now_ms);
            refusals.end(&one);
            let place = (WHAT, "t".into());
            told += u64::from(refusals.targets[&place].told);
            refusals.log_ended("h", now_ms);
            assert!(!refusals.targets[&place].told);
        }
        assert_eq!(told, 2);
    }

    #[test]
    fn alternating_reasons_are_logged_once_per_interval_each() {
        let mut target = Target::default();
        let mut told = 0;
        for now_ms in (0..LOG_INTERVAL_MS).step_by(100) {
            let kind = match now_ms % 200 {
                0 => FailureKind::Batch,
                _ => FailureKind::Target,
            };
            told += u64::from(target.is_line_due((kind, "create the topic".into()), now_ms));
        }
        assert_eq!(told, 2);
    }
}
