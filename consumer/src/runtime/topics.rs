//! The watch of the cluster's topics: what patterns take in, and the dead-letter topics that handlers need (G7).
//!
//! ```text
//!  control: Wanted (index, handlers) ─► watch thread: list topics ─► make dead-letter topics ─► Found ─► control
//!                                            ▲                                                            │
//!                                            └── interval, or back-off while something is missing         ▼
//!                                                                                       names to subscribe to, problems
//! ```
//!
//! The thread waits for the cluster so that no gate has to. A topic's dead-letter topic is there before the topic is
//! subscribed to, as far as it can be made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use sluicegate_config::spec::DeadLetter;

use crate::admin::view::now_ms;
use crate::admin::{ProblemKind, ServiceProblem};
use crate::dispatch::HandlerIx;
use crate::emit::topics::{ClusterTopics, LazyTopicAdmin, NeededTopic, TopicError, listed};
use crate::handlers::HandlerTable;
use crate::routing::{RoutingIndex, Subscription};
use crate::source::ClientSettings;
use crate::source::reach::NoBroker;

/// The longest time between two lists of topics while no pattern waits for new ones.
const WITHOUT_PATTERNS: Duration = Duration::from_secs(300);
/// Partitions of a cluster whose topics are listed as often as the client renews what it knows of its own. A larger one is
/// asked less often, in proportion, unless patterns wait for new topics: every member lists all of it.
const CHEAP_LIST: u64 = 10_000;
/// Between two looks that are asked for because a topic was not there: what refuses a record does so again and again.
const ASKED_FOR: Duration = Duration::from_secs(5);
/// The first wait while something is missing; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest wait while something is missing.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What is read and given up, as far as the cluster's topics matter.
pub(super) struct Wanted {
    index: Arc<RoutingIndex>,
    /// The handlers whose gate is open: a shut one gives nothing up.
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
            let handler_of = OpenHandler {
                name: handler.name.clone(),
                dead_letter: handler.spec.dead_letter.clone(),
            };
            (handler.ix, handler_of)
        });
        Self {
            index,
            open: open.collect(),
        }
    }

    /// What to subscribe to where the cluster has `topics`.
    pub(super) fn subscription(&self, topics: &ClusterTopics) -> Subscription {
        self.index.subscription(topics.keys().map(String::as_str))
    }

    /// Whether the cluster has to be asked for its topics.
    pub(super) fn needs_cluster(&self) -> bool {
        self.index.has_patterns() || !self.open.is_empty()
    }

    /// The dead-letter topics that open handlers write to, with who needs each of them. One is made with the most
    /// partitions of its sources, and not before one of these is there: a mistyped topic makes none.
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
    fn without_topic(&self, topics: &ClusterTopics) -> BTreeMap<FaultKey, Fault> {
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

/// What is wrong with a topic of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    /// The topic that it names is not there.
    NoTopic,
    /// Its dead-letter topic is not there.
    NoDeadLetterTopic(TopicError),
}

/// What a look at the cluster found.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// The cluster's topics; `None` while it was never asked.
    pub(super) topics: Option<Arc<ClusterTopics>>,
    faults: BTreeMap<FaultKey, Fault>,
    /// Why the cluster could not be asked.
    unreachable: Option<String>,
}

impl Found {
    fn is_well(&self) -> bool {
        self.faults.is_empty() && self.unreachable.is_none()
    }

    /// The dead-letter topics of exactly named topics that are not there: what keeps a service from starting.
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

/// Looks at the cluster when it is told to and from time to time.
pub(super) struct Looker {
    admin: LazyTopicAdmin,
    /// Topics that were there at the last look and are not now: a broker that has just started may not know all.
    vanished: BTreeSet<String>,
    found: Found,
    /// Since when each fault stands, and whether it was told.
    since_ms: BTreeMap<FaultKey, i64>,
    unreachable_since_ms: i64,
    retry: Duration,
    refresh_interval: Duration,
    asked_for: Duration,
}

impl Looker {
    pub(super) fn new(client: ClientSettings) -> Self {
        let refresh_interval = client.metadata_interval();
        Self {
            admin: LazyTopicAdmin::new(client),
            vanished: BTreeSet::new(),
            found: Found::default(),
            since_ms: BTreeMap::new(),
            unreachable_since_ms: 0,
            retry: FIRST_RETRY,
            refresh_interval,
            asked_for: ASKED_FOR,
        }
    }

