//! Records of a lane that have run and are not settled: they settle in their order, so that a crash never leaves an older effect
//! last, and their emits are sent again in it (ADR 0037).
//!
//! ```text
//!  a call ends: emits ─► linked ─► acknowledged ─► first of its lane? ─► settled; then those behind it that are done
//!        without emits ─► linked, if others are ┘    └─ no: waits
//!  refused ─► trouble: the lane is held, and what stands behind is written again too
//!               first of its lane ─► sent again, until it is acknowledged ─► those behind it, in order ─► none left: over
//! ```
//!
//! While nothing is refused, a lane's next record runs as soon as the one before has run: the producer keeps the order of what
//! it is given. librdkafka writes what stands behind a refused record, so an older value could stay last; everything behind it
//! to the same topics is therefore written again, in order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;

use rapidhash::fast::RapidHasher;

pub(super) use super::links::LinkState;
use super::links::{Chain, Link, Spare, Trouble};
use crate::dispatch::RecordId;
use crate::emit::Way;
use crate::emit::shipment::ShippedAt;

/// What is to be done with the first record of a lane.
#[derive(Debug)]
pub(super) enum First {
    /// It waits.
    Waits,
    /// Its emits were refused.
    Refused(RecordId),
    /// It is done.
    Done(RecordId),
    /// No record is left.
    None,
}

/// A record of a lane in trouble that may be written again.
pub(super) struct Ahead {
    pub(super) key: RecordId,
    pub(super) number: u64,
    pub(super) state: LinkState,
    /// How those before it are written.
    pub(super) way: Way,
    /// A topic has refused a record before it.
    pub(super) stands_behind: bool,
}

/// Without a random seed, as everything that a run depends on.
type Hasher = BuildHasherDefault<RapidHasher<'static>>;

/// A linked record that leaves its lane with the others, to be linked again in another one.
pub(super) struct Unlinked {
    pub(super) key: RecordId,
    pub(super) state: LinkState,
    /// It stands behind a refused one.
    pub(super) tainted: bool,
}

/// The chains of a handler's lanes.
#[derive(Default)]
pub(super) struct Chains {
    of: HashMap<u64, Chain, Hasher>,
    /// Number of lanes in trouble.
    troubles: u32,
    spare: Spare,
}

impl Chains {
    /// Whether records of a lane are linked, or it is in trouble: the next one that is over has to be linked too.
    #[inline]
    pub(super) fn has(&self, lane: u64) -> bool {
        // Most handlers emit nothing: not even a hash is computed then.
        lane != 0 && !self.of.is_empty() && self.of.contains_key(&lane)
    }

    /// Number of lanes in trouble.
    pub(super) fn troubles(&self) -> u32 {
        self.troubles
    }

    /// Whether a lane is in trouble.
    pub(super) fn is_troubled(&self, lane: u64) -> bool {
        self.troubles > 0 && self.of.get(&lane).and_then(Chain::trouble).is_some()
    }

    /// The lanes in trouble. Visits all chains.
    pub(super) fn troubled(&self) -> impl Iterator<Item = u64> {
        let troubled = self
            .of
            .iter()
            .filter(|(_, chain)| chain.trouble().is_some());
        troubled.map(|(lane, _)| *lane)
    }

    /// Links a record behind those of its lane. Returns its number there.
    pub(super) fn link(&mut self, lane: u64, key: RecordId, state: LinkState) -> u64 {
        let pending = None;
        let link = Link {
            key,
            pending,
            state,
        };
        self.add(lane, link)
    }

    /// As [`Self::link`], of a pending share, whose emits are there.
    pub(super) fn link_pending(&mut self, lane: u64, key: RecordId, at: ShippedAt) -> u64 {
        let (pending, state) = (Some(at), LinkState::Open);
        let link = Link {
            key,
            pending,
            state,
        };
        self.add(lane, link)
    }

    fn add(&mut self, lane: u64, link: Link) -> u64 {
        match self.of.entry(lane) {
            Entry::Vacant(place) => {
                place.insert(Chain::One(link));
                0
            }
            Entry::Occupied(mut chain) => chain.get_mut().push(link, &mut self.spare),
        }
    }

