//! Replacement of a stuck client on a scripted source and a scripted clock.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sluicegate_engine::source::{ClientErrorKind, SourceEvent, StartAt};

use super::*;
use crate::pump::missing::scripted::Harness;

/// A pump with five records in flight whose client loses its brokers; the cluster answers a probe as `answers` says.
fn unreachable(answers: fn(u32) -> bool) -> (Harness, Arc<AtomicU32>) {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    harness.pump.topics = vec!["t".to_owned()];
    let probes = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&probes);
    harness.pump.settings.probe = Arc::new(move || answers(counted.fetch_add(1, Ordering::SeqCst)));
    harness.kafka.tell(SourceEvent::ClientError {
        kind: ClientErrorKind::AllBrokersDown,
        reason: "2/2 brokers are down".to_owned(),
        remedy: "check the brokers",
        fatal: false,
    });
    harness.turn();
    (harness, probes)
}

/// Advances the clock by 5 s at a time, and waits in each step for a running probe.
fn pass(harness: &mut Harness, seconds: u64) {
    for _ in 0..seconds / 5 {
        harness.advance(Duration::from_secs(5));
        harness.turn();
        let deadline = Instant::now() + Duration::from_secs(10);
        while harness.pump.stuck.answer.is_some() && !harness.kafka.is_closed() {
            assert!(Instant::now() < deadline, "the probe has no answer");
            std::thread::yield_now();
            harness.turn();
        }
    }
}

#[test]
fn a_client_that_alone_is_unreachable_is_replaced_and_reads_again() {
    let (mut harness, probes) = unreachable(|_| true);
    pass(&mut harness, 55);
    assert_eq!(probes.load(Ordering::SeqCst), 0, "it may still reconnect");
    pass(&mut harness, 10);
    assert_eq!(probes.load(Ordering::SeqCst), 1);
    assert!(!harness.kafka.is_closed(), "one answer is not enough");
    pass(&mut harness, 30);
    assert_eq!(probes.load(Ordering::SeqCst), 2);
    assert!(harness.pump.is_stopping(), "two answers are");
    harness.run_all(true);
    assert!(harness.kafka.is_closed());
    assert_eq!(harness.committed(), Some(0), "others may own the partition");
    harness.kafka.assign("t", &[0]);
    harness.turn();
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    assert_eq!(harness.committed(), Some(5));
}

#[test]
fn a_client_is_kept_while_the_cluster_is_away_or_answers_only_now_and_then() {
    for answers in [(|_| false) as fn(u32) -> bool, |nth| nth % 2 == 0] {
        let (mut harness, probes) = unreachable(answers);
        pass(&mut harness, 600);
        assert!(!harness.kafka.is_closed());
        let count = probes.load(Ordering::SeqCst);
        assert!((15..=20).contains(&count), "{count} probes in nine minutes");
    }
}

#[test]
fn a_client_that_reconnects_is_kept_and_a_later_outage_counts_from_its_start() {
    let (mut harness, probes) = unreachable(|_| true);
    pass(&mut harness, 70);
    assert_eq!(probes.load(Ordering::SeqCst), 1);
    harness.produce(1);
    pass(&mut harness, 300);
    assert!(!harness.kafka.is_closed(), "a record has ended the outage");
    assert_eq!(probes.load(Ordering::SeqCst), 1);
}
