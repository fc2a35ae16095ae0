//! Models of what the service's threads share, run under every interleaving: `RUSTFLAGS="--cfg loom" cargo test -p
//! sluicegate-loom`.
//!
//! The engine's own files are included by path, on loom's locks and atomics instead of the standard ones: so nothing
//! is modelled but what runs, and the rest of the engine need not compile under `--cfg loom`.

#![allow(unreachable_pub, dead_code)]

/// What the included files use of `crate::sync`, from loom.
#[cfg(loom)]
mod sync {
    pub use loom::sync::Mutex;
}

/// As in the engine.
#[cfg(not(loom))]
#[path = "../../src/sync.rs"]
mod sync;

#[path = "../../src/dispatch/batch.rs"]
mod batch;
#[path = "../../src/dispatch/inbox.rs"]
mod inbox;
#[path = "../../src/dispatch/published.rs"]
mod published;

mod dispatch {
    pub use crate::batch::{Batch, BatchId, HandlerIx};
    #[cfg(all(loom, test))]
    pub use crate::inbox::{Inbox, PumpMessage};
    pub use crate::published::Published;
}

mod source {
    /// As in the engine.
    pub trait Wake: Send + Sync {
        /// Ends the current wait, or else the next one, at once.
        fn wake(&self);
    }
}

#[path = "../../src/emit/counts.rs"]
mod counts;
#[path = "../../src/emit/delivery.rs"]
mod delivery;
#[path = "../../src/emit/failure.rs"]
mod failure;
#[path = "../../src/emit/token.rs"]
mod token;

mod emit {
    pub use crate::counts::EmitCounts;
    pub use crate::delivery::Delivery;
    pub use crate::token::EmitToken;
}

#[cfg(all(loom, test))]
mod loom_models;
