//! Rejected commits: the last one of a partition, and those while it is owned.

use super::*;
use crate::partition::committer::{HandOver, LAST_COMMIT_GRACE_MS};
use crate::source::{CommitEntry, CommitError, CommitErrorKind, CommitResult, Rejection};

const DEADLINE_MS: u64 = 20_000;

fn refusal(kind: CommitErrorKind) -> CommitError {
    CommitError {
        kind,
        reason: format!("{kind:?}"),
    }
}

impl Bench {
    /// Finishes ten records and drains the partition.
    fn drained() -> Self {
        let mut bench = Self::new(1);
        bench.deliver(0..10, |_| None);
        bench.finish(0, |_| ACK);
        bench.flow.start_drain(&[bench.slot], DEADLINE_MS);
        bench
    }

    fn answer_commit(&mut self, entries: &[CommitEntry], error: Option<CommitErrorKind>) {
        let results: Vec<CommitResult> = entries
            .iter()
            .map(|entry| CommitResult {
                at: entry.at.clone(),
                offset: entry.offset,
                error: error.map(refusal),
            })
            .collect();
        self.flow.committed(&results, None);
    }

    fn hand_over(&self) -> HandOver {
        self.flow.hand_over(&[self.slot])
    }

    /// Advances time until a commit is due; `None` if none is due within a minute.
    fn next_commit(&mut self, now_ms: &mut u64) -> Option<Vec<CommitEntry>> {
        for _ in 0..60_000 {
            self.flow.tick(*now_ms);
            let entries = self.flow.commits_due();
            if !entries.is_empty() {
                return Some(entries);
            }
            *now_ms += 1;
        }
        None
    }
}

#[test]
fn a_last_commit_that_a_rebalancing_group_rejects_is_resent_until_it_is_accepted() {
    let mut bench = Bench::drained();
    let mut now_ms = 0;
    let mut sent_ms = Vec::new();
    for _ in 0..10 {
        let entries = bench.next_commit(&mut now_ms).expect("it is resent");
        assert_eq!(entries[0].offset, 10);
        assert_eq!(bench.hand_over(), HandOver::Committing);
        assert!(bench.flow.commits_due().is_empty(), "one is in flight");
        sent_ms.push(now_ms);
        bench.answer_commit(&entries, Some(CommitErrorKind::Rebalancing));
        assert_eq!(bench.hand_over(), HandOver::Committing);
    }
    let waits: Vec<u64> = sent_ms.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        waits[0] >= 25 && waits.iter().all(|wait| *wait <= 250),
        "{waits:?}"
    );
    let entries = bench.next_commit(&mut now_ms).expect("it is resent");
    bench.answer_commit(&entries, None);
    assert_eq!(bench.hand_over(), HandOver::Ready { uncommitted: 0 });
}

#[test]
fn the_commit_in_flight_is_awaited_before_the_last_one() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |_| None);
    bench.finish(0, |offset| {
        if offset < 5 {
            ACK
        } else {
            outcome_code::NOT_RUN
        }
    });
    bench.flow.tick(1_000);
    let first = bench.flow.commits_due();
    assert_eq!(first[0].offset, 5);
    bench.finish(0, |_| ACK);
    bench.flow.start_drain(&[bench.slot], DEADLINE_MS);
    assert!(bench.flow.commits_due().is_empty());
    assert_eq!(bench.hand_over(), HandOver::Committing);
    bench.answer_commit(&first, None);
    let last = bench.flow.commits_due();
    assert_eq!(last[0].offset, 10);
    bench.answer_commit(&last, None);
    assert_eq!(bench.hand_over(), HandOver::Ready { uncommitted: 0 });
}

#[test]
fn a_last_commit_is_abandoned_when_it_cannot_succeed_or_its_grace_has_passed() {
    for kind in [
        CommitErrorKind::NotMember,
        CommitErrorKind::Rejected(Rejection::Other),
    ] {
        let mut bench = Bench::drained();
        let entries = bench.flow.commits_due();
        bench.answer_commit(&entries, Some(kind));
        assert_eq!(bench.hand_over(), HandOver::Ready { uncommitted: 1 });
    }
    let mut bench = Bench::drained();
    let entries = bench.flow.commits_due();
    bench.flow.tick(DEADLINE_MS + LAST_COMMIT_GRACE_MS - 1);
    assert_eq!(bench.hand_over(), HandOver::Committing);
    bench.flow.tick(DEADLINE_MS + LAST_COMMIT_GRACE_MS);
    assert_eq!(bench.hand_over(), HandOver::Ready { uncommitted: 1 });
    bench.answer_commit(&entries, None);
    assert_eq!(bench.hand_over(), HandOver::Ready { uncommitted: 0 });
}

