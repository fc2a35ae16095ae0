//! Async handlers: several records concurrently, on a runtime owned by the plugin.
//!
//! Each instance has a single-threaded runtime on its worker's thread. Records of one lane are still handled one at a
//! time, under the same lane rule as the per-record loop. Shortly before the call's deadline (after 95 % of the timeout),
//! pending futures are dropped and their records retried, so that an endless wait costs an attempt but not the worker.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use sluicegate_abi::guard;
use sluicegate_abi::plugin::{Call, CallEnd, Instance, Refusal};
use tokio::runtime::Runtime;

use crate::adapter::{BlockedLanes, panicked};
use crate::context::{Clock, Context};
use crate::export::{read_config, refusal};
use crate::handler::{Setup, TAKES_NONE};
use crate::outcome::{HandlerError, Outcome};
use crate::record::Record;

/// Handles records with an async method, up to `Setup::set_concurrency` of them concurrently.
///
/// The guarantees of [`crate::Handler`] apply. Within an instance, records of different keys are handled concurrently on
/// the worker's thread, so futures need not be `Send`. Tasks spawned on the runtime make progress only while a call runs.
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

    /// Maximum number of concurrent records, unless `new` sets it.
    const CONCURRENCY: usize = 64;

    /// As [`crate::Handler::new`], on the runtime.
    ///
    /// # Errors
    /// As [`crate::Handler::new`].
    fn new(
        config: Self::Config,
        setup: &mut Setup,
    ) -> impl Future<Output = Result<Self, HandlerError>>;

    /// Handles one record.
    fn handle(&self, record: &Record<'_>, ctx: &mut Context<'_>) -> impl Future<Output = Outcome>;

    /// As [`crate::Handler::reconfigure`], on the runtime.
    ///
    /// # Errors
    /// As [`crate::Handler::reconfigure`].
    fn reconfigure(
        &mut self,
        config: Self::Config,
    ) -> impl Future<Output = Result<(), HandlerError>> {
        drop(config);
        async { Err(HandlerError::terminal(TAKES_NONE)) }
    }

    /// As [`crate::Handler::health`].
    ///
    /// # Errors
    /// As [`crate::Handler::health`].
    fn health(&self) -> impl Future<Output = Result<(), HandlerError>> {
        async { Ok(()) }
    }

    /// As [`crate::Handler::assigned`].
    fn assigned(&self, topic: &str, partition: i32, epoch: u32) {
        let _ = (topic, partition, epoch);
    }

    /// As [`crate::Handler::revoked`].
    fn revoked(&self, topic: &str, partition: i32, epoch: u32) {
        let _ = (topic, partition, epoch);
    }

    /// As [`crate::Handler::drain`].
    fn drain(&self, deadline: Duration) -> impl Future<Output = ()> {
        let _ = deadline;
        async {}
    }
}

/// ABI adapter of an [`AsyncHandler`].
pub(crate) struct Overlapping<H> {
    handler: H,
    concurrency: usize,
    // Dropped last: the handler's drop may still need it.
    runtime: Runtime,
}

/// How one record's future ended.
struct Ended {
    index: usize,
    lane: u64,
    free: bool,
    panic: Option<String>,
}

impl<H: AsyncHandler> Overlapping<H> {
    pub(crate) fn create(config: H::Config, setup: &mut Setup) -> Result<Self, HandlerError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| HandlerError::retryable(format!("no async runtime: {error}")))?;
        let handler = runtime.block_on(H::new(config, setup))?;
        let concurrency = setup.concurrency.unwrap_or(H::CONCURRENCY).max(1);
        Ok(Self {
            handler,
            concurrency,
            runtime,
        })
    }

    async fn one<'a>(&'a self, call: &'a Call<'a>, index: usize, clock: Clock) -> Ended {
        let record = Record::new(call.record(index));
        let lane = record.lane();
        let mut ctx = Context::new(call, index, clock);
        let work = async {
            let work = self.handler.handle(&record, &mut ctx);
            match clock.deadline {
                None => work.await,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(std::time::Instant::now());
                    tokio::time::timeout(left - left / 20, work)
                        .await
                        .unwrap_or_else(|_| Outcome::retry("not finished within the timeout"))
                }
            }
        };
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok(outcome) => Ended {
                index,
                lane,
                free: ctx.settle(outcome),
                panic: None,
            },
            Err(payload) => {
                let text = guard::caught(payload);
                call.settle(index, panicked(call, &text));
                Ended {
                    index,
                    lane,
                    free: false,
                    panic: Some(text),
                }
            }
        }
    }

    async fn all(&self, call: &Call<'_>) -> CallEnd {
        let clock = Clock::start(call);
        let mut waiting: Vec<usize> = (0..call.len()).collect();
        let mut blocked = BlockedLanes::default();
        let mut busy: Vec<u64> = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut open = std::collections::BTreeSet::new();
        let mut spent = false;
        loop {
            if !spent && !call.stopped() {
                waiting.retain(|&index| {
                    let lane = call.records()[index].lane;
                    if running.len() >= self.concurrency || (lane != 0 && busy.contains(&lane)) {
                        return true;
                    }
                    if !blocked.holds(lane) {
                        if lane != 0 {
                            busy.push(lane);
                        }
                        open.insert(index);
                        running.push(self.one(call, index, clock));
                    }
                    false
                });
            }
            if let Some(&lowest) = open.first() {
                call.reached(lowest);
            }
            let Some(ended) = running.next().await else {
                break;
            };
            open.remove(&ended.index);
            busy.retain(|&lane| lane != ended.lane);
            if !ended.free {
                blocked.block(ended.lane);
            }
            spent |= ended.panic.is_some();
        }
        if spent {
            CallEnd::Spent
        } else {
            CallEnd::Usable
        }
    }
}

impl<H: AsyncHandler> Instance for Overlapping<H> {
    fn handle(&mut self, call: &Call<'_>) -> CallEnd {
        self.runtime.block_on(self.all(call))
    }

    fn health(&mut self) -> Result<(), String> {
        self.runtime
            .block_on(self.handler.health())
            .map_err(|error| error.to_string())
    }

    fn assigned(&mut self, topic: &str, partition: i32, epoch: u32) {
        let _runtime = self.runtime.enter();
        self.handler.assigned(topic, partition, epoch);
    }

    fn revoked(&mut self, topic: &str, partition: i32, epoch: u32) {
        let _runtime = self.runtime.enter();
        self.handler.revoked(topic, partition, epoch);
    }

    fn drain(&mut self, deadline: Duration) {
        self.runtime.block_on(async {
            let _ = tokio::time::timeout(deadline, self.handler.drain(deadline)).await;
        });
    }
    fn reconfigure(&mut self, config: &str) -> Result<(), Refusal> {
        let config = read_config(config)?;
        let taken = self.runtime.block_on(self.handler.reconfigure(config));
        taken.map_err(refusal)
    }
}
