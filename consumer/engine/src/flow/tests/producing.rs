//! Records that wait for the producer: emits with every outcome, refusals of each kind, dead letters.

use sluicegate_runtime::Emit;

use super::*;
use crate::emit::{Delivery, EmitFailure, FailureKind};
use crate::status::{ProblemKind, WaitsFor};

/// A refusal of this kind, as a broker might report it.
fn refusal(kind: FailureKind) -> EmitFailure {
    EmitFailure {
        kind,
        topic: "out".into(),
        error: "refused on purpose".into(),
        remedy: "do this".into(),
    }
}

impl Bench {
    pub(super) fn answer_producer(&mut self) -> Vec<String> {
        let answered = self.answer(|_, _| None);
        answered.into_iter().map(|(sent, _)| sent).collect()
    }

    /// Answers everything that was sent, with the broker's result.
    pub(super) fn answer(
        &mut self,
        broker: impl Fn(&str, Way) -> Option<FailureKind>,
    ) -> Vec<(String, Way)> {
        let sent = std::mem::take(&mut *self.emitter.sent.lock().unwrap());
        let mut answered = Vec::new();
        let mut deliveries = Vec::new();
        for (text, way, token) in sent {
            deliveries.push(match broker(&text, way) {
                None => Delivery::acknowledged(token),
                Some(kind) => Delivery::failed(token, refusal(kind)),
            });
            answered.push((text, way));
        }
        self.flow.receive(PumpMessage::Delivered(deliveries));
        let mut messages = Vec::new();
        self.inbox.take(&mut messages);
        for message in messages {
            self.flow.receive(message);
        }
        self.flow.dispatch();
        answered
    }

    /// Finishes the records of pool 0; each has emitted `emits` records and ends with `code`.
    pub(super) fn finish_emitting(&mut self, code: u16, emits: usize) {
        for mut batch in std::mem::take(&mut *self.pools[0].taken.lock().unwrap()) {
            for (place, record) in batch.records.iter().enumerate() {
                for i in 0..emits {
                    batch.output.emits.extend([Emit::new(
                        place as u32,
                        "out",
                        Some(format!("{}.{i}", record.offset).as_bytes()),
                    )]);
                }
            }
            for (place, emit) in batch.output.emits.iter().enumerate() {
                let token = batch.shipment.at(place).unwrap();
                self.emitter
                    .send(&emit.to, Way::Batched, &self.inbox, token);
            }
            let outcome = RawOutcome {
                code,
                ..RawOutcome::default()
            };
            batch.outcomes = vec![outcome; batch.records.len()];
            self.flow.receive(PumpMessage::Finished(batch));
        }
        self.flow.dispatch();
    }

    pub(super) fn handler_report(&self) -> crate::status::HandlerFlowReport {
        let clock = crate::clock::WallClock { epoch_ms: 0 };
        self.flow.report(clock, |_| None).handlers.remove(0)
    }
}

#[test]
fn a_drop_counts_once_its_emits_are_acknowledged() {
    let mut bench = Bench::new(1);
    bench.deliver(0..1, |_| Some("k".to_owned()));
    bench.finish_emitting(outcome_code::DROP, 1);
    assert_eq!((bench.frontier(), bench.outcomes().drop), (0, 0));
    assert_eq!(bench.answer_producer(), vec!["out 0.0"]);
    assert_eq!((bench.frontier(), bench.outcomes().drop), (1, 1));
    assert_eq!(bench.flow.held_records(), 0);
}

#[test]
fn a_dead_letter_follows_once_the_emits_of_its_attempt_are_acknowledged() {
    let mut bench = Bench::new(1);
    bench.deliver(0..2, |_| Some("k".to_owned()));
    bench.finish_emitting(outcome_code::DEAD_LETTER, 1);
    assert_eq!(bench.answer_producer(), vec!["out 0.0", "out 1.0"]);
    assert_eq!(bench.frontier(), 0);
    for letters in 1..=2 {
        assert_eq!(
            bench.answer_producer(),
            vec!["t.dlt"],
            "one after the other"
        );
        let settled = (bench.frontier(), bench.outcomes().dead_letter);
        assert_eq!(settled, (letters, letters as u64));
    }
    assert_eq!(bench.flow.held_records(), 0);
}

