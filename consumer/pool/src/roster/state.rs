//! What the roster knows about a member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use sluicegate_engine::dispatch::{Inbox, OwnedPartition};

use crate::member::{Config, MemberId, PoolMember, Release};
use crate::restart::RestartBackoff;

/// Maximum number of doublings of the delay between two instances that health checks build in place of an unhealthy one.
const MAX_REBUILD_DOUBLINGS: u32 = 6;

/// State of a member.
pub(crate) struct MemberState {
    pub(super) member: Arc<PoolMember>,
    pub(super) config: Config,
    pub(super) backoff: RestartBackoff,
    pub(super) tripped: Option<TrippedBy>,
    /// Inboxes refused since it was tripped.
    pub(super) waiting_for_reset: Vec<Weak<Inbox>>,
    /// Unhealthy instances, by slot.
    pub(super) unhealthy: BTreeMap<usize, Unhealthy>,
    /// The partitions that each pump owns.
    owned: Vec<Owned>,
}

/// An unhealthy instance, or the lack of one in its place: only a passed health check ends this state, since a gate that is
/// held for it opens then.
pub(super) struct Unhealthy {
    /// Health checks of instances in its place, and creations of these, that hung.
    hangs: u32,
    last_rebuild: Instant,
}

struct Owned {
    reply_to: Weak<Inbox>,
    partitions: Vec<OwnedPartition>,
}

impl MemberState {
    pub(super) fn new(member: &Arc<PoolMember>) -> Self {
        Self {
            member: Arc::clone(member),
            config: Config::first(&member.setup),
            backoff: RestartBackoff::default(),
            tripped: None,
            waiting_for_reset: Vec::new(),
            unhealthy: BTreeMap::new(),
            owned: Vec::new(),
        }
    }

    /// Registers an inbox that was refused because the member is tripped; it is notified after a reset.
    pub(super) fn wait_for_reset(&mut self, reply_to: &Arc<Inbox>) {
        let waiting = &mut self.waiting_for_reset;
        waiting.retain(|known| known.strong_count() > 0);
        let reply_to = Arc::downgrade(reply_to);
        if !waiting.iter().any(|known| known.ptr_eq(&reply_to)) {
            waiting.push(reply_to);
        }
    }

    /// Records a pump's partitions; returns whether they changed.
    pub(super) fn set_owned(
        &mut self,
        reply_to: &Arc<Inbox>,
        partitions: &[OwnedPartition],
    ) -> bool {
        let owned = &mut self.owned;
        owned.retain(|pump| pump.reply_to.strong_count() > 0);
        let reply_to = Arc::downgrade(reply_to);
        let at = owned
            .iter()
            .position(|pump| pump.reply_to.ptr_eq(&reply_to));
        match at.map(|at| &mut owned[at]) {
            Some(pump) if pump.partitions == partitions => return false,
            Some(pump) => pump.partitions = partitions.to_vec(),
            None => owned.push(Owned {
                reply_to,
                partitions: partitions.to_vec(),
            }),
        }
        true
    }

    /// The partitions of all pumps.
    pub(super) fn owned(&self) -> BTreeSet<OwnedPartition> {
        let partitions = self.owned.iter().flat_map(|pump| &pump.partitions);
        partitions.cloned().collect()
    }

    pub(super) fn set_unhealthy(&mut self, slot: usize, now: Instant) {
        self.unhealthy.entry(slot).or_insert(Unhealthy {
            hangs: 0,
            last_rebuild: now,
        });
    }

    /// A health check of the unhealthy instance of a slot, or the creation of another one, hung.
    pub(super) fn hung_at(&mut self, slot: usize) {
        if let Some(known) = self.unhealthy.get_mut(&slot) {
            known.hangs = known.hangs.saturating_add(1);
        }
    }

    /// Whether a health check is to build an instance in place of the unhealthy one of a slot now: each one, `interval` apart, but the delay
    /// doubles with each after the first that hangs, because that costs a thread.
    pub(super) fn begin_rebuild(&mut self, slot: usize, interval: Duration, now: Instant) -> bool {
        let Some(known) = self.unhealthy.get_mut(&slot) else {
            return false;
        };
        let delay = match known.hangs {
            0 | 1 => Duration::ZERO,
            hangs => interval * (1 << (hangs - 1).min(MAX_REBUILD_DOUBLINGS)),
        };
        if now.saturating_duration_since(known.last_rebuild) < delay {
            return false;
        }
        known.last_rebuild = now;
        true
    }
}

/// What tripped a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrippedBy {
    /// Its instances failed: until it is reset.
    Failures,
    /// Its threads hang: until enough of them have returned, or it is reset.
    Hangs,
}

/// An abandoned thread that still hangs.
pub(super) struct AbandonedThread {
    /// The member that it hangs in.
    pub(super) member: MemberId,
    /// Its handler.
    pub(super) handler: Arc<str>,
    /// The members of the pool at that time: each may have an instance on the thread.
    pub(super) present: Vec<MemberId>,
}

/// Progress of a member's release from its thread pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReleaseProgress {
    pub(super) workers_left: usize,
    /// An instance is on an abandoned thread and is never dropped.
    pub(super) abandoned: bool,
}

impl ReleaseProgress {
    /// The result, once every worker has dropped its instance or was abandoned.
    pub(super) fn result(self) -> Option<Release> {
        let release = match self.abandoned {
            true => Release::Quarantined,
            false => Release::Clean,
        };
        (self.workers_left == 0).then_some(release)
    }
}
