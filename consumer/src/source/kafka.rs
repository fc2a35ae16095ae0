//! The real source: librdkafka's consumer, read in batches from one application queue.
//!
//! ```text
//!  librdkafka's threads ── fetched records ──► partition queue ──(forwarded, rule 1)──► application queue ──► poll()
//!                       └─ rebalances, commit answers, errors, statistics ──► consumer queue ──► events()
//!  both queues and every Wake::wake ──► one eventfd ──► wait()
//! ```
//!
//! The order of one turn of the pump: `wait` reads the eventfd first, then `events` and `poll` empty both queues, so
//! that an event is written again when something comes. `raw` lists the five rules that the comments cite.

mod assign;
mod bounds;
mod fetch;
mod find;
mod identity;
mod leave;
mod pause;
mod position;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::callbacks::{CallbackEvent, Callbacks};
use super::client_config::ClientSettings;
use super::gap_detector::GapDetector;
use super::raw::{Connection, set_leader_epochs};
use super::rebalance::{Begin, Rebalance};
use super::wake::WakeUp;
use super::{
    AssignmentId, CommitEntry, CommitError, CommitResult, Delivery, FetchState, Membership, Source,
    SourceError, SourceEvent, StartAt, StartPartition, TopicPartition, Wake,
};
use bounds::Bounds;
use find::{Context, Finder};
use identity::Topics;

use crate::trouble::LogLimit;
use leave::Leaving;

/// Records taken from the queue in one call; more gain nothing.
const BATCH: usize = 1024;

/// Wait before what librdkafka refused for the moment is done again.
const START_RETRY: Duration = Duration::from_millis(500);
/// How long a rebalance waits for partitions whose beginning is not known yet while others could be read.
const FIND_TOGETHER: Duration = Duration::from_secs(1);

/// How long a source that is dropped without a close may take to leave its group.
const DROPPED: Duration = Duration::from_secs(5);

/// A commit's answer: by partition, and why the request as a whole failed.
type CommitAnswer = (Vec<CommitResult>, Option<CommitError>);

/// A Kafka consumer. It belongs to the thread that made it.
pub struct KafkaSource {
    connection: Option<Connection<Callbacks>>,
    wake: WakeUp,
    admission: GapDetector,
    rebalance: Rebalance,
    pending: Vec<SourceEvent>,
    /// Records that came out of the consumer queue (before a forward took hold); copied.
    main_queue_records: VecDeque<Delivery>,
    finder: Finder,
    bounds: Bounds,
    /// Partitions that were found after their rebalance was answered, and are not assigned yet.
    late: Vec<Begin>,
    /// When the answer to a rebalance, or the assign of a late partition, is tried again.
    answer_due: Option<Instant>,
    /// When the rebalance that is not answered came.
    rebalance_since: Option<Instant>,
    topics: Topics,
    group: String,
    is_static: bool,
    read_committed: bool,
    /// Assignments that were moved: forwarded again until something comes.
    moved: Vec<(AssignmentId, i64)>,
    request_timeout: Duration,
    leaving: Leaving,
    made: Instant,
    /// Lines about assignments that are refused for the moment, on the time since `made`.
    unassigned_log: LogLimit,
}

