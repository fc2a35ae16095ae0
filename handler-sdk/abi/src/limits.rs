//! Bounds of what one call hands to the service; what goes beyond them is answered or cut as `docs/reference/abi.md` says.

/// Maximum bytes of what a call emits, with what is needed to find them.
pub const MAX_EMITTED: usize = 32 << 20;
/// Maximum bytes of one text of a call: a longer one is cut.
pub const MAX_DETAIL: usize = 8 << 10;
/// Maximum bytes of all texts of a call: those beyond are not kept.
pub const MAX_DETAILS: usize = 4 << 20;
/// Bytes of the longest name of a topic that Kafka takes: an emit to a longer one is denied.
pub const MAX_TOPIC: usize = 249;
