//! The records under way: one entry a record, whatever the number of handlers that want it.

use sluicegate_abi::lend::Lent;
use sluicegate_runtime::RawRecord;

use crate::dispatch::EntryKey;
use crate::source::{AssignmentId, RecordBuf};

/// A record under way.
#[derive(Debug)]
pub struct Entry {
    /// Its bytes, lent to the batches that have it. What handlers get of it is made once, while the bytes are in the
    /// cache: later steps find everything here, and touch the client's memory again only to free it.
    record: Option<Lent<RecordBuf>>,
    /// The assignment that it came in.
    pub slot: AssignmentId,
    /// Hash of its key; 0 for a null key.
    pub key_hash: u64,
    /// What it is charged with, in bytes.
    pub charge: u32,
    /// Handlers that have not settled it.
    pub unsettled: u16,
    /// Handlers that wanted it.
    pub wanted: u16,
    /// Nobody waits for it any more, but a call that hangs may still read it: its bytes are no longer its partition's.
    pub stranded: bool,
    serial: u32,
}

impl Entry {
    /// Kafka offset.
    pub fn offset(&self) -> i64 {
        self.record.as_ref().map_or(-1, Lent::offset)
    }

    /// Kafka timestamp in milliseconds.
    pub fn timestamp_ms(&self) -> i64 {
        self.record.as_ref().map_or(-1, Lent::timestamp_ms)
    }

    /// Its bytes.
    pub fn lease(&self) -> Option<&RecordBuf> {
        self.record.as_ref().map(Lent::bytes)
    }

    /// Whether a batch has it.
    pub fn is_lent(&self) -> bool {
        self.record.as_ref().is_some_and(Lent::is_lent)
    }

    /// What a batch gets of it.
    pub fn lend(&mut self, lane: u64, attempt: u32) -> Option<RawRecord> {
        let record = self.record.as_mut()?;
        Some(record.lend(lane, attempt))
    }

    /// Takes back what a batch had of it.
    pub fn give_back(&mut self, record: RawRecord) {
        if let Some(lent) = &mut self.record {
            lent.give_back(record);
        }
    }

    /// Copies the bytes out of the client's memory, unless a batch points into it.
    pub fn detach(&mut self) {
        if let Some(record) = &mut self.record
            && record.bytes().pins_client_memory()
        {
            record.exchange(RecordBuf::detach);
        }
    }
}

/// All entries of a pump.
#[derive(Default)]
pub struct Slab {
    entries: Vec<Entry>,
    spare: Vec<u32>,
    live: usize,
}

impl Slab {
    /// Number of entries in use.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Adds a record.
    pub fn insert(&mut self, new: NewEntry) -> EntryKey {
        self.live += 1;
        let NewEntry {
            record,
            slot,
            key_hash,
            charge,
            handlers,
        } = new;
        if let Some(index) = self.spare.pop() {
            let entry = &mut self.entries[index as usize];
            let serial = entry.serial;
            *entry = Entry {
                record: Some(record),
                slot,
                key_hash,
                charge,
                unsettled: handlers,
                wanted: handlers,
                stranded: false,
                serial,
            };
            return EntryKey { index, serial };
        }
        self.entries.push(Entry {
            record: Some(record),
            slot,
            key_hash,
            charge,
            unsettled: handlers,
            wanted: handlers,
            stranded: false,
            serial: 1,
        });
        EntryKey {
            index: (self.entries.len() - 1) as u32,
            serial: 1,
        }
    }

    /// The entry, unless it is gone.
    pub fn get(&self, key: EntryKey) -> Option<&Entry> {
        self.entries
            .get(key.index as usize)
            .filter(|entry| entry.serial == key.serial && entry.record.is_some())
    }

    /// The entry, unless it is gone.
    pub fn get_mut(&mut self, key: EntryKey) -> Option<&mut Entry> {
        self.entries
            .get_mut(key.index as usize)
            .filter(|entry| entry.serial == key.serial && entry.record.is_some())
    }

    /// Brings the client's memory of a record near, which [`Slab::remove`] will touch.
    pub fn prefetch(&self, key: EntryKey) {
        if let Some(lease) = self.entries.get(key.index as usize).and_then(Entry::lease) {
            lease.prefetch();
        }
    }

    /// Frees the entry and its bytes.
    pub fn remove(&mut self, key: EntryKey) {
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

    /// Records that some batch has: they stay in memory if nobody gives them back before the slab ends.
    pub fn lent(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_lent())
    }

    /// Every live entry.
    pub fn iter(&self) -> impl Iterator<Item = (EntryKey, &Entry)> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.record.is_some())
            .map(|(index, entry)| {
                (
                    EntryKey {
                        index: index as u32,
                        serial: entry.serial,
                    },
                    entry,
                )
            })
    }
}

/// What a new entry starts with.
#[derive(Debug)]
pub struct NewEntry {
    /// Its bytes.
    pub record: Lent<RecordBuf>,
    /// The assignment that it came in.
    pub slot: AssignmentId,
    /// Hash of its key; 0 for a null key.
    pub key_hash: u64,
    /// What it is charged with, in bytes.
    pub charge: u32,
    /// How many handlers want it.
    pub handlers: u16,
}