    /// Reads the place of a lane, so that it is in the cache when its first record is taken; the result is only to be used.
    #[inline]
    pub(super) fn touch(&self, lane: u64) -> u64 {
        self.of.get(&lane).map_or(0, Chain::first)
    }

    /// The pending shares of a lane, which are to be deferred.
    pub(super) fn take_pending(&mut self, lane: u64) -> Vec<(RecordId, ShippedAt)> {
        let chain = self.of.get_mut(&lane);
        let links = chain.into_iter().flat_map(Chain::iter_mut);
        let pending = links.filter_map(|link| Some((link.key, link.pending.take()?)));
        pending.collect()
    }

    /// Changes the state of a linked record. Returns whether it is the first of its lane.
    pub(super) fn set(&mut self, lane: u64, number: u64, state: LinkState) -> bool {
        let Some(chain) = self.of.get_mut(&lane) else {
            return false;
        };
        if let Some(link) = chain.at(number) {
            link.state = state;
        }
        chain.first() == number
    }

    /// Whether a linked record is the first of its lane.
    pub(super) fn is_first(&self, lane: u64, number: u64) -> bool {
        let chain = self.of.get(&lane);
        chain.is_some_and(|chain| chain.first() == number)
    }

    /// Whether a linked record waits for its turn to be written again.
    pub(super) fn is_refused(&self, lane: u64, number: u64) -> bool {
        let link = self.of.get(&lane).and_then(|chain| chain.get(number));
        link.is_some_and(|link| link.state == LinkState::Refused)
    }

    /// The first record of a lane: the one that the others wait for.
    pub(super) fn first_key(&self, lane: u64) -> Option<RecordId> {
        self.of.get(&lane)?.front()?.key()
    }

    /// The linked records of all lanes.
    pub(super) fn all(&self) -> impl Iterator<Item = RecordId> {
        let links = self.of.values().flat_map(Chain::iter);
        links.filter_map(Link::key)
    }

    /// The linked records of a lane.
    pub(super) fn keys(&self, lane: u64) -> Vec<RecordId> {
        let links = self.of.get(&lane).into_iter().flat_map(Chain::iter);
        links.filter_map(Link::key).collect()
    }

    /// Topics have refused a record of the lane: what is linked from this number on is to be written again. Returns whether the
    /// trouble begins.
    pub(super) fn begin_trouble(&mut self, lane: u64, from: u64, topics: &[String]) -> bool {
        let Some(chain) = self.of.get_mut(&lane) else {
            return false;
        };
        let begins = chain.taint(topics, from, &mut self.spare);
        self.troubles += u32::from(begins);
        begins
    }

    fn trouble_mut(&mut self, lane: u64) -> Option<&mut Trouble> {
        self.of.get_mut(&lane)?.trouble_mut()
    }

    /// What is linked in a lane is not written again for a record that was abandoned.
    pub(super) fn clear_taint(&mut self, lane: u64) {
        if let Some(trouble) = self.trouble_mut(lane) {
            trouble.topics.clear();
        }
    }

    /// What is to be done next in a lane. One that was refused waits for its resend then.
    pub(super) fn first(&mut self, lane: u64) -> First {
        let Some(chain) = self.of.get_mut(&lane) else {
            return First::None;
        };
        let first = chain.first();
        let Some(link) = chain.at(first) else {
            return First::None;
        };
        let Some(key) = link.key() else {
            return First::None;
        };
        match std::mem::replace(&mut link.state, LinkState::Open) {
            LinkState::Open => First::Waits,
            LinkState::Refused => First::Refused(key),
            LinkState::Done => First::Done(key),
        }
    }

    /// The topics to which a record is to be written again, because it stands behind a refused one. It is about to be.
    pub(super) fn take_taint(&mut self, lane: u64, number: u64) -> Vec<String> {
        let Some(trouble) = self.trouble_mut(lane) else {
            return Vec::new();
        };
        let tainted = trouble.taint_of(number).cloned().collect();
        trouble.written = trouble.written.max(number + 1);
        tainted
    }

    /// The first record of a lane in trouble is acknowledged: twice as many may be with the producer.
    pub(super) fn accepted(&mut self, lane: u64) {
        if let Some(trouble) = self.trouble_mut(lane) {
            trouble.window += 1;
        }
    }