#[test]
fn a_record_refused_by_the_cluster_holds_its_lane_and_costs_no_attempt() {
    let mut bench = Bench::new(1);
    bench.deliver(0..3, |offset| Some(format!("k{}", offset % 2)));
    bench.finish_emitting(ACK, 2);
    let second_refused = |sent: &str, _| (sent == "out 0.1").then_some(FailureKind::Target);
    assert_eq!(bench.answer(second_refused).len(), 6);
    assert_eq!(bench.frontier(), 0);
    bench.deliver(3..5, |offset| Some(format!("k{}", offset % 2)));
    assert_eq!(bench.finish(0, |_| ACK), vec![3], "4 waits behind 0");
    let mut now_ms = 0;
    for tries in 1..20 {
        let WaitsFor::Emits { refused, .. } = bench.waits_for(None) else {
            panic!("{:?}", bench.waits_for(None));
        };
        let refused = refused.unwrap();
        assert_eq!((refused.tries, refused.since_ms), (tries, 0));
        assert_eq!(refused.error, "refused on purpose");
        let pause_ms = refused.next_ms.unwrap() - now_ms as i64;
        let least = (80 << tries.min(9)) / 2;
        assert!(
            (least.min(20_000)..=30_000).contains(&pause_ms),
            "{tries}: {pause_ms}"
        );
        now_ms += pause_ms as u64;
        bench.flow.tick(now_ms - 1);
        assert!(bench.answer(second_refused).is_empty());
        bench.flow.tick(now_ms);
        let again = bench.answer(second_refused);
        assert_eq!(
            again,
            [("out 0.1".to_owned(), Way::Batched)],
            "not what was acknowledged"
        );
    }
    let report = bench.handler_report();
    assert_eq!((report.refusals, report.refused), (20, 1));
    let problem = &report.problems[0];
    assert_eq!(
        problem.what,
        "handler `h0` cannot emit to topic out: 1 records wait"
    );
    assert_eq!(
        (problem.since_ms, &*problem.cause, &*problem.remedy),
        (0, "refused on purpose", "do this")
    );
    assert!(
        report
            .last_error
            .unwrap()
            .message
            .contains("refused on purpose")
    );
    bench.flow.tick(now_ms + 30_000);
    assert_eq!(bench.answer_producer(), ["out 0.1"]);
    assert_eq!(bench.frontier(), 2, "2 was written before 0.1");
    assert_eq!(bench.answer_producer(), ["out 2.0", "out 2.1"]);
    assert_eq!(bench.frontier(), 4);
    assert_eq!(bench.finish(0, |_| ACK), vec![4]);
    let report = bench.handler_report();
    assert_eq!((report.refused, report.problems.len()), (0, 0));
    let counts = (
        report.outcomes.ack,
        report.outcomes.retry,
        report.outcomes.dead_letter,
    );
    assert_eq!(counts, (5, 0, 0));
    assert_eq!(bench.flow.held_records(), 0);
}

#[test]
fn after_a_refusal_all_emits_from_the_first_refused_one_are_resent() {
    let mut bench = Bench::new(1);
    bench.deliver(0..1, |_| None);
    bench.finish_emitting(ACK, 4);
    bench.answer(|sent, _| match sent {
        "out 0.1" | "out 0.3" => Some(FailureKind::Cluster),
        _ => None,
    });
    bench.flow.tick(1_000);
    assert_eq!(bench.answer_producer(), ["out 0.1", "out 0.2", "out 0.3"]);
    assert_eq!(bench.frontier(), 1);
}

#[test]
fn records_of_a_refused_batch_are_resent_alone_and_only_the_culprit_is_dead_lettered() {
    let mut bench = Bench::new(1);
    bench.deliver(0..10, |offset| Some(offset.to_string()));
    bench.finish_emitting(ACK, 1);
    let broker = |sent: &str, way| match (sent, way) {
        ("t.dlt", _) => None,
        (_, Way::Batched) => Some(FailureKind::Batch),
        (sent, Way::Alone) => (sent == "out 4.0").then_some(FailureKind::Record),
    };
    assert_eq!(bench.answer(broker).len(), 10);
    bench.flow.tick(0);
    let alone = bench.answer(broker);
    assert_eq!(alone.len(), 10);
    assert!(alone.iter().all(|(_, way)| *way == Way::Alone));
    assert_eq!(bench.frontier(), 4);
    assert_eq!(bench.answer_producer(), ["t.dlt"]);
    assert_eq!(bench.frontier(), 10);
    let outcomes = bench.handler_report().outcomes;
    assert_eq!(
        (outcomes.ack, outcomes.retry, outcomes.dead_letter),
        (9, 0, 1)
    );
    let why = bench.handler_report().last_error.unwrap().message;
    assert!(
        why.contains("an emitted record is permanently rejected"),
        "{why}"
    );
    assert_eq!(bench.flow.held_records(), 0);
}

