//! Records of a lane that have run and are not settled: they settle in their order, so that a crash never leaves an older effect
//! last, and their emits are sent again in it (ADR 0037).
//!
//! ```text
//!  a call ends: emits ─► linked ─► acknowledged ─► first of its lane? ─► settled; then those behind it that are done
//!        without emits ─► linked, if others are ┘    └─ no: waits
//!  refused ─► trouble: the lane is held, and what stands behind is written again too
//!               first of its lane ─► sent again, until it is acknowledged ─► the next one ─► … ─► none left: over
//! ```
//!
//! While nothing is refused, a lane's next record runs as soon as the one before has run: the producer keeps the order of what
//! it is given. librdkafka writes what stands behind a refused record, so an older value could stay last; everything behind it
//! to the same topics is therefore written again, one record after the other.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use rapidhash::fast::RapidHasher;

use crate::dispatch::RecordId;

/// Maximum number of empty queues that are kept for the next chains.
const MAX_SPARE: usize = 1_024;

/// Why a linked record is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    /// It waits for the producer, or for its next attempt.
    Open,
    /// The producer has refused some of its emits, and it is not its turn yet.
    Refused,
    /// Only the records before it are not settled.
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    /// `None` once it is unlinked and not the first.
    key: Option<RecordId>,
    state: LinkState,
}

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

/// Emits of a lane were refused.
#[derive(Debug, Default)]
struct Trouble {
    /// The topics that refused, each with the number of the first link that stands behind a record that it refused.
    topics: Vec<(String, u64)>,
    /// The link that has been written again since: the first one, if any.
    written: Option<u64>,
    /// Parked records whose time has come in the trouble: they run when it is over.
    parked: Vec<RecordId>,
}

impl Trouble {
    /// What stands behind a refused record in this topic, from this link on, is to be written again.
    fn taint(&mut self, topic: String, from: u64) {
        match self.topics.iter_mut().find(|(known, _)| *known == topic) {
            Some((_, known)) => *known = from.min(*known),
            None => self.topics.push((topic, from)),
        }
    }

    fn is_tainted(&self, number: u64) -> bool {
        self.written != Some(number) && self.topics.iter().any(|(_, from)| *from <= number)
    }
}

#[derive(Debug, Default)]
struct Chain {
    links: VecDeque<Link>,
    /// Number of the first link: they are numbered in order.
    first: u64,
    trouble: Option<Box<Trouble>>,
}

impl Chain {
    fn link(&mut self, key: RecordId, state: LinkState) -> u64 {
        let key = Some(key);
        self.links.push_back(Link { key, state });
        self.first + self.links.len() as u64 - 1
    }

    fn at(&self, number: u64) -> Option<&Link> {
        let place = number.checked_sub(self.first)?;
        self.links.get(place as usize)
    }

    fn at_mut(&mut self, number: u64) -> Option<&mut Link> {
        let place = number.checked_sub(self.first)?;
        self.links.get_mut(place as usize)
    }

