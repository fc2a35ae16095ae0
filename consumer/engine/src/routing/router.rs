//! The pump's side of routing: the plans of the topics it reads, and its cache of routing results.

use std::collections::HashMap;
use std::sync::Arc;

use sluicegate_abi::header_block::Headers;

use super::atoms::AtomIx;
use super::index::RoutingIndex;
use super::memo::{Classes, Memo, RouteSets};
use super::patterns::PatternMemo;
use super::plan::{Conditional, Slot, TopicPlan};
use crate::dispatch::HandlerIx;

/// A topic's plan in one router; it stays valid across [`Router::swap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPlanId(pub u32);

/// Routes the records of one pump, by one index at a time.
pub struct Router {
    index: Arc<RoutingIndex>,
    topics: Vec<Box<str>>,
    by_topic: HashMap<Box<str>, TopicPlanId>,
    plans: Vec<TopicPlan>,
    memo: Memo,
    sets: RouteSets,
    patterns: Vec<PatternMemo>,
    lookup: Lookup,
    /// A cache has run out of room: clear all of them before the next record.
    full: bool,
}

/// The parts of a record that are routed by.
#[derive(Clone, Copy)]
struct Record<'a> {
    partition: i32,
    key: Option<&'a [u8]>,
    headers: &'a [u8],
}

impl Router {
    /// A router that uses `index`.
    pub fn new(index: Arc<RoutingIndex>) -> Self {
        let mut router = Self {
            index,
            topics: Vec::new(),
            by_topic: HashMap::new(),
            plans: Vec::new(),
            memo: Memo::new(),
            sets: RouteSets::default(),
            patterns: Vec::new(),
            lookup: Lookup::default(),
            full: false,
        };
        router.forget();
        router
    }

    /// The current index.
    pub fn index(&self) -> &Arc<RoutingIndex> {
        &self.index
    }

    /// Uses `index` from the next record on: for all topics at once, with nothing cached from the old one.
    pub fn swap(&mut self, index: Arc<RoutingIndex>) {
        self.index = index;
        self.plans = self
            .topics
            .iter()
            .map(|topic| TopicPlan::new(&self.index, topic))
            .collect();
        self.forget();
    }

    /// The plan of `topic`, created when the topic is first seen.
    pub fn plan(&mut self, topic: &str) -> TopicPlanId {
        if let Some(&plan) = self.by_topic.get(topic) {
            return plan;
        }
        let plan = TopicPlanId(self.plans.len() as u32);
        self.plans.push(TopicPlan::new(&self.index, topic));
        self.topics.push(topic.into());
        self.by_topic.insert(topic.into(), plan);
        plan
    }

    /// The handlers that may receive a record of the topic, possibly with duplicates.
    pub fn candidates(&self, plan: TopicPlanId) -> impl Iterator<Item = HandlerIx> + '_ {
        self.plans[plan.0 as usize].handlers(&self.index)
    }

    /// The handlers that receive every record of the topic, ascending; `None` if it depends on the record.
    #[inline]
    pub fn constant(&self, plan: TopicPlanId) -> Option<&[HandlerIx]> {
        match &self.plans[plan.0 as usize] {
            TopicPlan::Constant(handlers) => Some(handlers),
            TopicPlan::Conditional(_) => None,
        }
    }

    /// The handlers that receive a record, ascending; `headers` returns its header block and is called only if needed.
    #[inline]
    pub fn route<'r>(
        &mut self,
        plan: TopicPlanId,
        partition: i32,
        key: Option<&[u8]>,
        headers: impl FnOnce() -> &'r [u8],
    ) -> &[HandlerIx] {
        if self.full {
            self.forget();
        }
        let conditional = match &mut self.plans[plan.0 as usize] {
            TopicPlan::Constant(handlers) => return handlers,
            TopicPlan::Conditional(conditional) => conditional,
        };
        let headers = match conditional.headers.is_empty() {
            true => &[],
            false => headers(),
        };
        let record = Record {
            partition,
            key,
            headers,
        };
        let classes = record.classes(&self.index, conditional, &mut self.patterns);
        let classes = match classes {
            Ok(classes) => classes,
            Err(uncounted) => {
                self.full |= matches!(uncounted, Uncounted::PatternsFull);
                return self.lookup.handlers(&self.index, conditional, record);
            }
        };
        if let Some(set) = self.memo.get(plan.0, classes) {
            return self.sets.get(set);
        }
        let handlers = self.lookup.handlers(&self.index, conditional, record);
        match self.sets.intern(handlers) {
            Some(set) => self.memo.insert(plan.0, classes, set),
            None => self.full = true,
        }
        handlers
    }

    fn forget(&mut self) {
        self.memo = Memo::new();
        self.sets = RouteSets::default();
        self.patterns.clear();
        self.patterns
            .extend(self.index.fields.iter().map(|_| PatternMemo::new()));
        self.lookup = Lookup::new(&self.index);
        self.full = false;
    }
}

