//! A topic's plan: the routes that the topic can reach, the fields that they test, and the layout of the class numbers.

use std::collections::HashMap;

use rapidhash::fast::GlobalState;

use super::atoms::{AtomIx, AtomTest, Subject};
use super::fields::Field;
use super::index::RoutingIndex;
use super::memo::Classes;
use super::names::Names;
use super::oracle::number;
use super::patterns::PatternMemo;
use crate::dispatch::HandlerIx;

/// How the records of one topic are routed.
pub(super) enum TopicPlan {
    /// These handlers receive every record.
    Constant(Box<[HandlerIx]>),
    /// The result depends on the record.
    Conditional(Box<Conditional>),
}

/// A plan whose result depends on the record.
pub(super) struct Conditional {
    /// Handlers that receive every record.
    pub(super) always: Box<[HandlerIx]>,
    /// Routes (in the index) whose predicate must be evaluated.
    pub(super) routes: Box<[u32]>,
    /// The headers that are tested; their classes go to the slot at the same index.
    pub(super) names: Names,
    pub(super) headers: Box<[Slot]>,
    pub(super) key: Option<Slot>,
    pub(super) partition: Option<Slot>,
    /// For each atom, which of `routes` to verify if it is true.
    pub(super) postings: HashMap<AtomIx, Vec<u32>, GlobalState>,
    /// Which of `routes` to verify for every record.
    pub(super) unposted: Vec<u32>,
    /// Whether the classes fit into [`Classes`]; otherwise each record is matched by postings.
    pub(super) fits: bool,
    /// The last partition, and its classes.
    pub(super) last_partition: Option<(i32, Classes)>,
}

/// Position of one field's class numbers in the bits of [`Classes`].
#[derive(Clone, Copy)]
pub(super) struct Slot {
    /// The field, in the index.
    pub(super) field: u32,
    exists: Option<u32>,
    equality: Option<u32>,
    prefixes: Option<u32>,
    suffixes: Option<u32>,
    numbers: Option<u32>,
    patterns: Option<u32>,
}

impl TopicPlan {
    /// The plan of `topic` under `index`.
    pub(super) fn new(index: &RoutingIndex, topic: &str) -> Self {
        let mut always = Vec::new();
        let mut routes = Vec::new();
        for ix in index.topics.routes(topic) {
            let route = &index.routes[ix as usize];
            match route.when.constant() {
                Some(true) => always.push(route.handler),
                Some(false) => {}
                None => routes.push(ix),
            }
        }
        always.sort_unstable();
        always.dedup();
        if routes.is_empty() {
            Self::Constant(always.into())
        } else {
            Self::Conditional(Box::new(Conditional::new(index, always, routes)))
        }
    }

    /// The handlers that may receive a record of the topic, possibly with duplicates.
    pub(super) fn handlers<'p>(
        &'p self,
        index: &'p RoutingIndex,
    ) -> impl Iterator<Item = HandlerIx> + 'p {
        let (always, routes) = match self {
            Self::Constant(always) => (always, None),
            Self::Conditional(plan) => (&plan.always, Some(&plan.routes)),
        };
        let asked = routes.into_iter().flatten();
        let asked = asked.map(|&route| index.routes[route as usize].handler);
        always.iter().copied().chain(asked)
    }
}

impl Conditional {
    fn new(index: &RoutingIndex, always: Vec<HandlerIx>, routes: Vec<u32>) -> Self {
        let mut postings = HashMap::<AtomIx, Vec<u32>, GlobalState>::default();
        let mut unposted = Vec::new();
        for (ordinal, &ix) in routes.iter().enumerate() {
            match &index.routes[ix as usize].access {
                None => unposted.push(ordinal as u32),
                Some(atoms) => atoms.iter().for_each(|atom| {
                    postings.entry(*atom).or_default().push(ordinal as u32);
                }),
            }
        }
        let mut layout = Layout::default();
        for slot in needed_slots(index, &routes) {
            layout.place(index, slot);
        }
        let names =
            layout
                .headers
                .iter()
                .map(|slot| match &index.fields[slot.field as usize].subject {
                    Subject::Header(name) => name.as_bytes(),
                    Subject::Key | Subject::Partition => &[],
                });
        Self {
            always: always.into(),
            routes: routes.into(),
            names: Names::new(names),
            key: layout.key,
            partition: layout.partition,
            postings,
            unposted,
            fits: layout.bits <= Classes::BITS,
            last_partition: None,
            headers: layout.headers.into(),
        }
    }
}

/// The fields that `routes` test, each with the facets they use marked (at bit 0 for now).
fn needed_slots(index: &RoutingIndex, routes: &[u32]) -> Vec<Slot> {
    let mut slots = HashMap::<u32, Slot, GlobalState>::default();
    for &ix in routes {
        index.routes[ix as usize].when.atoms(&mut |atom| {
            let field = index.field_of[atom as usize];
            let slot = slots.entry(field).or_insert(Slot::unused(field));
            *slot.facet(&index.tests[atom as usize]) = Some(0);
        });
    }
    let mut slots: Vec<Slot> = slots.into_values().collect();
    slots.sort_unstable_by_key(|slot| slot.field);
    slots
}

