//! The regexes of one field: a literal prefilter finds the few that can match, and results are cached by value.

use std::collections::HashMap;
use std::error::Error;

use aho_corasick::{AhoCorasick, MatchKind};
use rapidhash::fast::GlobalState;
use rapidhash::v3::rapidhash_v3;
use regex::Regex;
use regex_automata::nfa::thompson::NFA;
use regex_syntax::hir::literal::{ExtractKind, Extractor};

use super::atoms::AtomIx;
use super::error::RouteError;

/// The compiled regexes of one field.
pub(super) struct Patterns {
    regexes: Vec<(Regex, AtomIx)>,
    /// Finds every literal that occurs in a value; `None` if no regex has literals.
    literals: Option<AhoCorasick>,
    /// For each literal: the regex that it indicates, and whether it must occur at the start.
    announces: Vec<(u32, bool)>,
    /// Regexes without literals: they run on every value.
    unfiltered: Vec<u32>,
}

impl Patterns {
    /// Compiles `patterns`.
    ///
    /// # Errors
    /// The pattern that does not compile, with the reason.
    pub(super) fn new(patterns: &[(&str, AtomIx)]) -> Result<Self, RouteError> {
        let mut regexes = Vec::new();
        let mut literals = Vec::new();
        let mut announces = Vec::new();
        let mut unfiltered = Vec::new();
        for (ix, &(pattern, atom)) in patterns.iter().enumerate() {
            let refused = |source| RouteError::Pattern {
                pattern: pattern.to_owned(),
                source,
            };
            let regex = Regex::new(pattern).map_err(|error| refused(error.into()))?;
            regexes.push((regex, atom));
            match required_literals(pattern).map_err(refused)? {
                None => unfiltered.push(ix as u32),
                Some(required) => {
                    let announced = (ix as u32, required.at_start);
                    announces.extend(required.literals.iter().map(|_| announced));
                    literals.extend(required.literals);
                }
            }
        }
        let literals = match literals.as_slice() {
            [] => None,
            all => AhoCorasick::builder()
                .match_kind(MatchKind::Standard)
                .build(all)
                .ok(),
        };
        if literals.is_none() {
            // Too many literals for one automaton: run every regex, which is slow but correct.
            unfiltered = (0..regexes.len() as u32).collect();
            announces.clear();
        }
        Ok(Self {
            regexes,
            literals,
            announces,
            unfiltered,
        })
    }

    /// Appends the atoms that are true for `value`, sorted.
    pub(super) fn matching(&self, value: &[u8], out: &mut Vec<AtomIx>) {
        let Ok(text) = str::from_utf8(value) else {
            return;
        };
        let first = out.len();
        let run = |ix: u32| {
            let (regex, atom) = &self.regexes[ix as usize];
            regex.is_match(text).then_some(*atom)
        };
        out.extend(self.unfiltered.iter().filter_map(|&ix| run(ix)));
        if let Some(literals) = &self.literals {
            let announced = literals
                .find_overlapping_iter(text)
                .filter_map(|found| {
                    let (ix, at_start) = self.announces[found.pattern().as_usize()];
                    (!at_start || found.start() == 0).then_some(ix)
                })
                .filter_map(run);
            out.extend(announced);
        }
        out[first..].sort_unstable();
        let mut kept = first;
        for at in first..out.len() {
            if kept == first || out[kept - 1] != out[at] {
                out[kept] = out[at];
                kept += 1;
            }
        }
        out.truncate(kept);
    }
}

/// Literals of which at least one occurs in every match of a regex.
struct Required {
    literals: Vec<Vec<u8>>,
    /// It occurs at the start of the value.
    at_start: bool,
}

