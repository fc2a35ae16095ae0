//! How far partitions were read: the client's consumed position, where it can be believed.
//!
//! ```text
//!   log        r r r c . . . a     r record   c control record   . aborted data   a its control record
//!   consumed         ^             what the application's queue has given, control records included
//!   fetched                  ^     runs ahead of the queue by all that waits in it: of no use here
//! ```
//!
//! The broker sends control records, the client drops them when they are taken out of the queue, and moves its position
//! then. Aborted data is dropped earlier, but the control record that ends it stands behind it.

use super::super::AssignmentId;
use super::super::raw::list_entries;
use super::{KafkaSource, list_of};

impl KafkaSource {
    /// Looks whether the positions of assignments that begin are reset, before anything moves them.
    pub(super) fn see_reset(&mut self, begun: &[AssignmentId]) {
        self.read_positions(begun, &mut Vec::new());
    }

    pub(super) fn read_positions(
        &mut self,
        slots: &[AssignmentId],
        out: &mut Vec<(AssignmentId, i64)>,
    ) {
        let Some(connection) = &self.connection else {
            return;
        };
        // A stray has moved the position and is not delivered yet.
        let sure = |slot: &AssignmentId| {
            self.main_queue_records
                .iter()
                .all(|stray| stray.slot != *slot)
        };
        let (asked, partitions): (Vec<AssignmentId>, Vec<_>) = slots
            .iter()
            .copied()
            .filter(sure)
            .filter_map(|slot| Some((slot, self.admission.get(slot)?.at.clone())))
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
                let topic = self.admission.get(slot)?.topic;
                connection.end_offset(topic, entry.partition)
            });
            let read = self.admission.judge_position(slot, position, end);
            out.extend(read.map(|position| (slot, position)));
        }
    }
}
