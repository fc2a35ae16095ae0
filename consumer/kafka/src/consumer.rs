//! The production source: librdkafka's consumer, read in batches from one application queue.
//!
//! ```text
//!  librdkafka's threads ── fetched records ──► partition queue ──(forwarded, rule 1)──► application queue ──► poll()
//!                       └─ rebalances, commit answers, errors, statistics ──► consumer queue ──► events()
//!  both queues and every Wake::wake ──► one eventfd ──► wait()
//! ```
//!
//! Batches from a queue of the application reached 1.7 times the records per second of polling one by one, but they
//! bypass what the consumer does for its user; `ffi` lists the five rules that make up for it, and the comments cite
//! them (ADR 0002). They hold for the linked version of librdkafka: an upgrade has to repeat the measurements. They
//! also require that one thread makes all calls, which is why a source is created and used on the pump's thread.
//!
//! Order of one iteration of the pump's loop: `wait` reads the eventfd first, then `events` and `poll` empty both
//! queues, so that the next entry writes the eventfd again. In the other order, the wake-up of an entry that arrives
//! between the two would be consumed, and the entry would stay in its queue until the wait times out.

mod assign;
mod bounds;
pub(crate) mod callbacks;
mod client_errors;
mod fetch;
mod find;
mod gap_detector;
mod identity;
mod leave;
mod pause;
mod position;
mod rebalance;
mod wake;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use sluicegate_engine::partition::trouble::LogLimit;
use sluicegate_engine::source::{
    AssignmentId, CommitEntry, CommitError, CommitResult, Delivery, FetchState, Membership, Source,
    SourceError, SourceEvent, StartAt, StartPartition, TopicPartition, Wake,
};

use crate::consumer::callbacks::{CallbackEvent, Callbacks};
use crate::consumer::gap_detector::GapDetector;
use crate::consumer::rebalance::{Begin, Rebalance};
use crate::consumer::wake::WakeUp;
use crate::ffi::RecordBuf;
use crate::ffi::{Connection, set_leader_epochs};
use crate::settings::ClientSettings;
use bounds::Bounds;
use find::{Context, Finder};
use identity::Topics;
use leave::Leaving;

/// Maximum number of records taken from the queue per call; larger batches gain nothing.
const MAX_BATCH: usize = 1024;

/// Delay before an assign that librdkafka temporarily refused is retried.
const START_RETRY_DELAY: Duration = Duration::from_millis(500);
/// How long a rebalance waits for partitions whose start offset is unknown while others could already be read.
const START_LOOKUP_GRACE: Duration = Duration::from_secs(1);

/// How long a source that is dropped without a close may take to leave its group.
const DROP_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a commit: by partition, and the error of the request as a whole.
type CommitAnswer = (Vec<CommitResult>, Option<CommitError>);

/// A Kafka consumer. Used only by the thread that created it.
pub struct KafkaSource {
    connection: Option<Connection<Callbacks>>,
    wake: WakeUp,
    gap_detector: GapDetector,
    rebalance: Rebalance,
    pending: Vec<SourceEvent>,
    /// Records from the consumer queue (fetched before a forward took effect); copied.
    main_queue_records: VecDeque<Delivery<RecordBuf>>,
    finder: Finder,
    bounds: Bounds,
    /// Partitions whose start was found after their rebalance was answered, and that are not assigned yet.
    late: Vec<Begin>,
    /// When to retry the answer to a rebalance, or the assign of a late partition.
    answer_due: Option<Instant>,
    /// When the unanswered rebalance started.
    rebalance_since: Option<Instant>,
    topics: Topics,
    group: String,
    is_static: bool,
    read_committed: bool,
    /// Repositioned assignments: forwarded again until a record arrives.
    moved: Vec<(AssignmentId, i64)>,
    request_timeout: Duration,
    leaving: Leaving,
    made: Instant,
    /// Limit of the log lines about temporarily refused assignments, on the time since `made`.
    unassigned_log: LogLimit,
}

