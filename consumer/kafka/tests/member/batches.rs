//! Hand-written record batches in a broker's log format: transaction markers and damaged batches, which producers cannot
//! create on demand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Byte offset of the record count in a batch.
const COUNT: usize = 57;

/// Attribute bit of a control batch.
const CONTROL: i16 = 1 << 5;

/// A batch with one record per value, starting at offset `base`.
pub(crate) fn records(base: i64, values: &[&str]) -> Vec<u8> {
    let records = values.iter().map(|value| (None, value.as_bytes()));
    batch(base, 0, &records.collect::<Vec<_>>())
}

/// A batch with a wrong checksum, followed by an intact one in the same fetch response.
pub(crate) fn damaged_and_whole(base: i64, damaged: &[&str], whole: &[&str]) -> Vec<u8> {
    let mut first = records(base, damaged);
    let last = first.len() - 2;
    first[last] ^= 1;
    let both = (damaged.len() + whole.len()) as i32;
    // The mock only evaluates the first batch's count.
    first[COUNT..COUNT + 4].copy_from_slice(&both.to_be_bytes());
    let behind = base + damaged.len() as i64;
    [first, records(behind, whole)].concat()
}

/// The control record that ends a committed transaction.
pub(crate) fn commit_marker(base: i64) -> Vec<u8> {
    // Version and kind; version and the coordinator's epoch.
    let (key, value) = ([0, 0, 0, 1], [0; 6]);
    batch(base, CONTROL, &[(Some(&key[..]), &value[..])])
}

fn batch(base: i64, attributes: i16, records: &[(Option<&[u8]>, &[u8])]) -> Vec<u8> {
    let count = records.len() as i32;
    let mut checked = Vec::new();
    checked.extend(attributes.to_be_bytes());
    checked.extend((count - 1).to_be_bytes());
    checked.extend([0; 16]); // first and last timestamp
    checked.extend([0xff; 14]); // no producer: id, epoch, sequence
    checked.extend(count.to_be_bytes());
    for (delta, (key, value)) in (0..).zip(records) {
        let mut record = vec![0, 0];
        varint(&mut record, delta);
        varint(&mut record, key.map_or(-1, |key| key.len() as i64));
        record.extend(key.unwrap_or_default());
        varint(&mut record, value.len() as i64);
        record.extend(*value);
        record.push(0); // no headers
        varint(&mut checked, record.len() as i64);
        checked.extend(record);
    }
    let mut out = Vec::new();
    out.extend(base.to_be_bytes());
    out.extend((checked.len() as i32 + 9).to_be_bytes());
    out.extend([0, 0, 0, 0, 2]); // leader epoch, version of the format
    out.extend(crc32c(&checked).to_be_bytes());
    out.extend(checked);
    out
}

/// Appends batches to a partition's log with one Produce request; they must start at its end offset.
pub(crate) fn append(broker: &str, topic: &str, partition: i32, batches: &[u8]) {
    let mut body = Vec::new();
    body.extend([0, 0, 0, 7]); // Produce, version 7
    body.extend([0, 0, 0, 1]); // correlation
    body.extend([0xff; 4]); // no client id, no transaction
    body.extend([0, 1]); // acks
    body.extend(10_000i32.to_be_bytes());
    body.extend(1i32.to_be_bytes());
    body.extend((topic.len() as i16).to_be_bytes());
    body.extend(topic.as_bytes());
    body.extend(1i32.to_be_bytes());
    body.extend(partition.to_be_bytes());
    body.extend((batches.len() as i32).to_be_bytes());
    body.extend(batches);
    let mut stream = TcpStream::connect(broker).expect("the broker listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    let size = (body.len() as i32).to_be_bytes();
    stream
        .write_all(&[&size[..], &body].concat())
        .expect("sent");
    let mut size = [0; 4];
    stream.read_exact(&mut size).expect("an answer");
    let mut answer = vec![0; i32::from_be_bytes(size) as usize];
    stream.read_exact(&mut answer).expect("an answer");
    // Correlation, count, name, count, partition: then the error.
    let error = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[error..error + 2], [0, 0], "the broker refuses it");
}

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}
