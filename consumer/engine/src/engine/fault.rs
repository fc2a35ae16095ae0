//! A read error of a partition, and when it is over.

use crate::source::{FetchState, PartitionFault};

/// A transient fault not repeated within this time is cleared.
const TRANSIENT_EXPIRY_MS: u64 = 60_000;
/// A denied fetch is retried by the client within this time: after it without an error, fetches are allowed again.
const DENIED_EXPIRY_MS: u64 = 3_000;

/// A read error of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadFault {
    /// The next offset to read when the error was reported.
    next: i64,
    /// When the error was last reported, on the engine's clock.
    reported_ms: u64,
    /// Kind of the error, which decides when it is cleared.
    kind: PartitionFault,
}

impl ReadFault {
    /// An error reported now, while `next` is the next offset to read.
    pub(crate) fn new(kind: PartitionFault, next: i64, now_ms: u64) -> Self {
        Self {
            next,
            reported_ms: now_ms,
            kind,
        }
    }

    /// Whether the data at the next offset is known to be damaged.
    pub(crate) fn is_damage(&self) -> bool {
        self.kind == PartitionFault::Damaged
    }

    /// Whether a record was read since, `next` being the next offset to read now.
    pub(crate) fn is_passed(&self, next: i64) -> bool {
        next > self.next
    }

    /// Whether the error is over although no record was read. `fetch` is the state of the fetching now.
    pub(crate) fn is_over(&self, now_ms: u64, fetch: FetchState) -> bool {
        let silence_ms = now_ms.saturating_sub(self.reported_ms);
        match self.kind {
            PartitionFault::Damaged => false,
            PartitionFault::Denied => {
                silence_ms >= DENIED_EXPIRY_MS && fetch == FetchState::Fetching
            }
            PartitionFault::Passing => silence_ms >= TRANSIENT_EXPIRY_MS,
        }
    }
}
