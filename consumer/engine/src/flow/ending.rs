//! Drop of a flow, also after a failure: cancels its calls, frees the records that are returned at once, and leaks
//! those that a call still reads.

use super::Flow;
use crate::dispatch::PumpMessage;
use crate::record::Record;

impl<R: Record> Drop for Flow<R> {
    fn drop(&mut self) {
        // Nothing waits for their results any more (G5).
        for queue in self.queues.iter_mut().flatten() {
            queue.cancel_all();
        }
        if std::thread::panicking() {
            // Run nothing that may panic again: lent records stay lent, so their memory is never freed under a reader.
            return;
        }
        for queue in self.queues.iter().flatten() {
            queue.recall_queued();
        }
        let mut messages = Vec::new();
        self.ctx.inbox.take(&mut messages);
        for message in messages {
            if let PumpMessage::Finished(mut batch) = message {
                for (record, &key) in batch.records.drain(..).zip(&batch.keys) {
                    self.ctx.records.return_record(key, record);
                }
            }
        }
        let (records, bytes) = self
            .ctx
            .records
            .slab
            .lent()
            .fold((0, 0), |(records, bytes), entry| {
                (records + 1, bytes + u64::from(entry.charge))
            });
        if records > 0 {
            tracing::warn!(
                records,
                bytes,
                "handlers still read records of a pump that has ended; their memory is not freed until the process exits"
            );
        }
    }
}
