//! The marks that bridges leave on both sides, by which each side identifies its pair.
//!
//! | side | at `.bridge` |
//! |---|---|
//! | ZooKeeper | `7 5 ID`: the mark, the mark from which on missing keys count as deleted, and the one pair that it belongs to |
//! | etcd | one `ID NAME` line per pair that it belongs to, with the name below which that pair's sync state is stored |
//!
//! Anything else is treated as no mark.

use sluicegate_config::control::ControlKey;
use sluicegate_store::Tree;

/// Marks at or beyond this value are ignored: no bridge ever counts so far.
pub(super) const MAX_MARK: u64 = 1 << 53;

/// The mark in ZooKeeper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// The number; 0 for none.
    pub(super) number: u64,
    /// From this number on, missing keys count as deleted there.
    pub(super) since: u64,
    /// The pair; `None` also for a mark from before pairs had ids.
    pub(super) pair: Option<String>,
}

impl Mark {
    /// The mark in ZooKeeper's tree.
    pub(super) fn of(tree: &Tree) -> Self {
        let mut words = text(tree).split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let mark = number().filter(|mark| *mark < MAX_MARK).unwrap_or(0);
        let since = number().unwrap_or(0).min(mark);
        Self {
            number: mark,
            since,
            pair: words.next().filter(|word| is_id(word)).map(str::to_owned),
        }
    }

    /// Whether a bridge has written one.
    pub(super) fn exists(&self) -> bool {
        self.number > 0 || self.pair.is_some()
    }

    /// Its text form.
    pub(super) fn to_text(&self) -> String {
        let pair = self.pair.as_deref().unwrap_or_default();
        format!("{} {} {pair}", self.number, self.since)
    }
}

/// A pair that an etcd belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    /// The pair.
    pub(super) id: String,
    /// The name below which its sync state is stored; `None` where it was not recorded yet.
    pub(super) name: Option<String>,
}

impl Membership {
    /// The pairs that etcd's tree belongs to.
    pub(super) fn all_of(tree: &Tree) -> Vec<Self> {
        let lines = text(tree).lines().map(str::split_whitespace);
        lines
            .filter_map(|mut words| {
                Some(Self {
                    id: words.next().filter(|word| is_id(word))?.to_owned(),
                    name: words.next().map(str::to_owned),
                })
            })
            .collect()
    }

    /// The membership in pair `id`, from etcd's tree.
    pub(super) fn of(tree: &Tree, id: &str) -> Option<Self> {
        Self::all_of(tree).into_iter().find(|one| one.id == id)
    }

    /// Its line.
    pub(super) fn to_text(&self) -> String {
        match &self.name {
            Some(name) => format!("{} {name}", self.id),
            None => self.id.clone(),
        }
    }
}

/// A new pair's id.
pub(super) fn new_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

fn is_id(word: &str) -> bool {
    word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn text(tree: &Tree) -> &str {
    let entry = tree.get(&ControlKey::Bridge);
    entry.map_or("", |entry| {
        std::str::from_utf8(&entry.value).unwrap_or_default()
    })
}
