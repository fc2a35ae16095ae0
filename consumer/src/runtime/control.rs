//! The way of a config change: one thread takes updates and turns each into a plan that every pump runs by.
//!
//! ```text
//!  update ─► registry.settle ─► routing index ─► every pump: routes and handlers at once
//!                 └─► preparer thread: verify, load, create, health ─► the same again, with the new generations
//! ```
//!
//! A handler that takes long to start holds up no gate. What is refused stays as it was; the reason goes to log, metric and API.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluicegate_config::service::HandlersConfig;
use sluicegate_config::source::{Update, UpdateSink};
use sluicegate_config::spec::TopicPattern;
use sluicegate_config::store::{Store, StoreError};
use sluicegate_config::{Snapshot, diff};
use tokio::runtime::Handle;

use super::members::{Member, Standing};
use super::view::View;
use super::{StartError, settings};
use crate::emit::topics::{NeededTopic, TopicError, ensure_topics};
use crate::handlers::{Applied, FolderWatch, Plan, Refusal, Registry};
use crate::routing::{RoutingIndex, subscription};
use crate::source::ClientSettings;

/// Between two looks at the plugin folder when nobody tells of changes.
const RESCAN: Duration = Duration::from_secs(30);
/// How often the pumps get what is ready while more is being prepared.
const SHARE_READY: Duration = Duration::from_millis(200);
/// How soon dead-letter topics that are missing are looked for again.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Longest wait for a pump to take a plan; it takes it in any case.
const PUMP_ANSWER: Duration = Duration::from_secs(30);

/// How often the fleet is told of handlers that have failed or are well again.
const LOOK_AFTER_HANDLERS: Duration = Duration::from_secs(1);

enum Order {
    Update(Update),
    /// The plugin folder may have changed.
    Rescan,
    /// New generations are ready, or refused.
    Prepared,
    Stop(Duration),
}

/// A refusal as a sentence that names its handler once.
pub(super) fn named(refusal: &Refusal) -> String {
    match refusal.reason.starts_with("handler `") {
        true => refusal.reason.clone(),
        false => format!("handler `{}`: {}", refusal.handler, refusal.reason),
    }
}

/// The control side before its thread is started.
pub(super) struct Desk {
    registry: Arc<Registry>,
    view: Arc<View>,
    snapshot: Arc<Snapshot>,
    client: ClientSettings,
    tokio: Handle,
    /// Topics that were there when they were last looked for.
    ensured: BTreeSet<NeededTopic>,
    /// Those that were asked for last, and when.
    wanted: BTreeSet<NeededTopic>,
    asked: Option<Instant>,
    /// The revision that every pump runs by.
    in_force: u64,
    member: Option<Member>,
}

/// The control thread.
pub(super) struct Control {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
    _plugins: FolderWatch,
}

impl Desk {
    pub(super) fn new(
        registry: Arc<Registry>,
        view: Arc<View>,
        client: ClientSettings,
        tokio: Handle,
    ) -> Self {
        Self {
            registry,
            view,
            snapshot: Arc::new(Snapshot::default()),
            client,
            tokio,
            ensured: BTreeSet::new(),
            wanted: BTreeSet::new(),
            asked: None,
            in_force: 0,
            member: None,
        }
    }

    /// Becomes a member of the fleet that meets in `store`.
    ///
    /// # Errors
    /// The store's, when it takes no such id.
    pub(super) fn join(
        &mut self,
        store: &Arc<dyn Store>,
        config: &HandlersConfig,
    ) -> Result<(), StoreError> {
        let (refusals, pools) = (self.registry.refusals(), self.registry.report());
        let standing = Standing {
            in_force: self.in_force,
            snapshot: &self.snapshot,
            refusals: &refusals,
            pools: &pools,
        };
        self.member = Some(Member::join(store, config, standing)?);
        Ok(())
    }

    /// Tells the fleet how things stand, if that is news.
    fn tell_fleet(&mut self) {
        let Some(member) = &mut self.member else {
            return;
        };
        let (refusals, pools) = (self.registry.refusals(), self.registry.report());
        member.tell(Standing {
            in_force: self.in_force,
            snapshot: &self.snapshot,
            refusals: &refusals,
            pools: &pools,
        });
    }

