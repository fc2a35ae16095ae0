//! Chains: a key continues while its emits are with the producer, settles in order, and is written again in order after a refusal.

use sluicegate_runtime::{Emit, Emits, outcome_flag};

use super::*;
use crate::emit::{Delivery, EmitFailure, FailureKind};
use crate::status::WaitsFor;

pub(super) fn key(_: i64) -> Option<String> {
    Some("k".to_owned())
}

/// A handler that has emitted for so many records of a key, one call each; nothing is answered.
pub(super) fn emitted(records: i64) -> Bench {
    let mut bench = Bench::new(1);
    for offset in 0..records {
        bench.deliver(offset..offset + 1, key);
        bench.finish_emitting(ACK, 1);
    }
    bench
}

fn newer_generation(bench: &mut Bench) {
    bench.apply(|_, settings| {
        generation_of(settings).number += 1;
        true
    });
}

/// Offsets that the pool has.
fn running(bench: &Bench) -> Vec<i64> {
    let taken = bench.pools[0].taken.lock().unwrap();
    let records = taken.iter().flat_map(|batch| &batch.records);
    records.map(|record| record.offset).collect()
}

/// Finishes what the pool has; each record has emitted its offset to these topics.
fn finish_to(bench: &mut Bench, topics: impl Fn(i64) -> Vec<&'static str>) {
    for mut batch in std::mem::take(&mut *bench.pools[0].taken.lock().unwrap()) {
        let mut emits = Emits::default();
        for (place, record) in batch.records.iter().enumerate() {
            for topic in topics(record.offset) {
                emit(&mut emits, place as u32, topic, record.offset);
            }
        }
        for (place, emit) in emits.iter().enumerate() {
            let token = batch.shipment.at(place).unwrap();
            (bench.emitter).send(&emit.to, Way::Batched, &bench.inbox, token);
        }
        batch.output.emits = emits;
        batch.outcomes = vec![outcome(ACK); batch.records.len()];
        bench.flow.receive(PumpMessage::Finished(batch));
    }
    bench.flow.dispatch();
}

fn emit(emits: &mut Emits, record: u32, topic: &str, value: i64) {
    emits.extend([Emit::new(record, topic, Some(value.to_string().as_bytes()))]);
}

fn outcome(code: u16) -> RawOutcome {
    RawOutcome {
        code,
        ..RawOutcome::default()
    }
}

pub(super) fn pass(bench: &mut Bench, ms: std::ops::Range<u64>) {
    for now_ms in ms.step_by(100) {
        bench.flow.tick(now_ms);
        bench.flow.dispatch();
        assert_eq!(bench.flow.broken_queue(), None);
    }
}

#[test]
fn a_key_continues_while_emits_are_with_the_producer_and_settles_in_order() {
    let mut bench = emitted(1);
    bench.deliver(1..2, key);
    assert_eq!(bench.finish(0, |_| ACK), vec![1], "it has started");
    let offset = 1;
    let waits = bench.waits_for(Some(offset));
    assert_eq!(waits, WaitsFor::Lane { behind: 0 });
    assert_eq!(bench.frontier(), 0);
    let ledger = bench.flow.assignment(bench.slot).ledger();
    assert!(
        ledger.settled_ahead().is_empty(),
        "1 is not settled before 0"
    );
    assert_eq!(bench.answer_producer(), ["out 0.0"]);
    assert_eq!((bench.frontier(), bench.outcomes().ack), (2, 2));
    assert_eq!((bench.flow.held_records(), bench.flow.shipments()), (0, 0));
}

