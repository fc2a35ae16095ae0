//! Tests of the outbox.

use sluicegate_runtime::{Emit, Emits};

use super::*;
use crate::emit::{EmitCounts, FailureKind, ProducerRecord};

fn key(index: u32) -> RecordId {
    RecordId { index, serial: 1 }
}

/// A call of three records, of which the first and the last have emitted twice to "my-secret".
fn call(outbox: &mut Outbox) -> Box<Batch> {
    let mut batch = Box::new(Batch::new());
    batch.handler = HandlerIx(4);
    batch.keys = (0..3).map(key).collect();
    batch.shipment = outbox.reserve();
    let emit = |record| Emit::new(record, "my-secret", Some(b"value"));
    batch.output.emits = [0, 0, 2, 2].into_iter().map(emit).collect();
    let counts = EmitCounts::default();
    counts.show_by(Arc::new(|topic| topic.replace("secret", "***")));
    batch.emitted = Some(Arc::new(counts));
    batch
}

fn acknowledged(shipment: EmitToken, place: usize) -> Delivery {
    Delivery::acknowledged(shipment.at(place).expect("it is small"))
}

fn refused(shipment: EmitToken, place: usize, kind: FailureKind) -> Delivery {
    let token = shipment.at(place).expect("it is small");
    let failure = EmitFailure::no_room("my-secret");
    Delivery::failed(token, EmitFailure { kind, ..failure })
}

fn answer(outbox: &mut Outbox, deliveries: Vec<Delivery>) -> Vec<Answered> {
    let mut done = Vec::new();
    outbox.answer(deliveries, &mut done);
    done
}

#[test]
fn a_record_is_answered_once_all_its_emits_are_in_whatever_order() {
    let mut outbox = Outbox::default();
    let mut batch = call(&mut outbox);
    let (shipment, counts) = (batch.shipment, batch.emitted.clone());
    outbox.ship(&mut batch, &Arc::default());
    let some = [3, 0].map(|place| acknowledged(shipment, place));
    assert!(answer(&mut outbox, some.into()).is_empty());
    let done = answer(&mut outbox, vec![acknowledged(shipment, 2)]);
    let told: Vec<_> = done
        .iter()
        .map(|one| (one.handler, one.key, one.refused.is_none()))
        .collect();
    assert_eq!(told, [(HandlerIx(4), key(2), true)]);
    assert_eq!(outbox.len(), 1);
    assert_eq!(
        answer(&mut outbox, vec![acknowledged(shipment, 1)]).len(),
        1
    );
    assert_eq!(outbox.len(), 1, "it may have to be written again");
    for record in 0..2 {
        outbox.release(outbox.at(shipment, record));
    }
    assert_eq!(outbox.len(), 0, "nothing is kept");
    let counts = counts.expect("they were given").counts();
    assert_eq!(counts.get("my-***"), Some(&4));
}

#[test]
fn answers_that_come_before_the_call_has_ended_wait_for_it() {
    let mut outbox = Outbox::default();
    let mut batch = call(&mut outbox);
    let shipment = batch.shipment;
    let early = (0..3).map(|place| acknowledged(shipment, place)).collect();
    assert!(answer(&mut outbox, early).is_empty());
    outbox.ship(&mut batch, &Arc::default());
    let early = outbox.take_early(shipment);
    assert_eq!(answer(&mut outbox, early).len(), 1, "the first record");
    assert_eq!(
        answer(&mut outbox, vec![acknowledged(shipment, 3)]).len(),
        1
    );
}

#[test]
fn what_was_refused_is_kept_until_it_is_released_and_shows_no_secret() {
    let mut outbox = Outbox::default();
    let mut batch = call(&mut outbox);
    let shipment = batch.shipment;
    // The second emit of the last record was not sent, because the first one was refused at once.
    batch.unsent = vec![3];
    outbox.ship(&mut batch, &Arc::default());
    let first = [
        acknowledged(shipment, 0),
        refused(shipment, 1, FailureKind::Cluster),
    ];
    answer(&mut outbox, first.into());
    let mut done = answer(&mut outbox, vec![refused(shipment, 2, FailureKind::Target)]);
    let refused = done.remove(0).refused.expect("it is refused");
    assert_eq!(outbox.refusing_topics(refused.at), ["my-secret"]);
    let told = format!("{:?} {}", refused.failure, refused.failure);
    assert!(
        told.contains("my-***") && !told.contains("secret"),
        "{told}"
    );
    let at = outbox.keep(refused.at);
    assert!(outbox.kept_bytes() > 2 * b"my-secretvalue".len() as u64);
    outbox.release(at);
    assert_eq!(outbox.kept_bytes(), 0);
    outbox.release(refused.at);
    assert_eq!(outbox.len(), 1, "the first record is kept");
}

