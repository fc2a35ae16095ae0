//! Async handlers: several records concurrently, on a runtime owned by the plugin.
//!
//! The instances of a generation share a runtime, whose two threads drive timers, connections and spawned tasks; the futures of
//! records run on the thread of their worker. Records of one lane are still handled one at a time, under the same lane rule as
//! the per-record loop. Shortly before its deadline (after 95 % of the timeout), a record's future is dropped and the record
//! retried, so that an endless wait costs an attempt but not the worker.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use sluicegate_abi::guard;
use sluicegate_abi::partition::{PartitionChange, PartitionEvent};
use sluicegate_abi::plugin::{Call, CallEnd, Instance, Refusal};
use tokio::runtime::Runtime;

use crate::adapter::{BlockedLanes, panicked, unavailable};
use crate::context::{Clock, Context, Room, Services};
use crate::export::{read_config, refusal};
use crate::handler::{Setup, TAKES_NONE};
use crate::outcome::{HandlerError, Outcome, Result};
use crate::partition::Partition;
use crate::record::Record;
use crate::sums::Sums;

/// Handles records with an async method, up to `Setup::set_concurrency` of them concurrently.
///
/// The guarantees of [`crate::Handler`] apply. Within an instance, records of different keys are handled concurrently on
/// the worker's thread, so futures need not be `Send`. Tasks spawned on the runtime make progress between calls too.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an `AsyncHandler`, so it cannot be exported as `\"name\" => async {Self}`",
    label = "implement `sluicegate_sdk::AsyncHandler` for it"
)]
pub trait AsyncHandler: Sized + 'static {
    /// As [`crate::Handler::Config`].
    type Config: DeserializeOwned + JsonSchema;

    /// As [`crate::Handler::KEEPS_KEY_STATE`].
    const KEEPS_KEY_STATE: bool = false;

    /// As [`crate::Handler::TAKES_CONFIG`].
    const TAKES_CONFIG: bool = false;

    /// Maximum number of concurrent records, unless `new` sets it. Calls get at least twice as many records, if so many wait.
    const CONCURRENCY: usize = 64;

    /// As [`crate::Handler::new`], on the runtime.
    ///
    /// # Errors
    /// As [`crate::Handler::new`].
    fn new(config: Self::Config, setup: &mut Setup) -> impl Future<Output = Result<Self>>;

    /// Handles one record.
    ///
    /// # Errors
    /// As [`crate::Handler::handle`].
    fn handle(&self, record: &Record<'_>, ctx: &mut Context<'_>) -> impl Future<Output = Result>;

    /// As [`crate::Handler::reconfigure`], on the runtime.
    ///
    /// # Errors
    /// As [`crate::Handler::reconfigure`].
    fn reconfigure(&mut self, config: Self::Config) -> impl Future<Output = Result<()>> {
        drop(config);
        async { Err(HandlerError::terminal(TAKES_NONE)) }
    }

    /// As [`crate::Handler::health`].
    ///
    /// # Errors
    /// As [`crate::Handler::health`].
    fn health(&self) -> impl Future<Output = Result<()>> {
        async { Ok(()) }
    }

    /// As [`crate::Handler::assigned`].
    ///
    /// # Errors
    /// As [`crate::Handler::assigned`].
    fn assigned(&self, partition: &Partition<'_>) -> impl Future<Output = Result<()>> {
        let _ = partition;
        async { Ok(()) }
    }

    /// As [`crate::Handler::revoked`].
    ///
    /// # Errors
    /// As [`crate::Handler::revoked`].
    fn revoked(&self, partition: &Partition<'_>) -> impl Future<Output = Result<()>> {
        let _ = partition;
        async { Ok(()) }
    }

    /// As [`crate::Handler::drain`].
    ///
    /// # Errors
    /// As [`crate::Handler::drain`].
    fn drain(&self, deadline: Duration) -> impl Future<Output = Result<()>> {
        let _ = deadline;
        async { Ok(()) }
    }
}

/// How often a call that waits checks whether it was cancelled.
const CANCEL_CHECK: Duration = Duration::from_millis(50);

