//! What the roster wants done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_engine::dispatch::Inbox;
use sluicegate_runtime::{CallMonitor, CancelFlag};

use crate::error::ProbeError;
use crate::member::{PoolMember, Release};
use crate::roster::call::TimedOutCall;
use crate::roster::items::{ProbeReply, WorkItem, WorkerId};

/// What an abandoned thread hangs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HungIn {
    /// A call, for longer than this on one record.
    Call(Duration),
    /// The creation of an instance, or a probe.
    Creation,
    /// A lifecycle call.
    LifecycleCall,
}

/// What is to be done, under the lock of the thread pool and in this order: a pump receives messages in the order of the
/// decisions, and an abandoned thread, which learns of that under the same lock, reports after [`Effect::TimedOut`].
pub(crate) enum Effect {
    /// Start the thread of a slot. A failure is the event `ThreadNotStarted`.
    Spawn(WorkerId),
    /// Wake the thread of a slot.
    Wake(usize),
    /// Ask a call to abandon its current record.
    Cancel(CancelFlag),
    /// Ask a call to return after its current record.
    Stop(CancelFlag),
    /// End the call with this serial number by force.
    Kill(Arc<dyn CallMonitor>, u64),
    /// Return a batch unprocessed.
    NotRun(WorkItem),
    /// Report a call as timed out, with the outcomes so far.
    TimedOut(TimedOutCall),
    /// Tell an inbox that a batch may be accepted again.
    Room(Arc<Inbox>),
    /// Answer the caller of a probe.
    Answer(ProbeReply, Result<(), ProbeError>),
    /// Record a failure.
    Failed(Arc<PoolMember>, String),
    /// Publish that a handler is tripped.
    Tripped(Arc<PoolMember>, String),
    /// Publish that a tripped handler runs again.
    Untripped(Arc<PoolMember>),
    /// Publish the health of an instance; `None`: it is healthy.
    Health(Arc<PoolMember>, usize, Option<String>),
    /// Record that the thread of a slot was abandoned.
    Abandoned(Arc<PoolMember>, usize, HungIn),
    /// Publish that no worker has an instance of a released handler any more. Once per handler.
    Released(Arc<PoolMember>, Release),
    /// Publish that a closing pool has one thread less.
    ThreadEnded,
}

impl Effect {
    /// Whether it publishes a state that a pump reads when it receives a message.
    fn is_publication(&self) -> bool {
        matches!(
            self,
            Self::Failed(..)
                | Self::Tripped(..)
                | Self::Untripped(..)
                | Self::Health(..)
                | Self::Abandoned(..)
        )
    }
}

/// Effects that are not carried out yet. Reused: in a steady state nothing is allocated.
///
/// States are published before any message of the same decision: a pump that receives its batch from a handler that has
/// just been tripped must not submit it again because it still reads the old state.
#[derive(Default)]
pub(crate) struct Effects {
    publications: VecDeque<Effect>,
    others: VecDeque<Effect>,
}

impl Effects {
    pub(super) fn push(&mut self, effect: Effect) {
        match effect.is_publication() {
            true => self.publications.push_back(effect),
            false => self.others.push_back(effect),
        }
    }

    pub(super) fn extend(&mut self, effects: impl IntoIterator<Item = Effect>) {
        effects.into_iter().for_each(|effect| self.push(effect));
    }

    /// Takes the next one.
    pub(crate) fn pop(&mut self) -> Option<Effect> {
        self.publications
            .pop_front()
            .or_else(|| self.others.pop_front())
    }
}
