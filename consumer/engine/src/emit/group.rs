//! The records produced for one record of one handler, kept until they are acknowledged; notifies the pump once all are
//! answered.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use sluicegate_runtime::Emit;

use super::failure::EmitFailure;
use crate::dispatch::{HandlerIx, RecordId};
use crate::sync::{AtomicU32, Mutex, MutexGuard};

/// Maximum number of topics counted separately per handler; a handler can emit to any number of names.
const MAX_TOPICS: usize = 256;
/// Name under which further topics are counted.
const OTHER_TOPICS: &str = "(other)";

/// Maps a topic name to the one that is shown: a handler's config may take the name from a secret reference.
pub type ShownTopic = dyn Fn(&str) -> String + Send + Sync;

/// Acknowledged records of one handler by topic. Locked by the producer's thread and by readers.
#[derive(Default)]
pub struct EmitCounts {
    emitted: Mutex<Emitted>,
}

#[derive(Default)]
struct Emitted {
    /// By the name that the handler used, with the one that is shown.
    by_topic: BTreeMap<String, (Arc<str>, u64)>,
    shown: Option<Arc<ShownTopic>>,
}

impl Emitted {
    fn shown(&self, topic: &str) -> Arc<str> {
        match (&self.shown, self.by_topic.get(topic)) {
            (None, _) => topic.into(),
            (Some(_), Some((known, _))) => Arc::clone(known),
            (Some(shown), None) => shown(topic).into(),
        }
    }
}

impl std::fmt::Debug for EmitCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EmitCounts").field(&self.counts()).finish()
    }
}

impl EmitCounts {
    fn lock(&self) -> MutexGuard<'_, Emitted> {
        self.emitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how topic names are shown, including those counted before.
    pub fn show_by(&self, shown: Arc<ShownTopic>) {
        let mut emitted = self.lock();
        for (topic, (name, _)) in &mut emitted.by_topic {
            *name = shown(topic).into();
        }
        emitted.shown = Some(shown);
    }

    /// The name of a topic as it is shown.
    fn shown(&self, topic: &str) -> Arc<str> {
        self.lock().shown(topic)
    }

    fn add(&self, topic: &str) {
        let mut emitted = self.lock();
        if let Some((_, count)) = emitted.by_topic.get_mut(topic) {
            *count += 1;
            return;
        }
        let (topic, name) = match emitted.by_topic.len() < MAX_TOPICS {
            true => (topic, emitted.shown(topic)),
            false => (OTHER_TOPICS, OTHER_TOPICS.into()),
        };
        let (_, count) = emitted
            .by_topic
            .entry(topic.to_owned())
            .or_insert((name, 0));
        *count += 1;
    }

    /// The counts so far, by shown name.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for (name, count) in self.lock().by_topic.values() {
            *counts.entry(name.to_string()).or_default() += count;
        }
        counts
    }
}

/// Gets the answers of groups; a pump's inbox.
pub trait Answers: Send + Sync {
    /// Everything is answered that was sent for a record of a handler in this round; `refused`: not all of it is acknowledged.
    fn produced(&self, handler: HandlerIx, entry: RecordId, refused: Option<Box<RefusedEmits>>);
}

/// All records produced for one record of one handler, kept until all of them are acknowledged. The pump gets one
/// message per round, when everything sent in it is answered.
///
/// It owns the emitted records, so that a refusal does not require running the handler again. A dead letter keeps
/// nothing here: it is built from its record.
pub struct AckGroup {
    answers: Arc<dyn Answers>,
    handler: HandlerIx,
    entry: RecordId,
    records: Vec<Emit>,
    unanswered: AtomicU32,
    refused: Mutex<Option<(u32, EmitFailure)>>,
    counts: Option<Arc<EmitCounts>>,
}

/// A group of which not everything is acknowledged.
pub struct RefusedEmits {
    /// The group; none of its records is in flight any more.
    pub group: Arc<AckGroup>,
    /// Index of the first refused record. The records after it are resent too, so that the last copies are in order.
    pub first: u32,
    /// The failure with the highest precedence.
    pub failure: EmitFailure,
}