/// Why a record has no class numbers.
enum Uncounted {
    /// A tested header occurs more than once, or the plan's classes do not fit into one number.
    Never,
    /// No number for a set of regexes is left.
    PatternsFull,
}

impl Record<'_> {
    // Always: it has one caller, and 6 % of routing are its arguments.
    #[inline(always)]
    fn classes(
        &self,
        index: &RoutingIndex,
        plan: &mut Conditional,
        patterns: &mut [PatternMemo],
    ) -> Result<Classes, Uncounted> {
        if !plan.fits {
            return Err(Uncounted::Never);
        }
        let mut of_slot = |slot: &Slot, value: Option<&[u8]>| {
            let field = slot.field as usize;
            slot.classes(&index.fields[field], &mut patterns[field], value)
                .ok_or(Uncounted::PatternsFull)
        };
        let mut classes = 0;
        if !plan.headers.is_empty() {
            // A header needs at least one bit if the classes fit, so there are at most 128 of them.
            let mut seen: u128 = 0;
            for (name, value) in Headers::new(self.headers) {
                let Some(ordinal) = plan.names.find(name) else {
                    continue;
                };
                if seen & (1 << ordinal) != 0 {
                    return Err(Uncounted::Never);
                }
                seen |= 1 << ordinal;
                classes |= of_slot(&plan.headers[ordinal as usize], value)?;
            }
        }
        if let (Some(slot), Some(key)) = (&plan.key, self.key) {
            classes |= of_slot(slot, Some(key))?;
        }
        if let Some(slot) = &plan.partition {
            classes |= match plan.last_partition {
                Some((partition, classes)) if partition == self.partition => classes,
                _ => {
                    let field = &index.fields[slot.field as usize];
                    let classes = slot.partition_classes(field, self.partition);
                    plan.last_partition = Some((self.partition, classes));
                    classes
                }
            };
        }
        Ok(classes)
    }

    /// Calls `visit` with every atom that is true for the record, possibly with duplicates.
    fn true_atoms(&self, index: &RoutingIndex, plan: &Conditional, visit: &mut impl FnMut(AtomIx)) {
        for (name, value) in Headers::new(self.headers) {
            if let Some(ordinal) = plan.names.find(name) {
                let slot = &plan.headers[ordinal as usize];
                slot.true_atoms(&index.fields[slot.field as usize], value, visit);
            }
        }
        if let (Some(slot), Some(key)) = (&plan.key, self.key) {
            slot.true_atoms(&index.fields[slot.field as usize], Some(key), visit);
        }
        if let Some(slot) = &plan.partition {
            Slot::partition_atoms(&index.fields[slot.field as usize], self.partition, visit);
        }
    }
}

/// Finds the handlers of a record whose result is not cached, by the atoms that are true for it.
#[derive(Default)]
struct Lookup {
    /// Truth by atom, one bit each.
    truth: Vec<u64>,
    true_atoms: Vec<AtomIx>,
    candidates: Vec<u32>,
    handlers: Vec<HandlerIx>,
}

impl Lookup {
    fn new(index: &RoutingIndex) -> Self {
        Self {
            truth: vec![0; index.tests.len().div_ceil(64)],
            ..Self::default()
        }
    }

    fn handlers(
        &mut self,
        index: &RoutingIndex,
        plan: &Conditional,
        record: Record<'_>,
    ) -> &[HandlerIx] {
        let (truth, true_atoms) = (&mut self.truth, &mut self.true_atoms);
        record.true_atoms(index, plan, &mut |atom| {
            let (word, bit) = (atom as usize / 64, 1 << (atom % 64));
            if truth[word] & bit == 0 {
                truth[word] |= bit;
                true_atoms.push(atom);
            }
        });
        self.candidates.clear();
        self.candidates.extend_from_slice(&plan.unposted);
        for atom in &self.true_atoms {
            if let Some(posted) = plan.postings.get(atom) {
                self.candidates.extend_from_slice(posted);
            }
        }
        self.handlers.clear();
        self.handlers.extend_from_slice(&plan.always);
        let holds = |atom: AtomIx| self.truth[atom as usize / 64] & (1 << (atom % 64)) != 0;
        for &candidate in &self.candidates {
            let route = &index.routes[plan.routes[candidate as usize] as usize];
            if route.when.holds(&holds) {
                self.handlers.push(route.handler);
            }
        }
        self.handlers.sort_unstable();
        self.handlers.dedup();
        for atom in self.true_atoms.drain(..) {
            self.truth[atom as usize / 64] = 0;
        }
        &self.handlers
    }
}
