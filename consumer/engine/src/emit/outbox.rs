//! What a pump has handed to the producer and is not answered yet: the records that calls emitted, and dead letters.
//!
//! ```text
//!  submit: reserve ─► worker: Emitter::send, each ─► Finished ─► ship ───┐
//!  pump: dead_letter, send_again ─► Emitter::send                        ▼
//!  producer ─► Delivered: one message per report ─► answer ─► all of a record's emits are answered ─► HandlerQueue::produced
//! ```
//!
//! A shipment has what one call emitted, kept until it is acknowledged, so that a refusal does not require running the handler
//! again (ADR 0020). Answers can arrive before the call has ended; they wait for it. A record's emits are kept until it is
//! settled: until then they may have to be written again, behind a refused one (ADR 0037). What is refused, or
//! waits behind others, moves to a shipment of its own, which keeps nothing else of its call alive, and counts against the pump's
//! byte budget. Of other calls that wait for their last answers, the bytes that are not needed any more are freed every
//! `COMPACT_AFTER_MS`.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use rapidhash::fast::RapidHasher;
use sluicegate_runtime::Emits;

use super::delivery::Delivery;
use super::emitter::{Emitter, Sent, Way};
use super::failure::EmitFailure;
use super::shipment::{Answered, Pending, RefusedEmits, Shipment, ShippedAt};
use super::token::{self, EmitToken};
use crate::dispatch::{Batch, HandlerIx, Inbox, PumpMessage, RecordId};
use crate::queue::GenerationId;

/// Without a random seed, as everything that a run depends on.
type Hasher = BuildHasherDefault<RapidHasher<'static>>;

/// How long a call keeps the bytes of records that are over, if it waits for others.
const COMPACT_AFTER_MS: u64 = 250;
/// Maximum number of empty buffers that are kept for the next calls, and of the bytes of one.
const MAX_SPARE: (usize, usize) = (16, 512 << 10);

/// A pump's shipments.
#[derive(Default)]
pub(crate) struct Outbox {
    last: u32,
    shipments: HashMap<u32, Shipment, Hasher>,
    /// Answers for calls that have not ended.
    early: HashMap<u32, Vec<Delivery>, Hasher>,
    /// The flow's clock.
    now_ms: u64,
    kept_bytes: u64,
    /// What the producer has of each handler: emits and dead letters without an answer.
    unanswered: Vec<u32>,
    /// Empty buffers for the next calls: memory that was used lately is in the cache.
    spare: Vec<Emits>,
    /// When bytes that are not needed any more were last freed.
    compacted_ms: u64,
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

    /// Takes over what a call has emitted and its worker has sent. Afterwards its answers count: see
    /// [`Self::take_early`]. Returns the places of the records that have emitted, in order.
    pub(crate) fn ship(&mut self, batch: &mut Batch, ran_by: &Arc<GenerationId>) -> Vec<u32> {
        let (mut shipment, places) = Shipment::of(batch, self.spare.pop().unwrap_or_default());
        shipment.ran_by = Some(ran_by.clone());
        shipment.sent_ms = self.now_ms;
        self.sent(shipment.handler, shipment.unanswered);
        let number = batch.shipment.shipment();
        let before = self.shipments.insert(number, shipment);
        debug_assert!(before.is_none(), "its name is in use");
        places
    }

    /// A share waits for nothing but the acknowledgement of these emits, and those before it in its lane.
    pub(crate) fn pend(&mut self, at: ShippedAt, pending: Pending) {
        if let Some(shipment) = self.shipments.get_mut(&at.shipment) {
            shipment.records[at.record as usize].pending = Some(pending);
        }
    }

    /// Whether the share of these emits is pending.
    pub(crate) fn is_pending(&self, at: ShippedAt) -> bool {
        let shipment = self.shipments.get(&at.shipment);
        let record = shipment.and_then(|shipment| shipment.records.get(at.record as usize));
        record.is_some_and(|record| record.pending.is_some())
    }

    /// Takes a pending share that has to be deferred, with what ran it and since when it has been pending.
    pub(crate) fn take_pending(
        &mut self,
        at: ShippedAt,
        key: RecordId,
    ) -> Option<(Pending, Arc<GenerationId>, u64)> {
        let shipment = self.shipments.get_mut(&at.shipment)?;
        let record = shipment.records.get_mut(at.record as usize)?;
        let pending = record.pending.take_if(|_| record.key == key)?;
        // Nothing of a pending share is sent again.
        Some((pending, shipment.ran_by.clone()?, shipment.sent_ms))
    }

    /// The pending shares of a handler, and since when they have been pending. Visits all shipments.
    pub(crate) fn pending(
        &self,
        handler: HandlerIx,
    ) -> impl Iterator<Item = (RecordId, ShippedAt, u64)> {
        let its = move |(_, shipment): &(&u32, &Shipment)| shipment.handler == handler;
        self.shipments
            .iter()
            .filter(its)
            .flat_map(|(&number, shipment)| {
                let records = (0..).zip(&shipment.records);
                let pending = records.filter(|(_, record)| record.pending.is_some());
                pending.map(move |(place, record)| {
                    let at = ShippedAt {
                        shipment: number,
                        record: place,
                    };
                    (record.key, at, shipment.sent_ms)
                })
            })
    }

