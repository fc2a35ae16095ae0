//! Compares the ledger with plain sets of offsets.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Delivered, Ledger};

/// The reference model: the same state as plain sets.
struct Naive {
    delivered: BTreeSet<i64>,
    open: BTreeSet<i64>,
    done: BTreeSet<i64>,
    next: i64,
}

impl Naive {
    fn deliver(&mut self, offset: i64) -> Delivered {
        if offset < self.next {
            return match self.delivered.contains(&offset) {
                true => Delivered::Repeat,
                false => Delivered::Fault,
            };
        }
        self.next = offset + 1;
        self.delivered.insert(offset);
        if self.done.contains(&offset) {
            return Delivered::Done;
        }
        self.open.insert(offset);
        Delivered::New
    }

    fn frontier(&self) -> i64 {
        self.open.first().copied().unwrap_or(self.next)
    }

    fn settled_ahead(&self) -> Vec<i64> {
        let settled = (self.frontier()..self.next).filter(|offset| !self.open.contains(offset));
        settled
            .chain(self.done.range(self.next..).copied())
            .collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The next record, after a gap of so many offsets.
    Next(i64),
    /// As many records as the second number, the first after a gap of so many offsets; or one that was delivered already.
    Run(i64, usize),
    /// An offset this far back from the newest, delivered again or in a gap.
    Again(i64),
    /// Settle the open record with this index, counted from the lowest.
    Settle(prop::sample::Index),
    /// Settle the offset this far back, in any state.
    SettleAny(i64),
    /// Settle as many offsets as the second number from the one this far back on, in any state.
    SettleRun(i64, i64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let gap = prop_oneof![6 => Just(0), 2 => 1..5i64, 1 => 60..200i64];
    prop_oneof![
        4 => gap.clone().prop_map(Step::Next),
        2 => (prop_oneof![5 => gap, 1 => -5..0i64], 1..150usize).prop_map(|(gap, count)| Step::Run(gap, count)),
        1 => (-3..80i64).prop_map(Step::Again),
        4 => any::<prop::sample::Index>().prop_map(Step::Settle),
        1 => (-3..80i64).prop_map(Step::SettleAny),
        3 => (0..150i64, 1..150i64).prop_map(|(back, count)| Step::SettleRun(back, count)),
    ]
}

proptest! {
    #[test]
    fn the_ledger_matches_a_plain_set(
        start in 0..200i64,
        runs in vec((1..20i64, 1..20i64), 0..5),
        steps in vec(any_step(), 1..200),
    ) {
        let mut at = start;
        let done: Vec<_> = runs
            .into_iter()
            .map(|(gap, len)| {
                at += gap + len;
                at - len..at
            })
            .collect();
        let mut naive = Naive {
            delivered: BTreeSet::new(),
            open: BTreeSet::new(),
            done: done.iter().cloned().flatten().collect(),
            next: start,
        };
        let mut ledger = Ledger::new(start, done);
        for step in steps {
            match step {
                Step::Next(gap) => {
                    let offset = naive.next + gap;
                    prop_assert_eq!(ledger.deliver(offset), naive.deliver(offset));
                }
                Step::Run(gap, count) => {
                    let first = (naive.next + gap).max(start);
                    let known = first < naive.next;
                    let taken = ledger.deliver_run(first, count);
                    let done_ahead = naive.done.range(naive.next..).next().is_some();
                    prop_assert!(taken || known || done_ahead, "a run of new records is taken as a whole");
                    prop_assert!(!(taken && (known || done_ahead)));
                    if taken {
                        for offset in first..first + count as i64 {
                            prop_assert_eq!(naive.deliver(offset), Delivered::New);
                        }
                    }
                }
                Step::Again(back) => {
                    let offset = (naive.next - back).max(start);
                    prop_assert_eq!(ledger.deliver(offset), naive.deliver(offset));
                }
                Step::Settle(_) if naive.open.is_empty() => {}
                Step::Settle(which) => {
                    let open: Vec<i64> = naive.open.iter().copied().collect();
                    let offset = *which.get(&open);
                    prop_assert!(ledger.settle(offset));
                    naive.open.remove(&offset);
                }
                Step::SettleAny(back) => {
                    let offset = (naive.next - back).max(start);
                    prop_assert_eq!(ledger.settle(offset), naive.open.remove(&offset));
                }
                Step::SettleRun(back, count) => {
                    let first = (naive.next - back).max(start);
                    let all_open = (first..first + count).all(|offset| naive.open.contains(&offset));
                    prop_assert_eq!(ledger.settle_run(first..first + count), all_open);
                    if all_open {
                        naive.open.retain(|offset| !(first..first + count).contains(offset));
                    }
                }
            }
            prop_assert_eq!(ledger.frontier(), naive.frontier());
            prop_assert_eq!(ledger.next(), naive.next);
            prop_assert_eq!(ledger.is_settled(), naive.open.is_empty());
            prop_assert_eq!(ledger.unsettled(), naive.open.len() as u64);
            let ahead: Vec<i64> = ledger.settled_ahead().into_iter().flatten().collect();
            prop_assert_eq!(ahead, naive.settled_ahead());
        }
    }
}
