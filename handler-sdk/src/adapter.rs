//! Adapts an author's handler to the ABI: the loop over the records of a call.
//!
//! The lane rule (G4): after a record whose outcome is not an ack or a drop, later records of its lane stay `NOT_RUN` in this
//! call. The list of blocked lanes is usually empty and then costs nothing. After a panic, and once
//! the call is stopped or cancelled, all remaining records stay `NOT_RUN`.

use std::cell::Cell;
use std::time::Duration;

use sluicegate_abi::partition::{PartitionChange, PartitionEvent};
use sluicegate_abi::plugin::{Call, CallEnd, Instance, Refusal};
use sluicegate_abi::{RawOutcome, guard, outcome_code};

use crate::context::{Batch, BatchContext, Clock, Context, Room};
use crate::export::{read_config, refusal};
use crate::handler::{BatchHandler, Handler};
use crate::outcome::{ErrorClass, Outcome, Result};
use crate::partition::Partition;
use crate::record::Record;
use crate::sums::Sums;

/// Lanes whose next record must wait until an earlier one has been attempted again, or dead-lettered.
#[derive(Default)]
pub(crate) struct BlockedLanes(Vec<u64>);

impl BlockedLanes {
    #[inline]
    pub(crate) fn holds(&self, lane: u64) -> bool {
        !self.0.is_empty() && self.0.contains(&lane)
    }

    #[inline]
    pub(crate) fn block(&mut self, lane: u64) {
        if lane != 0 {
            self.0.push(lane);
        }
    }
}

/// The outcome of a record that the handler panicked on.
pub(crate) fn panicked(call: &Call<'_>, text: &str) -> RawOutcome {
    RawOutcome {
        code: outcome_code::PANICKED,
        detail: call.detail(text),
        ..RawOutcome::default()
    }
}

/// The outcome of a record that was not run because what its handler needs is away; `None`: its result is something else.
pub(crate) fn unavailable(call: &Call<'_>, result: &Result) -> Option<RawOutcome> {
    let error = result.as_ref().err()?;
    (error.class() == ErrorClass::Unavailable).then(|| RawOutcome {
        code: outcome_code::NOT_RUN,
        detail: call.detail(&error.to_string()),
        ..RawOutcome::default()
    })
}

/// What follows a record in its call.
enum Next {
    /// Any record.
    Free,
    /// None of its lane.
    Blocked,
    /// None.
    Unavailable,
}

/// ABI adapter of a [`Handler`].
pub(crate) struct PerRecord<H> {
    handler: H,
    /// It asks for the time: the clock is read for each record.
    asks_time: Cell<bool>,
    sums: Sums,
}

impl<H> PerRecord<H> {
    pub(crate) fn new(handler: H) -> Self {
        Self {
            handler,
            asks_time: Cell::new(false),
            sums: Sums::default(),
        }
    }
}

impl<H: Handler> PerRecord<H> {
    fn handle_each(&mut self, call: &Call<'_>) -> CallEnd {
        let clock = Clock::start(call, &self.asks_time);
        let room = Room::default();
        let mut blocked = BlockedLanes::default();
        for index in 0..call.len() {
            let view = call.record(index);
            let record = Record::new(view);
            if blocked.holds(record.lane()) {
                continue;
            }
            if !call.may_start(&view) {
                if call.stopped() {
                    break;
                }
                continue;
            }
            call.reached(index);
            let mut ctx = Context::new(call, index, clock.record(index), (&room, &self.sums));
            // Settled inside the guard, so that only a flag is returned instead of a large outcome.
            let next = guard::catch(|| {
                let result = self.handler.handle(&record, &mut ctx);
                if let Some(outcome) = unavailable(call, &result) {
                    call.settle(index, outcome);
                    return Next::Unavailable;
                }
                match ctx.settle(result.unwrap_or_else(Outcome::from)) {
                    true => Next::Free,
                    false => Next::Blocked,
                }
            });
            match next {
                Ok(Next::Free) => {}
                Ok(Next::Unavailable) => return CallEnd::Unavailable,
                Ok(Next::Blocked) if room.is_used_up() => break,
                Ok(Next::Blocked) => blocked.block(record.lane()),
                Err(text) => {
                    call.settle(index, panicked(call, &text));
                    return CallEnd::Poisoned;
                }
            }
        }
        call.reached(call.len());
        CallEnd::Usable
    }
}

impl<H: Handler> Instance for PerRecord<H> {
    fn handle(&mut self, call: &Call<'_>) -> CallEnd {
        let end = self.handle_each(call);
        self.sums.hand_over(call.host());
        end
    }

    fn health(&mut self) -> Result<(), String> {
        self.handler.health().map_err(|error| error.to_string())
    }

    fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), String> {
        let partition = Partition::new(event);
        let followed = match event.change {
            PartitionChange::Assigned => self.handler.assigned(&partition),
            PartitionChange::Revoked | PartitionChange::Lost => self.handler.revoked(&partition),
        };
        followed.map_err(|error| error.to_string())
    }

    fn drain(&mut self, deadline: Duration) -> Result<(), String> {
        self.handler
            .drain(deadline)
            .map_err(|error| error.to_string())
    }

    fn reconfigure(&mut self, config: &str) -> Result<(), Refusal> {
        let config = read_config(config)?;
        self.handler.reconfigure(config).map_err(refusal)
    }
}

/// ABI adapter of a [`BatchHandler`].
pub(crate) struct Batches<H>(pub(crate) H);

impl<H: BatchHandler> Instance for Batches<H> {
    fn handle(&mut self, call: &Call<'_>) -> CallEnd {
        // A batch is handled as a whole: if some of it may not be, the others are given again without it.
        if call.is_empty() || !(0..call.len()).all(|index| call.may_start(&call.record(index))) {
            return CallEnd::Usable;
        }
        let batch = Batch::new(call);
        let mut ctx = BatchContext::new(call);
        let result = guard::catch(|| self.0.handle_batch(&batch, &mut ctx));
        let open = |index: &usize| call.outcome(*index).code == outcome_code::NOT_RUN;
        match result {
            Ok(result) => {
                if let Some(outcome) = unavailable(call, &result) {
                    ctx.return_behind();
                    if let Some(first) = (0..call.len()).find(open) {
                        call.settle(first, outcome);
                    }
                    return CallEnd::Unavailable;
                }
                ctx.settle_rest(&result.unwrap_or_else(Outcome::from));
                if ctx.room.is_used_up() {
                    ctx.return_behind();
                }
                call.reached(call.len());
                CallEnd::Usable
            }
            Err(text) => {
                let outcome = panicked(call, &text);
                for index in (0..call.len()).filter(open) {
                    call.settle(index, outcome);
                }
                CallEnd::Poisoned
            }
        }
    }

    fn health(&mut self) -> Result<(), String> {
        self.0.health().map_err(|error| error.to_string())
    }

    fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), String> {
        let partition = Partition::new(event);
        let followed = match event.change {
            PartitionChange::Assigned => self.0.assigned(&partition),
            PartitionChange::Revoked | PartitionChange::Lost => self.0.revoked(&partition),
        };
        followed.map_err(|error| error.to_string())
    }

    fn drain(&mut self, deadline: Duration) -> Result<(), String> {
        self.0.drain(deadline).map_err(|error| error.to_string())
    }

    fn reconfigure(&mut self, config: &str) -> Result<(), Refusal> {
        self.0.reconfigure(read_config(config)?).map_err(refusal)
    }
}
