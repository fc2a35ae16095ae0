//! The records under way: one entry a record, whatever the number of handlers that want it.

use sluicegate_runtime::RawRecord;

use crate::dispatch::EntryKey;
use crate::source::{Lease, Slot};

/// A record under way.
#[derive(Debug)]
pub struct Entry {
    /// Its bytes.
    pub lease: Option<Lease>,
    /// What handlers get of it, pointing into the lease. Made once, while the bytes are in the cache: later steps find
    /// everything here, and touch the client's memory again only to free it.
    pub view: RawRecord,
    /// The assignment that it came in.
    pub slot: Slot,
    /// Hash of its key; 0 for a null key.
    pub key_hash: u64,
    /// What it is charged with, in bytes.
    pub charge: u32,
    /// Handlers that have not settled it.
    pub unsettled: u16,
    /// Handlers that wanted it.
    pub wanted: u16,
    /// Batches that point into its bytes.
    pub pins: u16,
    serial: u32,
}

impl Entry {
    /// Kafka offset.
    pub fn offset(&self) -> i64 {
        self.view.offset
    }

    /// Kafka timestamp in milliseconds.
    pub fn timestamp_ms(&self) -> i64 {
        self.view.timestamp_ms
    }

    /// Copies the bytes out of the client's memory, unless a batch points into it.
    pub fn detach(&mut self) {
        let Some(lease) = &self.lease else { return };
        if self.pins > 0 || !lease.pins_client_memory() {
            return;
        }
        let copy = lease.detach();
        let RawRecord {
            key,
            value,
            headers,
            ..
        } = copy.view();
        self.view = RawRecord {
            key,
            value,
            headers,
            ..self.view
        };
        self.lease = Some(copy);
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
            lease,
            view,
            slot,
            key_hash,
            charge,
            handlers,
        } = new;
        if let Some(index) = self.spare.pop() {
            let entry = &mut self.entries[index as usize];
            let serial = entry.serial;
            *entry = Entry {
                lease: Some(lease),
                view,
                slot,
                key_hash,
                charge,
                unsettled: handlers,
                wanted: handlers,
                pins: 0,
                serial,
            };
            return EntryKey { index, serial };
        }
        self.entries.push(Entry {
            lease: Some(lease),
            view,
            slot,
            key_hash,
            charge,
            unsettled: handlers,
            wanted: handlers,
            pins: 0,
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
            .filter(|entry| entry.serial == key.serial && entry.lease.is_some())
    }

    /// The entry, unless it is gone.
    pub fn get_mut(&mut self, key: EntryKey) -> Option<&mut Entry> {
        self.entries
            .get_mut(key.index as usize)
            .filter(|entry| entry.serial == key.serial && entry.lease.is_some())
    }

    /// Brings the client's memory of a record near, which [`Slab::remove`] will touch.
    pub fn prefetch(&self, key: EntryKey) {
        if let Some(Entry {
            lease: Some(lease), ..
        }) = self.entries.get(key.index as usize)
        {
            lease.prefetch();
        }
    }

    /// Frees the entry and its bytes.
    pub fn remove(&mut self, key: EntryKey) {
        let entry = &mut self.entries[key.index as usize];
        debug_assert!(
            entry.serial == key.serial && entry.lease.is_some(),
            "the entry is freed twice"
        );
        entry.lease = None;
        entry.serial = entry.serial.wrapping_add(1);
        self.spare.push(key.index);
        self.live -= 1;
    }

    /// Every live entry.
    pub fn iter(&self) -> impl Iterator<Item = (EntryKey, &Entry)> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.lease.is_some())
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
    pub lease: Lease,
    /// What handlers get of it.
    pub view: RawRecord,
    /// The assignment that it came in.
    pub slot: Slot,
    /// Hash of its key; 0 for a null key.
    pub key_hash: u64,
    /// What it is charged with, in bytes.
    pub charge: u32,
    /// How many handlers want it.
    pub handlers: u16,
}
