//! A dead letter: the record byte for byte, plus headers with its origin and the reason of the failure (G7).

use sluicegate_abi::header_block::{self, Headers};

use crate::record::Record;

use std::sync::Arc;

use crate::dispatch::Inbox;
use crate::emit::{EmitFailure, EmitToken, Emitter, FailureKind, ProducerRecord, Sent, Way};

/// Values of the headers that a dead letter adds.
#[derive(Clone, Copy, Debug)]
pub struct Provenance<'a> {
    /// Topic of the record.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp in milliseconds.
    pub timestamp_ms: i64,
    /// The consumer group.
    pub group: &'a str,
    /// The handler that failed to process it.
    pub handler: &'a str,
    /// Version of the handler's plugin.
    pub version: &'a str,
    /// Calls made for the record.
    pub attempts: u32,
    /// Class of the failure.
    pub reason: &'a str,
    /// The handler's error message.
    pub message: &'a str,
    /// The dead-letter topic that the record is written to.
    pub target: &'a str,
}

/// The header that names the dead-letter topic of a dead letter.
const TARGET: &str = "__dlq.errors.target";

/// How often one record may be written to one dead-letter topic (docs/adr/0018). Each further time means that the record came
/// back from that topic: through another handler, a copy, or an operator's redrive.
const MAX_LAPS: usize = 16;

/// Why a record with the headers `original` must not be written to the dead-letter topic `target` again; `None` if it may.
fn refuse_lap(original: &[u8], target: &str) -> Option<EmitFailure> {
    let laps = Headers::new(original)
        .filter(|(name, value)| *name == TARGET.as_bytes() && *value == Some(target.as_bytes()))
        .count();
    (laps >= MAX_LAPS).then(|| EmitFailure {
        kind: FailureKind::Target,
        topic: target.into(),
        error: format!(
            "the record has already been written to {target} {laps} times and came back each time"
        )
        .into(),
        remedy: format!(
            "find the reader of {target} that sends its records back, then give the handler another dead_letter.topic or \
             close its gate"
        )
        .into(),
    })
}

/// Maximum length of the message header, in bytes; a longer message is truncated.
const MAX_MESSAGE: usize = 4 * 1024;

/// The original headers, unchanged and in order, followed by the provenance.
fn headers(original: &[u8], provenance: &Provenance<'_>) -> Vec<u8> {
    let numbers = [
        provenance.partition.to_string(),
        provenance.offset.to_string(),
        provenance.timestamp_ms.to_string(),
        provenance.attempts.to_string(),
    ];
    let message = &provenance.message[..provenance.message.floor_char_boundary(MAX_MESSAGE)];
    let added: [(&str, &str); 11] = [
        ("__dlq.errors.topic", provenance.topic),
        ("__dlq.errors.partition", &numbers[0]),
        ("__dlq.errors.offset", &numbers[1]),
        ("__dlq.errors.timestamp", &numbers[2]),
        ("__dlq.errors.group", provenance.group),
        ("__dlq.errors.handler", provenance.handler),
        ("__dlq.errors.version", provenance.version),
        ("__dlq.errors.delivery.count", &numbers[3]),
        ("__dlq.errors.reason", provenance.reason),
        ("__dlq.errors.message", message),
        (TARGET, provenance.target),
    ];
    let mut all: Vec<(&[u8], Option<&[u8]>)> = Headers::new(original).collect();
    all.extend(
        added
            .iter()
            .map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))),
    );
    let mut block = Vec::with_capacity(original.len() + 512);
    header_block::write(&mut block, all.into_iter());
    block
}

/// Sends the dead letter of a record. One that circulates is refused, so that it holds its lane like a record whose dead letter
/// cannot be written (G7).
pub fn send(
    record: &impl Record,
    provenance: &Provenance<'_>,
    emitter: &dyn Emitter,
    way: Way,
    reply_to: &Arc<Inbox>,
    token: EmitToken,
) -> Sent {
    if let Some(failure) = refuse_lap(record.headers(), provenance.target) {
        return Sent::Refused(Box::new(failure));
    }
    let outgoing = ProducerRecord {
        topic: provenance.target,
        partition: None,
        timestamp_ms: None,
        key: record.key(),
        value: record.value(),
        headers: &headers(record.headers(), provenance),
    };
    emitter.send(&outgoing, way, reply_to, token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_headers_come_first_and_unchanged() {
        let given: Vec<(&[u8], Option<&[u8]>)> =
            vec![(b"a", Some(b"\xff\x00")), (b"a", None), (b"b", Some(b""))];
        let mut block = Vec::new();
        header_block::write(&mut block, given.iter().copied());
        let provenance = Provenance {
            topic: "t",
            partition: 3,
            offset: 42,
            timestamp_ms: 7,
            group: "g",
            handler: "h",
            version: "1.0.0",
            attempts: 5,
            reason: "retries exhausted",
            message: "no route",
            target: "t.dlt",
        };
        let made = headers(&block, &provenance);
        let all: Vec<_> = Headers::new(&made).collect();
        assert_eq!(&all[..3], &given[..]);
        assert!(all.contains(&(b"__dlq.errors.offset".as_slice(), Some(b"42".as_slice()))));
        assert_eq!(all.len(), 14);
    }

    #[test]
    fn laps_are_counted_by_their_target_and_bounded() {
        let mut block = Vec::new();
        for lap in 0..MAX_LAPS {
            assert_eq!(refuse_lap(&block, "x.dlt"), None, "lap {lap}");
            for target in ["x.dlt", "y.dlt"] {
                let provenance = Provenance {
                    topic: "x",
                    partition: 0,
                    offset: lap as i64,
                    timestamp_ms: 0,
                    group: "g",
                    handler: "h",
                    version: "1.0.0",
                    attempts: 1,
                    reason: "terminal",
                    message: "no",
                    target,
                };
                block = headers(&block, &provenance);
            }
        }
        let refusal = refuse_lap(&block, "x.dlt").expect("the limit is reached");
        let refusal = refusal.to_string();
        assert!(refusal.contains("x.dlt 16 times"), "{refusal}");
        assert_eq!(
            refuse_lap(&block, "elsewhere"),
            None,
            "another topic is not affected"
        );
    }
}
