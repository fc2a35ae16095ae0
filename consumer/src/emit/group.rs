//! What is produced for one record of one handler, reported to the pump once, when all of it is answered.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};

use crate::dispatch::{EntryKey, HandlerIx, Inbox, PumpMessage};
use crate::sync::{AtomicU32, Mutex};

/// Topics that are counted one by one for a handler; a handler can make up as many as it likes.
const MAX_TOPICS: usize = 256;
/// What further topics are counted as.
const OTHER_TOPICS: &str = "(other)";

/// Acknowledged records of one handler by topic. Its lock is taken by the producer's thread and by who asks.
#[derive(Debug, Default)]
pub struct EmitCounts {
    by_topic: Mutex<BTreeMap<String, u64>>,
}

impl EmitCounts {
    fn add(&self, topic: &str) {
        let mut by_topic = self.by_topic.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_topic.get_mut(topic) {
            *count += 1;
            return;
        }
        let name = if by_topic.len() < MAX_TOPICS {
            topic
        } else {
            OTHER_TOPICS
        };
        *by_topic.entry(name.to_owned()).or_default() += 1;
    }

    /// The counts so far.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let by_topic = self.by_topic.lock().unwrap_or_else(PoisonError::into_inner);
        by_topic.clone()
    }
}

/// Everything that is produced for one record of one handler; the pump hears once, when all is answered.
pub struct EmitGroup {
    inbox: Arc<Inbox>,
    handler: HandlerIx,
    entry: EntryKey,
    unanswered: AtomicU32,
    error: OnceLock<Arc<str>>,
    counts: Option<Arc<EmitCounts>>,
}

impl EmitGroup {
    /// A group whose maker holds one share, to be given up with [`EmitGroup::arm`].
    pub fn new(inbox: Arc<Inbox>, handler: HandlerIx, entry: EntryKey) -> Arc<Self> {
        Arc::new(Self {
            inbox,
            handler,
            entry,
            unanswered: AtomicU32::new(1),
            error: OnceLock::new(),
            counts: None,
        })
    }

    /// As [`EmitGroup::new`], for records that are counted when they are acknowledged.
    pub fn counted(
        inbox: Arc<Inbox>,
        handler: HandlerIx,
        entry: EntryKey,
        counts: Arc<EmitCounts>,
    ) -> Arc<Self> {
        Arc::new(Self {
            inbox,
            handler,
            entry,
            unanswered: AtomicU32::new(1),
            error: OnceLock::new(),
            counts: Some(counts),
        })
    }

    /// One record for `topic` is acknowledged.
    pub fn acknowledged(&self, topic: &str) {
        if let Some(counts) = &self.counts {
            counts.add(topic);
        }
        self.answered(None);
    }

    /// Counts one more record to wait for. Call it before `Emitter::send`; if that fails, call
    /// [`EmitGroup::answered`] with the error.
    pub fn expect_one(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    /// One record is acknowledged (`None`) or has failed for good.
    pub fn answered(&self, error: Option<&str>) {
        if let Some(error) = error {
            let _ = self.error.set(error.into());
        }
        if self.unanswered.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.inbox.push(PumpMessage::Produced {
                handler: self.handler,
                entry: self.entry,
                error: self.error.get().cloned(),
            });
        }
    }

    /// Gives up the maker's share: from now on the last answer is reported.
    pub fn arm(&self) {
        self.answered(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
