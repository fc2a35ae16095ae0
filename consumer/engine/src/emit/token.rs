//! Names of records that are with the producer.

/// Bits of each half of a token. The upper byte is left to the producer, which tells its pumps apart by it.
const HALF: u32 = 28;
const MASK: u64 = (1 << HALF) - 1;

/// The name of a record while it is with the producer: the shipment that it belongs to, and its place there. The producer gives it
/// back with the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmitToken(u64);

impl EmitToken {
    /// The first record of a shipment.
    pub(super) fn of(shipment: u32) -> Self {
        Self((u64::from(shipment) & MASK) << HALF)
    }

    /// The record at this place of the same shipment; `None` if the place is too large for a token.
    pub fn at(self, place: usize) -> Option<Self> {
        let place = place as u64;
        (place <= MASK).then_some(Self(self.0 & !MASK | place))
    }

    /// The shipment.
    pub(super) fn shipment(self) -> u32 {
        (self.0 >> HALF) as u32
    }

    /// The record's place in it.
    pub(super) fn place(self) -> u32 {
        (self.0 & MASK) as u32
    }

    /// Its bits, of which the eight upper ones are 0.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The token of [`Self::bits`]; the eight upper ones are ignored.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & (MASK << HALF | MASK))
    }
}

/// The shipment after this one, in a circle.
pub(super) fn next(shipment: u32) -> u32 {
    (shipment + 1) & MASK as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_bits_and_leaves_the_upper_byte() {
        let last = (1 << HALF) - 1;
        let token = EmitToken::of(last).at(last as usize).expect("it fits");
        assert_eq!((token.shipment(), token.place()), (last, last));
        assert_eq!(token.bits() >> 56, 0);
        assert_eq!(EmitToken::from_bits(token.bits() | 7 << 56), token);
        assert_eq!(token.at(3).map(EmitToken::place), Some(3));
        assert_eq!(token.at(1 << HALF), None);
        assert_eq!((next(0), next(last)), (1, 0));
    }
}