    /// Ends a pending share, whose emits are forgotten; `count` is given what ran it.
    pub(crate) fn settle(&mut self, at: ShippedAt, count: impl FnOnce(&GenerationId)) {
        let Some(shipment) = self.shipments.get_mut(&at.shipment) else {
            return;
        };
        if let Some(ran_by) = &shipment.ran_by {
            count(ran_by);
        }
        if shipment.release(at.record) {
            self.end(at.shipment);
        }
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

    /// The time, on the flow's clock.
    pub(crate) fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        if now_ms < self.compacted_ms + COMPACT_AFTER_MS {
            return;
        }
        self.compacted_ms = now_ms;
        let before_ms = now_ms - COMPACT_AFTER_MS;
        for shipment in self.shipments.values_mut() {
            if shipment.sent_ms <= before_ms && (shipment.open as usize) < shipment.records.len() {
                shipment.compact();
            }
        }
    }

    /// Nothing of a shipment is needed any more.
    fn end(&mut self, number: u32) {
        let Some(mut shipment) = self.shipments.remove(&number) else {
            return;
        };
        shipment.count();
        let mut emits = shipment.emits;
        if self.spare.len() < MAX_SPARE.0 && (1..=MAX_SPARE.1).contains(&emits.buffered()) {
            emits.clear();
            self.spare.push(emits);
        }
    }

    /// Since when the oldest emits of a handler have no answer, if some have none, and to which topics; without topics it is a dead
    /// letter. Visits all shipments.
    pub(crate) fn oldest_unanswered(&self, handler: HandlerIx) -> Option<(u64, Vec<Arc<str>>)> {
        let its = |one: &&Shipment| one.handler == handler && one.unanswered > 0;
        let shipments = self.shipments.values().filter(its);
        let oldest = shipments.min_by_key(|one| one.sent_ms)?;
        let mut records = (0..).zip(&oldest.records);
        let waits = records.find(|(_, record)| record.unanswered > 0);
        let topics = waits.map(|(place, _)| oldest.unacknowledged_topics(place));
        Some((oldest.sent_ms, topics.unwrap_or_default()))
    }

    /// The topics that have not acknowledged all emits of a record, as shown to operators.
    pub(crate) fn unacknowledged_topics(&self, at: ShippedAt) -> Vec<Arc<str>> {
        let shipment = self.shipments.get(&at.shipment);
        shipment.map_or_else(Vec::new, |one| one.unacknowledged_topics(at.record))
    }

    /// As [`Self::ship`], for a call of which nothing counts any more.
    pub(crate) fn ship_late(&mut self, batch: &mut Batch) {
        let (mut shipment, _) = Shipment::of(batch, self.spare.pop().unwrap_or_default());
        for record in &mut shipment.records {
            record.key = RecordId::NONE;
            record.released = true;
        }
        shipment.sent_ms = self.now_ms;
        self.sent(shipment.handler, shipment.unanswered);
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
        let mut letter = Shipment::dead_letter(handler, key);
        letter.sent_ms = self.now_ms;
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
            shipment.count();
            if shipment.open == 0 {
                self.end(number);
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
            .filter_map(|place| Some(shipment.emits.get(place)?.to.topic.to_owned()))
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
            let behind = topics.contains(&emit.to.topic);
            if *acknowledged && !behind {
                continue;
            }
            if !behind {
                topics.push(emit.to.topic);
            }
            sends += 1;
            *acknowledged = false;
            record.unanswered += 1;
            shipment.unanswered += 1;
            shipment.sent_ms = self.now_ms;
            let sent = emitter.send(&emit.to, way, reply_to, token);
            if !answer_unsent(sent, emit.to.topic, reply_to, token) {
                // Those behind it are sent after it; they would be written before it.
                for later in place + 1..record.end {
                    let emit = shipment.emits.get(later as usize);
                    if emit.is_some_and(|emit| topics.contains(&emit.to.topic)) {
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
            self.end(at.shipment);
        }
        let at = match part {
            None => at,
            Some(part) => self.add(part),
        };
        if let Some(shipment) = self.shipments.get_mut(&at.shipment) {
            let bytes = shipment.bytes();
            self.kept_bytes += bytes - std::mem::replace(&mut shipment.kept_bytes, bytes);
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
        self.kept_bytes -= std::mem::take(&mut shipment.kept_bytes);
        if shipment.release(at.record) {
            self.end(at.shipment);
        }
    }

    /// As [`Self::release`], of emits that were refused.
    pub(crate) fn forget(&mut self, refused: Option<Box<RefusedEmits>>) {
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
#[path = "outbox_tests.rs"]
mod tests;