    /// Puts the first snapshot in force, whole.
    ///
    /// # Errors
    /// Every handler that is refused, or the dead-letter topic that is missing.
    pub(super) fn start(&mut self, snapshot: Arc<Snapshot>) -> Result<(), StartError> {
        let applied = self.registry.apply(&snapshot);
        if !applied.refusals.is_empty() {
            let why = applied.refusals.iter().map(named);
            return Err(StartError::Handlers(why.collect()));
        }
        self.ensure_dead_letter_topics(&applied.plan)
            .map_err(|error| StartError::part("dead letters")(error.to_string()))?;
        self.put_in_force(snapshot, &applied);
        Ok(())
    }

    /// Makes the dead-letter topics of topics that are named exactly. Those of patterns are known only when their
    /// first record comes; the producer's own topic creation serves them, or their partition waits (G7).
    /// Topics that were there before are not asked for again: a gate must not wait for the cluster.
    fn ensure_dead_letter_topics(&mut self, plan: &Plan) -> Result<(), TopicError> {
        let mut needed = BTreeSet::new();
        for spec in plan
            .handlers
            .iter()
            .filter(|handler| handler.spec.enabled)
            .map(|handler| &handler.spec)
        {
            for topic in &spec.route.topics {
                if let TopicPattern::Exact(topic) = topic {
                    needed.insert(NeededTopic {
                        name: spec.dead_letter.topic_for(topic),
                        like: topic.clone(),
                        create: spec.dead_letter.create,
                    });
                }
            }
        }
        let asked_lately = self.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN);
        if needed.is_subset(&self.ensured) || (needed == self.wanted && asked_lately) {
            return Ok(());
        }
        let asked: Vec<NeededTopic> = needed.iter().cloned().collect();
        let there = self.tokio.block_on(ensure_topics(&self.client, &asked));
        self.asked = Some(Instant::now());
        if there.is_ok() {
            self.ensured.clone_from(&needed);
        }
        self.wanted = needed;
        there
    }

    /// Puts a snapshot in force as far as it can be at once; what it needs besides is prepared.
    fn apply(&mut self, snapshot: Arc<Snapshot>, preparer: &SyncSender<()>) {
        for change in diff(&self.snapshot, &snapshot) {
            tracing::info!(handler = change.handler(), revision = snapshot.revision, %change, "spec changed");
        }
        if self.registry.settle(&snapshot) {
            // A full channel means that it is told already.
            let _ = preparer.try_send(());
        }
        self.put_current_in_force(snapshot);
    }

    fn put_current_in_force(&mut self, snapshot: Arc<Snapshot>) {
        let applied = self.registry.current();
        if let Err(error) = self.ensure_dead_letter_topics(&applied.plan) {
            tracing::error!(%error, "a dead-letter topic is missing; a partition with a dead letter would wait (G7)");
        }
        self.put_in_force(snapshot, &applied);
    }

    fn put_in_force(&mut self, snapshot: Arc<Snapshot>, applied: &Applied) {
        self.view.note_snapshot(&snapshot, applied);
        self.snapshot = snapshot;
        let plan = &applied.plan;
        let routes = plan
            .handlers
            .iter()
            .map(|handler| (handler.ix, handler.spec.route.clone()))
            .collect();
        let topics = subscription(
            plan.handlers
                .iter()
                .flat_map(|handler| &handler.spec.route.topics),
        );
        let dead_letters = plan
            .handlers
            .iter()
            .map(|handler| handler.spec.dead_letter.topic.as_str());
        let index = RoutingIndex::compile_apart_from(plan.revision, routes, dead_letters)
            .map_err(|error| error.to_string());
        let (index, topics) = match index.and_then(|index| Ok((index, topics?))) {
            Ok(compiled) => compiled,
            Err(error) => {
                tracing::error!(
                    revision = plan.revision,
                    error,
                    "routes refused; the earlier ones stay"
                );
                self.view.note_rejection(&error);
                return;
            }
        };
        if self.hand_out(plan, &index, &topics) {
            self.in_force = plan.revision;
        }
        tracing::info!(
            revision = plan.revision,
            handlers = plan.handlers.len(),
            "plan in force"
        );
    }

    /// Gives the plan to every pump; `true` when all of them run by it.
    fn hand_out(&self, plan: &Plan, index: &Arc<RoutingIndex>, topics: &[String]) -> bool {
        let mut everywhere = true;
        for pump in self.view.pumps() {
            let handlers = plan
                .handlers
                .iter()
                .map(|plan| (plan.ix, settings::handler(plan)))
                .collect();
            match pump.apply(index.clone(), handlers, topics.to_vec(), PUMP_ANSWER) {
                Some(Ok(())) => pump.set_record_log(self.snapshot.switches.record_log),
                Some(Err(error)) => {
                    tracing::error!(%error, "subscription refused");
                    self.view.note_rejection(&error.to_string());
                    everywhere = false;
                }
                None => {
                    tracing::warn!("a pump has not taken the plan yet");
                    everywhere = false;
                }
            }
        }
        everywhere
    }

    /// Starts the thread; the sink feeds it.
    pub(super) fn spawn(self) -> std::io::Result<(Control, UpdateSink)> {
        let (orders, inbox) = channel();
        let preparer = spawn_preparer(self.registry.clone(), orders.clone())?;
        let changes = orders.clone();
        let plugins = FolderWatch::start(self.registry.catalogue().folder(), RESCAN, move || {
            // After the stop nobody scans any more.
            let _ = changes.send(Order::Rescan);
        })?;
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || self.run(&inbox, &preparer))?;
        let updates = orders.clone();
        let sink: UpdateSink = Box::new(move |update| {
            // After the stop nobody takes updates any more.
            let _ = updates.send(Order::Update(update));
        });
        let control = Control {
            orders,
            thread,
            _plugins: plugins,
        };
        Ok((control, sink))
    }

    fn run(mut self, inbox: &Receiver<Order>, preparer: &SyncSender<()>) {
        loop {
            let order = match inbox.recv_timeout(LOOK_AFTER_HANDLERS) {
                Ok(order) => order,
                Err(RecvTimeoutError::Timeout) => {
                    if self.registry.recover() {
                        self.put_current_in_force(self.snapshot.clone());
                    }
                    self.tell_fleet();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match order {
                Order::Update(update) => self.update(update, preparer),
                Order::Rescan => {
                    if self.registry.rescan() {
                        // A full channel means that it is told already.
                        let _ = preparer.try_send(());
                        self.put_current_in_force(self.snapshot.clone());
                    }
                }
                Order::Prepared => self.put_current_in_force(self.snapshot.clone()),
                Order::Stop(deadline) => {
                    // A member that is gone is not waited for.
                    self.member = None;
                    if !self.registry.shutdown(Instant::now() + deadline) {
                        tracing::warn!("some handler instances did not end in time");
                    }
                    return;
                }
            }
            self.tell_fleet();
        }
    }

    fn update(&mut self, update: Update, preparer: &SyncSender<()>) {
        match update {
            Update::Snapshot(snapshot) => self.apply(snapshot, preparer),
            Update::Unreachable { reason } => {
                tracing::warn!(
                    reason,
                    "handler specs cannot be read; the last good ones stay in force"
                );
                self.view.note_unreachable(Some(reason));
            }
            Update::Repaired { keys } => {
                tracing::warn!(
                    keys,
                    "a re-read found changes that the watch had not told of; they are in force from now on"
                );
                self.view.note_repairs(keys as u64);
            }
            Update::Reachable => {
                let away = self.view.note_unreachable(None).unwrap_or_default();
                tracing::info!(
                    away_s = away.as_secs_f64(),
                    "handler specs can be read again"
                );
            }
        }
    }
}

impl Control {
    /// Ends the thread and the handlers' pools.
    pub(super) fn stop(self, deadline: Duration) {
        if self.orders.send(Order::Stop(deadline)).is_ok() && self.thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

/// Starts the thread that prepares generations whenever it is told that some are wanted. It ends with its sender.
fn spawn_preparer(
    registry: Arc<Registry>,
    orders: Sender<Order>,
) -> std::io::Result<SyncSender<()>> {
    let (wake, wanted) = sync_channel(1);
    std::thread::Builder::new()
        .name("prepare".to_owned())
        .spawn(move || {
            while wanted.recv().is_ok() {
                let mut told = Instant::now();
                while registry.prepare_next() {
                    if told.elapsed() >= SHARE_READY {
                        told = Instant::now();
                        // After the stop nobody takes them any more.
                        let _ = orders.send(Order::Prepared);
                    }
                }
                let _ = orders.send(Order::Prepared);
            }
        })?;
    Ok(wake)
}
