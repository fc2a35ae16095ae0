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
    /// These are acknowledged: the letter may follow, unless they have to be written again.
    pub letter_due: bool,
    /// Why its emits were refused, until they are produced again.
    pub refused: Option<FailureKind>,
    /// Some of its emits were refused at some time.
    pub was_refused: bool,
    /// The pool that last got it.
    pub ran_in: Option<Arc<SimPool>>,
    /// Its handler has had another pool since then.
    pub outdated: bool,
    /// Records that the attempt emitted.
    pub emits: u32,
    /// Copies accepted by the producer, in order, and when each was acknowledged: the place in the output topic.
    pub written: Vec<(u32, Option<u64>)>,
    /// Its emits may have had to be discarded for another run, by another generation; then those behind it in its lane run again too.
    pub could_run_again: bool,
    /// It has run, with or without emits: records behind it in its lane may have started.
    pub has_passed: bool,
    /// The loosest order that its handler has had while it was under way: what is promised about its emits.
    pub loosest: Order,
    /// A commit has covered it.
    pub claimed: bool,
    /// When its last attempt started, in starts of all records.
    pub started: u64,
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
            letter_due: false,
            refused: None,
            was_refused: false,
            ran_in: None,
            outdated: false,
            emits: 0,
            written: Vec::new(),
            could_run_again: false,
            has_passed: false,
            loosest: order,
            claimed: false,
            started: 0,
            skipped: false,
            order,
            first_order: None,
            with: BTreeSet::new(),
        }
    }

    /// Its handler has this order from now on.
    pub fn see_order(&mut self, order: Order) {
        self.loosest = match (self.loosest, order) {
            (Order::Unordered, _) | (_, Order::Unordered) => Order::Unordered,
            (Order::Key, _) | (_, Order::Key) => Order::Key,
            (Order::Partition, Order::Partition) => Order::Partition,
        };
    }

    /// Records behind it in its lane may start: its emits are with the producer. They may have started when it turns out that one
    /// of these can never be written.
    pub fn passes(&self) -> bool {
        match self.stage {
            Stage::Producing if !self.dead_lettered => !self.owes_letter,
            Stage::Producing | Stage::Failed => self.dead_lettered && self.has_passed,
            _ => false,
        }
    }

    /// The places in the output topic of the first and the last of the last copies of its emits; `None` if it has none, or
    /// not all were written.
    pub fn places(&self) -> Option<(u64, u64)> {
        let last = |index: u32| {
            let copies = self.written.iter().filter(|(copy, _)| *copy == index);
            copies.filter_map(|(_, at)| *at).max()
        };
        let places: Option<Vec<u64>> = (0..self.emits).map(last).collect();
        let places = places?;
        Some((*places.iter().min()?, *places.iter().max()?))
    }

    /// It may be run again instead of having its emits produced again: another generation may not emit to that topic.
    pub fn may_run_again(&self) -> bool {
        self.outdated && self.refused == Some(FailureKind::Target)
    }

    /// A pool gets it; its handler has these ones.
    pub fn submitted(&mut self, pool: &Arc<SimPool>, pools: &[Arc<SimPool>]) {
        if self.stage == Stage::Producing && self.may_run_again() {
            self.run_again();
        }
        self.ran_in = Some(pool.clone());
        self.outdated = false;
        self.see_pools(pools);
    }

    /// It runs again although it was with the producer, or behind one that was.
    pub fn run_again(&mut self) {
        self.not_run();
        self.has_passed = true;
        // What counts is what the next run writes.
        self.emits = 0;
        self.written.clear();
        self.refused = None;
        self.owes_letter = false;
        self.letter_due = false;
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
        self.could_run_again |= self.may_run_again();
    }

    /// All emits are acknowledged, and their last copies are in order (G4).
    pub fn written_in_order(&self, offset: i64) -> Check {
        let copies = self.written.iter().filter(|(_, at)| at.is_some());
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
