//! Commit metadata: what the next owner of a partition needs besides the committed offset.
//!
//! ```text
//!  s2. base64url( epoch ─ topic id ─ check A │ leader epoch ─ (unfinished, finished)… ─ check B )
//!                 └─ bound to group, topic and partition   └─ bound to that and to the committed offset as well
//! ```
//!
//! The first part identifies the log (G2) and the fencing token of the owner that committed (G4); it stays valid when
//! an operator resets the offset. The second part lists the finished offsets beyond the commit (G3), relative to the
//! committed offset and valid for that offset only: in another log, under another group or with another offset they
//! would name unhandled records (ADR 0021). A part whose check fails is dropped and counts as nothing finished, which
//! causes repeats but never a loss. So does metadata with another prefix: a change of the layout needs a new one.
//!
//! Brokers reject metadata over 4,096 characters (`offset.metadata.max.bytes`): ranges that do not fit are omitted,
//! highest first. [`next_epoch`] derives the token of a new owner from the group's generation and the token in the last
//! commit.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rapidhash::v3::rapidhash_v3;

use super::id::TopicPartition;

const PREFIX: &str = "s2.";
/// Maximum size before base64: 3,000 bytes become 4,000 characters, below the brokers' default limit of 4,096.
const MAX_BYTES: usize = 3_000;
/// Bytes of each check.
const CHECK: usize = 8;

/// Topic id, unique to one creation of a topic; zero on clusters without topic ids (before Kafka 2.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicUuid(pub u128);

impl TopicUuid {
    /// From the high and low halves that Java and librdkafka use.
    pub fn of_halves(high: i64, low: i64) -> Self {
        Self(u128::from(high as u64) << 64 | u128::from(low as u64))
    }

    /// Whether the cluster has topic ids.
    pub fn is_known(self) -> bool {
        self.0 != 0
    }

    /// Whether both are known and differ: the topic was deleted and re-created in between.
    pub fn contradicts(self, other: Self) -> bool {
        self.is_known() && other.is_known() && self != other
    }
}

/// Formatted like in Kafka's tools: base64url of the 16 bytes.
impl std::fmt::Display for TopicUuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0.to_be_bytes()))
    }
}

/// A committed offset with its group and partition.
#[derive(Clone, Copy, Debug)]
pub struct CommitTarget<'a> {
    /// The consumer group.
    pub group: &'a str,
    /// The partition.
    pub at: &'a TopicPartition,
    /// The committed offset.
    pub offset: i64,
}

/// Contents of a commit's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitMetadata {
    /// The topic that the offset belongs to.
    pub topic_id: TopicUuid,
    /// Fencing token of the owner that committed (G4).
    pub epoch: u64,
    /// Leader epoch of the last finished record; `None` if nothing is finished or the broker sends none.
    pub leader_epoch: Option<i32>,
    /// Finished offsets beyond the commit: ascending, disjoint, neither adjacent nor empty.
    pub finished: Vec<Range<i64>>,
}

/// Why metadata, or a part of it, was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Written by another program, or for another group or partition.
    #[error("it was not written by this service for this group and partition")]
    Foreign,
    /// Written for another offset, or damaged.
    #[error("its list of finished records was written for another offset, or is damaged")]
    OtherOffset,
}

/// Decoded metadata: the valid part, and why the rest was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadMetadata {
    /// `None` if no part is valid.
    pub metadata: Option<CommitMetadata>,
    /// Why a part was dropped, if one was.
    pub dropped: Option<NoteError>,
}

