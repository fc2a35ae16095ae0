//! What one call has emitted, or a dead letter, while it is with the producer or waits to be sent again.
//!
//! Its records are answered one by one. The bytes of those that are over are freed although others of the call wait, and what waits
//! longer is split off, so that it keeps nothing else of its call alive.

use std::sync::Arc;

use sluicegate_runtime::Emit;

use super::counts::EmitCounts;
use super::delivery::Delivery;
use super::failure::EmitFailure;
use crate::dispatch::{Batch, HandlerIx, RecordId};
use crate::queue::GenerationId;

/// A record in a shipment: one whose emits are shipped, or whose dead letter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShippedAt {
    pub(super) shipment: u32,
    pub(super) record: u32,
}

/// Emits of which not everything is acknowledged; none of them is with the producer any more.
#[derive(Debug)]
pub(crate) struct RefusedEmits {
    /// Where they are kept.
    pub(crate) at: ShippedAt,
    /// The failure with the highest precedence.
    pub(crate) failure: EmitFailure,
}

/// A share that waits for nothing but the acknowledgement of its emits, and those before it in its lane: a first attempt that
/// succeeded. Nearly all that emit are this, so that nothing else is written down about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Its lane, 0 for none.
    pub(crate) lane: u64,
    /// Its number in the chain of its lane, if it has one.
    pub(crate) number: u64,
    /// It is dropped, not acknowledged.
    pub(crate) is_dropped: bool,
}

/// A record of which all that was sent is answered.
pub(crate) struct Answered {
    /// The handler that emitted.
    pub(crate) handler: HandlerIx,
    /// The record.
    pub(crate) key: RecordId,
    /// Where its emits are.
    pub(crate) at: ShippedAt,
    /// Its share, if nothing else is written down about it.
    pub(crate) pending: Option<Pending>,
    /// What is not acknowledged.
    pub(crate) refused: Option<Box<RefusedEmits>>,
}

/// The emits of one record of a call, or its dead letter.
pub(super) struct ShippedRecord {
    pub(super) key: RecordId,
    /// Places of its emits in the shipment.
    pub(super) first: u32,
    pub(super) end: u32,
    /// Sent and not answered.
    pub(super) unanswered: u32,
    /// The first refused place, and the failure with the highest precedence.
    refused: Option<Box<(u32, EmitFailure)>>,
    /// Nothing waits for it any more.
    pub(super) released: bool,
    /// It is answered, and not sent again.
    pub(super) over: bool,
    /// Its share, if nothing else is written down about it.
    pub(super) pending: Option<Pending>,
}

/// What one call has emitted, or the dead letter of a record.
pub(super) struct Shipment {
    pub(super) handler: HandlerIx,
    /// Empty for a dead letter, which is built from its record.
    pub(super) emits: Vec<Emit>,
    /// The record of each emit.
    owners: Vec<u32>,
    /// Which emits are acknowledged.
    pub(super) acknowledged: Vec<bool>,
    pub(super) records: Vec<ShippedRecord>,
    counts: Option<Arc<EmitCounts>>,
    /// What ran the call; `None` for a dead letter, or if nothing counts any more.
    pub(super) ran_by: Option<Arc<GenerationId>>,
    /// When it was sent, or some of it again, on the flow's clock.
    pub(super) sent_ms: u64,
    /// Sent and not answered.
    pub(super) unanswered: u32,
    /// Its bytes, if it is of one record that is kept apart.
    pub(super) kept_bytes: u64,
    /// Records that are not over.
    pub(super) open: u32,
    /// Acknowledged and not counted yet: the place of one, and their number; all have the same topic.
    uncounted: (u32, u64),
    /// Records that are over, and whose bytes are not freed yet.
    ended: Vec<u32>,
}