#[test]
fn a_partition_lost_while_its_last_commit_was_rejected_commits_nothing() {
    let mut bench = Bench::drained();
    let entries = bench.flow.commits_due();
    bench.answer_commit(&entries, Some(CommitErrorKind::Rebalancing));
    bench.flow.release(&[bench.slot]);
    assert_eq!(bench.next_commit(&mut 1), None);
}

#[test]
fn records_of_one_delivery_are_admitted_up_to_the_bound_and_the_others_once_there_is_room() {
    let mut bench = Bench::with(1, 10);
    bench.deliver(0..25, |offset| Some(offset.to_string()));
    let delivered = |bench: &Bench| bench.flow.assignment(bench.slot).ledger().next();
    assert_eq!(delivered(&bench), 10);
    assert_eq!(
        bench.finish(0, |_| ACK),
        (0..10).collect::<Vec<i64>>(),
        "the others wait until these are committed"
    );
    let mut now_ms = 0;
    for end in [20, 25] {
        let entries = bench.next_commit(&mut now_ms).expect("a commit is due");
        bench.answer_commit(&entries, None);
        bench.flow.dispatch();
        assert_eq!(delivered(&bench), end);
        bench.finish(0, |_| ACK);
    }
    assert_eq!(bench.frontier(), 25);
}

#[test]
fn no_record_starts_before_a_token_is_committed_that_a_restart_could_issue_again() {
    for token_first in [false, true] {
        let mut bench = Bench::new(1);
        bench.flow.release(&[bench.slot]);
        bench.slot = bench.flow.assign(NewAssignment {
            token_first,
            ..NewAssignment::first(at(), 0, 7)
        });
        bench.deliver(0..3, |_| None);
        let offsets = bench.finish(0, |_| ACK);
        assert_eq!(offsets.is_empty(), token_first);
        let entries = bench.next_commit(&mut 0).expect("the token is committed");
        bench.answer_commit(&entries, None);
        bench.flow.dispatch();
        let rest = bench.finish(0, |_| ACK);
        assert_eq!([offsets, rest].concat(), [0, 1, 2]);
    }
}

#[test]
fn nothing_is_committed_once_an_invariant_was_violated() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |_| None);
    let slot = bench.slot;
    bench.flow.ctx.records.partitions[slot].pass_by(3..4, 0);
    bench.finish(0, |_| ACK);
    bench.flow.tick(1_000);
    let fault = bench.flow.fault().expect("offset 3 was settled twice");
    assert!(
        fault.contains("offset 3 of t/0 was settled twice"),
        "{fault}"
    );
    assert_eq!(bench.flow.commits_due(), []);
}

#[test]
fn another_revoke_does_not_extend_the_deadline() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |_| None);
    bench.flow.start_drain(&[bench.slot], 1_000);
    bench.flow.start_drain(&[bench.slot], 9_000);
    bench.flow.tick(1_000);
    assert!(bench.flow.is_drained(&[bench.slot]));
}

#[test]
fn rejected_commits_are_resent_with_backoff_and_at_once_after_the_rebalance() {
    let mut bench = Bench::new(1);
    bench.deliver(0..100, |_| None);
    bench.finish(0, |_| ACK);
    let mut now_ms = 0;
    let mut sent_ms = Vec::new();
    for _ in 0..12 {
        let entries = bench.next_commit(&mut now_ms).expect("it is resent");
        sent_ms.push(now_ms);
        bench.answer_commit(&entries, Some(CommitErrorKind::Rejected(Rejection::Other)));
    }
    let waits: Vec<u64> = sent_ms.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits[0] < waits[3] && waits[3] < waits[8], "{waits:?}");
    assert!(
        waits[8..].iter().all(|wait| (2_500..=5_000).contains(wait)),
        "{waits:?}"
    );
    assert!(bench.flow.commits_due().is_empty());
    bench.flow.group_settled();
    assert_eq!(bench.flow.commits_due().len(), 1);
}