#[test]
fn what_stands_behind_a_refused_emit_is_written_again_once_that_is_acknowledged() {
    let mut bench = emitted(3);
    bench.answer(|sent, _| (sent == "out 0.0").then_some(FailureKind::Cluster));
    bench.deliver(3..4, key);
    assert!(bench.finish(0, |_| ACK).is_empty(), "the lane is held");
    bench.flow.tick(1_000);
    assert_eq!(bench.answer_producer(), ["out 0.0"]);
    assert_eq!(bench.frontier(), 1);
    assert_eq!(bench.answer_producer(), ["out 1.0", "out 2.0"]);
    assert_eq!(bench.frontier(), 3);
    assert_eq!(bench.finish(0, |_| ACK), vec![3]);
    assert_eq!((bench.frontier(), bench.outcomes().ack), (4, 4));
    assert_eq!((bench.flow.held_records(), bench.flow.shipments()), (0, 0));
}

#[test]
fn a_lane_runs_again_as_a_whole_and_in_order_once_no_call_has_it() {
    let mut bench = emitted(1);
    bench.deliver(1..2, key);
    bench.answer(|_, _| Some(FailureKind::Target));
    newer_generation(&mut bench);
    pass(&mut bench, 0..1_000);
    assert_eq!(running(&bench), [1], "0 does not run next to it");
    bench.finish_emitting(ACK, 1);
    bench.deliver(2..3, key);
    pass(&mut bench, 1_000..2_000);
    assert!(running(&bench).is_empty(), "the producer has emits of 1");
    assert_eq!(bench.answer_producer(), ["out 1.0"]);
    for offset in 0..3 {
        pass(&mut bench, 2_000 + offset..2_001 + offset);
        assert_eq!(running(&bench), [offset as i64]);
        bench.finish_emitting(ACK, 1);
        assert_eq!(bench.answer_producer(), [format!("out {offset}.0")]);
    }
    assert_eq!((bench.frontier(), bench.outcomes().ack), (3, 3));
    assert_eq!((bench.flow.held_records(), bench.flow.shipments()), (0, 0));
}

/// A lane whose refused record is written again while its next record is in a call, or about to be.
fn waits_for_a_call(bench: &mut Bench) {
    bench.answer(|_, _| Some(FailureKind::Target));
    pass(bench, 0..1_000);
    assert_eq!(bench.answer_producer(), ["out 0.0"]);
    assert_eq!(bench.frontier(), 1);
}

/// Other records run, of this key and others.
fn continues(bench: &mut Bench, from: i64) {
    bench.deliver(from..from + 2, |offset| match offset == from {
        true => Some("z".to_owned()),
        false => key(offset),
    });
    let mut ran = bench.finish(0, |_| ACK);
    ran.sort_unstable();
    assert_eq!(ran, [from, from + 1]);
    assert_eq!(bench.frontier(), from + 2);
}

#[test]
fn a_trouble_is_over_when_the_call_that_it_waits_for_is_abandoned() {
    let mut bench = emitted(1);
    bench.deliver(1..2, key);
    waits_for_a_call(&mut bench);
    bench.apply(|_, settings| {
        settings.gate_open = false;
        true
    });
    pass(&mut bench, 1_000..20_000);
    assert_eq!((bench.frontier(), bench.skipped(0)), (2, 1));
    bench.finish(0, |_| ACK);
    bench.apply(|_, _| true);
    continues(&mut bench, 2);
}

#[test]
fn a_trouble_is_over_when_the_batch_that_it_waits_for_is_taken_apart() {
    let full = std::sync::atomic::Ordering::Relaxed;
    let mut bench = emitted(1);
    bench.pools[0].full.store(true, full);
    bench.deliver(1..2, key);
    waits_for_a_call(&mut bench);
    bench.pools[0].full.store(false, full);
    bench.pools[0].workers.store(4, full);
    bench.apply(|_, settings| {
        settings.targets[0].keeps_key_state = true;
        true
    });
    bench.flow.receive(PumpMessage::PoolFree);
    pass(&mut bench, 1_000..2_000);
    assert_eq!(bench.finish(0, |_| ACK), [1]);
    continues(&mut bench, 2);
}

