//! What one call has emitted, or a dead letter, while it is with the producer or waits to be sent again.
//!
//! Its records are answered one by one. Some time after the call, the bytes of those that are over are freed although others wait,
//! and what waits longer is split off, so that it keeps nothing else of its call alive.

use std::sync::Arc;

use sluicegate_runtime::Emits;

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
    pub(super) emits: Emits,
    /// The record of each emit; empty if each has one.
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
}

impl Shipment {
    /// What a call has emitted, sorted by its records, of which the second part has the places in the call. Leaves `spare` to the
    /// call.
    pub(super) fn of(batch: &mut Batch, spare: Emits) -> (Self, Vec<u32>) {
        let emits = std::mem::replace(&mut batch.output.emits, spare);
        let mut records: Vec<ShippedRecord> = Vec::with_capacity(emits.len());
        let mut places: Vec<u32> = Vec::with_capacity(emits.len());
        for (place, of) in (0..).zip(emits.records()) {
            if places.last() != Some(&of) {
                places.push(of);
                let key = batch.keys.get(of as usize);
                let key = key.copied().unwrap_or(RecordId::NONE);
                records.push(ShippedRecord::new(key, place));
            }
            if let Some(record) = records.last_mut() {
                record.end = place + 1;
                record.unanswered += 1;
            }
        }
        let mut shipment = Self::new(batch.handler, emits, records, batch.emitted.take());
        for place in batch.unsent.drain(..) {
            if let Some(owner) = shipment.owner(place) {
                shipment.records[owner as usize].unanswered -= 1;
                shipment.unanswered -= 1;
            }
        }
        (shipment, places)
    }

    fn new(
        handler: HandlerIx,
        emits: Emits,
        records: Vec<ShippedRecord>,
        counts: Option<Arc<EmitCounts>>,
    ) -> Self {
        let places = records.last().map_or(0, |record| record.end as usize);
        let owners = match places == records.len() {
            true => Vec::new(),
            false => (0..)
                .zip(&records)
                .flat_map(|(owner, record)| (record.first..record.end).map(move |_| owner))
                .collect(),
        };
        Self {
            handler,
            acknowledged: vec![false; places],
            emits,
            owners,
            open: records.len() as u32,
            unanswered: records.iter().map(|record| record.unanswered).sum(),
            records,
            counts,
            ran_by: None,
            sent_ms: 0,
            kept_bytes: 0,
            uncounted: (0, 0),
        }
    }

    /// The record of an emit.
    fn owner(&self, place: u32) -> Option<u32> {
        match self.owners.is_empty() {
            true => ((place as usize) < self.records.len()).then_some(place),
            false => self.owners.get(place as usize).copied(),
        }
    }

    /// The dead letter of a record.
    pub(super) fn dead_letter(handler: HandlerIx, key: RecordId) -> Self {
        let mut record = ShippedRecord::new(key, 0);
        (record.end, record.unanswered) = (1, 1);
        Self::new(handler, Emits::default(), vec![record], None)
    }

    /// The emits of one record, which wait, apart from the others of its call.
    pub(super) fn split(&mut self, owner: u32) -> Self {
        let record = &mut self.records[owner as usize];
        debug_assert!(record.pending.is_none(), "its share would be lost");
        record.over = true;
        self.open -= 1;
        let (first, end) = (record.first, record.end);
        let mut record = ShippedRecord::new(record.key, 0);
        record.end = end - first;
        let (first, end) = (first as usize, end as usize);
        let (emits, counts) = (self.emits.part(first..end), self.counts.clone());
        Self {
            acknowledged: self.acknowledged[first..end].to_vec(),
            ..Self::new(self.handler, emits, vec![record], counts)
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
                Some(counts) => counts.shown(emit.to.topic),
                None => emit.to.topic.into(),
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
        }
        self.open == 0
    }

    /// Bytes that it takes in memory.
    pub(super) fn bytes(&self) -> u64 {
        let records = self.records.capacity() * size_of::<ShippedRecord>();
        (size_of::<Self>() + records + self.emits.held()) as u64
    }

    /// Frees the bytes of records that are over, if they are most of what the call has emitted.
    pub(super) fn compact(&mut self) {
        let is_open = |record: &&ShippedRecord| !record.over;
        let places = |record: &ShippedRecord| record.first as usize..record.end as usize;
        let open = self.records.iter().filter(is_open);
        let bytes: usize = open.map(|record| self.emits.bytes_of(places(record))).sum();
        if bytes * 2 < self.emits.buffered() {
            self.count();
            let (records, owners) = (&self.records, &self.owners);
            self.emits.compact(|place| {
                let owner = owners.get(place).map_or(place, |owner| *owner as usize);
                !records[owner].over
            });
        }
    }

    /// Counts what is acknowledged, by topic.
    pub(super) fn count(&mut self) {
        let (place, records) = std::mem::take(&mut self.uncounted);
        if records > 0
            && let Some(counts) = &self.counts
            && let Some(emit) = self.emits.get(place as usize)
        {
            counts.add(emit.to.topic, records);
        }
    }

    fn acknowledge(&mut self, place: u32) {
        if let Some(acknowledged) = self.acknowledged.get_mut(place as usize) {
            *acknowledged = true;
        }
        let (before, records) = self.uncounted;
        if records > 0 && !self.emits.same_topic(before as usize, place as usize) {
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
        let owner = self.owner(place)?;
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
