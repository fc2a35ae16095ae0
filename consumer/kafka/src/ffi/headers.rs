//! Compares the two ways to read a record's headers: in place, and through librdkafka's public call.

use sluicegate_abi::header_block;

/// The result of the public call for a record's headers.
#[derive(Debug)]
pub(super) enum PublicHeaders {
    /// There are none.
    None,
    /// It cannot read them.
    Malformed,
    /// These, encoded again; a name ends at its first zero byte.
    Block(Vec<u8>),
}

/// Number of headers beyond which the public call considers a block malformed.
pub(super) const MOST_PUBLIC_HEADERS: usize = 100_000;

/// Whether a block read in place and the public call contain the same headers. A difference caused by the record does
/// not count against reading in place: a block that cannot be read completely, numbers with a non-minimal encoding, and
/// a name with a zero byte, where the public call truncates it.
pub(super) fn agree(in_place: &[u8], public: &PublicHeaders) -> bool {
    let headers = || header_block::Headers::new(in_place);
    match public {
        // Only a number that encodes zero headers.
        PublicHeaders::None => in_place.len() <= 10 && headers().next().is_none(),
        PublicHeaders::Malformed => !is_whole(in_place) || headers().count() > MOST_PUBLIC_HEADERS,
        PublicHeaders::Block(block) if in_place == block => true,
        PublicHeaders::Block(block) => {
            let cut = |name: &[u8]| name.iter().position(|byte| *byte == 0);
            let seen =
                headers().map(|(name, value)| (&name[..cut(name).unwrap_or(name.len())], value));
            seen.eq(header_block::Headers::new(block))
        }
    }
}

/// Whether a block contains exactly as many headers as it declares, and nothing else.
fn is_whole(block: &[u8]) -> bool {
    let headers: Vec<_> = header_block::Headers::new(block).collect();
    let mut again = Vec::with_capacity(block.len());
    header_block::write(&mut again, headers.into_iter());
    again == block
}