    /// Waits until the cluster answers, if it is needed.
    ///
    /// # Errors
    /// [`NoBroker`].
    pub(super) fn wait_for_broker(&self, wanted: &Wanted) -> Result<(), NoBroker> {
        match wanted.needs_cluster() {
            true => self.admin.wait_for_broker(),
            false => Ok(()),
        }
    }

    /// One look: the cluster's topics, and the dead-letter topics made that are missing.
    ///
    /// # Errors
    /// When the cluster cannot be asked; what was found before stands.
    pub(super) fn look(&mut self, wanted: &Wanted) -> Result<&Found, KafkaError> {
        if !wanted.needs_cluster() {
            self.found = Found {
                topics: self.found.topics.take(),
                ..Found::default()
            };
            return Ok(&self.found);
        }
        let looked = self.ask(wanted);
        match looked {
            Ok((topics, faults)) => {
                self.tell(&faults);
                if self.found.unreachable.take().is_some() {
                    tracing::info!("the cluster's topics can be listed again");
                }
                self.found.topics = Some(Arc::new(topics));
                self.found.faults = faults;
                Ok(&self.found)
            }
            Err(error) => {
                // Told once, until it is over.
                if self.found.unreachable.is_none() {
                    tracing::warn!(%error, "cannot list the cluster's topics; retrying");
                    self.unreachable_since_ms = now_ms();
                }
                self.found.unreachable = Some(error.to_string());
                Err(error)
            }
        }
    }

    fn ask(
        &mut self,
        wanted: &Wanted,
    ) -> Result<(ClusterTopics, BTreeMap<FaultKey, Fault>), KafkaError> {
        let admin = self.admin.get()?;
        let mut topics = admin.topics()?;
        self.keep_vanished(&mut topics);
        let needed = wanted.needed(&topics);
        let named = needed.iter().map(|(name, need)| NeededTopic {
            name: name.clone(),
            // -1 is the broker's own default, for a topic that may not be made in any case.
            partitions: need.partitions.unwrap_or(-1),
            create: need.create,
        });
        let missing = admin.ensure(named, &mut topics)?;
        let mut faults = wanted.without_topic(&topics);
        for error in missing {
            for handler in &needed[error.name()].handlers {
                let key = (handler.clone(), error.name().to_owned());
                faults.insert(key, Fault::NoDeadLetterTopic(error.clone()));
            }
        }
        Ok((topics, faults))
    }

    /// A topic goes when it is missing twice in a row.
    fn keep_vanished(&mut self, topics: &mut ClusterTopics) {
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

    /// Tells of faults that are new or over: one line a handler and reason, never again while they stand.
    fn tell(&mut self, faults: &BTreeMap<FaultKey, Fault>) {
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
                "dead-letter topics missing; records with a dead letter will wait (G7)"
            );
        }
        for (handler, topics) in absent {
            tracing::warn!(handler, topics = %listed(&topics), "topics of the route do not exist (yet, or any more)");
        }
        let healed = before.keys().filter(|key| !faults.contains_key(*key));
        let healed: Vec<String> = healed.map(|(_, topic)| topic.clone()).collect();
        if !healed.is_empty() {
            tracing::info!(topics = %listed(&healed), "missing topics are there now, or not needed any more");
        }
        let now = now_ms();
        self.since_ms.retain(|key, _| faults.contains_key(key));
        for key in faults.keys() {
            self.since_ms.entry(key.clone()).or_insert(now);
        }
    }