impl CommitMetadata {
    /// The metadata of a commit at `target`, with as many finished ranges as fit.
    pub fn encode(&self, target: CommitTarget<'_>) -> String {
        let mut bytes = Vec::with_capacity(64);
        push_varint(&mut bytes, self.epoch);
        bytes.extend(self.topic_id.0.to_be_bytes());
        let check = check_of(target.group, target.at, None, &bytes);
        bytes.extend(&check);
        if !self.finished.is_empty() {
            push_varint(&mut bytes, epoch_as_number(self.leader_epoch));
            let mut at = target.offset;
            for range in &self.finished {
                let kept = bytes.len();
                push_varint(&mut bytes, (range.start - at) as u64);
                push_varint(&mut bytes, (range.end - range.start) as u64);
                if bytes.len() + CHECK > MAX_BYTES {
                    bytes.truncate(kept);
                    break;
                }
                at = range.end;
            }
            let check = check_of(target.group, target.at, Some(target.offset), &bytes);
            bytes.extend(&check);
        }
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Decodes the metadata of a commit at `target`.
    pub fn decode(metadata: &str, target: CommitTarget<'_>) -> ReadMetadata {
        // Some clients append the terminator of a C string; encoded metadata never ends with one.
        let text = metadata.trim_end_matches('\0');
        if text.is_empty() {
            return ReadMetadata::default();
        }
        let Some((mut metadata, mut rest, head)) = decode_head(text, target) else {
            return ReadMetadata {
                metadata: None,
                dropped: Some(NoteError::Foreign),
            };
        };
        let mut dropped = None;
        if !rest.is_empty() {
            match decode_finished(&mut rest, &head, target) {
                Some((leader_epoch, finished)) => {
                    metadata.leader_epoch = leader_epoch;
                    metadata.finished = finished;
                }
                None => dropped = Some(NoteError::OtherOffset),
            }
        }
        ReadMetadata {
            metadata: Some(metadata),
            dropped,
        }
    }
}

/// The checked part that identifies log and owner, the bytes after it, and all bytes.
fn decode_head(text: &str, target: CommitTarget<'_>) -> Option<(CommitMetadata, Vec<u8>, Vec<u8>)> {
    let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
    let mut rest = bytes.as_slice();
    let epoch = take_varint(&mut rest)?;
    let topic_id = u128::from_be_bytes(take(&mut rest)?);
    let head = &bytes[..bytes.len() - rest.len()];
    let check: [u8; CHECK] = take(&mut rest)?;
    if check != check_of(target.group, target.at, None, head) {
        return None;
    }
    let metadata = CommitMetadata {
        topic_id: TopicUuid(topic_id),
        epoch,
        ..CommitMetadata::default()
    };
    let rest = rest.to_vec();
    Some((metadata, rest, bytes))
}

fn decode_finished(
    rest: &mut Vec<u8>,
    all: &[u8],
    target: CommitTarget<'_>,
) -> Option<(Option<i32>, Vec<Range<i64>>)> {
    let signed = all.len().checked_sub(CHECK)?;
    let check = check_of(target.group, target.at, Some(target.offset), &all[..signed]);
    rest.truncate(rest.len().checked_sub(CHECK)?);
    if check != all[signed..] {
        return None;
    }
    let mut rest = rest.as_slice();
    let leader_epoch = number_as_epoch(take_varint(&mut rest)?)?;
    let mut ranges: Vec<Range<i64>> = Vec::new();
    let mut at = target.offset;
    while !rest.is_empty() {
        let start = at.checked_add(i64::try_from(take_varint(&mut rest)?).ok()?)?;
        let end = start.checked_add(i64::try_from(take_varint(&mut rest)?).ok()?)?;
        push_range(&mut ranges, start..end);
        at = end;
    }
    Some((leader_epoch, ranges))
}

/// Appends a range at or beyond the last one: drops empty ranges and merges adjacent ones.
pub fn push_range(ranges: &mut Vec<Range<i64>>, range: Range<i64>) {
    if range.is_empty() {
        return;
    }
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// The 32-bit fencing token cannot be raised above the last committed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fencing token of the partition has reached its maximum")]
pub struct EpochExhausted;

/// The fencing token of a new owner, and whether it must be committed before a record runs.
///
/// `generation` is the group's (classic protocol) or the member epoch (KIP-848), `kept` the token in the last commit. Every
/// rebalance raises the generation, so a token equal to the generation is lower than that of any later owner. A token raised
/// above it is not, nor is that of a static member, which gets its partitions back in the same generation: the next owner
/// can tell such a token from its own only once it is committed.
///
/// # Errors
/// [`EpochExhausted`] instead of wrapping around.
pub fn next_epoch(
    generation: Option<i32>,
    kept: Option<u64>,
    is_static: bool,
) -> Result<(u64, bool), EpochExhausted> {
    let generation = generation.and_then(|generation| u64::try_from(generation).ok());
    let above = match kept {
        Some(u64::MAX) => return Err(EpochExhausted),
        Some(kept) => kept + 1,
        None => 1,
    };
    let from_group = generation.unwrap_or(0);
    let epoch = from_group.max(above);
    Ok((epoch, is_static || epoch != from_group))
}

/// Detects accidental damage, not tampering: anyone who may commit for the group can skip records anyway.
fn check_of(group: &str, at: &TopicPartition, offset: Option<i64>, bytes: &[u8]) -> [u8; CHECK] {
    let mut all = Vec::with_capacity(bytes.len() + group.len() + at.topic.len() + 40);
    for text in [group, &*at.topic] {
        all.extend((text.len() as u64).to_be_bytes());
        all.extend(text.as_bytes());
    }
    all.extend(at.partition.to_be_bytes());
    all.extend(offset.unwrap_or(-1).to_be_bytes());
    all.extend(bytes);
    rapidhash_v3(&all).to_be_bytes()
}

fn epoch_as_number(epoch: Option<i32>) -> u64 {
    epoch
        .and_then(|epoch| u64::try_from(epoch).ok())
        .map_or(0, |epoch| epoch + 1)
}

fn number_as_epoch(number: u64) -> Option<Option<i32>> {
    match number.checked_sub(1) {
        None => Some(None),
        Some(epoch) => i32::try_from(epoch).ok().map(Some),
    }
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
    for (i, &byte) in rest.iter().take(10).enumerate() {
        if i == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Some(value);
        }
    }
    None
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(*first)
}

#[cfg(test)]
// Lists of one range are meant.
#[allow(clippy::single_range_in_vec_init)]
#[path = "commit_tests.rs"]
mod tests;
