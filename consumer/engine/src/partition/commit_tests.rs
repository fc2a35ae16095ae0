//! Commit metadata: decoded unchanged at its own offset, empty anywhere else.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::partition::ledger::{Delivered, Ledger};

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition {
        topic: topic.into(),
        partition,
    }
}

fn with_finished(finished: Vec<Range<i64>>) -> CommitMetadata {
    CommitMetadata {
        topic_id: TopicUuid(7),
        epoch: 57,
        leader_epoch: Some(3),
        finished,
    }
}

proptest! {
    #[test]
    fn encoded_metadata_decodes_to_the_same_note(
        offset in 0..1i64 << 40,
        first in 0..2i64,
        runs in vec((1..50i64, 1..50i64), 1..1200),
        epoch in any::<u64>(),
        topic_id in any::<u128>(),
        leader_epoch in prop::option::of(0..i32::MAX),
    ) {
        let at = at("orders", 3);
        let target = CommitTarget { group: "g", at: &at, offset };
        let mut end = offset;
        let mut gap_before = first;
        let finished: Vec<_> = runs
            .iter()
            .map(|(gap, len)| {
                let start = end + gap_before;
                gap_before = *gap;
                end = start + len;
                start..end
            })
            .collect();
        let written = CommitMetadata { topic_id: TopicUuid(topic_id), epoch, leader_epoch, finished };
        let metadata = written.encode(target);
        prop_assert!(metadata.len() <= 4096);
        let read = CommitMetadata::decode(&metadata, target);
        prop_assert_eq!(read.dropped, None);
        let read = read.metadata.expect("own metadata");
        prop_assert_eq!(read.epoch, epoch);
        prop_assert_eq!(read.topic_id, TopicUuid(topic_id));
        prop_assert_eq!(read.leader_epoch, leader_epoch);
        prop_assert_eq!(&written.finished[..read.finished.len()], &read.finished[..]);
        prop_assert!(read.finished.len() == runs.len() || metadata.len() > 3_900);
    }

    /// Each owner starts with what its predecessor committed, for any sequence of deliveries and settlements.
    #[test]
    fn finished_offsets_of_the_ledger_survive_every_change_of_owner(
        owners in vec(vec((0..3u8, 0..40i64), 0..60), 1..6),
    ) {
        let at = at("orders", 3);
        let mut offset = 100;
        let mut finished: Vec<Range<i64>> = Vec::new();
        let mut settled: std::collections::BTreeSet<i64> = Default::default();
        for steps in owners {
            let mut ledger = Ledger::new(offset, finished);
            for (what, by) in steps {
                match what {
                    0 => {
                        let next = ledger.next();
                        for new in next..=next + by / 8 {
                            let came = ledger.deliver(new);
                            let before = settled.contains(&new);
                            prop_assert_eq!(came == Delivered::Done, before, "offset {}", new);
                        }
                    }
                    _ => {
                        let one = ledger.frontier() + by;
                        if ledger.settle(one) {
                            settled.insert(one);
                        }
                    }
                }
            }
            offset = ledger.frontier();
            settled.retain(|one| *one >= offset);
            let ahead = ledger.settled_ahead();
            let named: Vec<i64> = ahead.iter().cloned().flatten().collect();
            let all: Vec<i64> = settled.iter().copied().collect();
            prop_assert_eq!(&named, &all, "the ledger knows the finished offsets");
            let target = CommitTarget { group: "g", at: &at, offset };
            let read = CommitMetadata::decode(&with_finished(ahead.clone()).encode(target), target);
            prop_assert_eq!(read.dropped, None);
            finished = read.metadata.expect("own metadata").finished;
            prop_assert_eq!(&finished, &ahead);
        }
    }

    #[test]
    fn foreign_metadata_is_dropped(text in "(s2\\.)?[A-Za-z0-9_-]{0,200}|.{0,60}") {
        let at = at("orders", 3);
        let read = CommitMetadata::decode(&text, CommitTarget { group: "g", at: &at, offset: 5 });
        prop_assert_eq!(read.metadata, None);
        prop_assert_eq!(read.dropped.is_none(), text.trim_end_matches('\0').is_empty());
    }

    #[test]
    fn a_flipped_bit_drops_the_list_or_all_metadata(bit in 0..800usize) {
        let at = at("orders", 3);
        let target = CommitTarget { group: "g", at: &at, offset: 10 };
        let written = with_finished(vec![11..13, 20..90, 1_000..1_001]);
        let mut bytes = URL_SAFE_NO_PAD.decode(&written.encode(target)[PREFIX.len()..]).unwrap();
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let metadata = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        let read = CommitMetadata::decode(&metadata, target);
        prop_assert!(read.dropped.is_some());
        prop_assert!(read.metadata.is_none_or(|metadata| metadata.finished.is_empty() && metadata.epoch == 57));
    }
}

#[test]
fn a_list_is_valid_only_for_its_own_offset_group_and_partition() {
    let here = at("orders", 3);
    let written = with_finished(vec![11..13, 20..21]);
    let metadata = written.encode(CommitTarget {
        group: "g",
        at: &here,
        offset: 10,
    });
    let read = |group, at: &TopicPartition, offset| {
        CommitMetadata::decode(&metadata, CommitTarget { group, at, offset })
    };
    let (metadata, dropped) = (read("g", &here, 10).metadata, read("g", &here, 10).dropped);
    assert_eq!((metadata.as_ref(), dropped), (Some(&written), None));
    for offset in [0, 9, 11, 1_000] {
        let shifted = read("g", &here, offset);
        assert_eq!(shifted.dropped, Some(NoteError::OtherOffset));
        let metadata = shifted.metadata.expect("log and owner are still known");
        assert_eq!((metadata.epoch, metadata.topic_id), (57, TopicUuid(7)));
        assert_eq!(metadata.finished, []);
    }
    for (group, at) in [
        ("other", here.clone()),
        ("g", at("orders", 4)),
        ("g", at("order", 3)),
        ("gorders", at("", 3)),
    ] {
        let read = read(group, &at, 10);
        assert_eq!(
            (read.metadata, read.dropped),
            (None, Some(NoteError::Foreign)),
            "{group} {at}"
        );
    }
}

#[test]
fn metadata_copied_by_a_c_client_is_still_valid() {
    let at = at("orders", 3);
    let target = CommitTarget {
        group: "g",
        at: &at,
        offset: 10,
    };
    let written = with_finished(vec![10..12]);
    let copied = format!("{}\0", written.encode(target));
    assert_eq!(
        CommitMetadata::decode(&copied, target).metadata,
        Some(written)
    );
}

#[test]
fn the_token_of_a_later_owner_is_higher() {
    // (generation, kept, static) and (token, whether it must be committed first)
    let table = [
        ((Some(5), None, false), (5, false)),
        ((Some(5), Some(4), false), (5, false)),
        ((Some(5), Some(5), false), (6, true)),
        ((Some(1), Some(57), false), (58, true)),
        ((Some(5), Some(2), true), (5, true)),
        ((None, Some(8), false), (9, true)),
        ((Some(-1), None, false), (1, true)),
    ];
    for ((generation, kept, is_static), expected) in table {
        assert_eq!(next_epoch(generation, kept, is_static), Ok(expected));
    }
    assert_eq!(
        next_epoch(Some(5), Some(u64::MAX), false),
        Err(EpochExhausted)
    );
}