#[test]
fn a_batch_handler_whose_later_record_is_refused_for_its_target_ends_both() {
    let mut bench = Bench::of_batches();
    bench.deliver(0..2, key);
    let mut batch = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    batch.outcomes = vec![outcome(outcome_code::RETRY), outcome(ACK)];
    emit(&mut batch.output.emits, 1, "out", 1);
    let token = batch.shipment.at(0).unwrap();
    let sent = ("out 1".to_owned(), Way::Batched, token);
    bench.emitter.sent.lock().unwrap().push(sent);
    bench.flow.receive(PumpMessage::Finished(batch));
    bench.flow.dispatch();
    bench.answer(|_, _| Some(FailureKind::Target));
    newer_generation(&mut bench);
    let mut ran = Vec::new();
    for second in 1..60 {
        pass(&mut bench, second * 1_000..second * 1_000 + 1_000);
        ran.extend(bench.finish(0, |_| ACK));
        bench.answer(|_, _| None);
    }
    assert_eq!(ran, [0, 1], "again, in order");
    assert_eq!(bench.frontier(), 2);
    assert_eq!((bench.flow.held_records(), bench.flow.shipments()), (0, 0));
}

#[test]
fn a_lane_follows_the_record_whose_emits_are_stuck_in_a_call_that_timed_out() {
    let mut bench = Bench::new(1);
    bench.deliver(0..4, |offset| match offset {
        3 => Some("z".to_owned()),
        _ => key(offset),
    });
    let hung = std::mem::take(&mut *bench.pools[0].taken.lock().unwrap());
    assert_eq!(hung.len(), 1);
    assert_eq!(hung[0].keys.len(), 4, "several records of a lane");
    let emitted = RawOutcome {
        flags: outcome_flag::EMITTED,
        ..outcome(ACK)
    };
    bench.flow.receive(PumpMessage::CallTimedOut {
        handler: HandlerIx(0),
        batch: hung[0].id,
        published: Published::up_to(vec![emitted, outcome(ACK)]),
    });
    bench.flow.dispatch();
    assert_eq!(bench.frontier(), 0, "1 does not settle before 0");
    let mut attempts = Vec::new();
    for now_ms in (0..1_000).step_by(50) {
        pass(&mut bench, now_ms..now_ms + 1);
        let taken = bench.pools[0].taken.lock().unwrap();
        let records = taken.iter().flat_map(|batch| &batch.records);
        attempts.extend(records.map(|record| (record.offset, record.attempt)));
        drop(taken);
        bench.finish(0, |_| ACK);
    }
    drop(hung);
    let other = attempts.iter().position(|(offset, _)| *offset == 3);
    assert_eq!(attempts.remove(other.expect("it ran")), (3, 1));
    assert_eq!(attempts, [(0, 1), (1, 1), (2, 2)]);
    assert_eq!(bench.frontier(), 4);
}

#[test]
fn emits_that_were_refused_or_wait_behind_others_count_against_the_budget() {
    for same_key in [false, true] {
        let mut bench = Bench::new(1);
        for offset in 0..10 {
            bench.deliver(offset..offset + 1, |offset| match same_key {
                true => key(offset),
                false => Some(offset.to_string()),
            });
            bench.finish_emitting(ACK, 1);
        }
        bench.answer(|_, _| Some(FailureKind::Cluster));
        let kept = bench.flow.kept_bytes();
        assert!((3_000..6_000).contains(&kept), "{kept}");
        let report = bench.handler_report();
        assert_eq!((report.refused, report.refusals), (10, 10));
    }
    let mut bench = Bench::new(1);
    for offset in 0..50 {
        bench.deliver(offset..offset + 1, key);
        finish_to(&mut bench, |offset| match offset {
            0 => vec!["slow"],
            _ => vec!["out"],
        });
    }
    let sent = std::mem::take(&mut *bench.emitter.sent.lock().unwrap());
    let (slow, others): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(to, ..)| to == "slow");
    let acknowledge = |bench: &mut Bench, sent: Vec<(String, Way, EmitToken)>| {
        let tokens = sent.into_iter().map(|(.., token)| token);
        let answers = tokens.map(crate::emit::Delivery::acknowledged).collect();
        bench.flow.receive(PumpMessage::Delivered(answers));
        bench.flow.dispatch();
    };
    acknowledge(&mut bench, others);
    let kept = bench.flow.kept_bytes();
    assert!((10_000..40_000).contains(&kept), "{kept}");
    acknowledge(&mut bench, slow);
    assert_eq!((bench.frontier(), bench.flow.kept_bytes()), (50, 0));
    assert_eq!(bench.flow.shipments(), 0);
}

