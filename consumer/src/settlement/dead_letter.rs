//! A dead letter: the record byte for byte, and headers that say where it came from and why it was given up (G7).

use sluicegate_abi::header_block::{self, Headers};

/// What the headers say.
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
    /// The handler that gave it up.
    pub handler: &'a str,
    /// Version of the handler's plugin.
    pub version: &'a str,
    /// Calls made for it.
    pub attempts: u32,
    /// Class of the failure.
    pub reason: &'a str,
    /// The handler's words.
    pub message: &'a str,
}

/// Most bytes of the handler's words that are passed on.
const MAX_MESSAGE: usize = 4 * 1024;

/// The original headers, untouched and in order, followed by the provenance.
pub fn headers(original: &[u8], provenance: &Provenance<'_>) -> Vec<u8> {
    let numbers = [
        provenance.partition.to_string(),
        provenance.offset.to_string(),
        provenance.timestamp_ms.to_string(),
        provenance.attempts.to_string(),
    ];
    let message = &provenance.message[..provenance.message.floor_char_boundary(MAX_MESSAGE)];
    let added: [(&str, &str); 10] = [
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
        };
        let made = headers(&block, &provenance);
        let all: Vec<_> = Headers::new(&made).collect();
        assert_eq!(&all[..3], &given[..]);
        assert!(all.contains(&(b"__dlq.errors.offset".as_slice(), Some(b"42".as_slice()))));
        assert_eq!(all.len(), 13);
    }
}
