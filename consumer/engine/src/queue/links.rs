//! The records of one lane that have run and are not settled, in order, with their trouble.

use std::collections::VecDeque;

use crate::dispatch::RecordId;
use crate::emit::Way;
use crate::emit::shipment::ShippedAt;

/// Maximum number of empty queues that are kept for the next chains.
const MAX_SPARE: usize = 1_024;
/// Number of records that are written ahead after a refusal; it doubles with the acknowledgements of as many.
const FIRST_WINDOW: u64 = 16;

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
pub(super) struct Link {
    /// [`RecordId::NONE`] once it is unlinked and not the first.
    pub(super) key: RecordId,
    /// Its emits, if it was linked as a pending share.
    pub(super) pending: Option<ShippedAt>,
    pub(super) state: LinkState,
}

impl Link {
    /// Its record, unless it is unlinked.
    pub(super) fn key(&self) -> Option<RecordId> {
        (self.key != RecordId::NONE).then_some(self.key)
    }
}

const NO_LINK: Link = Link {
    key: RecordId::NONE,
    pending: None,
    state: LinkState::Open,
};

/// Emits of a lane were refused.
#[derive(Debug)]
pub(super) struct Trouble {
    /// The topics that refused, each with the number of the first link that stands behind a record that it refused.
    pub(super) topics: Vec<(String, u64)>,
    /// The links before this one are written again, or are about to be: since the last refusal, in order and the same way.
    pub(super) written: u64,
    pub(super) way: Way,
    /// Number of records that may be written ahead of the first one: of those that were acknowledged since the last refusal.
    pub(super) window: u64,
    /// Parked records whose time has come in the trouble: they run when it is over.
    pub(super) parked: Vec<RecordId>,
}

impl Default for Trouble {
    fn default() -> Self {
        Self {
            topics: Vec::new(),
            written: 0,
            way: Way::Batched,
            window: FIRST_WINDOW,
            parked: Vec::new(),
        }
    }
}

impl Trouble {
    /// What stands behind a refused record in this topic, from this link on, is to be written again.
    fn taint(&mut self, topic: String, from: u64) {
        self.written = from.min(self.written);
        self.window = FIRST_WINDOW;
        match self.topics.iter_mut().find(|(known, _)| *known == topic) {
            Some((_, known)) => *known = from.min(*known),
            None => self.topics.push((topic, from)),
        }
    }

    /// The topics in which a link stands behind a refused one and is not written again.
    pub(super) fn taint_of(&self, number: u64) -> impl Iterator<Item = &String> {
        let is_written = number < self.written;
        let tainted = self.topics.iter();
        let tainted = tainted.filter(move |(_, from)| !is_written && *from <= number);
        tainted.map(|(topic, _)| topic)
    }
}

/// A chain of any length.
#[derive(Debug, Default)]
pub(super) struct Several {
    links: VecDeque<Link>,
    /// Number of the first link: they are numbered in order.
    first: u64,
    trouble: Option<Trouble>,
}

/// The chain of a lane. Nearly all have one record and no trouble, and there are tens of thousands: small, they stay in the cache.
#[derive(Debug)]
pub(super) enum Chain {
    /// One record, whose number is 0.
    One(Link),
    Several(Box<Several>),
}

impl Chain {
    /// Links a record behind the others. Returns its number.
    pub(super) fn push(&mut self, link: Link, spare: &mut Spare) -> u64 {
        let mut several = self.take(spare);
        several.links.push_back(link);
        let number = several.first + several.links.len() as u64 - 1;
        *self = Self::Several(several);
        number
    }

    /// These topics have refused a record: what is linked from this number on is to be written again. Returns whether the trouble
    /// begins.
    pub(super) fn taint(&mut self, topics: &[String], from: u64, spare: &mut Spare) -> bool {
        let mut several = self.take(spare);
        let begins = several.trouble.is_none();
        let trouble = several.trouble.get_or_insert_default();
        for topic in topics {
            trouble.taint(topic.clone(), from);
        }
        *self = Self::Several(several);
        begins
    }

