//! What a pump has handed to the producer and is not answered yet: the records that calls emitted, and dead letters.
//!
//! ```text
//!  submit: reserve ─► worker: Emitter::send, each ─► Finished ─► ship ───┐
//!  pump: dead_letter, send_again ─► Emitter::send                        ▼
//!  producer ─► Delivered: one message per report ─► answer ─► all of a record's emits are answered ─► HandlerQueue::produced
//! ```
//!
//! A shipment has what one call emitted, kept until it is acknowledged, so that a refusal does not require running the handler
//! again (ADR 0020). Answers can arrive before the call has ended; they wait for it. The bytes of a record's emits are freed
//! once it is settled: until then they may have to be written again, behind a refused one (ADR 0037). What is refused, or
//! waits behind others, moves to a shipment of its own, which keeps nothing else of its call alive, and counts against the pump's
//! byte budget.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use rapidhash::fast::RapidHasher;

use super::delivery::Delivery;
use super::emitter::{Emitter, ProducerRecord, Sent, Way};
use super::failure::EmitFailure;
use super::shipment::{Answered, RefusedEmits, Shipment, ShippedAt};
use super::token::{self, EmitToken};
use crate::dispatch::{Batch, HandlerIx, Inbox, PumpMessage, RecordId};

/// Without a random seed, as everything that a run depends on.
type Hasher = BuildHasherDefault<RapidHasher<'static>>;

/// A pump's shipments.
#[derive(Default)]
pub(crate) struct Outbox {
    last: u32,
    shipments: HashMap<u32, Shipment, Hasher>,
    /// Answers for calls that have not ended.
    early: HashMap<u32, Vec<Delivery>, Hasher>,
    kept_bytes: u64,
    /// What the producer has of each handler: emits and dead letters without an answer.
    unanswered: Vec<u32>,
}

impl Outbox {
    /// A name for what a call will emit, or for a dead letter.
    pub(crate) fn reserve(&mut self) -> EmitToken {
        loop {
            self.last = token::next(self.last);
            if !self.shipments.contains_key(&self.last) && !self.early.contains_key(&self.last) {
                return EmitToken::of(self.last);
            }
        }
    }

    /// Takes over what a call has emitted and its worker has sent. Afterwards its answers count: see [`Self::take_early`].
    pub(crate) fn ship(&mut self, batch: &mut Batch) {
        let shipment = Shipment::of(batch);
        self.sent(shipment.handler, shipment.unanswered());
        let number = batch.shipment.shipment();
        let before = self.shipments.insert(number, shipment);
        debug_assert!(before.is_none(), "its name is in use");
    }

    /// Counts what the producer was given for a handler.
    fn sent(&mut self, handler: HandlerIx, count: u32) {
        let place = handler.0 as usize;
        if self.unanswered.len() <= place {
            self.unanswered.resize(place + 1, 0);
        }
        self.unanswered[place] += count;
    }

    /// Number of emits and dead letters of a handler that the producer has not answered for.
    pub(crate) fn unanswered(&self, handler: HandlerIx) -> u32 {
        let count = self.unanswered.get(handler.0 as usize);
        count.copied().unwrap_or_default()
    }

    /// As [`Self::ship`], for a call of which nothing counts any more.
    pub(crate) fn ship_late(&mut self, batch: &mut Batch) {
        let mut shipment = Shipment::of(batch);
        for record in &mut shipment.records {
            record.key = RecordId::NONE;
            record.released = true;
        }
        self.sent(shipment.handler, shipment.unanswered());
        let number = batch.shipment.shipment();
        self.shipments.insert(number, shipment);
        let early = self.take_early(batch.shipment);
        self.answer(early, &mut Vec::new());
    }

    /// The answers for a shipment that came before its call had ended.
    pub(crate) fn take_early(&mut self, shipment: EmitToken) -> Vec<Delivery> {
        if self.early.is_empty() {
            return Vec::new();
        }
        let early = self.early.remove(&shipment.shipment());
        early.unwrap_or_default()
    }

    /// The name of a dead letter that is about to be sent.
    pub(crate) fn dead_letter(&mut self, handler: HandlerIx, key: RecordId) -> EmitToken {
        let token = self.reserve();
        let letter = Shipment::dead_letter(handler, key);
        self.sent(handler, 1);
        self.shipments.insert(token.shipment(), letter);
        token
    }

