//! Whether the two ways to a record's headers agree: in place, and through librdkafka's public call.

use sluicegate_abi::header_block;

/// What the public call says of a record's headers.
#[derive(Debug)]
pub(super) enum PublicHeaders {
    /// There are none.
    None,
    /// It cannot read them.
    Malformed,
    /// These, encoded again; a name ends at its first zero byte.
    Block(Vec<u8>),
}

/// Headers beyond which the public call takes a block for malformed.
pub(super) const MOST_PUBLIC_HEADERS: usize = 100_000;

/// Whether a block that was read in place and the public call speak of the same headers. A difference that lies in the
/// record says nothing against reading in place: a block that cannot be read whole, numbers that are written longer than
/// need be, and a name with a zero byte in it, which the public call cuts there.
pub(super) fn agree(in_place: &[u8], public: &PublicHeaders) -> bool {
    let headers = || header_block::Headers::new(in_place);
    match public {
        // No more than a number, which says that there are none.
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

/// Whether a block holds as many headers as it says, and nothing else.
fn is_whole(block: &[u8]) -> bool {
    let headers: Vec<_> = header_block::Headers::new(block).collect();
    let mut again = Vec::with_capacity(block.len());
    header_block::write(&mut again, headers.into_iter());
    again == block
}
