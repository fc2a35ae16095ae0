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
//! once they are acknowledged, so that what is kept is with the producer, whose queue bounds it. What is refused moves to a
//! shipment of its own, which keeps nothing else of its call alive, and counts against the pump's byte budget.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use rapidhash::fast::RapidHasher;
use sluicegate_runtime::Emit;

use super::counts::EmitCounts;
use super::delivery::Delivery;
use super::emitter::{Emitter, ProducerRecord, Sent, Way};
use super::failure::EmitFailure;
use super::token::{self, EmitToken};
use crate::dispatch::{Batch, HandlerIx, Inbox, PumpMessage, RecordId};

/// A record in a shipment: one whose emits are shipped, or whose dead letter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShippedAt {
    shipment: u32,
    record: u32,
}

/// Emits of which not everything is acknowledged; none of them is with the producer any more.
#[derive(Debug)]
pub(crate) struct RefusedEmits {
    /// Where they are kept.
    pub(crate) at: ShippedAt,
    /// The first refused one, counted from the record's first. Those after it are sent again too, so that the last copies are in order.
    pub(crate) first: u32,
    /// The failure with the highest precedence.
    pub(crate) failure: EmitFailure,
}

/// A record of which all that was sent is answered.
pub(crate) struct Answered {
    /// The handler that emitted.
    pub(crate) handler: HandlerIx,
    /// The record.
    pub(crate) key: RecordId,
    /// What is not acknowledged.
    pub(crate) refused: Option<RefusedEmits>,
}

/// The emits of one record of a call, or its dead letter.
struct ShippedRecord {
    key: RecordId,
    /// Places of its emits in the shipment.
    first: u32,
    end: u32,
    /// Sent and not answered.
    unanswered: u32,
    /// The first refused place, and the failure with the highest precedence.
    refused: Option<(u32, Box<EmitFailure>)>,
    /// Nothing waits for it any more.
    released: bool,
    /// It is answered, and not sent again.
    over: bool,
}

struct Shipment {
    handler: HandlerIx,
    /// Empty for a dead letter, which is built from its record.
    emits: Vec<Emit>,
    /// The record of each emit.
    owners: Vec<u32>,
    records: Vec<ShippedRecord>,
    counts: Option<Arc<EmitCounts>>,
    /// Records that are not over.
    open: u32,
    /// Acknowledged and not counted yet: the place of one, and their number; all have the same topic.
    uncounted: (u32, u64),
    /// Records that are over, and whose bytes are not freed yet.
    ended: Vec<u32>,
}

impl Shipment {
    /// What a call has emitted, sorted by its records; those at the places `unsent` were not sent.
    fn of(batch: &mut Batch) -> Self {
        let emits = std::mem::take(&mut batch.output.emits);
        let mut owners = Vec::with_capacity(emits.len());
        let mut records: Vec<ShippedRecord> = Vec::new();
        let mut last = None;
        for (place, emit) in emits.iter().enumerate() {
            let place = place as u32;
            if last != Some(emit.record) {
                last = Some(emit.record);
                let key = batch.keys.get(emit.record as usize);
                let key = key.copied().unwrap_or(RecordId::NONE);
                records.push(ShippedRecord::new(key, place));
            }
            owners.push(records.len() as u32 - 1);
            if let Some(record) = records.last_mut() {
                record.end = place + 1;
                record.unanswered += 1;
            }
        }
        for place in batch.unsent.drain(..) {
            if let Some(&owner) = owners.get(place as usize) {
                records[owner as usize].unanswered -= 1;
            }
        }
        Self {
            handler: batch.handler,
            emits,
            owners,
            open: records.len() as u32,
            records,
            counts: batch.emitted.take(),
            uncounted: (0, 0),
            ended: Vec::new(),
        }
    }

    /// The dead letter of a record.
    fn dead_letter(handler: HandlerIx, key: RecordId) -> Self {
        let mut record = ShippedRecord::new(key, 0);
        (record.end, record.unanswered) = (1, 1);
        Self {
            handler,
            emits: Vec::new(),
            owners: vec![0],
            records: vec![record],
            counts: None,
            open: 1,
            uncounted: (0, 0),
            ended: Vec::new(),
        }
    }

    /// The emits of one record, which are refused, apart from the others of its call.
    fn split(&mut self, owner: u32) -> Self {
        let record = &mut self.records[owner as usize];
        record.over = true;
        self.open -= 1;
        let (first, end) = (record.first, record.end);
        let key = record.key;
        let emits = &mut self.emits[first as usize..end as usize];
        let emits: Vec<Emit> = emits.iter_mut().map(take_emit).collect();
        let mut record = ShippedRecord::new(key, 0);
        record.end = end - first;
        Self {
            handler: self.handler,
            owners: vec![0; emits.len()],
            emits,
            records: vec![record],
            counts: self.counts.clone(),
            open: 1,
            uncounted: (0, 0),
            ended: Vec::new(),
        }
    }