    /// The first record of a lane is sent again this way; those behind it may follow it, if they are sent the same way.
    pub(super) fn begin_writing(&mut self, lane: u64, number: u64, way: Way) {
        if let Some(chain) = self.of.get_mut(&lane)
            && chain.first() == number
            && let Some(trouble) = chain.trouble_mut()
        {
            trouble.way = way;
        }
    }

    /// The next record that may be written again although the first of its lane is not acknowledged: all before it are written.
    pub(super) fn ahead(&mut self, lane: u64) -> Option<Ahead> {
        let chain = self.of.get_mut(&lane)?;
        let (first, trouble) = (chain.first(), chain.trouble()?);
        let (mut number, way) = (trouble.written, trouble.way);
        if number <= first || number > first + trouble.window {
            return None;
        }
        // What follows one that was refused again would be written once more behind it.
        let last = chain.get(number - 1);
        if last.is_some_and(|link| link.key().is_some() && link.state == LinkState::Refused) {
            return None;
        }
        let link = loop {
            match chain.get(number) {
                Some(link) if link.key().is_none() => number += 1,
                link => break *link?,
            }
        };
        let trouble = chain.trouble_mut()?;
        let stands_behind = trouble.topics.iter().any(|(_, from)| *from <= number);
        trouble.written = number;
        Some(Ahead {
            key: link.key,
            number,
            state: link.state,
            way,
            stands_behind,
        })
    }

    /// Unlinks a record that is over if it is the first of a lane without trouble. Returns whether the next one is done.
    pub(super) fn take_first(&mut self, lane: u64, number: u64) -> Option<bool> {
        let Entry::Occupied(mut place) = self.of.entry(lane) else {
            return None;
        };
        let chain = place.get_mut();
        if chain.first() != number || chain.trouble().is_some() {
            return None;
        }
        if chain.pop() {
            self.spare.keep(place.remove());
            return Some(false);
        }
        let next = chain.front();
        Some(next.is_some_and(|link| link.state != LinkState::Open))
    }

    /// Unlinks a record.
    pub(super) fn unlink(&mut self, lane: u64, number: u64) {
        let chain = self.of.get_mut(&lane);
        if chain.is_some_and(|chain| chain.unlink(number)) {
            self.end(lane);
        }
    }

    /// A parked record runs when the trouble of its lane is over.
    pub(super) fn park(&mut self, lane: u64, key: RecordId) {
        if let Some(trouble) = self.trouble_mut(lane) {
            trouble.parked.push(key);
        }
    }

    /// Forgets a lane without records. Returns the parked records that may run now, if it was in trouble.
    pub(super) fn end(&mut self, lane: u64) -> Option<Vec<RecordId>> {
        let chain = self.of.remove(&lane)?;
        let trouble = self.spare.keep(chain)?;
        self.troubles -= 1;
        Some(trouble.parked)
    }

    /// Takes all chains apart: the linked records, each lane's in order, and the topics of all troubles.
    pub(super) fn take_all(&mut self) -> (Vec<Unlinked>, Vec<String>) {
        let (mut links, mut topics) = (Vec::new(), Vec::new());
        for (_, chain) in self.of.drain() {
            let trouble = chain.trouble();
            for (number, link) in (chain.first()..).zip(chain.iter()) {
                let Some(key) = link.key() else { continue };
                let mut taint = trouble.into_iter().flat_map(|one| one.taint_of(number));
                links.push(Unlinked {
                    key,
                    state: link.state,
                    tainted: taint.next().is_some(),
                });
            }
            let refused = trouble.into_iter().flat_map(|trouble| &trouble.topics);
            topics.extend(refused.map(|(topic, _)| topic.clone()));
        }
        self.troubles = 0;
        topics.sort_unstable();
        topics.dedup();
        (links, topics)
    }

    /// Whether a lane in trouble has no record left.
    pub(super) fn is_over(&self, lane: u64) -> bool {
        let chain = self.of.get(&lane);
        chain.is_some_and(|chain| chain.front().is_none() && chain.trouble().is_some())
    }
}
