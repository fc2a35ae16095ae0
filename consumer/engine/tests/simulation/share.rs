//! One handler's share of a record, as the reference model has it.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluicegate_engine::emit::FailureKind;
use sluicegate_engine::queue::Order;

use super::model::Check;
use super::pools::SimPool;

/// State of a record at one handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not started, or returned without an attempt.
    Queued,
    /// A worker has started it.
    Running,
    /// The worker has finished it successfully; the pump has not received the outcome yet.
    Acked,
    /// Waiting for the producer.
    Producing,
    /// An attempt failed; another follows, or a dead letter.
    Failed,
    /// Final.
    Settled,
}

/// One handler's share of a record.
#[derive(Clone, Debug)]
pub struct Share {
    pub stage: Stage,
    pub failures: u32,
    /// Its attempts are over: only a dead letter may follow.
    pub dead_lettered: bool,
    /// Its handler dead-lettered it after emitting: the letter must wait for the acknowledgement of the emits.
    pub owes_letter: bool,
    /// Why its emits were refused, until they are produced again.
    pub refused: Option<FailureKind>,
    /// The pool that last got it.
    pub ran_in: Option<Arc<SimPool>>,
    /// Its handler has had another pool since then.
    pub outdated: bool,
    /// Records that the attempt emitted.
    pub emits: u32,
    /// Copies accepted by the producer, in order, and whether each is acknowledged.
    pub written: Vec<(u32, bool)>,
    /// Its handler was switched off and has failed or hangs: the share is settled without it.
    pub skipped: bool,
    /// The order of its lane: that of its handler when it was last submitted.
    pub order: Order,
    /// The order under which it was started for the first time.
    pub first_order: Option<Order>,
    /// The offsets before it in calls of a batch handler.
    pub with: BTreeSet<i64>,
}

impl Share {
    /// A share of a handler with this order, not started.
    pub fn new(order: Order) -> Self {
        Self {
            stage: Stage::Queued,
            failures: 0,
            dead_lettered: false,
            owes_letter: false,
            refused: None,
            ran_in: None,
            outdated: false,
            emits: 0,
            written: Vec::new(),
            skipped: false,
            order,
            first_order: None,
            with: BTreeSet::new(),
        }
    }

    /// It may be run again instead of having its emits produced again: another generation may not emit to that topic.
    pub fn may_run_again(&self) -> bool {
        self.outdated && self.refused == Some(FailureKind::Target)
    }

    /// A pool gets it; its handler has these ones.
    pub fn submitted(&mut self, pool: &Arc<SimPool>, pools: &[Arc<SimPool>]) {
        if self.stage == Stage::Producing && self.may_run_again() {
            self.not_run();
            self.refused = None;
            self.owes_letter = false;
        }
        self.ran_in = Some(pool.clone());
        self.outdated = false;
        self.see_pools(pools);
    }

    /// It waits for the same attempt again.
    pub fn not_run(&mut self) {
        self.stage = match self.failures {
            0 => Stage::Queued,
            _ => Stage::Failed,
        };
    }

    /// Its handler has these pools.
    pub fn see_pools(&mut self, pools: &[Arc<SimPool>]) {
        if let Some(ran_in) = &self.ran_in {
            self.outdated |= pools.iter().any(|pool| !Arc::ptr_eq(pool, ran_in));
        }
    }

    /// All emits are acknowledged, and their last copies are in order (G4).
    pub fn written_in_order(&self, offset: i64) -> Check {
        let copies = self
            .written
            .iter()
            .filter(|(_, acknowledged)| *acknowledged);
        let copies: Vec<u32> = copies.map(|(index, _)| *index).collect();
        let last = |index| copies.iter().rposition(|copy| *copy == index);
        let places: Option<Vec<usize>> = (0..self.emits).map(last).collect();
        match places {
            None => Err(format!(
                "an emit of {offset} is missing: {:?} (G1)",
                self.written
            )),
            Some(places) if !places.is_sorted() => {
                Err(format!("emits of {offset} are written as {copies:?} (G4)"))
            }
            Some(_) => Ok(()),
        }
    }
}
