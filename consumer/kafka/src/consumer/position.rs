//! How far partitions were read: the client's consumed position, where it can be trusted.
//!
//! ```text
//!   log        r r r c . . . a     r record   c control record   . aborted data   a its control record
//!   consumed         ^             what was taken from the application queue, control records included
//!   fetched                  ^     ahead of the queue by everything that waits in it: not usable here
//! ```
//!
//! The broker sends control records; the client drops them when they are taken out of the queue, and advances its
//! position then. Aborted data is dropped earlier, but it is always followed by the control record that ends it.

use sluicegate_engine::source::AssignmentId;

use super::{KafkaSource, list_of};
use crate::ffi::list_entries;

impl KafkaSource {
    /// Checks whether the positions of new assignments are reset, before anything moves them.
    pub(super) fn see_reset(&mut self, started: &[AssignmentId]) {
        self.read_positions(started, &mut Vec::new());
    }

    pub(super) fn read_positions(
        &mut self,
        slots: &[AssignmentId],
        out: &mut Vec<(AssignmentId, i64)>,
    ) {
        let Some(connection) = &self.connection else {
            return;
        };
        // A record of the main queue has moved the position and is not delivered yet.
        let sure = |slot: &AssignmentId| {
            self.main_queue_records
                .iter()
                .all(|queued| queued.slot != *slot)
        };
        let (asked, partitions): (Vec<AssignmentId>, Vec<_>) = slots
            .iter()
            .copied()
            .filter(sure)
            .filter_map(|slot| Some((slot, self.gap_detector.get(slot)?.at.clone())))
            .unzip();
        if asked.is_empty() {
            return;
        }
        // Rule 5: the list is dropped here, long before the client.
        let mut list = list_of(&partitions);
        connection.consumed_positions(&mut list);
        for (slot, entry) in asked.into_iter().zip(list_entries(&list)) {
            let position = (entry.offset >= 0).then_some(entry.offset);
            if entry.error_code != 0 {
                continue;
            }
            let end = position.and_then(|_| {
                let topic = self.gap_detector.get(slot)?.topic;
                connection.end_offset(topic, entry.partition)
            });
            let read = self.gap_detector.judge_position(slot, position, end);
            out.extend(read.map(|position| (slot, position)));
        }
    }
}
