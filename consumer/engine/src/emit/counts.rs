//! Acknowledged records of a handler, by topic.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Maximum number of topics counted separately per handler; a handler can emit to any number of names.
const MAX_TOPICS: usize = 256;
/// Name under which further topics are counted.
const OTHER_TOPICS: &str = "(other)";

/// Maps a topic name to the one that is shown: a handler's config may take the name from a secret reference.
pub type ShownTopic = dyn Fn(&str) -> String + Send + Sync;

/// Acknowledged records of one handler by topic. Locked by pumps and by readers.
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
    pub(super) fn shown(&self, topic: &str) -> Arc<str> {
        self.lock().shown(topic)
    }

    /// Counts acknowledged records of a topic.
    pub(super) fn add(&self, topic: &str, records: u64) {
        let mut emitted = self.lock();
        if let Some((_, count)) = emitted.by_topic.get_mut(topic) {
            *count += records;
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
        *count += records;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_beyond_the_bound_are_counted_together() {
        let counts = EmitCounts::default();
        for i in 0..MAX_TOPICS + 2 {
            counts.add(&format!("t{i}"), 1);
        }
        counts.add("t0", 2);
        let counts = counts.counts();
        assert_eq!(counts.len(), MAX_TOPICS + 1);
        assert_eq!((counts["t0"], counts[OTHER_TOPICS]), (3, 2));
    }

    #[test]
    fn a_topic_that_is_a_secret_is_shown_in_no_count() {
        let counts = EmitCounts::default();
        counts.add("later-secret", 1);
        let hides = |topic: &str| topic.replace("secret", "***");
        counts.show_by(Arc::new(hides));
        for topic in ["secret", "secret", "***", "plain"] {
            counts.add(topic, 1);
        }
        let shown: Vec<(String, u64)> = counts.counts().into_iter().collect();
        let expected = [("***", 3), ("later-***", 1), ("plain", 1)];
        assert_eq!(
            shown,
            expected.map(|(topic, count)| (topic.to_owned(), count))
        );
    }
}
