//! The records that a call emits, in one buffer: an emit costs two copies and no allocation.

use std::ops::Range;

use sluicegate_abi::record::ProducerRecord;

/// A length that stands for null.
const NULL: u32 = u32::MAX;
/// A partition that stands for none.
const ANY_PARTITION: i32 = -1;
/// A timestamp that stands for none.
const NOW: i64 = i64::MIN;
/// Number of recent topics among which that of a record is searched.
const SEARCHED: usize = 8;

/// Memory that cleared records keep, in bytes: few calls emit more, and many buffers may be spare.
const MAX_KEPT: usize = 512 << 10;

/// A record emitted by a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emit<'a> {
    /// Index in the call of the record that it was emitted for; that record settles only once this one is acknowledged.
    pub record: u32,
    /// The record to produce.
    pub to: ProducerRecord<'a>,
}

impl<'a> Emit<'a> {
    /// A record to a topic for the record at this index of the call, with this value and nothing else.
    pub fn new(record: u32, topic: &'a str, value: Option<&'a [u8]>) -> Self {
        let to = ProducerRecord {
            topic,
            value,
            ..ProducerRecord::default()
        };
        Self { record, to }
    }

    /// Bytes that it takes among [`Emits`], without its topic.
    pub fn size(&self) -> usize {
        let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        len(self.to.key) + len(self.to.value) + self.to.headers.len() + size_of::<Entry>()
    }
}

/// Where an emitted record is in the buffer.
#[derive(Clone, Copy, Debug)]
struct Entry {
    record: u32,
    topic: u32,
    partition: i32,
    key_len: u32,
    value_len: u32,
    headers_len: u32,
    timestamp_ms: i64,
    /// Of the key, behind which is the value.
    body: usize,
    headers: usize,
}

/// Records emitted by a call, in emit order.
#[derive(Clone, Debug, Default)]
pub struct Emits {
    entries: Vec<Entry>,
    bytes: Vec<u8>,
    topics: Vec<Box<str>>,
    /// Bytes of the topics.
    topic_bytes: usize,
}

impl Emits {
    /// Number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a record. Returns whether it was added: a key, a value or a header block of 4 GiB or more is not.
    #[must_use]
    pub fn push(&mut self, emit: &Emit<'_>) -> bool {
        let Emit { record, to } = *emit;
        let len = |bytes: Option<&[u8]>| match bytes.map(|bytes| u32::try_from(bytes.len())) {
            None => Some(NULL),
            Some(len) => len.ok().filter(|len| *len != NULL),
        };
        let (Some(key_len), Some(value_len), Some(headers_len)) =
            (len(to.key), len(to.value), len(Some(to.headers)))
        else {
            return false;
        };
        let body = self.bytes.len();
        self.bytes.extend_from_slice(to.key.unwrap_or_default());
        self.bytes.extend_from_slice(to.value.unwrap_or_default());
        let headers = self.bytes.len();
        self.bytes.extend_from_slice(to.headers);
        let topic = self.topic_place(to.topic);
        self.entries.push(Entry {
            record,
            topic,
            partition: to.partition.unwrap_or(ANY_PARTITION),
            key_len,
            value_len,
            headers_len,
            timestamp_ms: to.timestamp_ms.unwrap_or(NOW),
            body,
            headers,
        });
        true
    }

    /// The place of a topic's name. A name that was not used recently can have several.
    fn topic_place(&mut self, topic: &str) -> u32 {
        let searched = self.topics.len().saturating_sub(SEARCHED);
        let known = self.topics[searched..]
            .iter()
            .rposition(|known| **known == *topic);
        let place = known.map_or(self.topics.len(), |place| searched + place);
        if known.is_none() {
            self.topic_bytes += topic.len() + size_of::<Box<str>>();
            self.topics.push(topic.into());
        }
        place as u32
    }