    /// What stands, for people.
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
                remedy: "see that the brokers can be reached".to_owned(),
            });
        }
        problems
    }

    /// Whether another look would tell nothing new for `newer`: gates that move must not cost a list of all topics each.
    fn knows(&self, older: &Wanted, newer: &Wanted) -> bool {
        let Some(topics) = &self.found.topics else {
            return !newer.needs_cluster();
        };
        let patterns: BTreeSet<&str> = older.index.patterns().collect();
        self.found.is_well()
            && newer.index.patterns().all(|new| patterns.contains(new))
            && newer.without_topic(topics).is_empty()
            && newer
                .needed(topics)
                .keys()
                .all(|name| topics.contains_key(name))
    }

    /// Between two looks while all is well: a topic that is deleted is missed by the handlers that name it.
    fn interval(&self, wanted: &Wanted) -> Duration {
        if wanted.index.has_patterns() {
            return self.refresh_interval;
        }
        if !wanted.needs_cluster() {
            return WITHOUT_PATTERNS;
        }
        let topics = self.found.topics.iter().flat_map(|topics| topics.values());
        let partitions: u64 = topics.map(|count| u64::from(count.unsigned_abs())).sum();
        let times = u32::try_from(partitions / CHEAP_LIST).unwrap_or(u32::MAX);
        let interval = self.refresh_interval.saturating_mul(times.max(1));
        interval.min(WITHOUT_PATTERNS.max(self.refresh_interval))
    }

    /// Whether nothing is missing as far as it is known; otherwise the next look comes soon by itself.
    fn is_at_rest(&self) -> bool {
        self.found.is_well() && self.vanished.is_empty()
    }

    /// How long to wait before the next look, if nobody tells of a change.
    fn wait(&mut self, wanted: &Wanted) -> Duration {
        if self.is_at_rest() {
            self.retry = FIRST_RETRY;
            let interval = self.interval(wanted);
            if interval >= WITHOUT_PATTERNS {
                self.admin.rest();
            }
            return interval;
        }
        let wait = self.retry;
        self.retry = (wait * 2).min(LONGEST_RETRY);
        wait
    }
}

/// What the watch tells the control thread.
pub(super) struct Sight {
    /// What the cluster has.
    pub(super) topics: Option<Arc<ClusterTopics>>,
    /// What stands.
    pub(super) problems: Vec<ServiceProblem>,
}

/// What the watch's thread is told.
enum TopicCommand {
    /// Other routes or handlers are in force.
    Want(Arc<Wanted>),
    /// A client has met a topic that is not there.
    Look,
}

/// The watch's thread; it ends when this is dropped, without waiting for a call that is under way.
pub(super) struct TopicWatch {
    orders: Sender<TopicCommand>,
    _thread: JoinHandle<()>,
}

impl TopicWatch {
    /// Starts the thread; `tell` hears of each look. The looker has looked by `first` already.
    pub(super) fn start(
        mut looker: Looker,
        first: Arc<Wanted>,
        tell: impl Fn(Sight) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("topics".to_owned())
            .spawn(move || watch(&mut looker, first, &inbox, tell))?;
        Ok(Self {
            orders,
            _thread: thread,
        })
    }

    /// Other routes or handlers are in force.
    pub(super) fn want(&self, wanted: Arc<Wanted>) {
        // A thread that panicked has said so.
        let _ = self.orders.send(TopicCommand::Want(wanted));
    }

    /// A client has met a topic that is not there: one that was deleted is missed, and a dead-letter topic made again.
    pub(super) fn look(&self) {
        let _ = self.orders.send(TopicCommand::Look);
    }
}

fn watch(
    looker: &mut Looker,
    mut wanted: Arc<Wanted>,
    inbox: &Receiver<TopicCommand>,
    tell: impl Fn(Sight),
) {
    // Orders that tell nothing new do not put the next look off.
    let mut looked = Instant::now();
    let mut due = looked + looker.wait(&wanted);
    // A client can go on asking for what no look mends, as where it may not write: then looks become rare.
    let mut asked_for = looker.asked_for;
    loop {
        match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(order) => {
                let mut asked = false;
                let mut newest = None;
                for order in std::iter::once(order).chain(inbox.try_iter()) {
                    match order {
                        TopicCommand::Want(newer) => newest = Some(newer),
                        TopicCommand::Look => asked = true,
                    }
                }
                if asked && looker.is_at_rest() {
                    due = due.min(looked + asked_for);
                }
                let known = newest
                    .as_ref()
                    .is_none_or(|newer| looker.knows(&wanted, newer));
                wanted = newest.unwrap_or(wanted);
                if known && Instant::now() < due {
                    continue;
                }
                looker.retry = FIRST_RETRY;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // Why not stands in the problems.
        let _ = looker.look(&wanted);
        tell(Sight {
            topics: looker.found.topics.clone(),
            problems: looker.problems(),
        });
        let since = looked.elapsed();
        looked = Instant::now();
        let wait = looker.wait(&wanted);
        due = looked + wait;
        asked_for = match looker.is_at_rest() && since < wait {
            true => (asked_for * 2).min(wait),
            false => looker.asked_for,
        };
    }
}

#[cfg(test)]
#[path = "topics_tests.rs"]
mod tests;