impl KafkaSource {
    /// Creates a client; it connects in the background. To be called on the pump's thread.
    ///
    /// # Errors
    /// If librdkafka rejects the config, with its error.
    pub fn new(settings: &ClientSettings) -> Result<Self, SourceError> {
        let terminal = |error: &dyn std::fmt::Display| SourceError::Terminal(error.to_string());
        let wake = WakeUp::new().map_err(|error| terminal(&error))?;
        let config = settings.member();
        let consumer =
            BaseConsumer::from_config_and_context(&config, Callbacks::new(settings.shows_debug()))
                .map_err(|error| terminal(&error))?;
        let connection = Connection::new(consumer, wake.descriptor(), MAX_BATCH)
            .ok_or_else(|| SourceError::Terminal("librdkafka provides no queue".into()))?;
        Ok(Self {
            connection: Some(connection),
            wake,
            gap_detector: GapDetector::default(),
            rebalance: Rebalance::default(),
            pending: Vec::new(),
            main_queue_records: VecDeque::new(),
            finder: Finder::default(),
            bounds: Bounds::default(),
            late: Vec::new(),
            answer_due: None,
            rebalance_since: None,
            topics: Topics::default(),
            group: settings.group_id.clone(),
            is_static: settings.client.contains_key("group.instance.id"),
            read_committed: settings
                .client
                .get("isolation.level")
                .is_none_or(|level| level.expose() == "read_committed"),
            moved: Vec::new(),
            request_timeout: settings.request_timeout,
            leaving: Leaving::of(&config),
            made: Instant::now(),
            unassigned_log: LogLimit::default(),
        })
    }

    /// Number of records dropped because their partition was not owned.
    pub fn unowned_records(&self) -> u64 {
        self.gap_detector.unowned()
    }

    fn connection(&self) -> Result<&Connection<Callbacks>, SourceError> {
        self.connection
            .as_ref()
            .ok_or_else(|| SourceError::Terminal("the Kafka client is closed".into()))
    }

    fn failed(&self, what: &str, error: &KafkaError) -> SourceError {
        let fatal = self
            .connection
            .as_ref()
            .is_some_and(|connection| connection.consumer().client().fatal_error().is_some());
        let text = format!("{what}: {error}");
        if fatal {
            SourceError::Terminal(text)
        } else {
            SourceError::Retryable(text)
        }
    }

    /// Serves the client's callbacks until the queue is empty (rule 4): `poll` returns after each event, and nothing
    /// wakes the pump for the events that are left.
    fn serve_events(&mut self, first_wait: Duration) {
        let Some(connection) = &self.connection else {
            return;
        };
        let mut wait = first_wait;
        loop {
            match connection.consumer().poll(wait) {
                Some(Ok(message)) => {
                    let queued = connection.main_queue_record(&message, &mut self.gap_detector);
                    self.main_queue_records.extend(queued);
                }
                Some(Err(KafkaError::MessageConsumptionFatal(_))) => {
                    connection.consumer().context().mark_fatal();
                }
                Some(Err(_)) => {} // The error callback has recorded it with its reason.
                None if connection.events_waiting() == 0 => break,
                None => {}
            }
            wait = Duration::ZERO;
        }
        for seen in connection.consumer().context().take() {
            self.record(seen);
        }
    }

    fn record(&mut self, seen: CallbackEvent) {
        match seen {
            CallbackEvent::Assign(partitions) => {
                self.rebalance.assigned(partitions.clone());
                self.rebalance_since = Some(Instant::now());
                self.pending.push(SourceEvent::Assigned(partitions));
                self.answer_empty();
            }
            CallbackEvent::Revoke { partitions, lost } => {
                // librdkafka does not know late partitions that are not assigned yet.
                let told = partitions
                    .iter()
                    .filter(|at| !self.late.iter().any(|begin| begin.at == **at));
                self.rebalance.revoked(told.cloned().collect());
                self.pending.push(SourceEvent::Revoked { partitions, lost });
                self.answer_empty();
            }
            CallbackEvent::Committed { results, error } => {
                let (results, error) = as_whole(results, error);
                self.pending.push(SourceEvent::Committed { results, error });
            }
            CallbackEvent::Other(event) => self.pending.push(event),
        }
    }

