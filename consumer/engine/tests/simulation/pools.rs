//! Passive worker pools and a passive producer: the world drives the batches and records that they hold.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluicegate_abi::header_block::Headers;
use sluicegate_engine::dispatch::{Batch, BatchId, Inbox, PoolState, Published, WorkerPool};
use sluicegate_engine::emit::{EmitToken, Emitter, FailureKind, ProducerRecord, Sent, Way};
use sluicegate_runtime::{Emit, Emits, RawOutcome};

use super::workers::failure;

/// A pool with a fixed number of workers.
#[derive(Debug)]
pub struct SimPool {
    state: Mutex<SimPoolState>,
    worker_count: usize,
}

#[derive(Debug)]
struct SimPoolState {
    busy: Vec<bool>,
    failed: bool,
    owes_notice: bool,
    recalled: bool,
    taken: Vec<(usize, Box<Batch>)>,
    /// What calls have published so far.
    published: Vec<(BatchId, Vec<RawOutcome>)>,
}

impl SimPool {
    /// The number of its workers.
    pub fn worker_count(&self) -> usize {
        self.worker_count
    }

    /// A pool of `worker_count` workers.
    pub fn new(worker_count: usize) -> Self {
        Self {
            state: Mutex::new(SimPoolState {
                busy: vec![false; worker_count],
                failed: false,
                owes_notice: false,
                recalled: false,
                taken: Vec::new(),
                published: Vec::new(),
            }),
            worker_count,
        }
    }

    /// Batches submitted since the last call, with their workers.
    pub fn taken(&self) -> Vec<(usize, Box<Batch>)> {
        std::mem::take(&mut self.lock().taken)
    }

    /// A call has published these outcomes so far; the last ones given count.
    pub fn publish(&self, batch: BatchId, outcomes: Vec<RawOutcome>) {
        self.lock().published.push((batch, outcomes));
    }

    /// Nothing is known of what calls have published.
    pub fn hide_published(&self) {
        self.lock().published.clear();
    }

    /// Whether batches were recalled since the last call.
    pub fn recalled(&self) -> bool {
        std::mem::take(&mut self.lock().recalled)
    }

    /// Frees a worker. `true`: the pump must be notified.
    pub fn free(&self, worker: usize) -> bool {
        let mut state = self.lock();
        state.busy[worker] = false;
        !state.failed && std::mem::take(&mut state.owes_notice)
    }

    /// Fails or recovers the pool. `true`: the pump must be notified.
    pub fn set_failed(&self, failed: bool) -> bool {
        let mut state = self.lock();
        state.failed = failed;
        !failed && std::mem::take(&mut state.owes_notice)
    }

    fn lock(&self) -> MutexGuard<'_, SimPoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkerPool for SimPool {
    fn submit(&self, batch: Box<Batch>, _reply_to: &Arc<Inbox>) -> Result<(), Box<Batch>> {
        let mut state = self.lock();
        let worker = match batch.worker {
            Some(worker) => {
                Some(worker as usize % self.worker_count).filter(|&worker| !state.busy[worker])
            }
            None => state.busy.iter().position(|busy| !busy),
        };
        match worker {
            Some(worker) if !state.failed => {
                state.busy[worker] = true;
                state.taken.push((worker, batch));
                Ok(())
            }
            _ => {
                state.owes_notice = true;
                Err(batch)
            }
        }
    }

    fn recall(&self) {
        self.lock().recalled = true;
    }

    fn published(&self, _reply_to: &Arc<Inbox>, batch: BatchId) -> Option<Published> {
        let state = self.lock();
        let mut published = state.published.iter();
        let (_, outcomes) = published.find(|(id, _)| *id == batch)?;
        Some(Published::up_to(outcomes.clone()))
    }

    fn workers(&self) -> u32 {
        self.worker_count as u32
    }

    fn state(&self) -> PoolState {
        match self.lock().failed {
            true => PoolState::Failed,
            false => PoolState::Active,
        }
    }
}