impl Shipment {
    /// What a call has emitted, sorted by its records, of which the second part has the places in the call.
    pub(super) fn of(batch: &mut Batch) -> (Self, Vec<u32>) {
        let emits = std::mem::take(&mut batch.output.emits);
        let mut owners = Vec::with_capacity(emits.len());
        let mut records: Vec<ShippedRecord> = Vec::new();
        let mut places: Vec<u32> = Vec::new();
        for (place, emit) in emits.iter().enumerate() {
            let place = place as u32;
            if places.last() != Some(&emit.record) {
                places.push(emit.record);
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
        let counts = batch.emitted.take();
        let shipment = Self::new(batch.handler, emits, owners, records, counts);
        (shipment, places)
    }

    fn new(
        handler: HandlerIx,
        emits: Vec<Emit>,
        owners: Vec<u32>,
        records: Vec<ShippedRecord>,
        counts: Option<Arc<EmitCounts>>,
    ) -> Self {
        let unanswered = records.iter().map(|record| record.unanswered).sum();
        Self {
            handler,
            acknowledged: vec![false; owners.len()],
            emits,
            owners,
            open: records.len() as u32,
            records,
            counts,
            ran_by: None,
            sent_ms: 0,
            unanswered,
            kept_bytes: 0,
            uncounted: (0, 0),
            ended: Vec::new(),
        }
    }

    /// The dead letter of a record.
    pub(super) fn dead_letter(handler: HandlerIx, key: RecordId) -> Self {
        let mut record = ShippedRecord::new(key, 0);
        (record.end, record.unanswered) = (1, 1);
        Self::new(handler, Vec::new(), vec![0], vec![record], None)
    }

    /// The emits of one record, which wait, apart from the others of its call.
    pub(super) fn split(&mut self, owner: u32) -> Self {
        let record = &mut self.records[owner as usize];
        debug_assert!(record.pending.is_none(), "its share would be lost");
        record.over = true;
        self.open -= 1;
        let (first, end) = (record.first, record.end);
        let key = record.key;
        let emits = &mut self.emits[first as usize..end as usize];
        let emits: Vec<Emit> = emits.iter_mut().map(take_emit).collect();
        let mut record = ShippedRecord::new(key, 0);
        record.end = end - first;
        let (owners, counts) = (vec![0; emits.len()], self.counts.clone());
        Self {
            acknowledged: self.acknowledged[first as usize..end as usize].to_vec(),
            ..Self::new(self.handler, emits, owners, vec![record], counts)
        }
    }

    /// The topics of a record's emits that are not acknowledged, as shown to operators.
    pub(super) fn unacknowledged_topics(&self, record: u32) -> Vec<Arc<str>> {
        let record = self.records.get(record as usize);
        let places = record.map_or(0..0, |record| record.first as usize..record.end as usize);
        let unacknowledged = places.filter(|place| !self.acknowledged[*place]);
        let emits = unacknowledged.filter_map(|place| self.emits.get(place));
        let mut topics: Vec<Arc<str>> = emits
            .map(|emit| match &self.counts {
                Some(counts) => counts.shown(&emit.topic),
                None => emit.topic.as_str().into(),
            })
            .collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// Nothing waits for a record any more. Returns whether that holds for all of them.
    pub(super) fn release(&mut self, record: u32) -> bool {
        let released = &mut self.records[record as usize];
        released.released = true;
        released.pending = None;
        if released.unanswered == 0 && !std::mem::replace(&mut released.over, true) {
            self.open -= 1;
            if self.open > 0 {
                self.count();
                self.free(record);
            }
        }
        self.open == 0
    }

    /// Bytes of a record's emits.
    pub(super) fn bytes(&self, record: u32) -> u64 {
        let bytes_of = |emit: &Emit| {
            let optional = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
            let all = emit.topic.len() + optional(&emit.key) + optional(&emit.value);
            (all + emit.headers.len() + size_of::<Emit>()) as u64
        };
        let record = &self.records[record as usize];
        let emits = self.emits.get(record.first as usize..record.end as usize);
        emits.unwrap_or_default().iter().map(bytes_of).sum()
    }

    /// Counts what is acknowledged, and frees the bytes of records that are over.
    pub(super) fn tidy_up(&mut self) {
        self.count();
        while let Some(owner) = self.ended.pop() {
            self.free(owner);
        }
    }

    /// Frees the bytes of a record.
    fn free(&mut self, owner: u32) {
        let record = &self.records[owner as usize];
        let emits = self
            .emits
            .get_mut(record.first as usize..record.end as usize);
        emits
            .unwrap_or_default()
            .iter_mut()
            .for_each(|emit| drop(take_emit(emit)));
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

    fn acknowledge(&mut self, place: u32) {
        if let Some(acknowledged) = self.acknowledged.get_mut(place as usize) {
            *acknowledged = true;
        }
        let topic = |place: u32| self.emits.get(place as usize).map(|emit| &*emit.topic);
        if self.uncounted.1 > 0 && topic(self.uncounted.0) != topic(place) {
            self.count();
        }
        self.uncounted = (place, self.uncounted.1 + 1);
    }

    fn refuse(&mut self, owner: u32, place: u32, mut failure: EmitFailure) {
        // Redacted here rather than where it is shown: it goes to the log, reports, `explain` and headers of dead letters.
        if let Some(counts) = &self.counts {
            failure.topic = counts.shown(&failure.topic);
        }
        let refused = &mut self.records[owner as usize].refused;
        let Some(refused) = refused else {
            *refused = Some(Box::new((place, failure)));
            return;
        };
        let (first, before) = &mut **refused;
        // Of failures with equal precedence, the first record's is reported.
        if failure.kind > before.kind || (failure.kind == before.kind && place < *first) {
            *before = failure;
        }
        *first = place.min(*first);
    }

    /// Handles an answer. Returns the record that waits for no other answer then.
    pub(super) fn answer(&mut self, number: u32, delivery: Delivery) -> Option<Answered> {
        let place = delivery.token.place();
        let owner = *self.owners.get(place as usize)?;
        match delivery.failure {
            None => self.acknowledge(place),
            Some(failure) => self.refuse(owner, place, *failure),
        }
        self.unanswered = self.unanswered.saturating_sub(1);
        let is_letter = self.emits.is_empty();
        let record = &mut self.records[owner as usize];
        debug_assert!(record.unanswered > 0, "a token is answered twice");
        record.unanswered = record.unanswered.saturating_sub(1);
        if record.unanswered > 0 {
            return None;
        }
        let refused = record.refused.take();
        // A letter is built again from its record.
        if is_letter || record.released {
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
            at,
            pending: record.pending,
            refused: refused.map(|refused| {
                let (_, failure) = *refused;
                Box::new(RefusedEmits { at, failure })
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
            pending: None,
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