/// Bytes of the buffers of all emits that are kept.
fn kept(outbox: &Outbox) -> usize {
    let emits = outbox.shipments.values().map(|one| &one.emits);
    emits.map(Emits::buffered).sum()
}

#[test]
fn a_refused_or_slow_record_keeps_no_bytes_of_others_of_its_call() {
    let mut outbox = Outbox::default();
    let mut batch = call(&mut outbox);
    let shipment = batch.shipment;
    batch.keys = (0..100).map(key).collect();
    let emit = |record| Emit::new(record, "out", Some(&[0; 1_000]));
    batch.output.emits = (0..100).map(emit).collect();
    outbox.ship(&mut batch, &Arc::default());
    let acks = (0..98).map(|place| acknowledged(shipment, place));
    answer(&mut outbox, acks.collect());
    (0..98).for_each(|record| outbox.release(outbox.at(shipment, record)));
    assert!(kept(&outbox) >= 100_000, "nothing is copied at once");
    outbox.tick(COMPACT_AFTER_MS);
    assert_eq!(kept(&outbox), 2_000, "what is with the producer");
    let slow = refused(shipment, 98, FailureKind::Target);
    let mut done = answer(&mut outbox, vec![slow]);
    let at = done.remove(0).refused.expect("it is refused").at;
    let at = outbox.keep(at);
    answer(&mut outbox, vec![acknowledged(shipment, 99)]);
    outbox.release(outbox.at(shipment, 99));
    assert_eq!((outbox.len(), kept(&outbox)), (1, 1_000));
    assert!((1_000..2_000).contains(&outbox.kept_bytes()));
    outbox.keep(at);
    assert!(outbox.kept_bytes() < 2_000, "counted once");
    let structs: usize = outbox.shipments.values().map(|one| one.emits.len()).sum();
    assert_eq!(structs, 1, "nor their places");
}

/// Keeps what it is given.
#[derive(Default)]
struct Taken(std::sync::Mutex<Vec<u32>>);

impl Emitter for Taken {
    fn send(&self, _: &ProducerRecord<'_>, _: Way, _: &Arc<Inbox>, token: EmitToken) -> Sent {
        self.0.lock().unwrap().push(token.place());
        Sent::Queued
    }
}

#[test]
fn only_what_is_refused_and_what_stands_behind_it_in_its_topic_is_sent_again() {
    let topics = ["a", "b", "a", "b", "c"];
    for (tainted, expected) in [(vec![], vec![1, 3]), (vec!["a"], vec![0, 1, 2, 3])] {
        let mut outbox = Outbox::default();
        let mut batch = call(&mut outbox);
        let shipment = batch.shipment;
        let emits = topics.iter().map(|topic| Emit::new(0, topic, None));
        batch.output.emits = emits.collect();
        outbox.ship(&mut batch, &Arc::default());
        let answers = (0..topics.len()).map(|place| match place {
            1 => refused(shipment, place, FailureKind::Cluster),
            _ => acknowledged(shipment, place),
        });
        let mut done = answer(&mut outbox, answers.collect());
        let at = done.remove(0).refused.expect("one is refused").at;
        let (taken, inbox) = (Taken::default(), Arc::new(Inbox::new()));
        let tainted: Vec<String> = tainted.into_iter().map(str::to_owned).collect();
        assert!(outbox.send_again(at, &tainted, Way::Batched, &taken, &inbox));
        assert_eq!(*taken.0.lock().unwrap(), expected);
    }
}

#[test]
fn a_call_of_which_nothing_counts_any_more_leaves_nothing_behind() {
    for early in 0..=4 {
        let mut outbox = Outbox::default();
        let mut batch = call(&mut outbox);
        let shipment = batch.shipment;
        let mut answers = (0..4).map(|place| match place {
            1 => refused(shipment, place, FailureKind::Target),
            _ => acknowledged(shipment, place),
        });
        answer(&mut outbox, answers.by_ref().take(early).collect());
        outbox.ship_late(&mut batch);
        let done = answer(&mut outbox, answers.collect());
        assert!(done.iter().all(|one| one.key == RecordId::NONE));
        assert_eq!(outbox.len(), 0, "{early} early");
    }
}

#[test]
fn a_name_in_use_is_not_given_again() {
    let mut outbox = Outbox::default();
    let mut first = call(&mut outbox);
    outbox.ship(&mut first, &Arc::default());
    let early = call(&mut outbox).shipment;
    answer(&mut outbox, vec![acknowledged(early, 0)]);
    // Once around.
    outbox.last = first.shipment.shipment() - 1;
    let next = outbox.reserve();
    assert!(next != first.shipment && next != early);
    assert_eq!(next.shipment(), early.shipment() + 1);
}