/// Assigns bits of [`Classes`] to facets.
#[derive(Default)]
struct Layout {
    bits: u32,
    headers: Vec<Slot>,
    key: Option<Slot>,
    partition: Option<Slot>,
}

impl Layout {
    fn place(&mut self, index: &RoutingIndex, mut slot: Slot) {
        let field = &index.fields[slot.field as usize];
        self.assign(&mut slot.exists, 2);
        self.assign(&mut slot.equality, field.equality.classes());
        self.assign(&mut slot.prefixes, field.prefixes.classes());
        self.assign(&mut slot.suffixes, field.suffixes.classes());
        self.assign(&mut slot.numbers, field.numbers.classes());
        self.assign(&mut slot.patterns, PatternMemo::MAX_SETS);
        match field.subject {
            Subject::Header(_) => self.headers.push(slot),
            Subject::Key => self.key = Some(slot),
            Subject::Partition => self.partition = Some(slot),
        }
    }

    fn assign(&mut self, at: &mut Option<u32>, classes: usize) {
        if at.is_some() {
            *at = Some(self.bits);
            self.bits += usize::BITS - (classes - 1).leading_zeros();
        }
    }
}

impl Slot {
    fn unused(field: u32) -> Self {
        Self {
            field,
            exists: None,
            equality: None,
            prefixes: None,
            suffixes: None,
            numbers: None,
            patterns: None,
        }
    }

    fn facet(&mut self, test: &AtomTest) -> &mut Option<u32> {
        match test {
            AtomTest::Exists => &mut self.exists,
            AtomTest::In(_) => &mut self.equality,
            AtomTest::Prefix(_) => &mut self.prefixes,
            AtomTest::Suffix(_) => &mut self.suffixes,
            AtomTest::Number(..) => &mut self.numbers,
            AtomTest::Regex(_) => &mut self.patterns,
        }
    }

    /// The classes of a present value; `None` if the pattern memo is full.
    #[inline(always)]
    pub(super) fn classes(
        &self,
        field: &Field,
        memo: &mut PatternMemo,
        value: Option<&[u8]>,
    ) -> Option<Classes> {
        let mut classes = 0;
        if let Some(bit) = self.exists {
            classes |= 1 << bit;
        }
        let Some(value) = value else {
            return Some(classes);
        };
        if let Some(bit) = self.equality {
            classes |= Classes::from(field.equality.class(value)) << bit;
        }
        if let Some(bit) = self.prefixes {
            classes |= Classes::from(field.prefixes.class(value)) << bit;
        }
        if let Some(bit) = self.suffixes {
            classes |= Classes::from(field.suffixes.class(value)) << bit;
        }
        if let Some(bit) = self.numbers {
            classes |= Classes::from(field.numbers.class(number(value))) << bit;
        }
        if let Some(bit) = self.patterns {
            classes |= Classes::from(memo.class(&field.patterns, value)?) << bit;
        }
        Some(classes)
    }

    /// The classes of a partition number.
    pub(super) fn partition_classes(&self, field: &Field, partition: i32) -> Classes {
        let mut classes = 0;
        if let Some(bit) = self.equality {
            let class = field.equality.class(&partition.to_le_bytes());
            classes |= Classes::from(class) << bit;
        }
        if let Some(bit) = self.numbers {
            let class = field.numbers.class(Some(f64::from(partition)));
            classes |= Classes::from(class) << bit;
        }
        classes
    }

    /// Calls `visit` with the atoms that are true for a present value.
    pub(super) fn true_atoms(
        &self,
        field: &Field,
        value: Option<&[u8]>,
        visit: &mut impl FnMut(AtomIx),
    ) {
        field.exists.iter().for_each(|atom| visit(*atom));
        let Some(value) = value else {
            return;
        };
        let mut visit_all = |atoms: &[AtomIx]| atoms.iter().for_each(|atom| visit(*atom));
        visit_all(field.equality.atoms(field.equality.class(value)));
        visit_all(field.prefixes.atoms(field.prefixes.class(value)));
        visit_all(field.suffixes.atoms(field.suffixes.class(value)));
        if self.numbers.is_some() {
            let class = field.numbers.class(number(value));
            field.numbers.atoms(class).for_each(&mut *visit);
        }
        if self.patterns.is_some() {
            let mut matching = Vec::new();
            field.patterns.matching(value, &mut matching);
            matching.into_iter().for_each(visit);
        }
    }

    /// Calls `visit` with the atoms that are true for a partition number.
    pub(super) fn partition_atoms(field: &Field, partition: i32, visit: &mut impl FnMut(AtomIx)) {
        let class = field.equality.class(&partition.to_le_bytes());
        field.equality.atoms(class).iter().for_each(|a| visit(*a));
        let class = field.numbers.class(Some(f64::from(partition)));
        field.numbers.atoms(class).for_each(visit);
    }
}
