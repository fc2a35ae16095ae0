//! Finds the headers that a plan needs among those of a record, by length and first bytes.

/// A table of the header names that a plan needs.
pub(super) struct Names {
    /// Power-of-two open addressing; `None` ends a probe.
    places: Box<[Option<Name>]>,
    /// Bit `min(len, 63)` is set for each length that occurs, so that most other names cost a single test.
    lengths: u64,
}

struct Name {
    head: u64,
    bytes: Box<[u8]>,
    /// Index of the name, in the given order.
    ordinal: u32,
}

impl Names {
    /// A table of `names`, which are distinct.
    pub(super) fn new<'a>(names: impl ExactSizeIterator<Item = &'a [u8]>) -> Self {
        let size = (names.len() * 2).next_power_of_two().max(2);
        let mut places: Vec<Option<Name>> = Vec::new();
        places.resize_with(size, || None);
        let mut lengths = 0;
        for (ordinal, bytes) in names.enumerate() {
            lengths |= length_bit(bytes);
            let head = head(bytes);
            let mut at = start(head, bytes.len(), size);
            while places[at].is_some() {
                at = (at + 1) & (size - 1);
            }
            places[at] = Some(Name {
                head,
                bytes: bytes.into(),
                ordinal: ordinal as u32,
            });
        }
        Self {
            places: places.into(),
            lengths,
        }
    }

    /// The index of the name `bytes`.
    #[inline]
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        if self.lengths & length_bit(bytes) == 0 {
            return None;
        }
        let head = head(bytes);
        let mut at = start(head, bytes.len(), self.places.len());
        loop {
            let name = self.places[at].as_ref()?;
            // For names up to eight bytes the head is the whole name.
            let same_rest = bytes.len() <= 8 || *name.bytes == *bytes;
            if name.head == head && name.bytes.len() == bytes.len() && same_rest {
                return Some(name.ordinal);
            }
            at = (at + 1) & (self.places.len() - 1);
        }
    }
}

fn length_bit(bytes: &[u8]) -> u64 {
    1 << bytes.len().min(63)
}

/// The first eight bytes; for a shorter name, bytes that distinguish it from all others of its length.
fn head(bytes: &[u8]) -> u64 {
    if let Some(first) = bytes.first_chunk::<8>() {
        return u64::from_le_bytes(*first);
    }
    match (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (Some(first), Some(last)) => {
            u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << 32
        }
        _ => bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b)),
    }
}

fn start(head: u64, len: usize, size: usize) -> usize {
    let mixed = (head ^ (len as u64).rotate_left(56)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as usize & (size - 1)
}
