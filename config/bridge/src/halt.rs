//! Reasons for which a bridge halts although both stores answer, and the limit on mass deletes.

use std::fmt;

use sluicegate_config::control::{Pair, Side};
use sluicegate_store::StoreAddress;

use super::PairCheck;
use super::pair::Foreign;

/// A listing that finds more keys missing than this halts the bridge.
const MAX_ABSENT: usize = 20;
/// From this many known keys on, the bridge also halts when more than half of them are missing.
const MIN_KNOWN_FOR_HALF: usize = 4;

/// Why a bridge is halted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// A side is not the store that the sync state is about.
    Foreign {
        /// What differs, and on which side.
        foreign: Vec<Foreign>,
        /// The addresses of the sides.
        stores: Pair<StoreAddress>,
    },
    /// A listing found so many keys missing that they appear to be lost rather than deleted.
    MassDelete {
        /// The side that lacks them.
        side: Side,
        /// Its address.
        store: StoreAddress,
        /// How many keys are missing.
        absent: usize,
        /// How many keys both sides held.
        known: usize,
    },
}

/// Counts of keys that both sides held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Absences {
    /// Keys that one side lacks now although no watch saw a delete.
    pub(super) absent: usize,
    /// All keys that both sides held.
    pub(super) known: usize,
}

impl Absences {
    /// Whether so many are missing that the bridge must halt.
    pub(super) fn are_many(self) -> bool {
        self.absent > MAX_ABSENT
            || (self.known >= MIN_KNOWN_FOR_HALF && self.absent * 2 > self.known)
    }
}

impl Halt {
    /// The halt for a pair with a foreign side; `None` for any other result.
    pub(super) fn of(check: &PairCheck, addresses: impl Fn(Side) -> StoreAddress) -> Option<Self> {
        match check {
            PairCheck::Foreign(foreign) => Some(Self::Foreign {
                foreign: foreign.clone(),
                stores: Pair::from_fn(addresses),
            }),
            PairCheck::Fits(_) | PairCheck::Renew(_) => None,
        }
    }
}

/// The remedy for one foreign side.
fn answer(side: Side) -> String {
    let other = side.other();
    format!(
        "If {side} was emptied, restored, recreated or moved, or its `paths` were changed on purpose, run `sluicegate bridge -c CONFIG \
         --accept-store {side}` instead of this bridge, or concurrently with a different `admin.listen`, until `bridge status` reports `all in sync`: values of {other} are then written to {side}, keys that {side} lacks are not deleted, \
         and keys that only {side} has are copied to {other}; `--dry-run` shows what it would write"
    )
}

/// The remedy where both sides are foreign.
const ANSWER_BOTH: &str = "If both were emptied, restored, recreated or moved, or their `paths` were changed on purpose, run `sluicegate bridge -c CONFIG \
                           --accept-store etcd --accept-store zookeeper` instead of this bridge, or concurrently with a different `admin.listen`, until `bridge status` reports `all in sync`: nothing \
                           is deleted, keys that one side lacks are copied to it, and where both hold a key the preferred side's value \
                           wins; `--dry-run` shows what it would write";

/// Writes all differences, then the remedy for the whole.
fn write_foreign(
    f: &mut fmt::Formatter<'_>,
    foreign: &[Foreign],
    stores: &Pair<StoreAddress>,
) -> fmt::Result {
    for one in foreign {
        write_difference(f, one, stores)?;
        f.write_str("; ")?;
    }
    f.write_str("nothing is written or deleted. If the config names the wrong servers")?;
    let is_either = |one: &Foreign| matches!(one, Foreign::Apart { .. } | Foreign::Named { .. });
    if foreign.iter().any(is_either) {
        f.write_str(", or another bridge uses the same root, correct that. ")?;
        let (restored, moved) = (answer(Side::Etcd), answer(Side::ZooKeeper));
        return write!(f, "{restored}. {moved}");
    }
    f.write_str(", correct it. ")?;
    let sides = Side::BOTH.into_iter().filter(|side| {
        (foreign.iter()).any(|one| one.is_answered_by(Pair::from_fn(|of| of == *side)))
    });
    match sides.collect::<Vec<_>>()[..] {
        [side] => f.write_str(&answer(side))?,
        _ => f.write_str(ANSWER_BOTH)?,
    }
    if (foreign.iter()).any(|one| matches!(one, Foreign::Store { .. })) {
        f.write_str(". If this is a different pair, give it a `name` of its own")?;
    }
    Ok(())
}

fn write_difference(
    f: &mut fmt::Formatter<'_>,
    foreign: &Foreign,
    stores: &Pair<StoreAddress>,
) -> fmt::Result {
    match foreign {
        Foreign::Store {
            side,
            recorded,
            found,
        } => {
            let store = stores.of(*side);
            let found = found.as_deref().unwrap_or("empty, without its root");
            write!(
                f,
                "{store} is not the store that this pair was bridged with: it is {found}, but the sync state is about {recorded}"
            )
        }
        Foreign::Unmarked { side, pair } => {
            let store = stores.of(*side);
            write!(
                f,
                "{store} does not carry the mark of this pair, {pair}, at `.bridge`: it was emptied, it was restored from before \
                 the pair was joined, or the mark was deleted"
            )
        }
        Foreign::Apart { zookeeper, etcd } => {
            let marked = match zookeeper {
                Some(pair) => format!("carries the mark of the pair {pair}"),
                None => "carries the mark of a pair".to_owned(),
            };
            let recorded = match etcd {
                Some(pair) => format!("the sync state in etcd is that of the pair {pair}"),
                None => "etcd holds no sync state of it".to_owned(),
            };
            write!(
                f,
                "{} and {} do not belong together: the first {marked} at `.bridge`, and {recorded}",
                stores.zookeeper, stores.etcd
            )
        }
        Foreign::Named { pair, name } => write!(
            f,
            "{} and {} are already bridged with each other, as the pair {pair}, whose sync state is stored below {name:?}; `name` and \
             `state_prefix` of this config point elsewhere: use those of the other bridges to join that pair",
            stores.zookeeper, stores.etcd
        ),
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { foreign, stores } => write_foreign(f, foreign, stores),
            Self::MassDelete {
                side,
                store,
                absent,
                known,
            } => write!(
                f,
                "{absent} of {known} keys that both sides held are missing in {store}, and no watch saw them being deleted: \
                 they appear to be lost; nothing is written or deleted. Restore them there. If they were deleted on purpose, run \
                 `sluicegate bridge -c CONFIG --allow-mass-delete` instead of this bridge, or concurrently with a different `admin.listen`, until `bridge status` reports `all in sync`; `--dry-run` \
                 shows what would be deleted from {}",
                side.other()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_twenty_or_over_half_of_at_least_four_missing_keys_halt_the_bridge() {
        let many = |absent, known| Absences { absent, known }.are_many();
        assert!(!many(20, 1_000) && many(21, 1_000));
        assert!(!many(2, 4) && many(3, 4) && many(4, 4));
        assert!(!many(3, 3), "three keys may be deleted by hand");
        assert!(!many(10, 20) && many(11, 20));
    }
}
