//! Why a bridge carries nothing across although both stores answer, and the brake on deletes.

use std::fmt;

use super::{PairCheck, Side};
use crate::store::StoreAddress;

/// More keys than this that a listing finds missing stop the bridge.
const MOST_ABSENT: usize = 20;
/// From this many keys on, the bridge also stops when over half of them are missing.
const HALF_OF: usize = 4;

/// Why a bridge stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// A side is another store than the notes are about.
    Replaced {
        /// The side.
        side: Side,
        /// Where it is.
        store: StoreAddress,
        /// Where the notes are.
        notes: StoreAddress,
        /// Which store the notes are about.
        noted: String,
        /// Which one it is.
        found: Option<String>,
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
    /// Of a pair whose store was replaced; `None` for any other finding.
    pub(super) fn of(
        check: &PairCheck,
        addresses: impl Fn(Side) -> StoreAddress,
        notes: StoreAddress,
    ) -> Option<Self> {
        match check {
            PairCheck::Replaced { side, noted, found } => Some(Self::Replaced {
                side: *side,
                store: addresses(*side),
                notes,
                noted: noted.clone(),
                found: found.clone(),
            }),
            PairCheck::Fits(_) | PairCheck::Renew(_) => None,
        }
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replaced {
                side,
                store,
                notes,
                noted,
                found,
            } => {
                let found = found.as_deref().unwrap_or("empty, without its root");
                let notes = &notes.below;
                write!(
                    f,
                    "{store} is not the store that this pair was bridged with: it is {found}, and the notes are about {noted}; \
                     nothing is written or deleted. If the config names the wrong servers, mend it. If {side} was emptied, set up \
                     anew or moved, delete the notes (`etcdctl del --prefix {notes}/`): both sides are then merged as at a first \
                     start, which deletes nothing; where both hold different values, the authority's replaces the other's, so \
                     look with `--dry-run` before, and set `authority` to the side that is right. If this is another pair, give it a `name` of its own"
                )
            }
            Self::MassDelete {
                side,
                store,
                absent,
                known,
            } => write!(
                f,
                "{absent} of {known} keys that both sides held are missing in {store}, and no watch saw them being deleted: \
                 they look lost; nothing is written or deleted. Put them back there. If they were deleted on purpose, run \
                 `sluicegate bridge --allow-mass-delete` until `bridge status` says that all is settled; with `--dry-run` it \
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