    /// Handles answers of the producer; `done` receives the records that wait for no other answer.
    pub(crate) fn answer(&mut self, mut deliveries: Vec<Delivery>, done: &mut Vec<Answered>) {
        // Several workers send at once; the answers of each call are in order, so that little is left to sort.
        deliveries.sort_by_key(|one| one.token.shipment());
        let mut deliveries = deliveries.into_iter().peekable();
        while let Some(first) = deliveries.peek() {
            let number = first.token.shipment();
            let mut same =
                std::iter::from_fn(|| deliveries.next_if(|one| one.token.shipment() == number));
            let Some(shipment) = self.shipments.get_mut(&number) else {
                self.early.entry(number).or_default().extend(same);
                continue;
            };
            let unanswered = self.unanswered.get_mut(shipment.handler.0 as usize);
            let mut count = 0;
            done.extend(same.by_ref().filter_map(|one| {
                count += 1;
                shipment.answer(number, one)
            }));
            if let Some(unanswered) = unanswered {
                debug_assert!(*unanswered >= count, "answered more than was sent");
                *unanswered = unanswered.saturating_sub(count);
            }
            shipment.tidy_up();
            if shipment.open == 0 {
                self.shipments.remove(&number);
            }
        }
    }

    /// Adds a shipment of one record.
    fn add(&mut self, part: Shipment) -> ShippedAt {
        let shipment = self.reserve().shipment();
        self.shipments.insert(shipment, part);
        ShippedAt {
            shipment,
            record: 0,
        }
    }

    /// Where the emits of a record of a call are: the records with emits are numbered in order.
    pub(crate) fn at(&self, shipment: EmitToken, record: u32) -> ShippedAt {
        ShippedAt {
            shipment: shipment.shipment(),
            record,
        }
    }

    /// Whether the producer has some of a record's emits.
    pub(crate) fn is_unanswered(&self, at: ShippedAt) -> bool {
        let shipment = self.shipments.get(&at.shipment);
        shipment.is_some_and(|shipment| shipment.records[at.record as usize].unanswered > 0)
    }

    /// The topics of a record's emits that are not acknowledged.
    pub(crate) fn refusing_topics(&self, at: ShippedAt) -> Vec<String> {
        let Some(shipment) = self.shipments.get(&at.shipment) else {
            return Vec::new();
        };
        let record = &shipment.records[at.record as usize];
        let mut topics: Vec<String> = (record.first as usize..record.end as usize)
            .filter(|place| !shipment.acknowledged[*place])
            .map(|place| shipment.emits[place].topic.clone())
            .collect();
        topics.dedup();
        topics
    }

    /// Sends again what is not acknowledged of a record's emits, and what stands behind a refused one of the same topic, or has one
    /// of the topics `tainted`; in order, up to the first one that is refused at once. Returns whether something was to be sent.
    pub(crate) fn send_again(
        &mut self,
        at: ShippedAt,
        tainted: &[String],
        way: Way,
        emitter: &dyn Emitter,
        reply_to: &Arc<Inbox>,
    ) -> bool {
        let Some(shipment) = self.shipments.get_mut(&at.shipment) else {
            return false;
        };
        let handler = shipment.handler;
        let record = &mut shipment.records[at.record as usize];
        debug_assert_eq!(record.unanswered, 0, "the previous round has not ended");
        let mut topics: Vec<&str> = tainted.iter().map(String::as_str).collect();
        let mut sends = 0;
        for place in record.first..record.end {
            let (Some(emit), Some(token)) = (
                shipment.emits.get(place as usize),
                EmitToken::of(at.shipment).at(place as usize),
            ) else {
                break;
            };
            let acknowledged = &mut shipment.acknowledged[place as usize];
            let behind = topics.contains(&&*emit.topic);
            if *acknowledged && !behind {
                continue;
            }
            if !behind {
                topics.push(&emit.topic);
            }
            sends += 1;
            *acknowledged = false;
            record.unanswered += 1;
            let sent = emitter.send(&ProducerRecord::from(emit), way, reply_to, token);
            if !answer_unsent(sent, &emit.topic, reply_to, token) {
                // Those behind it are sent after it; they would be written before it.
                for later in place + 1..record.end {
                    let emit = &shipment.emits[later as usize];
                    if topics.contains(&&*emit.topic) {
                        shipment.acknowledged[later as usize] = false;
                    }
                }
                break;
            }
        }
        self.sent(handler, sends);
        sends > 0
    }