    /// Advances the lookup of start offsets: handles responses and sends due requests. A rebalance is answered with the
    /// partitions found so far once the others fail or take longer than `START_LOOKUP_GRACE`.
    fn advance_start_lookup(&mut self) {
        let answers = self.take_answers();
        let Some(connection) = &mut self.connection else {
            return;
        };
        if self.finder.is_idle() {
            return;
        }
        let mut context = Context {
            is_static: self.is_static,
            connection,
            group: &self.group,
            read_committed: self.read_committed,
            timeout: self.request_timeout,
        };
        let before = self.pending.len();
        self.finder
            .proceed(answers, &mut context, &mut self.pending);
        let failed = self.pending[before..]
            .iter()
            .any(|event| matches!(event, SourceEvent::NotFound { .. }));
        let overdue = self
            .rebalance_since
            .is_some_and(|since| since.elapsed() >= START_LOOKUP_GRACE);
        if self.rebalance.owes_assign() && (failed || overdue) {
            self.defer_unresolved();
        }
    }

    fn defer_unresolved(&mut self) {
        let finder = &self.finder;
        self.rebalance.defer(|at| finder.is_resolving(at));
        let done = self.answer_rebalance();
        self.retry_if_refused(done);
    }
}

impl Source for KafkaSource {
    type Record = RecordBuf;

    fn is_rebalancing(&self) -> bool {
        let joins =
            |connection: &Connection<Callbacks>| connection.consumer().context().is_joining();
        !self.leaving.assigned_by_broker && self.connection.as_ref().is_some_and(joins)
    }

    fn subscribe(&mut self, topics: &[String]) -> Result<(), SourceError> {
        if topics.is_empty() {
            if self.is_member() {
                self.leaving.unsubscribed = Some(Instant::now());
            }
            self.connection()?.consumer().unsubscribe();
            return Ok(());
        }
        let consumer = self.connection()?.consumer();
        if let Some(bad) = topics.iter().find(|topic| topic.contains('\0')) {
            return Err(SourceError::Terminal(format!(
                "topic {bad:?} contains a zero byte"
            )));
        }
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer
            .subscribe(&names)
            .map_err(|error| self.failed("cannot subscribe", &error))?;
        self.leaving.subscribed = true;
        self.leaving.unsubscribed = None;
        Ok(())
    }

    fn events(&mut self, out: &mut Vec<SourceEvent>) {
        self.serve_events(Duration::ZERO);
        self.advance_start_lookup();
        self.retry_answer();
        self.check_identity(Instant::now());
        for (slot, due) in self.gap_detector.overdue(Instant::now()) {
            self.seek_back(slot, due);
        }
        for (slot, due) in self.gap_detector.read_again(Instant::now()) {
            self.update_client_pause(slot);
            self.seek_back(slot, due);
        }
        out.append(&mut self.pending);
    }

    fn membership(&mut self) -> Membership {
        Membership {
            generation: self.connection.as_ref().and_then(Connection::generation),
            is_static: self.is_static,
            assigned_by_broker: self.leaving.assigned_by_broker,
        }
    }

    fn find(&mut self, partitions: &[TopicPartition], start: StartAt) {
        self.finder.find(partitions, start);
        self.advance_start_lookup();
    }

    fn start(&mut self, partitions: &[StartPartition]) -> Result<(), SourceError> {
        for wanted in partitions {
            self.begin(wanted)?;
        }
        let begun: Vec<AssignmentId> = partitions.iter().map(|wanted| wanted.slot).collect();
        self.see_reset(&begun);
        let done = self.answer_rebalance().and_then(|()| self.assign_late());
        self.retry_if_refused(done);
        Ok(())
    }

    fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError> {
        self.finder.forget(partitions);
        self.late.retain(|begin| !partitions.contains(&begin.at));
        for at in partitions {
            let open = self.gap_detector.opened().find(|(_, a)| a.at == *at);
            if let Some(slot) = open.map(|(slot, _)| slot) {
                // The application's pause would survive until the partition is assigned again.
                self.set_client_paused(slot, false);
            }
            self.gap_detector.close(at);
            self.main_queue_records
                .retain(|queued| self.gap_detector.get(queued.slot).is_some());
            self.rebalance.release(at);
        }
        self.answer_rebalance()
    }

    fn poll(&mut self, max: usize, out: &mut Vec<Delivery<RecordBuf>>) {
        let end = out.len() + max;
        self.forward_moved();
        while out.len() < end
            && let Some(queued) = self.main_queue_records.pop_front()
        {
            out.push(queued);
        }
        while out.len() < end {
            let wanted = (end - out.len()).min(MAX_BATCH);
            if self.take_batch(wanted, out) < wanted {
                break;
            }
        }
    }

    fn pause(&mut self, slot: AssignmentId, paused: bool) {
        if let Some(admitted) = self.gap_detector.get_mut(slot) {
            admitted.paused = paused;
            self.update_client_pause(slot);
        }
    }

    fn commit(&mut self, entries: &[CommitEntry]) -> Result<(), SourceError> {
        if entries.is_empty() {
            self.pending.push(SourceEvent::Committed {
                results: Vec::new(),
                error: None,
            });
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(entries.len());
        for entry in entries {
            let mut element = list.add_partition(&entry.at.topic, entry.at.partition);
            element
                .set_offset(Offset::Offset(entry.offset))
                .map_err(|error| self.failed("cannot commit", &error))?;
            if !entry.metadata.is_empty() {
                element.set_metadata(&entry.metadata);
            }
        }
        set_leader_epochs(&mut list, entries.iter().map(|entry| entry.leader_epoch));
        self.connection()?
            .commit(&list)
            .map_err(|code| self.failed("cannot commit", &KafkaError::ConsumerCommit(code)))
    }

    fn consumed(&mut self, slots: &[AssignmentId], out: &mut Vec<(AssignmentId, i64)>) {
        self.read_positions(slots, out);
    }

    fn ask_bounds(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.ask_first(at);
        }
    }

    fn end_offset(&self, slot: AssignmentId) -> Option<i64> {
        let admitted = self.gap_detector.get(slot)?;
        let connection = self.connection.as_ref()?;
        connection.end_offset(admitted.topic, admitted.at.partition)
    }

    fn fetch_state(&self, slot: AssignmentId) -> FetchState {
        let (Some(admitted), Some(connection)) = (self.gap_detector.get(slot), &self.connection)
        else {
            return FetchState::Unknown;
        };
        connection.fetch_state(admitted.topic, admitted.at.partition)
    }

    fn wait(&mut self, timeout: Duration) {
        if self.pending.is_empty() && self.main_queue_records.is_empty() {
            self.wake.sleep(timeout);
        }
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(self.wake.clone())
    }

    fn close(&mut self, deadline: Instant) -> bool {
        self.leave(deadline)
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.close(Instant::now() + DROP_CLOSE_TIMEOUT);
    }
}

fn list_of(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for at in partitions {
        list.add_partition(&at.topic, at.partition);
    }
    list
}

/// A commit fails either as a whole or by partition; in the latter case the partitions' errors are the result.
fn as_whole(results: Vec<CommitResult>, error: Option<CommitError>) -> CommitAnswer {
    match error {
        Some(error) if results.iter().all(|result| result.error.is_none()) => {
            (Vec::new(), Some(error))
        }
        _ => (results, None),
    }
}
