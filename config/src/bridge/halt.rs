//! Why a bridge carries nothing across although both stores answer, and the brake on deletes.

use std::fmt;

use super::pair::Foreign;
use super::{Pair, PairCheck, Side};
use crate::store::StoreAddress;

/// More keys than this that a listing finds missing stop the bridge.
const MOST_ABSENT: usize = 20;
/// From this many keys on, the bridge also stops when over half of them are missing.
const HALF_OF: usize = 4;

/// Why a bridge stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// A side is not the one that the notes are about.
    Foreign {
        /// What differs, and on which side.
        foreign: Vec<Foreign>,
        /// Where the sides are.
        stores: Pair<StoreAddress>,
    },
    /// A listing found so many keys missing that they look lost and not deleted.
    MassDelete {
        /// The side that lacks them.
        side: Side,
        /// Where it is.
        store: StoreAddress,
        /// How many.
        absent: usize,
        /// Of how many.
        known: usize,
    },
}

/// Keys that both sides held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Absences {
    /// Those that one side lacks now, though no watch saw them being deleted.
    pub(super) absent: usize,
    /// All of them.
    pub(super) known: usize,
}

impl Absences {
    /// Whether the brake holds them.
    pub(super) fn are_many(self) -> bool {
        self.absent > MOST_ABSENT || (self.known >= HALF_OF && self.absent * 2 > self.known)
    }
}

impl Halt {
    /// Of a pair with a side that is foreign; `None` for any other finding.
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

/// What to do about a side that is not the one of the notes.
fn answer(side: Side) -> String {
    let other = side.other();
    format!(
        "If {side} was emptied, restored, set up anew or moved, or other `paths` are meant, run `sluicegate bridge -c CONFIG \
         --accept-store {side}` in the place of this bridge, or beside it with another `admin.listen`, until `bridge status` says that all is settled: what {other} holds then travels to {side}, what {side} lacks is deleted nowhere, \
         and what only {side} has is copied; with `--dry-run` it shows what it would write"
    )
}

/// What to do where neither side is that of the notes.
const ANSWER_BOTH: &str = "If that is so because both were emptied, restored, set up anew or moved, or other `paths` are meant, run `sluicegate bridge -c CONFIG \
                           --accept-store etcd --accept-store zookeeper` in the place of this bridge, or beside it with another `admin.listen`, until `bridge status` says that all is settled: nothing \
                           is deleted, what one side lacks is copied to it, and where both hold a key the preferred side's value \
                           stands; with `--dry-run` it shows what it would write";

/// All that differs, and what to do about the whole of it.
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
        f.write_str(", or another bridge has the same root, mend that. ")?;
        let (restored, moved) = (answer(Side::Etcd), answer(Side::ZooKeeper));
        return write!(f, "{restored}. {moved}");
    }
    f.write_str(", mend it. ")?;
    let sides = Side::BOTH.into_iter().filter(|side| {
        (foreign.iter()).any(|one| one.is_answered_by(Pair::from_fn(|of| of == *side)))
    });
    match sides.collect::<Vec<_>>()[..] {
        [side] => f.write_str(&answer(side))?,
        _ => f.write_str(ANSWER_BOTH)?,
    }
    if (foreign.iter()).any(|one| matches!(one, Foreign::Store { .. })) {
        f.write_str(". If this is another pair, give it a `name` of its own")?;
    }
    Ok(())
}

fn write_difference(
    f: &mut fmt::Formatter<'_>,
    foreign: &Foreign,
    stores: &Pair<StoreAddress>,
) -> fmt::Result {
    match foreign {
        Foreign::Store { side, noted, found } => {
            let store = stores.of(*side);
            let found = found.as_deref().unwrap_or("empty, without its root");
            write!(
                f,
                "{store} is not the store that this pair was bridged with: it is {found}, and the notes are about {noted}"
            )
        }
        Foreign::Unmarked { side, pair } => {
            let store = stores.of(*side);
            write!(
                f,
                "{store} does not carry the mark of this pair any more, {pair} at `.bridge`: it was emptied, is of a time before \
                 the pair was joined, or the mark was deleted"
            )
        }
        Foreign::Apart { zookeeper, etcd } => {
            let marked = match zookeeper {
                Some(pair) => format!("carries the mark of the pair {pair}"),
                None => "carries the mark of a pair".to_owned(),
            };
            let noted = match etcd {
                Some(pair) => format!("the notes in etcd are those of the pair {pair}"),
                None => "there are no notes of it in etcd".to_owned(),
            };
            write!(
                f,
                "{} and {} do not belong together: the first {marked} at `.bridge`, and {noted}",
                stores.zookeeper, stores.etcd
            )
        }
        Foreign::Named { pair, name } => write!(
            f,
            "{} and {} are already bridged with each other, as the pair {pair} whose notes stand below {name:?}; `name` and \
             `state_prefix` of this config lead elsewhere: with those of the others this is a bridge of that pair",
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
                 they look lost; nothing is written or deleted. Put them back there. If they were deleted on purpose, run \
                 `sluicegate bridge -c CONFIG --allow-mass-delete` in the place of this bridge, or beside it with another `admin.listen`, until `bridge status` says that all is settled; with `--dry-run` it \
                 shows what would go from {}",
                side.other()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brake_holds_more_than_twenty_and_more_than_half_of_four() {
        let many = |absent, known| Absences { absent, known }.are_many();
        assert!(!many(20, 1_000) && many(21, 1_000));
        assert!(!many(2, 4) && many(3, 4) && many(4, 4));
        assert!(!many(3, 3), "three keys are deleted by hand");
        assert!(!many(10, 20) && many(11, 20));
    }
}