    /// Counts what is acknowledged, and frees the bytes of records that are over.
    fn tidy_up(&mut self) {
        self.count();
        for owner in std::mem::take(&mut self.ended) {
            let record = &self.records[owner as usize];
            let emits = self
                .emits
                .get_mut(record.first as usize..record.end as usize);
            emits
                .unwrap_or_default()
                .iter_mut()
                .for_each(|emit| drop(take_emit(emit)));
        }
    }

    /// Counts what is acknowledged, by topic.
    fn count(&mut self) {
        let (place, records) = std::mem::take(&mut self.uncounted);
        if records > 0
            && let Some(counts) = &self.counts
            && let Some(emit) = self.emits.get(place as usize)
        {
            counts.add(&emit.topic, records);
        }
    }

    fn acknowledged(&mut self, place: u32) {
        let topic = |place: u32| self.emits.get(place as usize).map(|emit| &*emit.topic);
        if self.uncounted.1 > 0 && topic(self.uncounted.0) != topic(place) {
            self.count();
        }
        self.uncounted = (place, self.uncounted.1 + 1);
    }

    fn refused(&mut self, owner: u32, place: u32, mut failure: Box<EmitFailure>) {
        // Redacted here rather than where it is shown: it goes to the log, reports, `explain` and headers of dead letters.
        if let Some(counts) = &self.counts {
            failure.topic = counts.shown(&failure.topic);
        }
        let refused = &mut self.records[owner as usize].refused;
        *refused = Some(match refused.take() {
            None => (place, failure),
            Some((first, before)) => {
                // Of failures with equal precedence, the first record's is reported.
                let outranks =
                    failure.kind > before.kind || (failure.kind == before.kind && place < first);
                (first.min(place), if outranks { failure } else { before })
            }
        });
    }

    /// Splits off the records that were refused, unless nothing else is kept with them.
    fn split_refused(&mut self, answered: &[Answered]) -> Vec<(usize, Self)> {
        let mut parts = Vec::new();
        for (place, one) in answered.iter().enumerate() {
            let Some(refused) = &one.refused else {
                continue;
            };
            let owner = refused.at.record;
            if self.records.len() > 1 && !self.records[owner as usize].over {
                parts.push((place, self.split(owner)));
            }
        }
        parts
    }

    /// Handles an answer. Returns the record that waits for no other answer then.
    fn answer(&mut self, number: u32, delivery: Delivery) -> Option<Answered> {
        let place = delivery.token.place();
        let owner = *self.owners.get(place as usize)?;
        match delivery.failure {
            None => self.acknowledged(place),
            Some(failure) => self.refused(owner, place, failure),
        }
        let is_letter = self.emits.is_empty();
        let record = &mut self.records[owner as usize];
        debug_assert!(record.unanswered > 0, "a token is answered twice");
        record.unanswered = record.unanswered.saturating_sub(1);
        if record.unanswered > 0 {
            return None;
        }
        let refused = record.refused.take();
        if refused.is_none() || is_letter || record.released {
            record.over = true;
            self.open -= 1;
            self.ended.push(owner);
        }
        let at = ShippedAt {
            shipment: number,
            record: owner,
        };
        Some(Answered {
            handler: self.handler,
            key: record.key,
            refused: refused.map(|(first, failure)| RefusedEmits {
                at,
                // Also if it is split off.
                first: first - record.first,
                failure: *failure,
            }),
        })
    }
}

impl ShippedRecord {
    fn new(key: RecordId, first: u32) -> Self {
        Self {
            key,
            first,
            end: first,
            unanswered: 0,
            refused: None,
            released: false,
            over: false,
        }
    }
}

/// Takes the bytes of an emit out of its place.
fn take_emit(emit: &mut Emit) -> Emit {
    Emit {
        record: emit.record,
        topic: std::mem::take(&mut emit.topic),
        partition: emit.partition,
        timestamp_ms: emit.timestamp_ms,
        key: emit.key.take(),
        value: emit.value.take(),
        headers: std::mem::take(&mut emit.headers),
    }
}

/// Without a random seed, as everything that a run depends on.
type Hasher = BuildHasherDefault<RapidHasher<'static>>;

