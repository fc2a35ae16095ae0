//! Storage of in-flight records: one entry per record, whatever the number of handlers that receive it.

use sluicegate_abi::lend::Lent;
use sluicegate_runtime::RawRecord;

use crate::dispatch::RecordId;
use crate::record::Record;
use crate::source::AssignmentId;

/// An in-flight record.
#[derive(Debug)]
pub(crate) struct RecordEntry<R: Record> {
    /// Its bytes, lent to the batches that contain it. The view that handlers get is built once, while the bytes are in
    /// the cache: later steps find everything here, and touch the client's memory again only to free it.
    record: Option<Lent<R>>,
    /// The assignment that delivered it.
    pub(crate) slot: AssignmentId,
    /// Hash of its key; 0 for a null key.
    pub(crate) key_hash: u64,
    /// Bytes charged to the budget.
    pub(crate) charge: u32,
    /// Handlers that have not settled it.
    pub(crate) unsettled: u16,
    /// Handlers that it was routed to.
    pub(crate) wanted: u16,
    /// It is settled or revoked, but a hung call may still read it: its bytes no longer count for its partition.
    pub(crate) stranded: bool,
    serial: u32,
    /// It was here at the last [`Slab::detach_waiting`].
    seen: bool,
}

impl<R: Record> RecordEntry<R> {
    /// Kafka offset.
    pub(crate) fn offset(&self) -> i64 {
        self.record.as_ref().map_or(-1, Lent::offset)
    }

    /// Kafka timestamp in milliseconds.
    pub(crate) fn timestamp_ms(&self) -> i64 {
        self.record.as_ref().map_or(-1, Lent::timestamp_ms)
    }

    /// Its bytes.
    pub(crate) fn lease(&self) -> Option<&R> {
        self.record.as_ref().map(Lent::bytes)
    }

    /// Whether a batch contains it.
    pub(crate) fn is_lent(&self) -> bool {
        self.record.as_ref().is_some_and(Lent::is_lent)
    }

    /// Lends it to a batch.
    pub(crate) fn lend(&mut self, lane: u64, attempt: u32) -> Option<RawRecord> {
        let record = self.record.as_mut()?;
        Some(record.lend(lane, attempt))
    }

    /// Returns what was lent to a batch.
    pub(crate) fn return_record(&mut self, record: RawRecord) {
        if let Some(lent) = &mut self.record {
            lent.return_view(record);
        }
    }

    /// Copies the bytes out of the client's memory, unless a batch points into it.
    pub(crate) fn detach(&mut self) {
        if let Some(record) = &mut self.record
            && record.bytes().pins_client_memory()
        {
            record.exchange(R::detach);
        }
    }
}

/// Number of records of which the pinned memory is read at once: what they share is not in the cache.
const SAMPLE: usize = 256;
/// Number of places among which they are searched.
const MOST_PLACES: usize = 4 * 1024;

/// All entries of a pump.
pub(crate) struct Slab<R: Record> {
    entries: Vec<RecordEntry<R>>,
    spare: Vec<u32>,
    live: usize,
    /// New records are copied out of the client's memory.
    copies_new: bool,
}

impl<R: Record> Default for Slab<R> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            spare: Vec::new(),
            live: 0,
            copies_new: false,
        }
    }
}

impl<R: Record> Slab<R> {
    /// Number of entries in use.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Adds a record.
    // Inlined, so that the entry is built where it is kept and not copied there.
    #[inline(always)]
    pub(crate) fn insert(&mut self, new: NewRecord<R>) -> RecordId {
        self.live += 1;
        let NewRecord {
            mut record,
            slot,
            key_hash,
            charge,
            handlers,
        } = new;
        if self.copies_new && record.bytes().pins_client_memory() {
            record.exchange(R::detach);
        }
        if let Some(index) = self.spare.pop() {
            let entry = &mut self.entries[index as usize];
            entry.record = Some(record);
            entry.slot = slot;
            entry.key_hash = key_hash;
            entry.charge = charge;
            entry.unsettled = handlers;
            entry.wanted = handlers;
            entry.stranded = false;
            entry.seen = false;
            return RecordId {
                index,
                serial: entry.serial,
            };
        }
        self.entries.push(RecordEntry {
            record: Some(record),
            slot,
            key_hash,
            charge,
            unsettled: handlers,
            wanted: handlers,
            stranded: false,
            serial: 1,
            seen: false,
        });
        RecordId {
            index: (self.entries.len() - 1) as u32,
            serial: 1,
        }
    }

    /// The entry, if it still exists.
    pub(crate) fn get(&self, key: RecordId) -> Option<&RecordEntry<R>> {
        self.entries
            .get(key.index as usize)
            .filter(|entry| entry.serial == key.serial && entry.record.is_some())
    }

