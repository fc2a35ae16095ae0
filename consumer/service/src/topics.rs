//! The watch of the cluster's topics: resolves patterns to topic names, and creates the dead-letter topics that handlers need
//! (G7).
//!
//! ```text
//!  control: Wanted (index, handlers) ─► watch thread: list topics ─► create dead-letter topics ─► Found ─► control
//!                                            ▲                                                              │
//!                                            └── interval, or backoff while a topic is missing              ▼
//!                                                                                         names to subscribe to, problems
//! ```
//!
//! Calls to the cluster block this thread, never the control thread, so gates do not wait for them. A topic's dead-letter topic
//! is created before the topic is subscribed to, if possible.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluicegate_config::spec::DeadLetter;
use sluicegate_engine::dispatch::HandlerIx;
use sluicegate_engine::routing::{RoutingIndex, Subscription};
use sluicegate_engine::status::{ProblemKind, ServiceProblem};
use sluicegate_kafka::reach::NoBroker;
use sluicegate_kafka::topics::{ClusterTopics, LazyTopicAdmin, NeededTopic, TopicError, listed};
use sluicegate_kafka::{ClientSettings, KafkaError};
use sluicegate_plugins::HandlerTable;
use sluicegate_pool::clock::now_ms;

/// Maximum interval between two scans while no pattern waits for new topics.
const MAX_SCAN_INTERVAL: Duration = Duration::from_secs(300);
/// Maximum partitions of a cluster that is scanned at the client's metadata refresh interval. The interval of a larger one
/// grows in proportion, unless patterns wait for new topics: every member lists the whole cluster.
const CHEAP_LIST_PARTITIONS: u64 = 10_000;
/// Minimum interval between two scans requested for a missing topic: a topic that rejects a record does so repeatedly.
const MIN_REQUEST_INTERVAL: Duration = Duration::from_secs(5);
/// Initial retry delay while a topic is missing; doubles each time.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Maximum retry delay while a topic is missing.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

/// The topics that routes read and dead letters need.
pub(super) struct Wanted {
    index: Arc<RoutingIndex>,
    /// The handlers whose gate is open: a closed one produces no dead letters.
    open: BTreeMap<HandlerIx, OpenHandler>,
}

struct OpenHandler {
    name: Arc<str>,
    dead_letter: DeadLetter,
}

impl Wanted {
    pub(super) fn new(index: Arc<RoutingIndex>, plan: &HandlerTable) -> Self {
        let open = plan.handlers.iter().filter(|handler| handler.spec.enabled);
        let open = open.map(|handler| {
            let open_handler = OpenHandler {
                name: handler.name.clone(),
                dead_letter: handler.spec.dead_letter.clone(),
            };
            (handler.ix, open_handler)
        });
        Self {
            index,
            open: open.collect(),
        }
    }

    /// The subscription, given the cluster's `topics`.
    pub(super) fn subscription(&self, topics: &ClusterTopics) -> Subscription {
        self.index.subscription(topics.keys().map(String::as_str))
    }

    /// Whether the cluster's topics have to be listed.
    pub(super) fn needs_cluster(&self) -> bool {
        self.index.has_patterns() || !self.open.is_empty()
    }

    /// The dead-letter topics that open handlers write to, with the handlers that need each one. A topic is created with the
    /// maximum partition count of its source topics, and only once one of them exists: a mistyped topic name creates none.
    fn needed(&self, topics: &ClusterTopics) -> BTreeMap<String, Need> {
        let mut needed: BTreeMap<String, Need> = BTreeMap::new();
        for topic in self.subscription(topics).topics {
            let partitions = topics.get(&topic).copied();
            for handler in self.index.handlers_for(&topic) {
                let Some(open) = self.open.get(&handler) else {
                    continue;
                };
                if partitions.is_none() && open.dead_letter.create {
                    continue;
                }
                let need = needed
                    .entry(open.dead_letter.topic_for(&topic))
                    .or_default();
                need.partitions = need.partitions.max(partitions);
                need.create |= open.dead_letter.create;
                need.handlers.insert(open.name.clone());
            }
        }
        needed
    }

    /// Topics that open handlers name and the cluster does not have.
    fn missing_sources(&self, topics: &ClusterTopics) -> BTreeMap<FaultKey, Fault> {
        let mut faults = BTreeMap::new();
        for (topic, handlers) in self.index.exact_topics() {
            if topics.contains_key(topic) {
                continue;
            }
            for open in handlers.iter().filter_map(|handler| self.open.get(handler)) {
                let key = (open.name.clone(), topic.to_owned());
                faults.insert(key, Fault::NoTopic);
            }
        }
        faults
    }
}

