//! Records whose memory is lent to calls.
//!
//! ```text
//!  Lent::new(bytes) ── lend ──► RawRecord ─► batch ─► call ─► batch ── return_view ──► none out: the bytes can be freed
//!                                                      │ hangs; the lender is dropped
//!                                                      └──► the bytes are leaked
//! ```
//!
//! A call can outlive its caller: it hangs, its thread is abandoned, and the pump that holds the record ends. It has no
//! shared reference count; a record that is lent when its owner is dropped is leaked. The leak is bounded by the records in
//! flight.

use std::fmt;
use std::mem::ManuallyDrop;

use crate::record::{Parts, RawRecord, RecordPlace, TopicName, record_flag};

/// Owns a record's key, value and headers.
///
/// # Safety
/// The returned parts stay at the same address, readable and unchanged, until the value is dropped, even if it is moved.
pub unsafe trait RecordBytes {
    /// Key, value and header block (see [`crate::header_block`]).
    fn parts(&self) -> Parts<'_>;
}

/// A record in memory of its own, such as a copy that keeps no fetch buffer alive.
///
/// As large as a pointer: a pump keeps one per record.
#[derive(Debug)]
pub struct OwnedRecord(Box<OwnedParts>);

#[derive(Debug)]
struct OwnedParts {
    key: Option<Box<[u8]>>,
    value: Option<Box<[u8]>>,
    headers: Box<[u8]>,
}

impl OwnedRecord {
    /// Copies the given bytes. `headers` is a header block (see [`crate::header_block`]), empty for none.
    pub fn new(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[u8]) -> Self {
        Self(Box::new(OwnedParts {
            key: key.map(Into::into),
            value: value.map(Into::into),
            headers: headers.into(),
        }))
    }

    /// Key; `None` means null.
    pub fn key(&self) -> Option<&[u8]> {
        self.0.key.as_deref()
    }

    /// Value; `None` means a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        self.0.value.as_deref()
    }

    /// Header block; empty means none.
    pub fn headers(&self) -> &[u8] {
        &self.0.headers
    }
}

// SAFETY: the parts lie behind boxes that are boxed themselves, whose memory stays where it is when the record is moved.
// Nothing writes to them before the drop.
unsafe impl RecordBytes for OwnedRecord {
    fn parts(&self) -> Parts<'_> {
        (self.key(), self.value(), self.headers())
    }
}

/// In debug builds, freed bytes are overwritten first, so that a read after free is noticed.
#[cfg(debug_assertions)]
impl Drop for OwnedParts {
    fn drop(&mut self) {
        let parts = [self.key.as_deref_mut(), self.value.as_deref_mut()];
        for part in parts.into_iter().flatten().chain([&mut *self.headers]) {
            part.fill(0xdd);
        }
    }
}

/// A record, and the number of its outstanding views.
pub struct Lent<B: RecordBytes> {
    bytes: ManuallyDrop<B>,
    /// Points into the bytes. Created once, while they are in the CPU cache.
    view: RawRecord,
    out: u16,
}

impl<B: RecordBytes> Lent<B> {
    /// A record without outstanding views. The topic's name must outlive every call.
    ///
    /// # Panics
    /// When a part is 4 GiB or longer, which Kafka rules out.
    #[inline]
    pub fn new(bytes: B, place: RecordPlace<'static>) -> Self {
        let parts = bytes.parts();
        // SAFETY: the bytes stay where they are as long as `B` lives. It lives in `Self` until that is dropped, and
        // longer if a view made of this one is still out then.
        let view = unsafe { RawRecord::new(place, parts) };
        Self {
            bytes: ManuallyDrop::new(bytes),
            view,
            out: 0,
        }
    }

    /// Its bytes.
    #[inline]
    pub fn bytes(&self) -> &B {
        &self.bytes
    }

    /// Kafka offset.
    #[inline]
    pub fn offset(&self) -> i64 {
        self.view.offset
    }

    /// Kafka timestamp in milliseconds.
    #[inline]
    pub fn timestamp_ms(&self) -> i64 {
        self.view.timestamp_ms
    }

    /// Bytes of key, value and headers.
    #[inline]
    pub fn size(&self) -> usize {
        self.view.key_len as usize + self.view.value_len as usize + self.view.headers_len as usize
    }

    /// Whether a view is outstanding.
    #[inline]
    pub fn is_lent(&self) -> bool {
        self.out > 0
    }

    /// Lends a view for one call. A view that is never returned leaks the bytes.
    ///
    /// # Panics
    /// When 65,535 views are outstanding.
    #[inline]
    pub fn lend(&mut self, lane: u64, attempt: u32) -> RawRecord {
        self.out = self
            .out
            .checked_add(1)
            .expect("a record has fewer than 65,536 handlers");
        // SAFETY: the bytes are neither dropped nor exchanged while a view is outstanding, and only returning the view
        // itself decrements the count.
        unsafe { self.view.another(lane, attempt) }
    }

