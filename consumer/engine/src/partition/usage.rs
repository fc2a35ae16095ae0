//! The share of a partition in the byte budget, and how fast it frees it.

/// Window over which a partition's settle rate is measured.
pub(crate) const RATE_WINDOW_MS: u64 = 500;
/// A partition that needs longer than this to settle its records is slow.
pub(crate) const SLOW_DRAIN_MS: u64 = 2_000;

/// Why the fetching of a partition is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PausedFor {
    /// The partition is stopped, or has reached `max_uncommitted`.
    Bound,
    /// The partition holds memory that others need.
    Memory,
}

/// Bytes held by a partition, and how fast they are freed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Bytes of its in-flight records, as charged.
    pub entry_bytes: u64,
    /// Bytes freed since it was assigned.
    pub freed_bytes: u64,
    /// `freed_bytes` at the start of the window.
    freed_before: u64,
    /// Bytes freed in the last complete window; `None` before the first.
    pub(crate) freed_in_window: Option<u64>,
    /// Bytes that it held when it was paused for memory; `None` while it is not.
    pub(crate) paused_at: Option<u64>,
    /// Paused because of its own bound.
    pub(crate) bound: bool,
}

impl Usage {
    /// Ends the measuring window.
    pub(crate) fn end_window(&mut self, first: bool) {
        let freed = self.freed_bytes - self.freed_before;
        self.freed_before = self.freed_bytes;
        self.freed_in_window = (!first).then_some(freed);
    }
}
