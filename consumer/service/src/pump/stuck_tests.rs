//! Replacement of a stuck client on a scripted source and a scripted clock.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use sluicegate_engine::source::{ClientErrorKind, SourceEvent, StartAt};

use super::*;
use crate::pump::harness::Harness;

fn tell(harness: &mut Harness, kind: ClientErrorKind) {
    harness.kafka.tell(SourceEvent::ClientError {
        kind,
        reason: "2/2 brokers are down".to_owned(),
        remedy: "check the brokers",
        fatal: false,
    });
    harness.turn();
}

/// A pump with five records in flight whose client loses its brokers; the cluster answers a probe as `answers` says.
fn unreachable(answers: fn(u32) -> bool) -> (Harness, Arc<AtomicU32>) {
    let mut harness = Harness::with_five_in_flight(Some(StartAt::Earliest));
    harness.pump.topics = vec!["t".to_owned()];
    let probes = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&probes);
    harness.pump.settings.probe.ask =
        Arc::new(move || answers(counted.fetch_add(1, Ordering::SeqCst)));
    tell(&mut harness, ClientErrorKind::AllBrokersDown);
    (harness, probes)
}

/// Advances the clock by 5 s at a time, up to a replacement, and waits in each step for a running probe.
fn pass(harness: &mut Harness, seconds: u64) {
    for _ in 0..seconds / 5 {
        if harness.pump.engine.is_stopping() {
            return;
        }
        harness.advance(Duration::from_secs(5));
        harness.turn();
        let deadline = Instant::now() + Duration::from_secs(10);
        while harness.pump.stuck.running.is_some() && !harness.pump.engine.is_stopping() {
            assert!(Instant::now() < deadline, "the probe has no answer");
            std::thread::yield_now();
            harness.turn();
        }
    }
}

fn count(probes: &AtomicU32) -> u32 {
    probes.load(Ordering::SeqCst)
}

#[test]
fn a_client_that_alone_is_unreachable_is_replaced_and_reads_again() {
    let (mut harness, probes) = unreachable(|_| true);
    pass(&mut harness, 55);
    assert_eq!(count(&probes), 0, "it may still reconnect");
    pass(&mut harness, 10);
    assert_eq!(count(&probes), 1);
    assert!(
        !harness.pump.engine.is_stopping(),
        "one answer is not enough"
    );
    pass(&mut harness, 40);
    assert_eq!(count(&probes), 2);
    assert!(harness.pump.engine.is_stopping(), "two answers are");
    harness.run_all(true);
    assert!(harness.kafka.is_closed());
    assert_eq!(harness.committed(), Some(0), "others may own the partition");
    harness.kafka.assign("t", &[0]);
    harness.turn();
    assert_eq!(harness.run_all(true), [0, 1, 2, 3, 4]);
    assert_eq!(harness.committed(), Some(5));
}

#[test]
fn a_call_that_never_returns_holds_the_replacement_back_for_seconds_only() {
    let (mut harness, _probes) = unreachable(|_| true);
    pass(&mut harness, 105);
    assert!(harness.pump.engine.is_stopping() && !harness.kafka.is_closed());
    harness.advance(Duration::from_secs(8));
    harness.turn();
    assert!(
        harness.kafka.is_closed(),
        "not a minute, which is the drain timeout"
    );
}

#[test]
fn a_client_is_kept_while_the_cluster_is_away_or_answers_only_now_and_then() {
    for answers in [(|_| false) as fn(u32) -> bool, |nth| nth % 2 == 0] {
        let (mut harness, probes) = unreachable(answers);
        pass(&mut harness, 600);
        assert!(!harness.pump.engine.is_stopping());
        let count = count(&probes);
        assert!((13..=19).contains(&count), "{count} probes in nine minutes");
    }
}

#[test]
fn a_client_that_reconnects_is_kept_and_a_later_outage_counts_from_its_start() {
    let (mut harness, probes) = unreachable(|_| true);
    pass(&mut harness, 70);
    assert_eq!(count(&probes), 1);
    harness.produce(1);
    harness.turn();
    tell(&mut harness, ClientErrorKind::AllBrokersDown);
    pass(&mut harness, 55);
    assert_eq!(
        count(&probes),
        1,
        "the second outage is a minute old at most"
    );
    pass(&mut harness, 10);
    assert_eq!(count(&probes), 2);
    assert!(
        !harness.pump.engine.is_stopping(),
        "the first outage's answer does not count"
    );
}

#[test]
fn a_replacement_that_does_not_help_keeps_the_outage_and_doubles_the_wait() {
    let (mut harness, probes) = unreachable(|_| true);
    let since_ms = harness.pump.client.unreachable_ms();
    pass(&mut harness, 105);
    harness.run_all(true);
    assert!(harness.kafka.is_closed());
    assert_eq!(
        harness.pump.client.unreachable_ms(),
        since_ms,
        "readiness counts from there"
    );
    pass(&mut harness, 110);
    assert_eq!(count(&probes), 2, "it waits two minutes now");
    pass(&mut harness, 15);
    assert_eq!(count(&probes), 3);
}

#[test]
fn nothing_is_asked_while_the_login_is_refused_or_no_topic_is_read() {
    let (mut harness, probes) = unreachable(|_| true);
    for _ in 0..20 {
        tell(&mut harness, ClientErrorKind::Login);
        pass(&mut harness, 30);
    }
    assert_eq!(count(&probes), 0, "another client would be refused as well");
    let (mut harness, probes) = unreachable(|_| true);
    harness.pump.topics.clear();
    pass(&mut harness, 600);
    assert_eq!(count(&probes), 0);
    harness.pump.topics.push("t".to_owned());
    pass(&mut harness, 55);
    assert_eq!(count(&probes), 0, "it has just begun to read");
}

#[test]
fn a_login_that_was_refused_once_does_not_keep_a_stuck_client() {
    let (mut harness, probes) = unreachable(|_| true);
    tell(&mut harness, ClientErrorKind::Login);
    pass(&mut harness, 125);
    assert_eq!(count(&probes), 0, "the minute counts from its expiry");
    pass(&mut harness, 55);
    assert!(harness.pump.engine.is_stopping(), "it is replaced");
}

#[test]
fn another_outage_waits_a_minute_again_also_if_it_begins_with_a_refused_login() {
    let (mut harness, probes) = unreachable(|_| true);
    pass(&mut harness, 105);
    assert!(harness.pump.engine.is_stopping(), "replaced once");
    harness.run_all(true);
    harness.kafka.assign("t", &[0]);
    harness.run_all(true);
    assert_eq!(harness.pump.client.unreachable_ms(), None);
    tell(&mut harness, ClientErrorKind::Login);
    tell(&mut harness, ClientErrorKind::AllBrokersDown);
    pass(&mut harness, 125);
    assert_eq!(count(&probes), 2, "the login was refused");
    pass(&mut harness, 10);
    assert_eq!(count(&probes), 3, "a minute after its expiry, not two");
}

#[test]
fn two_probes_are_half_a_minute_apart_or_several_attempts_to_reconnect() {
    let interval = |reconnect_max| Probe::new(Arc::new(|| true), reconnect_max).interval;
    assert_eq!(interval(Duration::from_millis(100)), MIN_INTERVAL);
    assert_eq!(
        interval(Duration::from_mins(1)),
        Duration::from_mins(3),
        "a slow client has had several attempts"
    );
}