#[test]
fn a_refused_dead_letter_holds_its_lane_whatever_the_reason() {
    let kinds = [
        FailureKind::Record,
        FailureKind::Target,
        FailureKind::Cluster,
    ];
    for kind in kinds {
        let mut bench = Bench::new(1);
        bench.deliver(0..2, |_| Some("k".to_owned()));
        bench.finish(0, |offset| match offset {
            0 => outcome_code::DEAD_LETTER,
            _ => outcome_code::NOT_RUN,
        });
        let mut since = Vec::new();
        let mut now_ms = 0;
        for _ in 0..5 {
            assert_eq!(bench.answer(|_, _| Some(kind)).len(), 1, "{kind:?}");
            let WaitsFor::DeadLetter { refused } = bench.waits_for(None) else {
                panic!("{:?}", bench.waits_for(None));
            };
            let refused = refused.unwrap();
            since.push(refused.since_ms);
            now_ms = refused.next_ms.unwrap() as u64;
            bench.flow.tick(now_ms);
        }
        assert_eq!(since, [0; 5], "since the first refusal");
        assert!(now_ms > 1_500, "pauses grow: {now_ms}");
        assert_eq!(bench.frontier(), 0);
        assert_eq!(bench.answer_producer(), ["t.dlt"]);
        assert_eq!(bench.frontier(), 1);
        assert_eq!(bench.finish(0, |_| ACK), vec![1]);
    }
}

#[test]
fn a_record_that_a_newer_generation_may_not_emit_is_rerun_as_the_same_attempt() {
    refused_by_the_target_then(|settings| generation_of(settings).number += 1);
    refused_by_the_target_then(|settings| generation_of(settings).config_digest += 1);
}

fn refused_by_the_target_then(change: impl Fn(&mut HandlerSettings)) {
    let mut bench = Bench::new(1);
    bench.deliver(0..1, |_| Some("k".to_owned()));
    bench.finish(0, |_| outcome_code::RETRY);
    bench.flow.tick(100);
    bench.flow.dispatch();
    bench.finish_emitting(ACK, 1);
    bench.answer(|_, _| Some(FailureKind::Target));
    bench.deliver(1..2, |_| Some("k".to_owned()));
    let mut newer = handler(HandlerIx(0), bench.pools[0].clone());
    change(&mut newer);
    let route = Route {
        topics: vec![TopicPattern::Exact("t".into())],
        when: Predicate::always(),
    };
    let index = RoutingIndex::compile(2, vec![(HandlerIx(0), route)]).unwrap();
    bench.flow.apply(index, vec![(HandlerIx(0), newer)]);
    bench.flow.tick(1_000);
    bench.flow.dispatch();
    let attempts: Vec<u32> = bench.pools[0].taken.lock().unwrap()[0]
        .records
        .iter()
        .map(|record| record.attempt)
        .collect();
    assert_eq!(attempts, [2]);
    assert_eq!(bench.finish(0, |_| ACK), vec![0]);
    assert_eq!(bench.finish(0, |_| ACK), vec![1]);
    assert_eq!(bench.frontier(), 2);
    assert_eq!(bench.handler_report().refused, 0);
    assert_eq!(bench.flow.held_records(), 0);
}

#[test]
fn a_handler_that_is_off_waits_for_refused_emits_as_long_as_a_drain_and_for_dead_letters_until_they_are_written()
 {
    let mut bench = Bench::new(1);
    bench.deliver(0..2, |offset| Some(offset.to_string()));
    bench.finish_emitting(ACK, 1);
    let first_refused = |sent: &str, _| (sent == "out 0.0").then_some(FailureKind::Target);
    bench.answer(first_refused);
    bench.deliver(2..3, |_| None);
    bench.finish(0, |_| outcome_code::DEAD_LETTER);
    bench.answer(|_, _| Some(FailureKind::Target));
    bench.apply(|_, handler| {
        handler.gate_open = false;
        true
    });
    let skipped = |bench: &Bench| bench.handler_report().outcomes.skipped;
    for now_ms in (0..4_900).step_by(100) {
        bench.flow.tick(now_ms);
        bench.answer(|_, _| Some(FailureKind::Target));
    }
    assert_eq!((bench.frontier(), skipped(&bench)), (0, 0));
    for now_ms in (5_000..20_000).step_by(100) {
        bench.flow.tick(now_ms);
        bench.answer(|_, _| Some(FailureKind::Target));
    }
    assert_eq!(
        (bench.frontier(), skipped(&bench)),
        (2, 1),
        "the letter is awaited (G7)"
    );
    for now_ms in (20_000..90_000).step_by(1_000) {
        bench.flow.tick(now_ms);
        bench.answer_producer();
    }
    assert_eq!((bench.frontier(), bench.flow.held_records()), (3, 0));
}