    /// The record at this place.
    pub fn get(&self, place: usize) -> Option<Emit<'_>> {
        self.entries.get(place).map(|entry| self.emit(entry))
    }

    fn emit(&self, entry: &Entry) -> Emit<'_> {
        let value = entry.body + len_of(entry.key_len);
        let bytes = |from: usize, len: u32| &self.bytes[from..from + len_of(len)];
        let optional = |from, len| (len != NULL).then(|| bytes(from, len));
        let record = entry.record;
        let to = ProducerRecord {
            topic: &self.topics[entry.topic as usize],
            partition: (entry.partition >= 0).then_some(entry.partition),
            timestamp_ms: (entry.timestamp_ms != NOW).then_some(entry.timestamp_ms),
            key: optional(entry.body, entry.key_len),
            value: optional(value, entry.value_len),
            headers: bytes(entry.headers, entry.headers_len),
        };
        Emit { record, to }
    }

    /// The records, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Emit<'_>> + DoubleEndedIterator {
        self.entries.iter().map(|entry| self.emit(entry))
    }

    /// For each emitted record, the record of the call that it was emitted for.
    pub fn records(&self) -> impl ExactSizeIterator<Item = u32> {
        self.entries.iter().map(|entry| entry.record)
    }

    /// Whether two records have the same topic.
    pub fn same_topic(&self, one: usize, other: usize) -> bool {
        let (Some(one), Some(other)) = (self.entries.get(one), self.entries.get(other)) else {
            return false;
        };
        one.topic == other.topic
            || self.topics[one.topic as usize] == self.topics[other.topic as usize]
    }

    /// Replaces the header block of a record.
    pub fn set_headers(&mut self, place: usize, block: &[u8]) {
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        let Some(len) = u32::try_from(block.len()).ok().filter(|len| *len != NULL) else {
            return;
        };
        (entry.headers, entry.headers_len) = (self.bytes.len(), len);
        self.bytes.extend_from_slice(block);
    }

    /// Removes what was emitted for other records of the call than these.
    pub fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        self.entries.retain(|entry| keep(entry.record));
    }

    /// Sorts by the record of the call; what one has emitted stays in order.
    pub fn sort_by_record(&mut self) {
        self.entries.sort_by_key(|entry| entry.record);
    }

    /// Copies some of the records.
    pub fn part(&self, places: Range<usize>) -> Self {
        let entries = self.entries.get(places.clone()).unwrap_or_default();
        let mut part = Self {
            entries: Vec::with_capacity(entries.len()),
            bytes: Vec::with_capacity(self.bytes_of(places) - size_of_val(entries)),
            topics: Vec::with_capacity(1),
            topic_bytes: 0,
        };
        for entry in entries {
            // What was added once can be added again.
            let _added = part.push(&self.emit(entry));
        }
        part
    }

    /// Number of bytes of some of the records, with what is needed to find them.
    pub fn bytes_of(&self, places: Range<usize>) -> usize {
        let entries = self.entries.get(places).unwrap_or_default();
        let bytes_of = |entry: &Entry| {
            let body = len_of(entry.key_len) + len_of(entry.value_len);
            body + len_of(entry.headers_len) + size_of::<Entry>()
        };
        entries.iter().map(bytes_of).sum()
    }

    /// Number of bytes of all records.
    pub fn held(&self) -> usize {
        self.bytes.len() + self.entries.len() * size_of::<Entry>() + self.topic_bytes
    }

    /// Number of bytes that the buffer has.
    pub fn buffered(&self) -> usize {
        self.bytes.capacity()
    }

    /// Copies the records that are kept to a buffer of their size; of the others, key, value and headers become null. No place
    /// changes.
    pub fn compact(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let mut bytes = Vec::new();
        for (place, entry) in self.entries.iter_mut().enumerate() {
            if !keep(place) {
                (entry.key_len, entry.value_len, entry.headers_len) = (NULL, NULL, 0);
                (entry.body, entry.headers) = (0, 0);
                continue;
            }
            let mut copy = |from: usize, len: usize| {
                bytes.extend_from_slice(&self.bytes[from..from + len]);
                bytes.len() - len
            };
            entry.body = copy(entry.body, len_of(entry.key_len) + len_of(entry.value_len));
            entry.headers = copy(entry.headers, len_of(entry.headers_len));
        }
        bytes.shrink_to_fit();
        self.bytes = bytes;
    }

    /// Removes all records, and keeps the memory unless it is large.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        if self.bytes.capacity() > MAX_KEPT {
            (self.entries, self.bytes) = (Vec::new(), Vec::new());
        }
        self.topics.clear();
        self.topic_bytes = 0;
    }
}