#[test]
fn what_stands_before_the_record_that_a_topic_refused_is_not_written_again() {
    let mut bench = Bench::new(1);
    for offset in 0..3 {
        bench.deliver(offset..offset + 1, key);
        finish_to(&mut bench, |offset| match offset {
            0 => vec!["a"],
            1 => vec!["a", "out"],
            _ => vec!["out"],
        });
    }
    bench.answer(|sent, _| {
        ["a", "out 2"]
            .contains(&sent)
            .then_some(FailureKind::Cluster)
    });
    let mut again = Vec::new();
    for second in 1..60 {
        pass(&mut bench, second * 1_000..second * 1_000 + 1_000);
        again.extend(bench.answer_producer());
    }
    assert_eq!(again, ["a", "a", "out 2"]);
    assert_eq!(bench.frontier(), 3);
}

#[test]
fn a_record_refused_when_it_was_to_be_sent_holds_its_lane() {
    let mut bench = Bench::new(1);
    bench.deliver(0..1, key);
    let mut batch = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    bench.deliver(1..2, key);
    emit(&mut batch.output.emits, 0, "out", 0);
    batch.outcomes = vec![outcome(ACK)];
    let token = batch.shipment.at(0).unwrap();
    crate::emit::answer_unsent(Sent::NoRoom, "out", &bench.inbox, token);
    let mut messages = Vec::new();
    bench.inbox.take(&mut messages);
    for message in messages {
        bench.flow.receive(message);
    }
    bench.flow.receive(PumpMessage::Finished(batch));
    bench.flow.dispatch();
    assert!(running(&bench).is_empty());
    assert_eq!(
        bench.handler_report().in_flight,
        2,
        "no trouble is a record"
    );
}

#[test]
fn records_that_a_call_did_not_run_are_not_overtaken_when_a_trouble_ends_with_it() {
    let mut bench = emitted(1);
    bench.deliver(1..3, key);
    assert_eq!(running(&bench), [1, 2], "in one call");
    bench.deliver(3..4, key);
    waits_for_a_call(&mut bench);
    let not_run = |offset| match offset {
        1 => ACK,
        _ => outcome_code::NOT_RUN,
    };
    assert_eq!(bench.finish(0, not_run), [1]);
    assert_eq!(bench.finish(0, |_| ACK), [2, 3]);
    assert_eq!(bench.frontier(), 4);
}

#[test]
fn a_handler_that_is_off_waits_for_one_refusal_and_not_for_one_of_each_record_behind_it() {
    let mut bench = emitted(5);
    bench.answer(|sent, _| (sent == "out 0.0").then_some(FailureKind::Cluster));
    bench.apply(|_, settings| {
        settings.gate_open = false;
        true
    });
    for second in 0..16 {
        pass(&mut bench, second * 1_000..second * 1_000 + 1_000);
        if second == 10 {
            bench.answer(|_, _| Some(FailureKind::Cluster));
        }
    }
    assert_eq!((bench.frontier(), bench.skipped(0)), (5, 1));
    assert_eq!((bench.flow.held_records(), bench.flow.shipments()), (0, 0));
}

#[test]
fn of_refused_records_of_a_key_only_the_first_waits_and_is_sent_again_alone() {
    let mut bench = emitted(4);
    bench.answer(|_, _| Some(FailureKind::Cluster));
    pass(&mut bench, 100..1_000);
    assert_eq!(bench.answer_producer(), ["out 0.0"]);
    // Another one is refused: what stands behind it is written once more.
    let refused = |sent: &str, _| (sent == "out 2.0").then_some(FailureKind::Cluster);
    let sent = bench.answer(refused).into_iter().map(|(sent, _)| sent);
    assert!(sent.eq(["out 1.0", "out 2.0", "out 3.0"]), "in order");
    assert_eq!(bench.frontier(), 2);
    pass(&mut bench, 1_000..2_000);
    assert_eq!(bench.answer_producer(), ["out 2.0"]);
    assert_eq!(bench.answer_producer(), ["out 3.0"]);
    assert_eq!(bench.frontier(), 4);
}

