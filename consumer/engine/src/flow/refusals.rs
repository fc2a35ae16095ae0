//! Producer refusals that records wait for, by handler and topic: for the log (a line when one starts, changes or ends,
//! with counts), for reports and metrics, and for the bytes that they hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::tasks::Refusal;
use crate::dispatch::HandlerIx;
use crate::emit::{EmitFailure, FailureKind};

/// Maximum number of topics tracked separately; a handler can emit to any number of names.
const MAX_TARGETS: usize = 256;
/// Name under which further topics are counted.
const OTHER_TOPICS: &str = "(other)";
/// Minimum time between two equal lines about one handler and topic.
const LOG_INTERVAL_MS: u64 = 60_000;
/// Minimum time before a line about another reason.
const CHANGE_INTERVAL_MS: u64 = 5_000;

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ProduceKind {
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

/// Refusals of one handler and topic.
#[derive(Default)]
struct Target {
    /// Records that currently wait for a resend.
    held: u64,
    /// Since when at least one record has waited.
    since_ms: u64,
    /// Refusals since then.
    refused: u64,
    /// The last one.
    failure: Option<EmitFailure>,
    /// When it was last logged, and for which reason.
    logged: Option<(u64, (FailureKind, Arc<str>))>,
    /// Its start was logged, so its end is logged too.
    told: bool,
}

/// Records that wait for one topic to accept them.
pub(super) struct HeldRecords<'a> {
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

type Place = (HandlerIx, ProduceKind, Arc<str>);

/// All refusals that records wait for.
#[derive(Default)]
pub(super) struct Refusals {
    targets: BTreeMap<Place, Target>,
    /// Total refusals by handler; only grows.
    counts: BTreeMap<HandlerIx, u64>,
    /// Bytes of emitted records that are kept for a resend.
    held_bytes: u64,
    /// The last record that waited for some target no longer waits.
    may_be_over: bool,
}

impl Refusals {
    /// Bytes kept for resends.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Total refusals of a handler's emits and dead letters.
    pub(super) fn total(&self, ix: HandlerIx) -> u64 {
        self.counts.get(&ix).copied().unwrap_or(0)
    }

    /// Counts a refusal that no record waits for.
    pub(super) fn count(&mut self, ix: HandlerIx) {
        *self.counts.entry(ix).or_default() += 1;
    }

    /// A record starts to wait, or waits again.
    pub(super) fn begin(
        &mut self,
        ix: HandlerIx,
        handler: &str,
        what: ProduceKind,
        refusal: &mut Refusal,
        now_ms: u64,
    ) {
        self.count(ix);
        self.held_bytes += refusal.held_bytes;
        let place = self.place_of(ix, what, &refusal.failure.topic);
        refusal.counted_as = place.2.clone();
        let target = self.targets.entry(place).or_default();
        if target.held == 0 && refusal.tries == 1 {
            target.since_ms = now_ms;
            target.refused = 0;
        }
        target.held += 1;
        target.refused += 1;
        target.failure = Some(refusal.failure.clone());
        let failure = &refusal.failure;
        // The remedy identifies the reason: the error may contain the size of one record.
        let reason = (failure.kind, failure.remedy.clone());
        let due = target.logged.as_ref().is_none_or(|(at_ms, told)| {
            let waited_ms = now_ms.saturating_sub(*at_ms);
            waited_ms >= LOG_INTERVAL_MS || (*told != reason && waited_ms >= CHANGE_INTERVAL_MS)
        });
        if !due {
            return;
        }
        target.logged = Some((now_ms, reason));
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

    /// A record no longer waits, or is about to wait again.
    pub(super) fn end(&mut self, ix: HandlerIx, refusal: &Refusal) {
        self.held_bytes = self.held_bytes.saturating_sub(refusal.held_bytes);
        let what = match refusal.emits {
            Some(_) => ProduceKind::Emits,
            None => ProduceKind::DeadLetter,
        };
        let place = (ix, what, refusal.counted_as.clone());
        if let Some(target) = self.targets.get_mut(&place) {
            target.held = target.held.saturating_sub(1);
            self.may_be_over |= target.held == 0;
        }
    }

    /// Logs refusals that have ended, once. Cheap while there are none.
    pub(super) fn log_ended(
        &mut self,
        now_ms: u64,
        name_of: impl Fn(HandlerIx) -> Option<Arc<str>>,
    ) {
        if !std::mem::take(&mut self.may_be_over) {
            return;
        }
        for ((ix, what, topic), target) in &mut self.targets {
            if target.held > 0 || !std::mem::take(&mut target.told) {
                continue;
            }
            let name = name_of(*ix);
            tracing::info!(
                handler = name.as_deref().unwrap_or("(removed)"),
                topic = &**topic,
                refused = target.refused,
                after_ms = now_ms.saturating_sub(target.since_ms),
                "no refused {what} is waiting any more"
            );
        }
    }

    /// The refusals that records of a handler wait for.
    pub(super) fn of(&self, ix: HandlerIx) -> impl Iterator<Item = HeldRecords<'_>> {
        let of_handler = self.targets.iter().filter(move |(place, _)| place.0 == ix);
        of_handler.filter_map(|((_, what, topic), target)| {
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

    fn place_of(&mut self, ix: HandlerIx, what: ProduceKind, topic: &Arc<str>) -> Place {
        let place = (ix, what, topic.clone());
        if self.targets.contains_key(&place) {
            return place;
        }
        if self.targets.len() >= MAX_TARGETS {
            self.targets.retain(|_, target| target.held > 0);
        }
        if self.targets.len() < MAX_TARGETS {
            return place;
        }
        (ix, what, OTHER_TOPICS.into())
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
            held_bytes: 10,
            made_by: (1, 1),
            counted_as: topic.into(),
        }
    }

    const IX: HandlerIx = HandlerIx(3);
    const WHAT: ProduceKind = ProduceKind::DeadLetter;

    #[test]
    fn topics_beyond_the_bound_are_counted_together_and_end_where_they_began() {
        let mut refusals = Refusals::default();
        let mut held: Vec<Refusal> = (0..MAX_TARGETS + 5)
            .map(|i| refusal(&format!("t{i}"), 1))
            .collect();
        for one in &mut held {
            refusals.begin(IX, "h", WHAT, one, 0);
        }
        assert_eq!(refusals.targets.len(), MAX_TARGETS + 1);
        assert_eq!(&*held[MAX_TARGETS + 4].counted_as, OTHER_TOPICS);
        assert_eq!(refusals.held_bytes(), 10 * held.len() as u64);
        for one in &held {
            refusals.end(IX, one);
        }
        assert_eq!((refusals.of(IX).count(), refusals.held_bytes()), (0, 0));
        assert_eq!(refusals.total(IX), held.len() as u64);
    }

    #[test]
    fn a_reason_is_logged_once_per_interval_and_its_end_only_if_it_was() {
        let mut refusals = Refusals::default();
        let mut told = 0;
        for now_ms in (0..=LOG_INTERVAL_MS).step_by(1_000) {
            let mut one = refusal("t", 1);
            refusals.begin(IX, "h", WHAT, &mut one, now_ms);
            refusals.end(IX, &one);
            let place = (IX, WHAT, "t".into());
            told += u64::from(refusals.targets[&place].told);
            refusals.log_ended(now_ms, |_| None);
            assert!(!refusals.targets[&place].told);
        }
        assert_eq!(told, 2);
    }
}
