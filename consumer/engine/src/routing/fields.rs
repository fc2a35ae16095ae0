//! One field of a record (a header name, the key, the partition): maps its values to class numbers, and classes to
//! atoms.
//!
//! Each facet handles one kind of test. Values for which all atoms of a facet have the same result have the same class;
//! class 0 means that no atom of this facet is true, so values that no route mentions cost nothing.

use std::collections::{BTreeMap, HashMap};

use rapidhash::fast::GlobalState;

use super::atoms::{AtomIx, AtomTest, Comparison, Subject};
use super::error::RouteError;
use super::patterns::Patterns;

type ByBytes = HashMap<Box<[u8]>, u32, GlobalState>;

/// The atoms on one subject, by kind.
pub(super) struct Field {
    pub(super) subject: Subject,
    pub(super) exists: Option<AtomIx>,
    pub(super) equality: Equality,
    pub(super) prefixes: Affixes,
    pub(super) suffixes: Affixes,
    pub(super) numbers: Numbers,
    pub(super) patterns: Patterns,
}

impl Field {
    /// The field of `atoms`, all of which test `subject`.
    ///
    /// # Errors
    /// The regex that does not compile, with the reason.
    pub(super) fn new(subject: Subject, atoms: &[(AtomIx, &AtomTest)]) -> Result<Self, RouteError> {
        let mut exists = None;
        let mut equality = BTreeMap::<&[u8], Vec<AtomIx>>::new();
        let mut prefixes = Vec::new();
        let mut suffixes = Vec::new();
        let mut numbers = Vec::new();
        let mut patterns = Vec::new();
        for &(atom, test) in atoms {
            match test {
                AtomTest::Exists => exists = Some(atom),
                AtomTest::In(values) => values
                    .iter()
                    .for_each(|value| equality.entry(value).or_default().push(atom)),
                AtomTest::Prefix(bytes) => prefixes.push((&**bytes, atom)),
                AtomTest::Suffix(bytes) => suffixes.push((&**bytes, atom)),
                AtomTest::Number(comparison, bits) => {
                    numbers.push((*comparison, f64::from_bits(*bits), atom));
                }
                AtomTest::Regex(pattern) => patterns.push((&**pattern, atom)),
            }
        }
        Ok(Self {
            subject,
            exists,
            equality: Equality::new(equality),
            prefixes: Affixes::new(Side::Start, &prefixes),
            suffixes: Affixes::new(Side::End, &suffixes),
            numbers: Numbers::new(&numbers),
            patterns: Patterns::new(&patterns)?,
        })
    }
}

/// Values by equality.
pub(super) struct Equality {
    classes: ByBytes,
    atoms: Vec<Box<[AtomIx]>>,
}

impl Equality {
    fn new(values: BTreeMap<&[u8], Vec<AtomIx>>) -> Self {
        let mut classes = ByBytes::default();
        let mut atoms = vec![Box::default()];
        for (value, of_value) in values {
            classes.insert(value.into(), atoms.len() as u32);
            atoms.push(of_value.into());
        }
        Self { classes, atoms }
    }

    #[inline]
    pub(super) fn class(&self, value: &[u8]) -> u32 {
        self.classes.get(value).copied().unwrap_or(0)
    }

    pub(super) fn atoms(&self, class: u32) -> &[AtomIx] {
        &self.atoms[class as usize]
    }

    pub(super) fn classes(&self) -> usize {
        self.atoms.len()
    }
}

/// Which end of a value is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Start,
    End,
}

impl Side {
    fn cut(self, value: &[u8], len: usize) -> Option<&[u8]> {
        match self {
            Self::Start => value.get(..len),
            Self::End => value.get(value.len().checked_sub(len)?..),
        }
    }
}

/// Values by prefix or suffix: the longest match determines which shorter ones match.
pub(super) struct Affixes {
    side: Side,
    /// Distinct lengths, longest first.
    lengths: Box<[usize]>,
    classes: ByBytes,
    atoms: Vec<Box<[AtomIx]>>,
}