    /// Its content, which is to be put back.
    fn take(&mut self, spare: &mut Spare) -> Box<Several> {
        match std::mem::replace(self, Self::One(NO_LINK)) {
            Self::Several(several) => several,
            Self::One(link) => {
                let mut several = spare.take();
                several.links.push_back(link);
                several
            }
        }
    }

    /// Number of the first link.
    pub(super) fn first(&self) -> u64 {
        match self {
            Self::One(_) => 0,
            Self::Several(several) => several.first,
        }
    }

    /// The link of this number.
    pub(super) fn get(&self, number: u64) -> Option<&Link> {
        match self {
            Self::One(link) => (number == 0).then_some(link),
            Self::Several(several) => {
                let place = number.checked_sub(several.first)?;
                several.links.get(place as usize)
            }
        }
    }

    /// The link of this number.
    pub(super) fn at(&mut self, number: u64) -> Option<&mut Link> {
        match self {
            Self::One(link) => (number == 0).then_some(link),
            Self::Several(several) => {
                let place = number.checked_sub(several.first)?;
                several.links.get_mut(place as usize)
            }
        }
    }

    /// The first link.
    pub(super) fn front(&self) -> Option<&Link> {
        match self {
            Self::One(link) => Some(link),
            Self::Several(several) => several.links.front(),
        }
    }

    /// The links, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        let (one, any) = match self {
            Self::One(link) => (Some(link), None),
            Self::Several(several) => (None, Some(&several.links)),
        };
        one.into_iter().chain(any.into_iter().flatten())
    }

    /// The links, in order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        let (one, any) = match self {
            Self::One(link) => (Some(link), None),
            Self::Several(several) => (None, Some(&mut several.links)),
        };
        one.into_iter().chain(any.into_iter().flatten())
    }

    /// Removes the first link and unlinked ones behind it. Returns whether nothing is left of the chain.
    pub(super) fn pop(&mut self) -> bool {
        match self {
            Self::One(_) => true,
            Self::Several(several) => {
                several.links.pop_front();
                several.first += 1;
                several.tidy_up()
            }
        }
    }

    /// Unlinks a record. Returns whether nothing is left of the chain.
    pub(super) fn unlink(&mut self, number: u64) -> bool {
        if let Some(link) = self.at(number) {
            link.key = RecordId::NONE;
        }
        match self {
            Self::One(link) => link.key().is_none(),
            Self::Several(several) => several.tidy_up(),
        }
    }

    /// Its trouble, if it has one.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        match self {
            Self::One(_) => None,
            Self::Several(several) => several.trouble.as_ref(),
        }
    }

    /// Its trouble, if it has one.
    pub(super) fn trouble_mut(&mut self) -> Option<&mut Trouble> {
        match self {
            Self::One(_) => None,
            Self::Several(several) => several.trouble.as_mut(),
        }
    }
}

impl Several {
    /// Removes unlinked ones from the front. Returns whether nothing is left of it.
    fn tidy_up(&mut self) -> bool {
        while self.links.front().is_some_and(|link| link.key().is_none()) {
            self.links.pop_front();
            self.first += 1;
        }
        self.links.is_empty() && self.trouble.is_none()
    }
}

/// Empty queues: a lane in which some records at a time wait allocates nothing.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "the boxes are what is kept")]
pub(super) struct Spare(Vec<Box<Several>>);

impl Spare {
    fn take(&mut self) -> Box<Several> {
        self.0.pop().unwrap_or_default()
    }

    /// Keeps the queue of a chain that is over. Returns its trouble.
    pub(super) fn keep(&mut self, chain: Chain) -> Option<Trouble> {
        let Chain::Several(mut several) = chain else {
            return None;
        };
        let trouble = several.trouble.take();
        if self.0.len() < MAX_SPARE {
            several.links.clear();
            several.first = 0;
            self.0.push(several);
        }
        trouble
    }
}