/// The literals that `pattern` requires; `None` without such a set.
fn required_literals(pattern: &str) -> Result<Option<Required>, Box<dyn Error + Send + Sync>> {
    let hir = regex_syntax::parse(pattern)?;
    let nfa = NFA::compiler().build_from_hir(&hir)?;
    let at_start = nfa.is_always_start_anchored();
    let prefixes = Extractor::new().kind(ExtractKind::Prefix).extract(&hir);
    let found = match prefixes.literals() {
        Some(literals) => literals,
        None => return Ok(None),
    };
    // No literal at all means that nothing matches; leave that to the regex itself.
    if found.is_empty() || found.iter().any(|literal| literal.is_empty()) {
        return Ok(None);
    }
    Ok(Some(Required {
        literals: found.iter().map(|l| l.as_bytes().to_vec()).collect(),
        at_start,
    }))
}

/// One router's cache of one field's values: sets of matching regexes by number, and numbers by value.
pub(super) struct PatternMemo {
    sets: HashMap<Box<[AtomIx]>, u32, GlobalState>,
    /// A power of two of entries, two per bucket; it grows up to a bound.
    values: Vec<RememberedValue>,
    evicted: usize,
    scratch: Vec<AtomIx>,
}

#[derive(Clone, Default)]
struct RememberedValue {
    /// Set number plus one; 0 marks an empty entry.
    set: u32,
    bytes: Vec<u8>,
}

impl PatternMemo {
    const INITIAL_CACHED_VALUES: usize = 1 << 8;
    const MAX_CACHED_VALUES: usize = 1 << 15;
    /// Longer values are not cached.
    const MAX_VALUE: usize = 256;
    /// Maximum number of numbered sets; it bounds the bits per class.
    pub(super) const MAX_SETS: usize = 1 << 16;

    /// An empty cache. Set 0 is the empty set.
    pub(super) fn new() -> Self {
        Self {
            sets: HashMap::from_iter([(Box::default(), 0)]),
            values: Vec::new(),
            evicted: 0,
            scratch: Vec::new(),
        }
    }

    /// The number of the set of atoms true for `value`; `None` if no number is left.
    pub(super) fn class(&mut self, patterns: &Patterns, value: &[u8]) -> Option<u32> {
        if value.len() > Self::MAX_VALUE {
            return self.number(patterns, value);
        }
        if self.values.is_empty() || self.evicted > self.values.len() / 8 {
            self.grow();
        }
        let (first, second) = self.places(value);
        for place in [first, second] {
            let remembered = &self.values[place];
            if remembered.set != 0 && remembered.bytes == value {
                return Some(remembered.set - 1);
            }
        }
        let set = self.number(patterns, value)?;
        // The newer one comes first.
        if self.values[second].set != 0 {
            self.evicted += usize::from(self.values.len() < Self::MAX_CACHED_VALUES);
        }
        self.values.swap(first, second);
        let remembered = &mut self.values[first];
        remembered.set = set + 1;
        remembered.bytes.clear();
        remembered.bytes.extend_from_slice(value);
        Some(set)
    }

    /// The bucket of a value.
    fn places(&self, value: &[u8]) -> (usize, usize) {
        let first = rapidhash_v3(value) as usize & (self.values.len() - 1) & !1;
        (first, first + 1)
    }

    fn grow(&mut self) {
        let size =
            (self.values.len() * 4).clamp(Self::INITIAL_CACHED_VALUES, Self::MAX_CACHED_VALUES);
        let larger = vec![RememberedValue::default(); size];
        let old = std::mem::replace(&mut self.values, larger);
        self.evicted = 0;
        for remembered in old.into_iter().filter(|one| one.set != 0) {
            let (first, second) = self.places(&remembered.bytes);
            self.values.swap(first, second);
            self.values[first] = remembered;
        }
    }

    fn number(&mut self, patterns: &Patterns, value: &[u8]) -> Option<u32> {
        self.scratch.clear();
        patterns.matching(value, &mut self.scratch);
        if let Some(&id) = self.sets.get(self.scratch.as_slice()) {
            return Some(id);
        }
        let id = self.sets.len();
        if id >= Self::MAX_SETS {
            return None;
        }
        self.sets.insert(self.scratch.as_slice().into(), id as u32);
        Some(id as u32)
    }
}