#[test]
fn what_is_with_the_producer_is_not_overtaken_by_what_stands_behind_it() {
    let mut bench = emitted(4);
    let sent = std::mem::take(&mut *bench.emitter.sent.lock().unwrap());
    let answer = |bench: &mut Bench, place: usize, kind| {
        let token = sent[place].2;
        let failure = EmitFailure::no_room("out");
        let delivery = match kind {
            Some(kind) => Delivery::failed(token, EmitFailure { kind, ..failure }),
            None => Delivery::acknowledged(token),
        };
        bench.flow.receive(PumpMessage::Delivered(vec![delivery]));
        bench.flow.dispatch();
    };
    answer(&mut bench, 0, Some(FailureKind::Cluster));
    answer(&mut bench, 1, None);
    answer(&mut bench, 3, None);
    pass(&mut bench, 100..1_000);
    assert_eq!(bench.answer_producer(), ["out 0.0"]);
    assert_eq!(bench.answer_producer(), ["out 1.0"], "2 is not answered");
    assert!(bench.answer_producer().is_empty());
    answer(&mut bench, 2, None);
    assert_eq!(bench.answer_producer(), ["out 2.0", "out 3.0"]);
    assert_eq!(bench.frontier(), 4);
}

#[test]
fn records_that_are_sent_alone_are_not_overtaken_by_those_that_are_not() {
    let mut bench = emitted(4);
    bench.answer(|sent, _| match sent {
        "out 0.0" | "out 1.0" => Some(FailureKind::Batch),
        "out 2.0" => Some(FailureKind::Cluster),
        _ => None,
    });
    pass(&mut bench, 0..1);
    for expected in [vec!["out 0.0"], vec!["out 1.0"], vec!["out 2.0", "out 3.0"]] {
        assert_eq!(bench.answer_producer(), expected);
    }
    assert_eq!(bench.frontier(), 4);
}

#[test]
fn what_a_call_has_emitted_before_an_earlier_record_was_written_again_is_written_again_too() {
    let mut bench = emitted(1);
    bench.deliver(1..2, key);
    let mut batch = bench.pools[0].taken.lock().unwrap().pop().unwrap();
    emit(&mut batch.output.emits, 0, "out", 1);
    batch.outcomes = vec![outcome(ACK)];
    let token = batch.shipment.at(0).unwrap();
    let record = batch.output.emits.get(0).unwrap().to;
    (bench.emitter).send(&record, Way::Batched, &bench.inbox, token);
    // The call has not ended when its emits are written.
    let refused = |sent: &str, _| (sent == "out 0.0").then_some(FailureKind::Cluster);
    assert_eq!(bench.answer(refused).len(), 2);
    pass(&mut bench, 100..1_000);
    assert_eq!(bench.answer_producer(), ["out 0.0"]);
    assert_eq!(bench.frontier(), 1);
    bench.flow.receive(PumpMessage::Finished(batch));
    bench.flow.dispatch();
    assert_eq!(
        bench.answer_producer(),
        ["out 1"],
        "behind the last copy of 0"
    );
    assert_eq!((bench.frontier(), bench.flow.shipments()), (2, 0));
}

