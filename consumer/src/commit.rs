//! Commits: one in flight, answers checked partition by partition, finished offsets beyond the frontier as metadata.
//!
//! The metadata is `s1.` and base64url of varints: pairs of (unfinished, finished) run lengths from the committed
//! offset on. Brokers refuse metadata over 4,096 characters, so the runs that do not fit are left out, highest first:
//! that costs repeats, never a loss. Anything that does not decode counts as nothing finished.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const PREFIX: &str = "s1.";
const MAX_BYTES: usize = 3_000;

/// Encodes the finished ranges beyond `frontier`; empty if there are none.
pub fn encode_finished(frontier: i64, ranges: &[Range<i64>]) -> String {
    let mut bytes = Vec::new();
    let mut at = frontier;
    for range in ranges {
        let kept = bytes.len();
        push_varint(&mut bytes, (range.start - at) as u64);
        push_varint(&mut bytes, (range.end - range.start) as u64);
        if bytes.len() > MAX_BYTES {
            bytes.truncate(kept);
            break;
        }
        at = range.end;
    }
    if bytes.is_empty() {
        String::new()
    } else {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Decodes what [`encode_finished`] made; other people's metadata yields nothing.
pub fn decode_finished(frontier: i64, metadata: &str) -> Vec<Range<i64>> {
    decode(frontier, metadata).unwrap_or_default()
}

fn decode(frontier: i64, metadata: &str) -> Option<Vec<Range<i64>>> {
    let bytes = URL_SAFE_NO_PAD
        .decode(metadata.strip_prefix(PREFIX)?)
        .ok()?;
    let mut rest = bytes.as_slice();
    let mut ranges = Vec::new();
    let mut at = frontier;
    while !rest.is_empty() {
        let start = at.checked_add(i64::try_from(take_varint(&mut rest)?).ok()?)?;
        let len = i64::try_from(take_varint(&mut rest)?).ok()?;
        let end = start.checked_add(len)?;
        // A run at the frontier itself, or an empty one, is nothing that the encoder writes.
        if len == 0 || start == at {
            return None;
        }
        ranges.push(start..end);
        at = end;
    }
    Some(ranges)
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (i, &byte) in rest.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finished_ranges_come_back(frontier in 0..1i64 << 40, runs in prop::collection::vec((1..50i64, 1..50i64), 0..600)) {
            let mut at = frontier;
            let ranges: Vec<_> = runs.iter().map(|(gap, len)| { let start = at + gap; at = start + len; start..at }).collect();
            let metadata = encode_finished(frontier, &ranges);
            prop_assert!(metadata.len() <= 4096);
            let back = decode_finished(frontier, &metadata);
            prop_assert_eq!(&ranges[..back.len()], &back[..]);
            prop_assert!(back.len() == ranges.len() || metadata.len() > 3500);
        }

        #[test]
        fn foreign_metadata_finishes_nothing_it_should_not(text in ".{0,200}") {
            prop_assert!(decode_finished(5, &text).is_empty() || text.starts_with(PREFIX));
        }
    }

    #[test]
    fn broken_metadata_counts_as_nothing_finished() {
        for text in [
            "",
            "s1.",
            "s1.!",
            "s1.gA",
            "s1.AAE",
            "s1.AQA",
            "s2.AQE",
            "_v2:1:abc",
        ] {
            assert!(decode_finished(0, text).is_empty(), "{text}");
        }
    }
}