/// Threads of a generation's runtime: one that a spawned task blocks does not stop the timers and the I/O of all instances.
const RUNTIME_THREADS: usize = 2;

/// The runtime of a generation. Its threads also drive what the handler has spawned, between calls too.
struct SharedRuntime(Option<Runtime>);

impl SharedRuntime {
    fn start(services: &Services) -> Result<Self> {
        let services = services.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RUNTIME_THREADS)
            .thread_name("handler-async")
            .on_thread_start(move || services.adopt_thread())
            .enable_all()
            .build();
        let runtime = runtime
            .map_err(|error| HandlerError::retryable(format!("no async runtime: {error}")))?;
        Ok(Self(Some(runtime)))
    }

    fn get(&self) -> &Runtime {
        self.0.as_ref().expect("it is taken by the drop only")
    }
}

impl Drop for SharedRuntime {
    fn drop(&mut self) {
        // Blocking work of the handler, such as a name lookup, must not hold up the worker's thread.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// ABI adapter of an [`AsyncHandler`].
pub(crate) struct Overlapping<H> {
    /// `None` only during the drop.
    handler: Option<H>,
    concurrency: usize,
    asks_time: Cell<bool>,
    sums: Sums,
    runtime: Arc<SharedRuntime>,
}

impl<H> Drop for Overlapping<H> {
    fn drop(&mut self) {
        // The drop of a handler may spawn, for example to return a connection.
        let _runtime = self.runtime.get().enter();
        drop(self.handler.take());
    }
}

impl<H: AsyncHandler> Overlapping<H> {
    pub(crate) fn create(config: H::Config, setup: &mut Setup) -> Result<Self> {
        let runtime = setup.shared(|| SharedRuntime::start(setup.services()))?;
        let handler = runtime.get().block_on(H::new(config, setup))?;
        let concurrency = setup.concurrency.unwrap_or(H::CONCURRENCY).max(1);
        Ok(Self {
            handler: Some(handler),
            concurrency,
            asks_time: Cell::new(false),
            sums: Sums::default(),
            runtime,
        })
    }

    /// Runs a future of the handler.
    fn run<'a, T, F: Future<Output = Result<T>> + 'a>(
        &'a mut self,
        work: impl FnOnce(&'a mut H) -> F,
    ) -> Result<T> {
        let handler = self.handler.as_mut().expect("it is taken by the drop only");
        self.runtime.get().block_on(work(handler))
    }
}

/// How one record's future ended.
struct Ended {
    lane: u64,
    free: bool,
    /// What the call ends as, because of it.
    end: CallEnd,
}

/// The records of a call that have not started, in order.
struct Waiting {
    ready: VecDeque<usize>,
    /// Lanes of which a record is running, with those that follow it.
    busy: HashMap<u64, VecDeque<usize>>,
    blocked: BlockedLanes,
}

impl Waiting {
    fn new(records: usize) -> Self {
        Self {
            ready: (0..records).collect(),
            busy: HashMap::new(),
            blocked: BlockedLanes::default(),
        }
    }

    /// The next record that may start.
    fn next(&mut self, call: &Call<'_>) -> Option<usize> {
        loop {
            let index = self.ready.pop_front()?;
            let record = call.record(index);
            let lane = record.raw().lane;
            if self.blocked.holds(lane) || !call.may_start(&record) {
                continue;
            }
            if lane == 0 {
                return Some(index);
            }
            match self.busy.entry(lane) {
                Entry::Vacant(lane) => {
                    lane.insert(VecDeque::new());
                    return Some(index);
                }
                Entry::Occupied(mut behind) => behind.get_mut().push_back(index),
            }
        }
    }

    /// The running record of a lane has ended.
    fn ended(&mut self, ended: &Ended) {
        let behind = self.busy.remove(&ended.lane).unwrap_or_default();
        if !ended.free {
            self.blocked.block(ended.lane);
            return;
        }
        // They come before others that have not started, as in the call.
        for index in behind.into_iter().rev() {
            self.ready.push_front(index);
        }
    }
}

/// The running call.
struct Running<'c, H> {
    handler: &'c H,
    call: &'c Call<'c>,
    clock: Clock<'c>,
    room: Room,
    sums: &'c Sums,
}

impl<'c, H: AsyncHandler> Running<'c, H> {
    async fn one(&self, index: usize) -> Ended {
        let call = self.call;
        let record = Record::new(call.record(index));
        let clock = self.clock.record(index);
        let deadline = clock.deadline();
        let mut ctx = Context::new(call, index, clock, (&self.room, self.sums));
        let ended = {
            let work = async {
                let work = self.handler.handle(&record, &mut ctx);
                let Some(deadline) = deadline else {
                    return work.await;
                };
                let left = deadline.saturating_duration_since(Instant::now());
                let ended = tokio::time::timeout(left - left / 20, work).await;
                ended.unwrap_or_else(|_| Ok(Outcome::retry("not finished within the timeout")))
            };
            let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
            let ended = poll_fn(|context| {
                // The one to blame if this never returns.
                call.reached(index);
                work.as_mut().poll(context)
            });
            ended.await
        };
        let lane = record.lane();
        let (free, end) = match ended {
            Ok(result) => match unavailable(call, &result) {
                Some(outcome) => {
                    call.settle(index, outcome);
                    (false, CallEnd::Unavailable)
                }
                None => {
                    let free = ctx.settle(result.unwrap_or_else(Outcome::from));
                    (free, CallEnd::Usable)
                }
            },
            Err(payload) => {
                call.settle(index, panicked(call, &guard::caught(payload)));
                (false, CallEnd::Poisoned)
            }
        };
        Ended { lane, free, end }
    }

    async fn all(&self, concurrency: usize) -> CallEnd {
        let call = self.call;
        let mut waiting = Waiting::new(call.len());
        let mut running = FuturesUnordered::new();
        let mut end = CallEnd::Usable;
        let mut check = tokio::time::interval(CANCEL_CHECK);
        loop {
            while end == CallEnd::Usable
                && !call.stopped()
                && !self.room.is_used_up()
                && running.len() < concurrency
                && let Some(index) = waiting.next(call)
            {
                running.push(self.one(index));
            }
            let ended = tokio::select! {
                biased;
                ended = running.next() => ended,
                // What is cancelled counts no more: its futures are dropped.
                _ = check.tick() => match call.cancelled() {
                    true => None,
                    false => continue,
                },
            };
            let Some(ended) = ended else {
                return end;
            };
            waiting.ended(&ended);
            if end != CallEnd::Poisoned && ended.end != CallEnd::Usable {
                end = ended.end;
            }
        }
    }
}

impl<H: AsyncHandler> Instance for Overlapping<H> {
    fn handle(&mut self, call: &Call<'_>) -> CallEnd {
        let Some(handler) = &self.handler else {
            return CallEnd::Poisoned;
        };
        let running = Running {
            handler,
            call,
            clock: Clock::start(call, &self.asks_time),
            room: Room::default(),
            sums: &self.sums,
        };
        let end = self.runtime.get().block_on(running.all(self.concurrency));
        self.sums.hand_over(call.host());
        end
    }

    fn health(&mut self) -> Result<(), String> {
        let checked = self.run(|handler| handler.health());
        checked.map_err(|error| error.to_string())
    }

    fn partition(&mut self, event: &PartitionEvent<'_>) -> Result<(), String> {
        let partition = Partition::new(event);
        let followed = match event.change {
            PartitionChange::Assigned => self.run(|handler| handler.assigned(&partition)),
            PartitionChange::Revoked | PartitionChange::Lost => {
                self.run(|handler| handler.revoked(&partition))
            }
        };
        followed.map_err(|error| error.to_string())
    }

    fn drain(&mut self, deadline: Duration) -> Result<(), String> {
        let drained = self.run(|handler| async move {
            let drained = tokio::time::timeout(deadline, handler.drain(deadline)).await;
            drained.unwrap_or_else(|_| Err(HandlerError::retryable("not drained in time")))
        });
        drained.map_err(|error| error.to_string())
    }

    fn reconfigure(&mut self, config: &str) -> Result<(), Refusal> {
        let config = read_config(config)?;
        let taken = self.run(|handler| handler.reconfigure(config));
        taken.map_err(refusal)
    }
}