#[derive(Default)]
struct Need {
    partitions: Option<i32>,
    create: bool,
    handlers: BTreeSet<Arc<str>>,
}

/// Handler and topic.
type FaultKey = (Arc<str>, String);

/// A fault of a handler's topic.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    /// A topic of the route does not exist.
    NoTopic,
    /// The dead-letter topic does not exist.
    NoDeadLetterTopic(TopicError),
}

/// Result of a scan.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// The cluster's topics; `None` before the first successful scan.
    pub(super) topics: Option<Arc<ClusterTopics>>,
    faults: BTreeMap<FaultKey, Fault>,
    /// Why the topics could not be listed.
    unreachable: Option<String>,
}

impl Found {
    fn is_healthy(&self) -> bool {
        self.faults.is_empty() && self.unreachable.is_none()
    }

    /// Missing dead-letter topics of exactly named topics: they fail the service's start.
    pub(super) fn refusals(&self, wanted: &Wanted) -> Vec<String> {
        let named: BTreeSet<String> = wanted
            .index
            .exact_topics()
            .flat_map(|(topic, handlers)| {
                let open = handlers.into_iter().filter_map(|ix| wanted.open.get(&ix));
                open.map(|open| open.dead_letter.topic_for(topic))
                    .collect::<Vec<_>>()
            })
            .collect();
        let mut refusals: BTreeMap<&str, String> = BTreeMap::new();
        for ((handler, topic), fault) in &self.faults {
            if let Fault::NoDeadLetterTopic(error) = fault
                && named.contains(topic)
            {
                refusals
                    .entry(topic)
                    .or_insert_with(|| format!("handler `{handler}`: {error}"));
            }
        }
        refusals.into_values().collect()
    }
}

/// Scans the cluster's topics, periodically and on request.
pub(super) struct TopicScanner {
    admin: LazyTopicAdmin,
    /// Topics that the last scan missed for the first time: a broker that has just started may not know all of them.
    vanished: BTreeSet<String>,
    found: Found,
    /// When each fault was first seen.
    since_ms: BTreeMap<FaultKey, i64>,
    unreachable_since_ms: i64,
    retry: Duration,
    refresh_interval: Duration,
    request_interval: Duration,
}

impl TopicScanner {
    pub(super) fn new(client: ClientSettings) -> Self {
        let refresh_interval = client.metadata_interval();
        Self {
            admin: LazyTopicAdmin::new(client),
            vanished: BTreeSet::new(),
            found: Found::default(),
            since_ms: BTreeMap::new(),
            unreachable_since_ms: 0,
            retry: FIRST_RETRY_DELAY,
            refresh_interval,
            request_interval: MIN_REQUEST_INTERVAL,
        }
    }

    /// Blocks until the cluster answers, if it is needed.
    ///
    /// # Errors
    /// [`NoBroker`].
    pub(super) fn wait_for_broker(&self, wanted: &Wanted) -> Result<(), NoBroker> {
        match wanted.needs_cluster() {
            true => self.admin.wait_for_broker(),
            false => Ok(()),
        }
    }

