//! The end of a flow, also after a failure: calls stop, what comes back at once is freed, what is still read is left behind.

use super::Flow;
use crate::dispatch::PumpMessage;

impl Drop for Flow {
    fn drop(&mut self) {
        // Nobody waits for their results any more (G5).
        for flight in self.flights.submitted() {
            flight.recall();
        }
        if std::thread::panicking() {
            // Nothing that may panic again: what is lent stays lent, and so in memory.
            return;
        }
        for handler in self.handlers.iter().flatten() {
            if let Some(pool) = &handler.settings.pool {
                pool.recall();
            }
        }
        let mut messages = Vec::new();
        self.inbox.take(&mut messages);
        for message in messages {
            if let PumpMessage::Finished(mut batch) = message {
                for (record, &key) in batch.records.drain(..).zip(&batch.keys) {
                    self.give_back(key, record);
                }
            }
        }
        let (records, bytes) = self.slab.lent().fold((0, 0), |(records, bytes), entry| {
            (records + 1, bytes + u64::from(entry.charge))
        });
        if records > 0 {
            tracing::warn!(
                records,
                bytes,
                "handlers still read records of a pump that has ended; their memory is left behind until the process ends"
            );
        }
    }
}
