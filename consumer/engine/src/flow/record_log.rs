//! The built-in record log: samples records and logs their position and shape, never their key, value or header values.

use rapidhash::v3::rapidhash_v3;
use sluicegate_abi::header_block::Headers;

use super::Flow;
use crate::record::Record;
use crate::source::{Delivery, TopicPartition};

/// Minimum time between two lines of a pump.
const SAMPLE_INTERVAL_MS: u64 = 100;
/// Maximum number of header names per line, and of characters per name.
const MAX_NAMES: usize = 32;
const MAX_NAME: usize = 64;

/// Samples the records of one pump: at most ten lines per second, whatever the rate.
#[derive(Debug, Default)]
pub(super) struct RecordLog {
    next_ms: u64,
    passed_by: u64,
}

impl<R: Record> Flow<R> {
    /// Switches the record log on or off; while it is off, it costs one check per record.
    pub fn set_record_log(&mut self, on: bool) {
        if on != self.record_log.is_some() {
            self.record_log = on.then(RecordLog::default);
        }
    }
}

impl RecordLog {
    /// Logs the record if a line is due.
    pub(super) fn record<R: Record>(
        &mut self,
        at: &TopicPartition,
        delivery: &Delivery<R>,
        now_ms: u64,
    ) {
        if now_ms < self.next_ms {
            self.passed_by += 1;
            return;
        }
        self.next_ms = now_ms + SAMPLE_INTERVAL_MS;
        let lease = &delivery.lease;
        let key_hash = lease.key().map_or(0, rapidhash_v3);
        tracing::info!(
            target: "sluicegate::record",
            topic = %at.topic,
            partition = at.partition,
            offset = delivery.offset,
            key_hash = %format_args!("{key_hash:016x}"),
            size = lease.size(),
            headers = %names(lease.headers()),
            passed_by = self.passed_by,
            "record"
        );
        self.passed_by = 0;
    }
}

/// The names of a header block, comma separated.
fn names(block: &[u8]) -> String {
    let names = Headers::new(block).take(MAX_NAMES).map(|(name, _)| {
        let name = String::from_utf8_lossy(name);
        let name: String = name.chars().take(MAX_NAME).collect();
        name.escape_debug().to_string()
    });
    names.collect::<Vec<String>>().join(",")
}

#[cfg(test)]
mod tests {
    use sluicegate_abi::header_block;

    use super::*;

    #[test]
    fn header_names_are_shown_and_their_values_are_not() {
        let mut block = Vec::new();
        let headers: [(&[u8], Option<&[u8]>); 3] = [
            (b"tenant", Some(b"acme")),
            (b"a\nb", None),
            (b"trace", Some(b"1")),
        ];
        header_block::write(&mut block, headers.into_iter());
        assert_eq!(names(&block), "tenant,a\\nb,trace");
        assert_eq!(names(&[]), "");
    }
}