/// A dead letter, parsed from its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub handler: u32,
    pub to: String,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// The headers without the provenance ones, re-encoded.
    pub headers: Vec<u8>,
}

impl DeadLetter {
    fn new(record: &ProducerRecord<'_>) -> Self {
        let provenance = |name: &str| {
            let name = format!("__dlq.errors.{name}");
            Headers::new(record.headers)
                .filter(|(header, _)| *header == name.as_bytes())
                .find_map(|(_, value)| str::from_utf8(value?).ok())
                .unwrap_or_default()
                .to_owned()
        };
        let original: Vec<_> = Headers::new(record.headers)
            .filter(|(name, _)| !name.starts_with(b"__dlq."))
            .collect();
        let mut headers = Vec::new();
        sluicegate_abi::header_block::write(&mut headers, original.into_iter());
        Self {
            topic: provenance("topic"),
            partition: provenance("partition").parse().unwrap_or(-1),
            offset: provenance("offset").parse().unwrap_or(-1),
            handler: provenance("handler")[1..].parse().unwrap_or(u32::MAX),
            to: record.topic.to_owned(),
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers,
        }
    }
}

/// An emitted record; its key encodes its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    pub epoch: u64,
    pub offset: i64,
    pub handler: u32,
    /// Index among the records emitted for the origin.
    pub index: u32,
}

impl Emitted {
    /// Adds the record that the handler emits for the one at this place of its call.
    pub fn emit(&self, record: u32, emits: &mut Emits) {
        let key = format!(
            "{}/{}/{}/{}",
            self.epoch, self.offset, self.handler, self.index
        );
        let to = ProducerRecord {
            topic: OUT,
            key: Some(key.as_bytes()),
            ..ProducerRecord::default()
        };
        emits.extend([Emit { record, to }]);
    }

    fn of(record: &ProducerRecord<'_>) -> Option<Self> {
        let key = str::from_utf8(record.key?).ok()?;
        let mut parts = key.split('/');
        Some(Self {
            epoch: parts.next()?.parse().ok()?,
            offset: parts.next()?.parse().ok()?,
            handler: parts.next()?.parse().ok()?,
            index: parts.next()?.parse().ok()?,
        })
    }
}

/// Target topic of emitted records.
const OUT: &str = "out";

/// A record passed to the producer.
pub enum Handed {
    Letter(DeadLetter),
    Emit(Emitted),
}

/// A record that the producer holds, with the token to answer.
pub struct InProducer {
    pub what: Handed,
    pub way: Way,
    /// Why the call refused it.
    pub refused: Option<FailureKind>,
    pub token: EmitToken,
}

/// A producer that accepts or refuses records.
#[derive(Default)]
pub struct SimProducer(Mutex<SimProducerState>);

#[derive(Default)]
struct SimProducerState {
    refusing: Option<FailureKind>,
    given: Vec<InProducer>,
}

impl SimProducer {
    /// Sets whether the next records are refused, and why.
    pub fn set_refusing(&self, refusing: Option<FailureKind>) {
        self.lock().refusing = refusing;
    }

    /// Records passed since the last call, in order.
    pub fn given(&self) -> Vec<InProducer> {
        std::mem::take(&mut self.lock().given)
    }

    fn lock(&self) -> MutexGuard<'_, SimProducerState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Emitter for SimProducer {
    fn send(
        &self,
        record: &ProducerRecord<'_>,
        way: Way,
        _: &Arc<Inbox>,
        token: EmitToken,
    ) -> Sent {
        let mut state = self.lock();
        let what = match Emitted::of(record).filter(|_| record.topic == OUT) {
            Some(emitted) => Handed::Emit(emitted),
            None => Handed::Letter(DeadLetter::new(record)),
        };
        let refused = state.refusing;
        state.given.push(InProducer {
            what,
            way,
            refused,
            token,
        });
        match refused {
            Some(kind) => Sent::Refused(Box::new(failure(kind))),
            None => Sent::Queued,
        }
    }
}
