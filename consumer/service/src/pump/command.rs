//! Requests of other threads, which the pump runs between two steps.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::queue::HandlerSettings;
use sluicegate_engine::routing::RoutingIndex;
use sluicegate_engine::source::{SourceError, TopicPartition, Wake};
use sluicegate_engine::status::{Explanation, PumpReport};

use super::Pump;

/// Where the answer of a command goes. The receiver is gone if the caller's deadline has passed.
pub(super) type Reply<T> = SyncSender<T>;

/// A request of another thread.
pub(super) enum PumpCommand {
    /// Applies handlers, routes and topics in one step.
    Apply {
        index: Arc<RoutingIndex>,
        handlers: Vec<(HandlerIx, HandlerSettings)>,
        topics: Vec<String>,
        reply: Reply<Result<(), SourceError>>,
    },
    /// Changes the subscription.
    Subscribe(Vec<String>, Reply<Result<(), SourceError>>),
    /// Switches the per-record log line on or off.
    RecordLog(bool),
    /// Reports the state.
    Report(Reply<PumpReport>),
    /// Says what blocks a partition's frontier, or a record.
    Explain(TopicPartition, Option<i64>, Reply<Option<Explanation>>),
    /// Begins the stop.
    Stop,
}

#[derive(Default)]
struct Queue {
    commands: Vec<PumpCommand>,
    /// The pump has ended.
    is_closed: bool,
}

/// A queue of commands to one pump.
#[derive(Default)]
pub(super) struct Commands {
    queue: Mutex<Queue>,
    waker: OnceLock<Arc<dyn Wake>>,
}

impl Commands {
    /// Sets the waker. Later calls have no effect.
    pub(super) fn set_waker(&self, waker: Arc<dyn Wake>) {
        let _ = self.waker.set(waker);
    }

    /// Adds a command and wakes the pump.
    ///
    /// After the pump's end it is dropped, which ends the caller's wait.
    pub(super) fn push(&self, command: PumpCommand) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.is_closed {
            queue.commands.push(command);
        }
        drop(queue);
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    fn take(&self) -> Vec<PumpCommand> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut queue.commands)
    }

    fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.is_closed = true;
        queue.commands.clear();
    }
}

/// Commands that are left are dropped: their callers are not kept waiting.
impl Drop for Pump {
    fn drop(&mut self) {
        self.commands.close();
    }
}

impl Pump {
    /// Runs the commands that have arrived. Returns whether there was one.
    pub(super) fn run_commands(&mut self) -> bool {
        let commands = self.commands.take();
        let any = !commands.is_empty();
        for command in commands {
            self.run_command(command);
        }
        any
    }

    fn run_command(&mut self, command: PumpCommand) {
        match command {
            PumpCommand::Apply {
                index,
                handlers,
                topics,
                reply,
            } => {
                let _ = reply.send(self.apply(index, handlers, topics));
            }
            PumpCommand::Subscribe(topics, reply) => {
                let _ = reply.send(self.subscribe(topics));
            }
            PumpCommand::RecordLog(on) => self.engine.set_record_log(on),
            PumpCommand::Report(reply) => {
                let _ = reply.send(self.report());
            }
            PumpCommand::Explain(at, offset, reply) => {
                let _ = reply.send(self.explain(&at, offset, self.clock));
            }
            PumpCommand::Stop => self.stop(),
        }
    }
}