    /// Keeps a record's emits apart from those of its call, and counts their bytes until they are released. Returns where they are
    /// from now on.
    pub(crate) fn keep(&mut self, at: ShippedAt) -> ShippedAt {
        let Some(shipment) = self.shipments.get_mut(&at.shipment) else {
            return at;
        };
        let is_apart = shipment.records.len() == 1;
        let part = (!is_apart).then(|| shipment.split(at.record));
        if shipment.open == 0 {
            self.shipments.remove(&at.shipment);
        }
        let at = match part {
            None => at,
            Some(part) => self.add(part),
        };
        if let Some(shipment) = self.shipments.get_mut(&at.shipment) {
            let bytes = shipment.bytes(at.record);
            let kept = &mut shipment.records[at.record as usize].kept_bytes;
            self.kept_bytes += bytes - std::mem::replace(kept, bytes);
        }
        at
    }

    /// Bytes of the emits that are kept apart: those that were refused, and those that wait behind others.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// Nothing waits for these emits any more: they are forgotten once they are answered.
    pub(crate) fn release(&mut self, at: ShippedAt) {
        let Some(shipment) = self.shipments.get_mut(&at.shipment) else {
            return;
        };
        let kept = &mut shipment.records[at.record as usize].kept_bytes;
        self.kept_bytes -= std::mem::take(kept);
        if shipment.release(at.record) {
            self.shipments.remove(&at.shipment);
        }
    }

    /// As [`Self::release`], of emits that were refused.
    pub(crate) fn forget(&mut self, refused: Option<RefusedEmits>) {
        if let Some(refused) = refused {
            self.release(refused.at);
        }
    }

    /// Number of shipments, and of calls that have not ended although emits of theirs are answered.
    pub(crate) fn len(&self) -> usize {
        self.shipments.len() + self.early.len()
    }
}

/// Answers for a record that the producer did not take, so that every record that was to be sent is answered. Returns whether it
/// took it.
pub fn answer_unsent(sent: Sent, topic: &str, reply_to: &Arc<Inbox>, token: EmitToken) -> bool {
    let failure = match sent {
        Sent::Queued => return true,
        Sent::Refused(failure) => failure,
        Sent::NoRoom => Box::new(EmitFailure::no_room(topic)),
    };
    let failure = Some(failure);
    reply_to.push(PumpMessage::Delivered(vec![Delivery { token, failure }]));
    false
}

#[cfg(test)]
mod tests {
    use sluicegate_runtime::Emit;

    use super::*;
    use crate::emit::{EmitCounts, FailureKind};

    fn key(index: u32) -> RecordId {
        RecordId { index, serial: 1 }
    }

    /// A call of three records, of which the first and the last have emitted twice to "my-secret".
    fn call(outbox: &mut Outbox) -> Box<Batch> {
        let mut batch = Box::new(Batch::new());
        batch.handler = HandlerIx(4);
        batch.keys = (0..3).map(key).collect();
        batch.shipment = outbox.reserve();
        batch.output.emits = [0, 0, 2, 2]
            .map(|record| Emit {
                record,
                topic: "my-secret".to_owned(),
                partition: None,
                timestamp_ms: None,
                key: None,
                value: Some(b"value".to_vec()),
                headers: Vec::new(),
            })
            .into();
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
        outbox.ship(&mut batch);
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
        outbox.ship(&mut batch);
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
        outbox.ship(&mut batch);
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

    /// Bytes of all emits that are kept.
    fn kept(outbox: &Outbox) -> usize {
        let emits = outbox.shipments.values().flat_map(|one| &one.emits);
        emits
            .map(|emit| emit.value.as_ref().map_or(0, Vec::len))
            .sum()
    }

    #[test]
    fn a_refused_or_slow_record_keeps_no_bytes_of_others_of_its_call() {
        let mut outbox = Outbox::default();
        let mut batch = call(&mut outbox);
        let shipment = batch.shipment;
        batch.keys = (0..100).map(key).collect();
        let one = batch.output.emits[0].clone();
        batch.output.emits = (0..100)
            .map(|record| Emit {
                record,
                value: Some(vec![0; 1_000]),
                ..one.clone()
            })
            .collect();
        outbox.ship(&mut batch);
        let acks = (0..98).map(|place| acknowledged(shipment, place));
        answer(&mut outbox, acks.collect());
        (0..98).for_each(|record| outbox.release(outbox.at(shipment, record)));
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
            let one = batch.output.emits[0].clone();
            let emits = topics.map(|topic| Emit {
                topic: topic.to_owned(),
                ..one.clone()
            });
            batch.output.emits = emits.into();
            outbox.ship(&mut batch);
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
        outbox.ship(&mut first);
        let early = call(&mut outbox).shipment;
        answer(&mut outbox, vec![acknowledged(early, 0)]);
        // Once around.
        outbox.last = first.shipment.shipment() - 1;
        let next = outbox.reserve();
        assert!(next != first.shipment && next != early);
        assert_eq!(next.shipment(), early.shipment() + 1);
    }
}
