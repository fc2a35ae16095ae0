//! A partition's life, from the group's offer to its hand-over. No step waits for a broker.
//!
//! ```text
//!  Assigned ─► offered ─ Find ─► Found ─► token ─ Start ─► read ──► Revoked, or a stop ─► drained ─ last commit ─ Release
//!                 └─ NotFound: reported; the others do not wait       │    ▲
//!                                                                     ▼    │
//!                                    OffsetMissing ─ AskBounds ─► Bounds: Seek, continue elsewhere, or stopped
//!                                    PartitionError ─► unreadable, until a record is read or the error expires
//! ```
//!
//! `offers` has the partitions without a known start; an owned one is an
//! [`Assignment`](crate::partition::assignment::Assignment), with everything that keeps it from being read
//! (`missing`, `faults`); [`handover`] and [`stop`] end it, one by one or all at once.

pub(crate) mod faults;
pub mod handover;
pub(crate) mod missing;
pub(crate) mod observe;
pub(crate) mod offers;
pub mod stop;