#[test]
fn a_handler_of_which_the_producer_has_too_much_starts_nothing_until_it_has_answered() {
    const EMITS: usize = 10_001;
    let mut bench = Bench::new(2);
    bench.deliver(0..2, |offset| Some(offset.to_string()));
    bench.finish_emitting(ACK, EMITS);
    bench.deliver(2..3, |offset| Some(offset.to_string()));
    assert!(running(&bench).is_empty(), "20,002 emits are unanswered");
    let unacknowledged = 20_002;
    let waits = bench.waits_for(Some(2));
    assert_eq!(waits, WaitsFor::Producer { unacknowledged });
    let clock = crate::clock::WallClock { epoch_ms: 0 };
    let report = bench.flow.report(clock, |_| None).handlers.remove(0);
    assert_eq!(report.unacknowledged, u64::from(unacknowledged));
    assert_eq!(
        bench.finish(1, |_| ACK),
        [0, 1, 2],
        "another handler continues"
    );
    let sent = std::mem::take(&mut *bench.emitter.sent.lock().unwrap());
    let tokens = sent.into_iter().map(|(.., token)| token);
    let mut answers: Vec<_> = tokens.map(crate::emit::Delivery::acknowledged).collect();
    let rest = answers.split_off(3);
    bench.flow.receive(PumpMessage::Delivered(answers));
    bench.flow.dispatch();
    assert_eq!(running(&bench), [2], "fewer than 20,000");
    assert_eq!(bench.waits_for(Some(2)), WaitsFor::Handler);
    bench.flow.receive(PumpMessage::Delivered(rest));
    assert_eq!(bench.finish(0, |_| ACK), [2]);
    assert_eq!(bench.frontier(), 3);
}

/// A handler whose emits of two records are with the producer; with keys, of one lane.
fn with_producer(key: impl Fn(i64) -> Option<String>) -> Bench {
    let mut bench = Bench::new(1);
    bench.deliver(0..2, key);
    bench.finish_emitting(ACK, 1);
    assert_eq!(bench.flow.broken_queue(), None);
    bench
}

#[test]
fn what_is_with_the_producer_has_started_and_is_explained() {
    for keyed in [true, false] {
        let mut bench = with_producer(|offset| key(offset).filter(|_| keyed));
        let waits = bench.waits_for(Some(1));
        let (topics, refused) = (vec!["out".to_owned()], None);
        assert_eq!(waits, WaitsFor::Emits { topics, refused });
        bench.flow.start_drain(&[bench.slot], 10_000);
        assert!(!bench.flow.is_drained(&[bench.slot]), "it is waited for");
        assert_eq!(bench.flow.broken_queue(), None);
        assert_eq!(bench.answer_producer().len(), 2);
        assert!(bench.flow.is_drained(&[bench.slot]));
        assert_eq!(bench.flow.commits_due()[0].offset, 2);
    }
}

#[test]
fn a_lane_does_not_run_again_while_the_producer_has_emits_of_it() {
    let mut bench = emitted(2);
    let mut sent = std::mem::take(&mut *bench.emitter.sent.lock().unwrap());
    let last = sent.pop().expect("two").2;
    *bench.emitter.sent.lock().unwrap() = sent;
    bench.answer(|_, _| Some(FailureKind::Target));
    newer_generation(&mut bench);
    pass(&mut bench, 0..1_000);
    assert!(running(&bench).is_empty(), "the producer has emits of 1");
    let answer = vec![Delivery::acknowledged(last)];
    bench.flow.receive(PumpMessage::Delivered(answer));
    pass(&mut bench, 1_000..2_000);
    for offset in 0..2 {
        assert_eq!(bench.finish(0, |_| ACK), [offset]);
        pass(&mut bench, 2_000..2_001);
    }
    assert_eq!(bench.frontier(), 2);
}

#[test]
fn what_is_with_the_producer_goes_with_its_partition() {
    for keyed in [true, false] {
        let mut bench = with_producer(|offset| key(offset).filter(|_| keyed));
        bench.flow.release(&[bench.slot]);
        assert_eq!(bench.flow.broken_queue(), None);
        assert_eq!(bench.answer_producer().len(), 2);
        assert_eq!((bench.flow.held_records(), bench.flow.charged()), (0, 0));
        assert_eq!((bench.flow.shipments(), bench.outcomes().ack), (0, 0));
    }
}