    /// Removes unlinked ones from the front. Returns whether nothing is left of it.
    fn tidy_up(&mut self) -> bool {
        while self.links.front().is_some_and(|link| link.key.is_none()) {
            self.links.pop_front();
            self.first += 1;
        }
        self.links.is_empty() && self.trouble.is_none()
    }
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
    /// Empty queues: a lane in which one record at a time waits allocates nothing.
    spare: Vec<VecDeque<Link>>,
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
        self.troubles > 0 && self.trouble(lane).is_some()
    }

    fn trouble(&self, lane: u64) -> Option<&Trouble> {
        self.of.get(&lane)?.trouble.as_deref()
    }

    /// The lanes in trouble. Visits all chains.
    pub(super) fn troubled(&self) -> impl Iterator<Item = u64> {
        let troubled = self.of.iter().filter(|(_, chain)| chain.trouble.is_some());
        troubled.map(|(lane, _)| *lane)
    }

    /// Links a record behind those of its lane. Returns its number there.
    pub(super) fn link(&mut self, lane: u64, key: RecordId, state: LinkState) -> u64 {
        let spare = &mut self.spare;
        let chain = self.of.entry(lane).or_insert_with(|| Chain {
            links: spare.pop().unwrap_or_default(),
            ..Chain::default()
        });
        chain.link(key, state)
    }

    /// Changes the state of a linked record. Returns whether it is the first of its lane.
    pub(super) fn set(&mut self, lane: u64, number: u64, state: LinkState) -> bool {
        let Some(chain) = self.of.get_mut(&lane) else {
            return false;
        };
        if let Some(link) = chain.at_mut(number) {
            link.state = state;
        }
        chain.first == number
    }

    /// Whether a linked record is the first of its lane.
    pub(super) fn is_first(&self, lane: u64, number: u64) -> bool {
        let chain = self.of.get(&lane);
        chain.is_some_and(|chain| chain.first == number)
    }

    /// Whether a linked record waits for its turn to be written again.
    pub(super) fn is_refused(&self, lane: u64, number: u64) -> bool {
        let link = self.of.get(&lane).and_then(|chain| chain.at(number));
        link.is_some_and(|link| link.state == LinkState::Refused)
    }

    /// The first record of a lane: the one that the others wait for.
    pub(super) fn first_key(&self, lane: u64) -> Option<RecordId> {
        self.of.get(&lane)?.links.front()?.key
    }

    /// The linked records of a lane.
    pub(super) fn keys(&self, lane: u64) -> Vec<RecordId> {
        let links = self.of.get(&lane).map(|chain| &chain.links);
        let links = links.into_iter().flatten();
        links.filter_map(|link| link.key).collect()
    }

    /// Topics have refused a record of the lane: what is linked from this number on is to be written again. Returns whether the
    /// trouble begins.
    pub(super) fn begin_trouble(&mut self, lane: u64, from: u64, topics: &[String]) -> bool {
        let Some(chain) = self.of.get_mut(&lane) else {
            return false;
        };
        let begins = chain.trouble.is_none();
        let trouble = chain.trouble.get_or_insert_default();
        for topic in topics {
            trouble.taint(topic.clone(), from);
        }
        self.troubles += u32::from(begins);
        begins
    }

    /// What is linked in a lane is not written again for a record that was abandoned.
    pub(super) fn clear_taint(&mut self, lane: u64) {
        let chain = self.of.get_mut(&lane);
        if let Some(trouble) = chain.and_then(|chain| chain.trouble.as_mut()) {
            trouble.topics.clear();
        }
    }

    /// What is to be done next in a lane. One that was refused waits for its resend then.
    pub(super) fn first(&mut self, lane: u64) -> First {
        let chain = self.of.get_mut(&lane);
        let Some(link) = chain.and_then(|chain| chain.links.front_mut()) else {
            return First::None;
        };
        let Some(key) = link.key else {
            return First::None;
        };
        match std::mem::replace(&mut link.state, LinkState::Open) {
            LinkState::Open => First::Waits,
            LinkState::Refused => First::Refused(key),
            LinkState::Done => First::Done(key),
        }
    }

    /// The topics in which a record stands behind a refused one, if it is the first of its lane and has not been written again
    /// since.
    pub(super) fn take_taint(&mut self, lane: u64) -> Vec<String> {
        let Some(chain) = self.of.get_mut(&lane) else {
            return Vec::new();
        };
        let (first, Some(trouble)) = (chain.first, &mut chain.trouble) else {
            return Vec::new();
        };
        if trouble.written.replace(first) == Some(first) {
            return Vec::new();
        }
        let tainted = trouble.topics.iter().filter(|(_, from)| *from <= first);
        tainted.map(|(topic, _)| topic.clone()).collect()
    }

    /// Unlinks a record that is over if it is the first of a lane without trouble. Returns whether the next one is done.
    pub(super) fn take_first(&mut self, lane: u64, number: u64) -> Option<bool> {
        let chain = self.of.get_mut(&lane)?;
        if chain.first != number || chain.trouble.is_some() {
            return None;
        }
        chain.links.pop_front();
        chain.first += 1;
        if chain.tidy_up() {
            self.remove(lane);
            return Some(false);
        }
        let next = chain.links.front();
        Some(next.is_some_and(|link| link.state != LinkState::Open))
    }

    /// Unlinks a record.
    pub(super) fn unlink(&mut self, lane: u64, number: u64) {
        let Some(chain) = self.of.get_mut(&lane) else {
            return;
        };
        if let Some(link) = chain.at_mut(number) {
            link.key = None;
        }
        if chain.tidy_up() {
            self.remove(lane);
        }
    }

    fn remove(&mut self, lane: u64) -> Option<Chain> {
        let mut chain = self.of.remove(&lane)?;
        self.troubles -= u32::from(chain.trouble.is_some());
        if self.spare.len() < MAX_SPARE {
            chain.links.clear();
            self.spare.push(std::mem::take(&mut chain.links));
        }
        Some(chain)
    }

    /// A parked record runs when the trouble of its lane is over.
    pub(super) fn park(&mut self, lane: u64, key: RecordId) {
        let chain = self.of.get_mut(&lane);
        if let Some(trouble) = chain.and_then(|chain| chain.trouble.as_mut()) {
            trouble.parked.push(key);
        }
    }

    /// Forgets a lane without records. Returns the parked records that may run now, if it was in trouble.
    pub(super) fn end(&mut self, lane: u64) -> Option<Vec<RecordId>> {
        let chain = self.remove(lane)?;
        chain.trouble.map(|trouble| trouble.parked)
    }

    /// Takes all chains apart: the linked records, each lane's in order, and the topics of all troubles.
    pub(super) fn take_all(&mut self) -> (Vec<Unlinked>, Vec<String>) {
        let (mut links, mut topics) = (Vec::new(), Vec::new());
        for (_, chain) in self.of.drain() {
            let trouble = chain.trouble.unwrap_or_default();
            for (number, link) in (chain.first..).zip(chain.links) {
                let Some(key) = link.key else { continue };
                links.push(Unlinked {
                    key,
                    state: link.state,
                    tainted: trouble.is_tainted(number),
                });
            }
            topics.extend(trouble.topics.into_iter().map(|(topic, _)| topic));
        }
        self.troubles = 0;
        topics.sort_unstable();
        topics.dedup();
        (links, topics)
    }

    /// Whether a lane in trouble has no record left.
    pub(super) fn is_over(&self, lane: u64) -> bool {
        let chain = self.of.get(&lane);
        chain.is_some_and(|chain| chain.links.is_empty() && chain.trouble.is_some())
    }
}