/// A pump's shipments.
#[derive(Default)]
pub(crate) struct Outbox {
    last: u32,
    shipments: HashMap<u32, Shipment, Hasher>,
    /// Answers for calls that have not ended.
    early: HashMap<u32, Vec<Delivery>, Hasher>,
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
        let number = batch.shipment.shipment();
        let before = self.shipments.insert(number, Shipment::of(batch));
        debug_assert!(before.is_none(), "its name is in use");
    }

    /// As [`Self::ship`], for a call of which nothing counts any more.
    pub(crate) fn ship_late(&mut self, batch: &mut Batch) {
        let mut shipment = Shipment::of(batch);
        for record in &mut shipment.records {
            record.key = RecordId::NONE;
            record.released = true;
        }
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
            let first = done.len();
            done.extend(same.by_ref().filter_map(|one| shipment.answer(number, one)));
            let parts = shipment.split_refused(&done[first..]);
            shipment.tidy_up();
            if shipment.open == 0 {
                self.shipments.remove(&number);
            }
            self.keep_parts(parts, &mut done[first..]);
        }
    }

    /// Keeps what was refused of a call.
    fn keep_parts(&mut self, parts: Vec<(usize, Shipment)>, done: &mut [Answered]) {
        for (place, part) in parts {
            let shipment = self.reserve().shipment();
            self.shipments.insert(shipment, part);
            if let Some(refused) = &mut done[place].refused {
                refused.at = ShippedAt {
                    shipment,
                    record: 0,
                };
            }
        }
    }

    /// Sends emits of a record again, from its `first`-th on, in order, up to the first one that is refused at once: those after
    /// it would have to be sent twice.
    pub(crate) fn send_again(
        &mut self,
        at: ShippedAt,
        first: u32,
        way: Way,
        emitter: &dyn Emitter,
        reply_to: &Arc<Inbox>,
    ) {
        let Some(shipment) = self.shipments.get_mut(&at.shipment) else {
            return;
        };
        let record = &mut shipment.records[at.record as usize];
        debug_assert_eq!(record.unanswered, 0, "the previous round has not ended");
        for place in record.first + first..record.end {
            let (Some(emit), Some(token)) = (
                shipment.emits.get(place as usize),
                EmitToken::of(at.shipment).at(place as usize),
            ) else {
                return;
            };
            record.unanswered += 1;
            let sent = emitter.send(&ProducerRecord::from(emit), way, reply_to, token);
            if !answer_unsent(sent, &emit.topic, reply_to, token) {
                return;
            }
        }
    }

    /// Nothing waits for these emits any more: they are forgotten once they are answered.
    pub(crate) fn release(&mut self, at: ShippedAt) {
        let Some(shipment) = self.shipments.get_mut(&at.shipment) else {
            return;
        };
        let record = &mut shipment.records[at.record as usize];
        record.released = true;
        if record.unanswered == 0 && !std::mem::replace(&mut record.over, true) {
            shipment.open -= 1;
            if shipment.open == 0 {
                self.shipments.remove(&at.shipment);
            }
        }
    }

    /// As [`Self::release`], of emits that were refused.
    pub(crate) fn forget(&mut self, refused: Option<RefusedEmits>) {
        if let Some(refused) = refused {
            self.release(refused.at);
        }
    }

    /// Bytes of a record's emits.
    pub(crate) fn bytes(&self, at: ShippedAt) -> u64 {
        let bytes_of = |emit: &Emit| {
            let optional = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
            let all = emit.topic.len() + optional(&emit.key) + optional(&emit.value);
            (all + emit.headers.len() + size_of::<Emit>()) as u64
        };
        let emits = self.shipments.get(&at.shipment).and_then(|shipment| {
            let record = shipment.records.get(at.record as usize)?;
            shipment
                .emits
                .get(record.first as usize..record.end as usize)
        });
        emits.unwrap_or_default().iter().map(bytes_of).sum()
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
    use super::*;
    use crate::emit::FailureKind;

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
        assert_eq!(outbox.len(), 0);
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
        assert_eq!(refused.first, 0);
        let told = format!("{:?} {}", refused.failure, refused.failure);
        assert!(
            told.contains("my-***") && !told.contains("secret"),
            "{told}"
        );
        assert!(outbox.bytes(refused.at) > 2 * b"my-secretvalue".len() as u64);
        outbox.release(refused.at);
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
        assert_eq!(kept(&outbox), 2_000, "what is with the producer");
        let slow = refused(shipment, 98, FailureKind::Target);
        let mut done = answer(&mut outbox, vec![slow]);
        let at = done.remove(0).refused.expect("it is refused").at;
        answer(&mut outbox, vec![acknowledged(shipment, 99)]);
        assert_eq!((outbox.len(), kept(&outbox)), (1, 1_000));
        assert!(outbox.bytes(at) >= 1_000);
        let structs: usize = outbox.shipments.values().map(|one| one.emits.len()).sum();
        assert_eq!(structs, 1, "nor their places");
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