#[test]
fn only_a_missing_dead_letter_topic_triggers_topic_maintenance() {
    for (kind, missed) in [
        (FailureKind::Target, true),
        (FailureKind::Cluster, false),
        (FailureKind::Record, false),
    ] {
        let mut bench = Bench::new(1);
        bench.deliver(0..1, |_| Some("k".to_owned()));
        bench.finish_emitting(outcome_code::DEAD_LETTER, 1);
        bench.answer_producer();
        bench.answer(|_, _| Some(kind));
        assert_eq!(bench.flow.take_missed_target(), missed, "{kind:?}");
        assert!(!bench.flow.take_missed_target(), "it is reported once");
    }
}

/// A batch handler whose emits for the first `records` of one key were refused, and whose next generation runs the first of
/// these again.
fn runs_again(records: i64) -> Bench {
    let mut bench = Bench::new(1);
    let generation = |bench: &mut Bench, number| {
        bench.apply(|_, settings| {
            generation_of(settings).takes_batches = true;
            generation_of(settings).number = number;
            true
        });
    };
    generation(&mut bench, 1);
    bench.deliver(0..records, |_| Some("a".into()));
    bench.finish_emitting(ACK, 1);
    bench.answer(|_, _| Some(FailureKind::Target));
    generation(&mut bench, 2);
    bench.flow.tick(1_000);
    bench.flow.dispatch();
    bench
}

#[test]
fn a_record_that_runs_again_after_refused_emits_leaves_nothing_in_its_lane() {
    let mut bench = runs_again(1);
    // The new generation emits nothing.
    assert_eq!(bench.finish(0, |_| ACK), vec![0]);
    assert_eq!(bench.frontier(), 1);
    // A later record of the key fails once.
    bench.deliver(1..2, |_| Some("a".into()));
    assert_eq!(bench.finish(0, |_| outcome_code::RETRY), vec![1]);
    for i in 2..100 {
        bench.flow.tick(i * 1_000);
        bench.flow.dispatch();
    }
    assert_eq!(bench.finish(0, |_| ACK), vec![1], "it is run again");
    assert_eq!(bench.frontier(), 2);
}

#[test]
fn batches_that_were_not_run_are_in_order_when_another_order_applies() {
    let mut bench = Bench::new(1);
    bench.apply(|_, s| {
        s.order = Order::Unordered;
        true
    });
    bench.deliver(0..32, |_| Some("a".into()));
    bench.deliver(32..64, |_| Some("a".into()));
    assert_eq!(bench.pools[0].taken.lock().unwrap().len(), 2);
    bench.apply(|_, s| {
        s.order = Order::Key;
        generation_of(s).number = 2;
        true
    });
    // The earlier generation's pool returns its queue, in order.
    assert!(bench.finish(0, |_| outcome_code::NOT_RUN).is_empty());
    let mut ran = Vec::new();
    for _ in 0..100 {
        ran.extend(bench.finish(0, |_| ACK));
    }
    let sorted: Vec<i64> = (0..64).collect();
    assert_eq!(ran, sorted);
}

#[test]
fn a_record_that_runs_again_and_is_returned_unrun_does_not_wait_for_those_behind_it() {
    let mut bench = runs_again(2);
    assert!(
        bench.finish(0, |_| outcome_code::NOT_RUN).is_empty(),
        "as after a recall"
    );
    let mut ran = Vec::new();
    for i in 2..200 {
        bench.flow.tick(i * 1_000);
        bench.flow.dispatch();
        ran.extend(bench.finish(0, |_| ACK));
    }
    assert_eq!(ran, vec![0, 1]);
    assert_eq!(bench.frontier(), 2);
}

#[test]
fn emits_without_an_answer_are_a_problem_after_ten_seconds() {
    let mut bench = Bench::new(1);
    bench.deliver(0..2, |_| None);
    bench.finish_emitting(ACK, 1);
    for (now_ms, problems) in [(9_999, 0), (10_000, 1)] {
        bench.flow.tick(now_ms);
        let found = bench.handler_report().problems;
        assert_eq!(found.len(), problems, "{now_ms}: {found:?}");
        for problem in found {
            assert_eq!(problem.kind, ProblemKind::EmitsUnacknowledged);
            assert_eq!((problem.count, problem.since_ms), (2, 0));
            assert!(problem.what.ends_with("the oldest to topic out"));
        }
    }
    assert_eq!(bench.answer_producer().len(), 2);
    assert!(bench.handler_report().problems.is_empty());
}