impl KafkaSource {
    /// Makes a client; it connects in the background. To be called on the pump's thread.
    ///
    /// # Errors
    /// When librdkafka refuses the config, with its words.
    pub fn new(settings: &ClientSettings) -> Result<Self, SourceError> {
        let terminal = |error: &dyn std::fmt::Display| SourceError::Terminal(error.to_string());
        let wake = WakeUp::new().map_err(|error| terminal(&error))?;
        let config = settings.member();
        let consumer =
            BaseConsumer::from_config_and_context(&config, Callbacks::new(settings.shows_debug()))
                .map_err(|error| terminal(&error))?;
        let connection = Connection::new(consumer, wake.descriptor(), BATCH)
            .ok_or_else(|| SourceError::Terminal("librdkafka gives no queue".into()))?;
        Ok(Self {
            connection: Some(connection),
            wake,
            admission: GapDetector::default(),
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

    /// Records that came for partitions which are not ours; they were dropped.
    pub fn unowned_records(&self) -> u64 {
        self.admission.unowned()
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

    /// Serves the client's callbacks until none is left (rule 4): `poll` returns after each event, not only when the
    /// queue is empty, and nothing wakes us for what is left lying.
    fn serve_events(&mut self, first_wait: Duration) {
        let Some(connection) = &self.connection else {
            return;
        };
        let mut wait = first_wait;
        loop {
            match connection.consumer().poll(wait) {
                Some(Ok(message)) => {
                    let stray = connection.stray(&message, &mut self.admission);
                    self.main_queue_records.extend(stray);
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
            self.note(seen);
        }
    }

    fn note(&mut self, seen: CallbackEvent) {
        match seen {
            CallbackEvent::Assign(partitions) => {
                self.rebalance.assigned(partitions.clone());
                self.rebalance_since = Some(Instant::now());
                self.pending.push(SourceEvent::Assigned(partitions));
                self.answer_empty();
            }
            CallbackEvent::Revoke { partitions, lost } => {
                // What was found late and is not assigned yet is not known to librdkafka.
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

    /// Asks for what is due and takes what was answered. A rebalance is answered with the partitions that are found once
    /// it is clear that the others take longer.
    fn proceed_with_finding(&mut self) {
        let answers = self.take_answers();
        let Some(connection) = &mut self.connection else {
            return;
        };
        if self.finder.is_idle() {
            return;
        }
        let mut context = Context {
            generation: connection.generation(),
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
            .is_some_and(|since| since.elapsed() >= FIND_TOGETHER);
        if self.rebalance.owes_assign() && (failed || overdue) {
            self.defer_what_is_not_found();
        }
    }

    fn defer_what_is_not_found(&mut self) {
        let finder = &self.finder;
        self.rebalance.defer(|at| finder.looks_for(at));
        let done = self.answer_rebalance();
        self.try_again_if_refused(done);
    }
}

impl Source for KafkaSource {
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
                "topic {bad:?} holds a zero byte"
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
        self.proceed_with_finding();
        self.answer_again();
        self.check_identity(Instant::now());
        for (slot, due) in self.admission.silent(Instant::now()) {
            self.seek_back(slot, due);
        }
        for (slot, due) in self.admission.read_again(Instant::now()) {
            self.rest_or_fetch(slot);
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
        self.proceed_with_finding();
    }

    fn start(&mut self, partitions: &[StartPartition]) -> Result<(), SourceError> {
        for wanted in partitions {
            self.begin(wanted)?;
        }
        let begun: Vec<AssignmentId> = partitions.iter().map(|wanted| wanted.slot).collect();
        self.see_reset(&begun);
        let done = self.answer_rebalance().and_then(|()| self.assign_late());
        self.try_again_if_refused(done);
        Ok(())
    }

    fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), SourceError> {
        self.finder.forget(partitions);
        self.late.retain(|begin| !partitions.contains(&begin.at));
        for at in partitions {
            let open = self.admission.opened().find(|(_, a)| a.at == *at);
            if let Some(slot) = open.map(|(slot, _)| slot) {
                // An application's pause would survive until the partition comes back.
                self.tell_paused(slot, false);
            }
            self.admission.close(at);
            self.main_queue_records
                .retain(|stray| self.admission.get(stray.slot).is_some());
            self.rebalance.release(at);
        }
        self.answer_rebalance()
    }

    fn poll(&mut self, max: usize, out: &mut Vec<Delivery>) {
        let end = out.len() + max;
        self.forward_moved();
        while out.len() < end
            && let Some(stray) = self.main_queue_records.pop_front()
        {
            out.push(stray);
        }
        while out.len() < end {
            let wanted = (end - out.len()).min(BATCH);
            if self.take_batch(wanted, out) < wanted {
                break;
            }
        }
    }

    fn pause(&mut self, slot: AssignmentId, paused: bool) {
        if let Some(admitted) = self.admission.get_mut(slot) {
            admitted.paused = paused;
            self.rest_or_fetch(slot);
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
        let admitted = self.admission.get(slot)?;
        let connection = self.connection.as_ref()?;
        connection.end_offset(admitted.topic, admitted.at.partition)
    }

    fn fetch_state(&self, slot: AssignmentId) -> FetchState {
        let (Some(admitted), Some(connection)) = (self.admission.get(slot), &self.connection)
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
        self.close(Instant::now() + DROPPED);
    }
}

fn list_of(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for at in partitions {
        list.add_partition(&at.topic, at.partition);
    }
    list
}

/// A commit can fail as a whole, or partition by partition: then the partitions' errors are the answer.
fn as_whole(results: Vec<CommitResult>, error: Option<CommitError>) -> CommitAnswer {
    match error {
        Some(error) if results.iter().all(|result| result.error.is_none()) => {
            (Vec::new(), Some(error))
        }
        _ => (results, None),
    }
}