impl AckGroup {
    /// A group of `records`, which are counted in `counts` as they are acknowledged. The creator holds one share, to be
    /// released with [`AckGroup::seal`].
    pub fn new(
        answers: Arc<dyn Answers>,
        handler: HandlerIx,
        entry: RecordId,
        records: Vec<Emit>,
        counts: Option<Arc<EmitCounts>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            answers,
            handler,
            entry,
            records,
            unanswered: AtomicU32::new(1),
            refused: Mutex::new(None),
            counts,
        })
    }

    /// The records kept.
    pub fn records(&self) -> &[Emit] {
        &self.records
    }

    /// Bytes of the records kept.
    pub fn bytes(&self) -> u64 {
        let bytes_of = |emit: &Emit| {
            let optional = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
            let all = emit.topic.len() + optional(&emit.key) + optional(&emit.value);
            (all + emit.headers.len() + size_of::<Emit>()) as u64
        };
        self.records.iter().map(bytes_of).sum()
    }

    /// A ticket for the record at `index`, which is awaited from now on.
    pub fn ticket(self: &Arc<Self>, index: u32) -> Ticket {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        Ticket {
            group: Some(Arc::clone(self)),
            index,
        }
    }

    /// Releases the creator's share: from now on the last answer is reported.
    pub fn seal(self: &Arc<Self>) {
        self.complete();
    }

    /// Takes the creator's share again, for another round. Only after everything is answered.
    pub fn reopen(&self) {
        let before = self.unanswered.fetch_add(1, Ordering::Relaxed);
        debug_assert_eq!(before, 0, "the previous round has not ended");
    }

    fn refuse(&self, index: u32, mut failure: EmitFailure) {
        // Redacted here rather than where it is shown: it goes to the log, reports, `explain` and headers of dead
        // letters.
        if let Some(counts) = &self.counts {
            failure.topic = counts.shown(&failure.topic);
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = Some(match refused.take() {
            None => (index, failure),
            Some((first, before)) => {
                // Of failures with equal precedence, the first record's is reported.
                let outranks =
                    failure.kind > before.kind || (failure.kind == before.kind && index < first);
                (first.min(index), if outranks { failure } else { before })
            }
        });
    }

    fn complete(self: &Arc<Self>) {
        if self.unanswered.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let refused = {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.take()
        };
        let refused = refused.map(|(first, failure)| {
            Box::new(RefusedEmits {
                group: Arc::clone(self),
                first,
                failure,
            })
        });
        self.answers.produced(self.handler, self.entry, refused);
    }
}

/// The obligation to answer for one record of a group: exactly once, even if the producer is dropped.
pub struct Ticket {
    /// `None` once it is answered.
    group: Option<Arc<AckGroup>>,
    index: u32,
}

impl Ticket {
    /// The record is acknowledged.
    pub fn acknowledged(mut self) {
        let Some(group) = self.group.take() else {
            return;
        };
        if let Some(counts) = &group.counts
            && let Some(emit) = group.records.get(self.index as usize)
        {
            counts.add(&emit.topic);
        }
        group.complete();
    }

    /// The record was not produced.
    pub fn failed(mut self, failure: EmitFailure) {
        if let Some(group) = self.group.take() {
            group.refuse(self.index, failure);
            group.complete();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            let emit = group.records.get(self.index as usize);
            let failure =
                EmitFailure::unanswered(emit.map_or("the dead-letter topic", |e| &e.topic));
            group.refuse(self.index, failure);
            group.complete();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorded(Mutex<Vec<Option<Box<RefusedEmits>>>>);

    impl Answers for Recorded {
        fn produced(&self, _: HandlerIx, _: RecordId, refused: Option<Box<RefusedEmits>>) {
            self.0.lock().unwrap().push(refused);
        }
    }

    #[test]
    fn topics_beyond_the_bound_are_counted_together() {
        let counts = EmitCounts::default();
        for i in 0..MAX_TOPICS + 2 {
            counts.add(&format!("t{i}"));
        }
        counts.add("t0");
        let counts = counts.counts();
        assert_eq!(counts.len(), MAX_TOPICS + 1);
        assert_eq!((counts["t0"], counts[OTHER_TOPICS]), (2, 2));
    }

    #[test]
    fn a_topic_that_is_a_secret_is_shown_in_no_count_and_no_failure() {
        let counts = Arc::new(EmitCounts::default());
        counts.add("later-secret");
        let hides = |topic: &str| topic.replace("secret", "***");
        counts.show_by(Arc::new(hides));
        for topic in ["secret", "secret", "***", "plain"] {
            counts.add(topic);
        }
        let shown: Vec<(String, u64)> = counts.counts().into_iter().collect();
        let expected = [("***", 3), ("later-***", 1), ("plain", 1)];
        assert_eq!(
            shown,
            expected.map(|(topic, count)| (topic.to_owned(), count))
        );
        let answers = Arc::new(Recorded::default());
        let key = RecordId {
            index: 0,
            serial: 1,
        };
        let group = AckGroup::new(
            Arc::<Recorded>::clone(&answers),
            HandlerIx(1),
            key,
            Vec::new(),
            Some(counts),
        );
        let ticket = group.ticket(0);
        ticket.failed(EmitFailure::no_room("my-secret"));
        group.seal();
        let answers = answers.0.lock().unwrap();
        let [Some(refused)] = &answers[..] else {
            panic!("one refusal is reported");
        };
        let told = format!("{:?} {}", refused.failure, refused.failure);
        assert!(
            told.contains("my-***") && !told.contains("secret"),
            "{told}"
        );
    }
}