impl Affixes {
    fn new(side: Side, affixes: &[(&[u8], AtomIx)]) -> Self {
        let mut sorted = affixes.to_vec();
        sorted.sort_by_key(|(bytes, _)| bytes.len());
        let mut lengths: Vec<usize> = sorted.iter().map(|(bytes, _)| bytes.len()).collect();
        lengths.dedup();
        lengths.reverse();
        let mut table = Self {
            side,
            lengths: lengths.into(),
            classes: ByBytes::default(),
            atoms: vec![Box::default()],
        };
        // Shortest first, so that the longest affix of this one already has its atoms.
        for (bytes, atom) in sorted {
            let mut atoms = table.atoms(table.class(bytes)).to_vec();
            atoms.push(atom);
            table.classes.insert(bytes.into(), table.atoms.len() as u32);
            table.atoms.push(atoms.into());
        }
        table
    }

    pub(super) fn class(&self, value: &[u8]) -> u32 {
        self.lengths
            .iter()
            .find_map(|&len| self.classes.get(self.side.cut(value, len)?).copied())
            .unwrap_or(0)
    }

    pub(super) fn atoms(&self, class: u32) -> &[AtomIx] {
        &self.atoms[class as usize]
    }

    pub(super) fn classes(&self) -> usize {
        self.atoms.len()
    }
}

/// Numbers by the constants to which they are compared.
///
/// `n` sorted constants divide the numbers into `2n + 1` places: below the first, equal to it, between it and the
/// second, and so on. The class is the place plus one; 0 means not a number.
pub(super) struct Numbers {
    cuts: Vec<f64>,
    /// Atoms true below a place, by the highest place where they hold, highest first.
    below: Vec<(u32, AtomIx)>,
    /// Atoms true above a place, by the lowest place where they hold, lowest first.
    above: Vec<(u32, AtomIx)>,
}

impl Numbers {
    fn new(atoms: &[(Comparison, f64, AtomIx)]) -> Self {
        let mut cuts: Vec<f64> = atoms.iter().map(|(_, bound, _)| *bound).collect();
        cuts.sort_unstable_by(f64::total_cmp);
        cuts.dedup();
        let mut numbers = Self {
            cuts,
            below: Vec::new(),
            above: Vec::new(),
        };
        for &(comparison, bound, atom) in atoms {
            let on = numbers.place(bound);
            match comparison {
                Comparison::Lt => numbers.below.push((on - 1, atom)),
                Comparison::Le => numbers.below.push((on, atom)),
                Comparison::Gt => numbers.above.push((on + 1, atom)),
                Comparison::Ge => numbers.above.push((on, atom)),
            }
        }
        numbers
            .below
            .sort_unstable_by_key(|&(place, _)| std::cmp::Reverse(place));
        numbers.above.sort_unstable_by_key(|&(place, _)| place);
        numbers
    }

    fn place(&self, number: f64) -> u32 {
        let below = self.cuts.partition_point(|cut| *cut < number);
        let on = self.cuts.get(below).is_some_and(|cut| *cut == number);
        (2 * below + usize::from(on)) as u32
    }

    pub(super) fn class(&self, number: Option<f64>) -> u32 {
        number.map_or(0, |number| self.place(number) + 1)
    }

    pub(super) fn atoms(&self, class: u32) -> impl Iterator<Item = AtomIx> {
        let place = class.checked_sub(1);
        let below = self
            .below
            .iter()
            .take_while(move |(highest, _)| place.is_some_and(|place| place <= *highest));
        let above = self
            .above
            .iter()
            .take_while(move |(lowest, _)| place.is_some_and(|place| place >= *lowest));
        below.chain(above).map(|(_, atom)| *atom)
    }

    pub(super) fn classes(&self) -> usize {
        if self.cuts.is_empty() {
            1
        } else {
            2 * self.cuts.len() + 2
        }
    }
}