    /// Lists the cluster's topics and creates missing dead-letter topics.
    ///
    /// # Errors
    /// If the topics cannot be listed; the previous result is kept.
    pub(super) fn scan(&mut self, wanted: &Wanted) -> Result<&Found, KafkaError> {
        if !wanted.needs_cluster() {
            self.found = Found {
                topics: self.found.topics.take(),
                ..Found::default()
            };
            return Ok(&self.found);
        }
        match self.list(wanted) {
            Ok((topics, faults)) => {
                self.log_changes(&faults);
                if self.found.unreachable.take().is_some() {
                    tracing::info!("the cluster's topics can be listed again");
                }
                self.found.topics = Some(Arc::new(topics));
                self.found.faults = faults;
                Ok(&self.found)
            }
            Err(error) => {
                // Logged once per outage.
                if self.found.unreachable.is_none() {
                    tracing::warn!(%error, "cannot list the cluster's topics; retrying");
                    self.unreachable_since_ms = now_ms();
                }
                self.found.unreachable = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn list(
        &mut self,
        wanted: &Wanted,
    ) -> Result<(ClusterTopics, BTreeMap<FaultKey, Fault>), KafkaError> {
        let admin = self.admin.get()?;
        let mut topics = admin.topics()?;
        self.retain_vanished(&mut topics);
        let needed = wanted.needed(&topics);
        let named = needed.iter().map(|(name, need)| NeededTopic {
            name: name.clone(),
            // -1 is the broker's default; such a topic is never created here.
            partitions: need.partitions.unwrap_or(-1),
            create: need.create,
        });
        let missing = admin.ensure(named, &mut topics)?;
        let mut faults = wanted.missing_sources(&topics);
        for error in missing {
            for handler in &needed[error.name()].handlers {
                let key = (handler.clone(), error.name().to_owned());
                faults.insert(key, Fault::NoDeadLetterTopic(error.clone()));
            }
        }
        Ok((topics, faults))
    }

    /// Keeps a topic until it is missing in two scans in a row.
    fn retain_vanished(&mut self, topics: &mut ClusterTopics) {
        let Some(before) = &self.found.topics else {
            return;
        };
        let gone = before
            .iter()
            .filter(|(name, _)| !topics.contains_key(*name));
        let gone: Vec<(String, i32)> = gone.map(|(name, count)| (name.clone(), *count)).collect();
        let before = std::mem::take(&mut self.vanished);
        for (name, partitions) in gone {
            if !before.contains(&name) {
                topics.insert(name.clone(), partitions);
                self.vanished.insert(name);
            }
        }
    }

    /// Logs new and resolved faults: one line per handler and reason, once per fault.
    fn log_changes(&mut self, faults: &BTreeMap<FaultKey, Fault>) {
        let before = &self.found.faults;
        let new = faults
            .iter()
            .filter(|(key, fault)| before.get(*key) != Some(*fault));
        let mut lines: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
        let mut absent: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((handler, topic), fault) in new {
            match fault {
                Fault::NoTopic => absent.entry(handler).or_default().push(topic.clone()),
                Fault::NoDeadLetterTopic(error) => {
                    let line = (&**handler, error.cause());
                    lines.entry(line).or_default().push(topic.clone());
                }
            }
        }
        for ((handler, cause), topics) in lines {
            tracing::error!(
                handler,
                topics = %listed(&topics),
                cause,
                "dead-letter topics missing; records with a dead letter will wait"
            );
        }
        for (handler, topics) in absent {
            tracing::warn!(handler, topics = %listed(&topics), "topics of the route do not exist");
        }
        let resolved = before.keys().filter(|key| !faults.contains_key(*key));
        let resolved: Vec<String> = resolved.map(|(_, topic)| topic.clone()).collect();
        if !resolved.is_empty() {
            tracing::info!(topics = %listed(&resolved), "missing topics exist now, or are not needed any more");
        }
        let now = now_ms();
        self.since_ms.retain(|key, _| faults.contains_key(key));
        for key in faults.keys() {
            self.since_ms.entry(key.clone()).or_insert(now);
        }
    }

    /// The active faults as problems.
    pub(super) fn problems(&self) -> Vec<ServiceProblem> {
        let mut problems: Vec<ServiceProblem> = self
            .found
            .faults
            .iter()
            .map(|((handler, topic), fault)| {
                let since_ms = self.since_ms.get(&(handler.clone(), topic.clone()));
                let (kind, what, cause, remedy) = match fault {
                    Fault::NoTopic => (
                        ProblemKind::TopicMissing,
                        ServiceProblem::reads_missing_topic(handler, topic),
                        "the cluster has no such topic, or the service may not see it".to_owned(),
                        "create the topic, or grant the service DESCRIBE and READ on it",
                    ),
                    Fault::NoDeadLetterTopic(error) => (
                        ProblemKind::DeadLetterTopicMissing,
                        format!("handler `{handler}` has no dead-letter topic {topic}"),
                        error.cause(),
                        error.remedy(),
                    ),
                };
                ServiceProblem {
                    kind,
                    what,
                    since_ms: since_ms.copied().unwrap_or_default(),
                    count: 1,
                    cause,
                    remedy: remedy.to_owned(),
                }
            })
            .collect();
        if let Some(reason) = &self.found.unreachable {
            problems.push(ServiceProblem {
                kind: ProblemKind::TopicsUnlisted,
                what: "the cluster's topics cannot be listed; new topics are not found".to_owned(),
                since_ms: self.unreachable_since_ms,
                count: 1,
                cause: reason.clone(),
                remedy: "check that the brokers are reachable".to_owned(),
            });
        }
        problems
    }

    /// Whether the last scan also answers for `newer`: a gate change must not cost a listing of all topics.
    fn covers(&self, older: &Wanted, newer: &Wanted) -> bool {
        let Some(topics) = &self.found.topics else {
            return !newer.needs_cluster();
        };
        let patterns: BTreeSet<&str> = older.index.patterns().collect();
        self.found.is_healthy()
            && newer.index.patterns().all(|new| patterns.contains(new))
            && newer.missing_sources(topics).is_empty()
            && newer
                .needed(topics)
                .keys()
                .all(|name| topics.contains_key(name))
    }

    /// Interval between two scans without faults; bounds how late a deleted topic is noticed.
    fn interval(&self, wanted: &Wanted) -> Duration {
        if wanted.index.has_patterns() {
            return self.refresh_interval;
        }
        if !wanted.needs_cluster() {
            return MAX_SCAN_INTERVAL;
        }
        let topics = self.found.topics.iter().flat_map(|topics| topics.values());
        let partitions: u64 = topics.map(|count| u64::from(count.unsigned_abs())).sum();
        let times = u32::try_from(partitions / CHEAP_LIST_PARTITIONS).unwrap_or(u32::MAX);
        let interval = self.refresh_interval.saturating_mul(times.max(1));
        interval.min(MAX_SCAN_INTERVAL.max(self.refresh_interval))
    }

    /// Whether no fault is known; otherwise the next scan follows soon by itself.
    fn is_settled(&self) -> bool {
        self.found.is_healthy() && self.vanished.is_empty()
    }

    /// Delay before the next scan without a request.
    fn wait(&mut self, wanted: &Wanted) -> Duration {
        if self.is_settled() {
            self.retry = FIRST_RETRY_DELAY;
            let interval = self.interval(wanted);
            if interval >= MAX_SCAN_INTERVAL {
                self.admin.rest();
            }
            return interval;
        }
        let wait = self.retry;
        self.retry = (wait * 2).min(MAX_RETRY_DELAY);
        wait
    }
}

/// Report of the watch to the control thread.
pub(super) struct TopicReport {
    /// The cluster's topics, if known.
    pub(super) topics: Option<Arc<ClusterTopics>>,
    /// The active problems.
    pub(super) problems: Vec<ServiceProblem>,
}

/// A command to the watch's thread.
enum TopicCommand {
    /// Other routes or handlers are active.
    Want(Arc<Wanted>),
    /// A client has met a missing topic.
    Rescan,
}

/// Handle of the watch's thread. Dropping it stops the thread without waiting for a call in progress.
pub(super) struct TopicWatch {
    commands: Sender<TopicCommand>,
    _thread: JoinHandle<()>,
}

impl TopicWatch {
    /// Starts the thread; `report` receives the result of each scan. The scanner has already scanned for `first`.
    pub(super) fn start(
        mut scanner: TopicScanner,
        first: Arc<Wanted>,
        report: impl Fn(TopicReport) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("topics".to_owned())
            .spawn(move || watch(&mut scanner, first, &inbox, report))?;
        Ok(Self {
            commands,
            _thread: thread,
        })
    }

    /// Other routes or handlers are active.
    pub(super) fn want(&self, wanted: Arc<Wanted>) {
        // The receiver is gone if the thread has panicked, which was logged.
        let _ = self.commands.send(TopicCommand::Want(wanted));
    }

    /// A client has met a missing topic: a scan reports a deleted topic, and creates a dead-letter topic again.
    pub(super) fn rescan(&self) {
        let _ = self.commands.send(TopicCommand::Rescan);
    }
}

fn watch(
    scanner: &mut TopicScanner,
    mut wanted: Arc<Wanted>,
    inbox: &Receiver<TopicCommand>,
    report: impl Fn(TopicReport),
) {
    // Commands without news must not delay the next scan.
    let mut last_scan = Instant::now();
    let mut due = last_scan + scanner.wait(&wanted);
    // A client may keep requesting scans that cannot help, such as for a topic it may not write to: the interval grows then.
    let mut request_interval = scanner.request_interval;
    loop {
        match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(command) => {
                let mut requested = false;
                let mut newest = None;
                for command in std::iter::once(command).chain(inbox.try_iter()) {
                    match command {
                        TopicCommand::Want(newer) => newest = Some(newer),
                        TopicCommand::Rescan => requested = true,
                    }
                }
                if requested && scanner.is_settled() {
                    due = due.min(last_scan + request_interval);
                }
                let covered = newest
                    .as_ref()
                    .is_none_or(|newer| scanner.covers(&wanted, newer));
                wanted = newest.unwrap_or(wanted);
                if covered && Instant::now() < due {
                    continue;
                }
                scanner.retry = FIRST_RETRY_DELAY;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // An error is part of the problems.
        let _ = scanner.scan(&wanted);
        report(TopicReport {
            topics: scanner.found.topics.clone(),
            problems: scanner.problems(),
        });
        let since = last_scan.elapsed();
        last_scan = Instant::now();
        let wait = scanner.wait(&wanted);
        due = last_scan + wait;
        request_interval = match scanner.is_settled() && since < wait {
            true => (request_interval * 2).min(wait),
            false => scanner.request_interval,
        };
    }
}

#[cfg(test)]
#[path = "topics_tests.rs"]
mod tests;