fn len_of(len: u32) -> usize {
    if len == NULL { 0 } else { len as usize }
}

impl<'a> FromIterator<Emit<'a>> for Emits {
    fn from_iter<T: IntoIterator<Item = Emit<'a>>>(emits: T) -> Self {
        let mut all = Self::default();
        all.extend(emits);
        all
    }
}

impl<'a> Extend<Emit<'a>> for Emits {
    /// Adds records; those that [`Emits::push`] refuses are missing.
    fn extend<T: IntoIterator<Item = Emit<'a>>>(&mut self, emits: T) {
        for emit in emits {
            let _added = self.push(&emit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<Emit<'static>> {
        let emit = |record, to| Emit { record, to };
        let to = |topic| ProducerRecord {
            topic,
            ..ProducerRecord::default()
        };
        vec![
            emit(
                1,
                ProducerRecord {
                    partition: Some(3),
                    timestamp_ms: Some(-1),
                    key: Some(b"k"),
                    value: Some(b"value"),
                    headers: &[1, 2],
                    ..to("a")
                },
            ),
            emit(
                0,
                ProducerRecord {
                    key: Some(b""),
                    ..to("b")
                },
            ),
            Emit::new(1, "a", Some(b"")),
            emit(
                0,
                ProducerRecord {
                    timestamp_ms: Some(0),
                    partition: Some(0),
                    ..to("a")
                },
            ),
        ]
    }

    #[test]
    fn what_was_added_is_returned_unchanged() {
        let emits: Emits = some().into_iter().collect();
        assert_eq!(emits.iter().collect::<Vec<_>>(), some());
        assert_eq!(emits.get(1), Some(some()[1]));
        assert_eq!(emits.get(4), None);
        let same = |one, other| emits.same_topic(one, other);
        assert!(same(0, 2) && !same(0, 1) && !same(0, 4));
        assert_eq!(emits.part(1..3).iter().collect::<Vec<_>>(), some()[1..3]);
    }

    #[test]
    fn sorting_and_removing_keep_the_order_of_each_record() {
        let mut emits: Emits = some().into_iter().collect();
        emits.sort_by_record();
        let sorted: Vec<_> = [1, 3, 0, 2].map(|place| some()[place]).into();
        assert_eq!(emits.iter().collect::<Vec<_>>(), sorted);
        emits.retain(|record| record == 1);
        assert_eq!(emits.iter().collect::<Vec<_>>(), sorted[2..]);
    }

    #[test]
    fn headers_are_replaced_without_touching_others() {
        let mut emits: Emits = some().into_iter().collect();
        emits.set_headers(0, &[7; 5]);
        emits.set_headers(1, &[8]);
        emits.set_headers(9, &[8]);
        let mut expected = some();
        (expected[0].to.headers, expected[1].to.headers) = (&[7; 5], &[8]);
        assert_eq!(emits.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn compacting_frees_the_bytes_of_the_others_and_moves_no_place() {
        let value = vec![9; 1_000];
        let emit = |record| {
            let mut emit = Emit::new(record, "t", Some(&value));
            emit.to.key = Some(b"key");
            emit.to.headers = &[1];
            emit
        };
        let mut emits: Emits = (0..100).map(emit).collect();
        assert!(emits.buffered() > 100_000);
        emits.compact(|place| place == 7 || place == 99);
        assert!(emits.buffered() < 3_000, "{}", emits.buffered());
        assert_eq!(
            (emits.len(), emits.get(7), emits.get(99)),
            (100, Some(emit(7)), Some(emit(99)))
        );
        assert_eq!(emits.get(8), Some(Emit::new(8, "t", None)));
        assert!(emits.bytes_of(7..8) > 1_000 && emits.bytes_of(8..9) < 100);
    }

    #[test]
    fn a_topic_for_each_record_is_not_searched_among_all() {
        let names: Vec<String> = (0..1_000).map(|i| format!("t{}", i % 500)).collect();
        let emits: Emits = names.iter().map(|name| Emit::new(0, name, None)).collect();
        assert!(
            emits
                .iter()
                .map(|emit| emit.to.topic)
                .eq(names.iter().map(String::as_str))
        );
        assert!(emits.same_topic(3, 503));
    }
}