#[test]
fn a_permanently_rejected_commit_of_one_partition_does_not_delay_the_others() {
    let mut bench = Bench::new(1);
    let refused = TopicPartition {
        topic: "refused".into(),
        partition: 0,
    };
    bench
        .flow
        .assign(NewAssignment::first(refused.clone(), 0, 1));
    let (mut now_ms, mut next, mut tries) = (0, 0, 0);
    while now_ms < 60_000 {
        bench.deliver(next..next + 50, |_| None);
        bench.finish(0, |_| ACK);
        next += 50;
        let sent_ms = now_ms;
        let entries = bench.next_commit(&mut now_ms).expect("it continues");
        assert!(
            now_ms <= sent_ms + 1_000,
            "half of max_uncommitted is reached, {} ms ago",
            now_ms - sent_ms
        );
        assert!(
            entries
                .iter()
                .any(|entry| entry.at == at() && entry.offset == next)
        );
        tries += u32::from(entries.iter().any(|entry| entry.at == refused));
        let results: Vec<CommitResult> = entries
            .iter()
            .map(|entry| CommitResult {
                at: entry.at.clone(),
                offset: entry.offset,
                error: (entry.at == refused)
                    .then(|| refusal(CommitErrorKind::Rejected(Rejection::Other))),
            })
            .collect();
        bench.flow.committed(&results, None);
        now_ms += 10;
    }
    assert!((10..40).contains(&tries), "it is retried: {tries} times");
}

#[test]
fn a_commit_whose_metadata_is_too_long_is_resent_without_the_finished_records() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |offset| Some(offset.to_string()));
    bench.finish(0, |offset| match offset {
        0 => outcome_code::RETRY,
        _ => ACK,
    });
    let mut now_ms = 0;
    let entries = bench.next_commit(&mut now_ms).expect("a commit is due");
    let long = entries[0].metadata.len();
    let refused = CommitErrorKind::Rejected(Rejection::MetadataSize);
    bench.answer_commit(&entries, Some(refused));
    let entries = bench.next_commit(&mut now_ms).expect("it is resent");
    assert!(entries[0].metadata.len() < long, "{entries:?}");
    let read = CommitMetadata::decode(
        &entries[0].metadata,
        CommitTarget {
            group: "g",
            at: &entries[0].at,
            offset: 0,
        },
    );
    let metadata = read.metadata.expect("the token is still in it");
    assert_eq!((metadata.epoch, metadata.finished), (1, Vec::new()));
    bench.answer_commit(&entries, None);
    assert!(bench.flow.assignment(bench.slot).token_kept());
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    assert!(bench.flow.report(clock, |_| None).problems.is_empty());
}

#[test]
fn each_partition_reports_why_its_own_commit_was_rejected() {
    let mut bench = Bench::new(1);
    let deleted = TopicPartition {
        topic: "deleted".into(),
        partition: 0,
    };
    let other = bench
        .flow
        .assign(NewAssignment::first(deleted.clone(), 0, 1));
    bench.deliver(0..5, |_| None);
    bench.finish(0, |_| ACK);
    let entries = bench.next_commit(&mut 0).expect("it is due");
    assert_eq!(entries.len(), 2);
    let results: Vec<CommitResult> = entries
        .iter()
        .map(|entry| {
            let rejection = match entry.at == deleted {
                true => Rejection::NoTopic,
                false => Rejection::Right,
            };
            CommitResult {
                at: entry.at.clone(),
                offset: entry.offset,
                error: Some(refusal(CommitErrorKind::Rejected(rejection))),
            }
        })
        .collect();
    bench.flow.committed(&results, None);
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    let why = |slot| {
        bench
            .flow
            .committer
            .why_not(slot, bench.flow.ctx.now_ms, clock)
            .expect("it is rejected")
    };
    assert!(why(bench.slot).contains("grant the service READ"));
    assert!(why(other).contains("the topic seems to be deleted"));
    assert!(why(other).contains("Rejected(NoTopic)"));
}

#[test]
fn a_member_that_missed_its_removal_is_told_from_one_that_rejoins() {
    let mut bench = Bench::new(1);
    bench.deliver(0..5, |_| None);
    bench.finish(0, |_| ACK);
    let mut now_ms = 0;
    while now_ms < 4_000 {
        let entries = bench.next_commit(&mut now_ms).expect("it continues");
        bench.answer_commit(&entries, Some(CommitErrorKind::NotMember));
        assert!(!bench.flow.has_lost_membership(), "after {now_ms} ms");
    }
    bench.flow.group_settled();
    let ends_ms = now_ms + 20_000;
    while now_ms < ends_ms {
        let entries = bench.next_commit(&mut now_ms).expect("it continues");
        bench.answer_commit(&entries, Some(CommitErrorKind::NotMember));
    }
    assert!(bench.flow.has_lost_membership());
    bench.flow.client_renewed();
    assert!(!bench.flow.has_lost_membership());
}

#[test]
fn a_commit_lost_with_its_client_is_not_awaited() {
    let mut bench = Bench::drained();
    assert_eq!(bench.flow.commits_due().len(), 1);
    bench.flow.release(&[bench.slot]);
    bench.flow.client_renewed();
    bench.flow.assign(NewAssignment::first(at(), 0, 2));
    assert_eq!(
        bench.flow.commits_due().len(),
        1,
        "the token of the new owner"
    );
}
