//! Kafka's header block (record format v2): `count`, then for each header `key length, key, value length, value`.
//!
//! Numbers are zigzag varints; a value length of -1 is a null value. The block is read in place: a handler that never
//! reads headers pays nothing for them, and a lookup by name stops at the first match.
//! Format: <https://kafka.apache.org/documentation/#recordheader>.

/// Reads the headers of a block, first to last.
///
/// A malformed block ends the iteration early; it never panics and never reads past the block.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: u64,
}

impl<'a> Headers<'a> {
    /// Headers of `block`; an empty block has none.
    pub fn new(block: &'a [u8]) -> Self {
        let mut rest = block;
        let left = read_varint(&mut rest).map_or(0, |n| u64::try_from(n).unwrap_or(0));
        Self { rest, left }
    }
}

impl<'a> Iterator for Headers<'a> {
    /// Name bytes (UTF-8 by convention, not checked) and value; `None` is a null value.
    type Item = (&'a [u8], Option<&'a [u8]>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let name_len = usize::try_from(read_varint(&mut self.rest)?).ok()?;
        let name = take(&mut self.rest, name_len)?;
        let value = match read_varint(&mut self.rest)? {
            -1 => None,
            len => Some(take(&mut self.rest, usize::try_from(len).ok()?)?),
        };
        Some((name, value))
    }
}

/// Appends a header block holding `headers` to `out`.
pub fn write<'h>(
    out: &mut Vec<u8>,
    headers: impl ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)>,
) {
    write_varint(out, headers.len() as i64);
    for (name, value) in headers {
        write_varint(out, name.len() as i64);
        out.extend_from_slice(name);
        match value {
            None => write_varint(out, -1),
            Some(value) => {
                write_varint(out, value.len() as i64);
                out.extend_from_slice(value);
            }
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

#[inline]
fn read_varint(rest: &mut &[u8]) -> Option<i64> {
    let (&first, after) = rest.split_first()?;
    if first & 0x80 != 0 {
        return read_long_varint(rest);
    }
    // Nearly every length fits into one byte.
    *rest = after;
    Some(unzigzag(u64::from(first)))
}

fn read_long_varint(rest: &mut &[u8]) -> Option<i64> {
    let mut raw = 0u64;
    for (i, &byte) in rest.iter().take(10).enumerate() {
        raw |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Some(unzigzag(raw));
        }
    }
    None
}

fn unzigzag(raw: u64) -> i64 {
    (raw >> 1) as i64 ^ -((raw & 1) as i64)
}

fn write_varint(out: &mut Vec<u8>, value: i64) {
    let mut raw = ((value << 1) ^ (value >> 63)) as u64;
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(headers: &[(&[u8], Option<&[u8]>)]) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, headers.iter().copied());
        out
    }

    #[test]
    fn headers_come_back_in_order_with_nulls_and_repeats() {
        let long = vec![7u8; 300];
        let given: Vec<(&[u8], Option<&[u8]>)> = vec![
            (b"a", Some(b"1")),
            (b"a", None),
            (b"", Some(b"")),
            (b"long", Some(&long)),
        ];
        assert_eq!(Headers::new(&block(&given)).collect::<Vec<_>>(), given);
    }

    #[test]
    fn a_cut_block_ends_early_and_never_panics() {
        let whole = block(&[(b"name", Some(b"value")), (b"other", Some(b"x"))]);
        for end in 0..whole.len() {
            assert!(Headers::new(&whole[..end]).count() < 2);
        }
    }
}