    /// Returns a view.
    ///
    /// # Panics
    /// When it is the view of another record.
    #[inline]
    pub fn return_view(&mut self, view: RawRecord) {
        assert!(
            self.out > 0 && self.view.is_of(&view),
            "a view must be returned to the record that lent it"
        );
        self.out -= 1;
    }

    /// Moves the record to other memory, created by `copy`. Returns `false` without effect while a view is outstanding.
    ///
    /// # Panics
    /// As [`Lent::new`].
    pub fn exchange(&mut self, copy: impl FnOnce(&B) -> B) -> bool {
        if self.is_lent() {
            return false;
        }
        let bytes = copy(&self.bytes);
        let parts = bytes.parts();
        let place = RecordPlace {
            topic: TopicName::plain(""),
            partition: self.view.partition,
            offset: self.view.offset,
            timestamp_ms: self.view.timestamp_ms,
            epoch: self.view.epoch,
            fence: None,
        };
        // SAFETY: as in `new`.
        let view = unsafe { RawRecord::new(place, parts) };
        self.view = RawRecord {
            topic: self.view.topic,
            topic_len: self.view.topic_len,
            fence: self.view.fence,
            flags: view.flags | (self.view.flags & record_flag::TOPIC_ID),
            ..view
        };
        let old = std::mem::replace(&mut self.bytes, ManuallyDrop::new(bytes));
        drop(ManuallyDrop::into_inner(old));
        true
    }
}

impl<B: RecordBytes> Drop for Lent<B> {
    fn drop(&mut self) {
        if self.out == 0 {
            // SAFETY: dropped once, here; no view is outstanding.
            unsafe { ManuallyDrop::drop(&mut self.bytes) }
        }
    }
}

impl<B: RecordBytes> fmt::Debug for Lent<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent")
            .field("offset", &self.view.offset)
            .field("out", &self.out)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::{Lent, RecordBytes};
    use crate::record::{Parts, RawRecord, RecordPlace, TopicName};

    struct Bytes {
        key: Vec<u8>,
        dropped: Rc<Cell<u32>>,
    }

    // SAFETY: a vector's memory stays where it is when the vector is moved.
    unsafe impl RecordBytes for Bytes {
        fn parts(&self) -> Parts<'_> {
            (Some(&self.key), None, &[])
        }
    }

    impl Drop for Bytes {
        fn drop(&mut self) {
            self.dropped.set(self.dropped.get() + 1);
        }
    }

    fn lent(dropped: &Rc<Cell<u32>>, key: &[u8]) -> Lent<Bytes> {
        let place = RecordPlace {
            topic: TopicName::plain("t"),
            partition: 3,
            offset: 7,
            timestamp_ms: 9,
            epoch: 2,
            fence: None,
        };
        let bytes = Bytes {
            key: key.to_vec(),
            dropped: Rc::clone(dropped),
        };
        Lent::new(bytes, place)
    }

    fn reads(view: &RawRecord, key: &[u8]) {
        let read = view.view();
        assert_eq!(
            (read.topic(), read.key(), read.value()),
            ("t", Some(key), None)
        );
        assert_eq!((view.partition, view.offset, view.epoch), (3, 7, 2));
    }

    #[test]
    fn a_record_lent_when_its_owner_is_dropped_stays_readable() {
        let dropped = Rc::default();
        let mut owner = vec![lent(&dropped, b"first"), lent(&dropped, b"second")];
        let view = owner[1].lend(5, 2);
        owner.insert(0, lent(&dropped, b"moves the others"));
        drop(owner);
        assert_eq!(dropped.get(), 2);
        reads(&view, b"second");
        assert_eq!((view.lane, view.attempt), (5, 2));
    }

    #[test]
    fn a_record_is_freed_once_every_view_is_returned() {
        let dropped = Rc::default();
        let mut record = lent(&dropped, b"k");
        let (one, other) = (record.lend(0, 1), record.lend(0, 1));
        record.return_view(one);
        assert!(record.is_lent());
        reads(&other, b"k");
        record.return_view(other);
        assert!(!record.is_lent());
        drop(record);
        assert_eq!(dropped.get(), 1);
    }

    #[test]
    fn bytes_are_exchanged_only_without_outstanding_views() {
        let dropped = Rc::default();
        let mut record = lent(&dropped, b"old");
        let copy = |bytes: &Bytes| Bytes {
            key: bytes.key.clone(),
            dropped: Rc::clone(&dropped),
        };
        let view = record.lend(0, 1);
        assert!(!record.exchange(copy));
        reads(&view, b"old");
        record.return_view(view);
        assert!(record.exchange(copy));
        assert_eq!(dropped.get(), 1);
        reads(&record.lend(0, 1), b"old");
    }

    #[test]
    #[should_panic(expected = "the record that lent it")]
    fn a_view_cannot_be_returned_to_another_record() {
        let dropped = Rc::default();
        let (mut one, mut other) = (lent(&dropped, b"k"), lent(&dropped, b"k"));
        let _out = other.lend(0, 1);
        other.return_view(one.lend(0, 1));
    }
}