    /// The entry, if it still exists.
    pub(crate) fn get_mut(&mut self, key: RecordId) -> Option<&mut RecordEntry<R>> {
        self.entries
            .get_mut(key.index as usize)
            .filter(|entry| entry.serial == key.serial && entry.record.is_some())
    }

    /// Prefetches the client's memory of a record, which [`Slab::remove`] will touch.
    pub(crate) fn prefetch(&self, key: RecordId) {
        if let Some(lease) = self
            .entries
            .get(key.index as usize)
            .and_then(RecordEntry::lease)
        {
            lease.prefetch();
        }
    }

    /// Frees the entry and its bytes.
    pub(crate) fn remove(&mut self, key: RecordId) {
        let entry = &mut self.entries[key.index as usize];
        debug_assert!(
            entry.serial == key.serial && entry.record.is_some(),
            "the entry is freed twice"
        );
        entry.record = None;
        entry.serial = entry.serial.wrapping_add(1);
        self.spare.push(key.index);
        self.live -= 1;
    }

    /// Whether new records are copied out of the client's memory.
    pub(crate) fn copies_new(&self) -> bool {
        self.copies_new
    }

    /// Whether to copy new records out of the client's memory from now on: calls keep too much of it alive.
    pub(crate) fn copy_new(&mut self, copies_new: bool) {
        self.copies_new = copies_new;
    }

    /// Bytes that the records keep alive. Of many records it is an estimate, from a sample that `first` selects.
    pub(crate) fn pinned_bytes(&self, first: usize) -> u64 {
        let by_places = self.entries.len().div_ceil(MOST_PLACES);
        let step = by_places.max(self.live / SAMPLE).max(1);
        let sampled = self.entries.iter().skip(first % step).step_by(step);
        let shares = sampled
            .filter_map(RecordEntry::lease)
            .map(Record::pinned_bytes);
        (shares.sum::<usize>() * step) as u64
    }

    /// Lets the next copying take all records that no batch has for waiting ones.
    pub(crate) fn all_wait(&mut self) {
        for entry in &mut self.entries {
            entry.seen = true;
        }
    }

    /// Copies the records that no batch has and that were here at the last call already: they wait, and would each keep a
    /// whole fetch buffer alive.
    pub(crate) fn detach_waiting(&mut self) {
        let held = self
            .entries
            .iter_mut()
            .filter(|entry| entry.record.is_some());
        // Not to the end of what a burst once needed.
        for entry in held.take(self.live) {
            if std::mem::replace(&mut entry.seen, true) {
                entry.detach();
            }
        }
    }

    /// Whether a record was here at the last [`Self::detach_waiting`], and keeps client memory alive.
    pub(crate) fn is_to_detach(&self, key: RecordId) -> bool {
        let entry = self.get(key);
        entry.is_some_and(|entry| {
            entry.seen && entry.lease().is_some_and(Record::pins_client_memory)
        })
    }

    /// Copies a record that an unsubmitted batch has, if it was here at the last [`Self::detach_waiting`]. Takes and returns its
    /// view.
    pub(crate) fn detach_queued(&mut self, key: RecordId, view: RawRecord) -> RawRecord {
        let is_to_detach = self.is_to_detach(key);
        let Some(entry) = self.get_mut(key).filter(|_| is_to_detach) else {
            return view;
        };
        let (lane, attempt) = (view.lane, view.attempt);
        entry.return_record(view);
        entry.detach();
        entry.lend(lane, attempt).expect("its bytes are held")
    }

    /// Records lent to a batch: they stay in memory if they are not returned before the slab is dropped.
    pub(crate) fn lent(&self) -> impl Iterator<Item = &RecordEntry<R>> {
        self.entries.iter().filter(|entry| entry.is_lent())
    }

    /// Every live entry.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RecordId, &RecordEntry<R>)> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.record.is_some())
            .map(|(index, entry)| {
                (
                    RecordId {
                        index: index as u32,
                        serial: entry.serial,
                    },
                    entry,
                )
            })
    }
}

/// Initial values of an entry.
#[derive(Debug)]
pub(crate) struct NewRecord<R: Record> {
    /// Its bytes.
    pub(crate) record: Lent<R>,
    /// The assignment that delivered it.
    pub(crate) slot: AssignmentId,
    /// Hash of its key; 0 for a null key.
    pub(crate) key_hash: u64,
    /// Bytes charged to the budget.
    pub(crate) charge: u32,
    /// Number of handlers that it is routed to.
    pub(crate) handlers: u16,
}
