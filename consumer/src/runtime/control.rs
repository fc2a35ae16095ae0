//! The way of a config change: one thread takes updates and turns each into a plan that every pump runs by.
//!
//! ```text
//!  update ─► registry.settle ─► routing index ─► every pump: routes and handlers at once
//!                 └─► preparer threads: verify, load, create, health ─► the same again, with the new generations
//! ```
//!
//! A handler that takes long to start holds up no gate. What is refused stays as it was; the reason goes to log, metric and API.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluicegate_config::service::HandlersConfig;
use sluicegate_config::source::{OwnId, Update, UpdateSink};
use sluicegate_config::store::{Store, StoreError};
use sluicegate_config::{Snapshot, diff};

use super::every::Every;
use super::members::{Member, MemberState};
use super::preparer::Preparer;
use super::told::Told;
use super::topics::{Looker, Sight, TopicWatch, Wanted};
use super::view::{HELD_REMEDY, ServiceStatus};
use super::{StartError, settings};
use crate::emit::topics::{ClusterTopics, listed};
use crate::handlers::{Applied, FolderWatch, HandlerTable, Refusal, Registry};
use crate::pump::PumpAddress;
use crate::routing::{LeftOut, RoutingIndex, Subscription};
use crate::source::{ClientSettings, SourceError};

/// Between two looks at the plugin folder when nobody tells of changes.
const RESCAN: Duration = Duration::from_secs(30);
/// Longest wait for a pump to take a plan; it takes it in any case.
const PUMP_ANSWER: Duration = Duration::from_secs(30);

/// How often the fleet is told of handlers that have failed or are well again.
const HANDLER_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// An outage whose reason changes is logged again no sooner than this.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Time between two looks at the thread while it ends.
const JOIN_PAUSE: Duration = Duration::from_millis(5);

pub(super) enum ControlCommand {
    Update(Update),
    /// A generation is wanted that no update asked for.
    Prepare,
    /// The plugin folder may have changed.
    Rescan,
    /// New generations are ready, or refused.
    Prepared,
    /// The watch has looked at the cluster's topics.
    Topics(Sight),
    Stop(Instant),
}

/// A refusal as a sentence that names its handler once.
pub(super) fn named(refusal: &Refusal) -> String {
    match refusal.reason.starts_with("handler `") {
        true => refusal.reason.clone(),
        false => format!("handler `{}`: {}", refusal.handler, refusal.reason),
    }
}

/// The control side before its thread is started.
pub(super) struct Controller {
    registry: Arc<Registry>,
    view: Arc<ServiceStatus>,
    snapshot: Arc<Snapshot>,
    topics: Topics,
    /// What every pump runs by.
    in_force: InForce,
    /// A pump has not said that it runs by what was handed out last: it is handed out again.
    unanswered: bool,
    /// A pump was refused its topics: they are asked for again with each look at the cluster's topics.
    refused_topics: bool,
    /// How long a pump may take to take a plan.
    pump_answer: Duration,
    /// The plan that the log has told last.
    told: Told,
    /// Why what stands in the store is not applied.
    held: Option<String>,
    /// When it was last logged that the specs cannot be read.
    away_logged: Option<Instant>,
    member: Option<Member>,
}

/// What every pump runs by.
#[derive(Clone, Debug, Default)]
pub(super) struct InForce {
    /// The revision of the snapshot that is in force.
    pub(super) revision: u64,
    /// Handlers of which only the gate is: the rest is being prepared.
    pub(super) preparing: Vec<String>,
}

/// How far the pumps have a plan.
struct Handed {
    /// All of them run by its routes, handlers and gates.
    taken: bool,
    /// None of them was refused its topics.
    subscribed: bool,
}

/// What the cluster's topics are, who watches them, and what the pumps were told to read of them.
struct Topics {
    /// Looks at them until the watch takes it.
    looker: Option<Looker>,
    watch: Option<TopicWatch>,
    wanted: Option<Arc<Wanted>>,
    /// Empty as long as nobody has looked.
    there: Arc<ClusterTopics>,
    subscription: Subscription,
    /// How often pumps had met one that is not there when they were looked at last.
    missed: u64,
}

/// The control thread.
pub(super) struct Control {
    orders: Sender<ControlCommand>,
    thread: JoinHandle<()>,
    _plugins: FolderWatch,
}

impl Controller {
    pub(super) fn new(
        registry: Arc<Registry>,
        view: Arc<ServiceStatus>,
        client: ClientSettings,
    ) -> Self {
        Self {
            registry,
            view,
            snapshot: Arc::new(Snapshot::default()),
            topics: Topics {
                looker: Some(Looker::new(client)),
                watch: None,
                wanted: None,
                there: Arc::default(),
                subscription: Subscription::default(),
                missed: 0,
            },
            in_force: InForce::default(),
            unanswered: false,
            refused_topics: false,
            pump_answer: PUMP_ANSWER,
            told: Told::default(),
            held: None,
            away_logged: None,
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
        own: Option<OwnId>,
    ) -> Result<(), StoreError> {
        let (refusals, pools) = (self.registry.refusals(), self.registry.report());
        let standing = MemberState {
            in_force: &self.in_force,
            snapshot: &self.snapshot,
            held: self.held.as_deref(),
            refusals: &refusals,
            pools: &pools,
        };
        self.member = Some(Member::join(store, config, own, standing)?);
        Ok(())
    }

    /// Tells the fleet how things stand, if that is news.
    fn tell_fleet(&mut self) {
        let Some(member) = &mut self.member else {
            return;
        };
        let (refusals, pools) = (self.registry.refusals(), self.registry.report());
        member.tell(MemberState {
            in_force: &self.in_force,
            snapshot: &self.snapshot,
            held: self.held.as_deref(),
            refusals: &refusals,
            pools: &pools,
        });
        self.view.note_member(member.problem());
    }

    /// Puts the first snapshot in force, whole.
    ///
    /// # Errors
    /// Every handler that is refused, or every dead-letter topic that is missing.
    pub(super) fn start(&mut self, snapshot: Arc<Snapshot>) -> Result<(), StartError> {
        let applied = self.registry.apply(&snapshot);
        if !applied.refusals.is_empty() {
            let why = applied.refusals.iter().map(named);
            return Err(StartError::Handlers(why.collect()));
        }
        let index = applied.plan.routes().map_err(StartError::part("routes"))?;
        self.look_first(&Wanted::new(index, &applied.plan))?;
        self.put_in_force(snapshot, &applied);
        Ok(())
    }

    /// The look of a start: a dead-letter topic that a route asks for by name must be there. That of a topic which a
    /// pattern happens to match keeps nobody from starting; it is shown as a problem.
    fn look_first(&mut self, wanted: &Wanted) -> Result<(), StartError> {
        let refused = StartError::part("dead letters");
        let Some(looker) = &mut self.topics.looker else {
            return Ok(());
        };
        looker
            .wait_for_broker(wanted)
            .map_err(|error| StartError::part("kafka")(error.to_string()))?;
        let found = looker
            .look(wanted)
            .map_err(|error| refused(format!("cannot ask the cluster for its topics: {error}")))?;
        let refusals = found.refusals(wanted);
        if !refusals.is_empty() {
            return Err(refused(refusals.join("\n")));
        }
        self.topics.there = found.topics.clone().unwrap_or_default();
        self.view.note_problems(looker.problems());
        Ok(())
    }

    /// Puts a snapshot in force as far as it can be at once; what it needs besides is prepared.
    fn apply(&mut self, snapshot: Arc<Snapshot>, preparer: &Preparer) {
        for change in diff(&self.snapshot, &snapshot) {
            tracing::info!(handler = change.handler(), revision = snapshot.revision, %change, "spec changed in the source");
        }
        if self.registry.settle(&snapshot) {
            preparer.wake();
        }
        self.put_current_in_force(snapshot);
    }

    fn put_current_in_force(&mut self, snapshot: Arc<Snapshot>) {
        let applied = self.registry.current();
        self.put_in_force(snapshot, &applied);
    }

    fn put_in_force(&mut self, snapshot: Arc<Snapshot>, applied: &Applied) {
        self.view.note_snapshot(&snapshot, applied);
        self.snapshot = snapshot;
        let plan = &applied.plan;
        let index = match plan.routes() {
            Ok(index) => index,
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
        let wanted = Arc::new(Wanted::new(index.clone(), plan));
        let subscription = wanted.subscription(&self.topics.there);
        self.topics.announce(&subscription);
        if let Some(watch) = &self.topics.watch {
            watch.want(wanted.clone());
        }
        self.topics.wanted = Some(wanted);
        self.topics.subscription = subscription;
        let handed = self.hand_out(plan, &index, &self.topics.names());
        if handed.taken {
            self.view.note_in_force(plan);
        }
        self.note(&handed);
        if handed.taken && handed.subscribed {
            self.in_force = InForce {
                revision: applied.settled,
                preparing: applied.preparing.clone(),
            };
            self.told.plan(&self.snapshot, applied);
        }
    }

    /// What the pumps have not taken is handed out again.
    fn note(&mut self, handed: &Handed) {
        self.unanswered = !handed.taken;
        self.refused_topics = !handed.subscribed;
    }

    /// What the watch has seen: other names may be to subscribe to.
    fn topics(&mut self, sight: Sight) {
        self.view.note_problems(sight.problems);
        if let Some(there) = sight.topics {
            self.topics.there = there;
        }
        if self.refused_topics {
            // Also what of the plan hangs on it.
            return self.put_current_in_force(self.snapshot.clone());
        }
        let Some(wanted) = &self.topics.wanted else {
            return;
        };
        let subscription = wanted.subscription(&self.topics.there);
        if subscription == self.topics.subscription {
            return;
        }
        self.topics.announce(&subscription);
        let same = subscription.topics == self.topics.subscription.topics;
        self.topics.subscription = subscription;
        if same {
            return;
        }
        let topics = self.topics.names();
        let handed = self.ask_pumps(|pump, wait| pump.subscribe(topics.clone(), wait));
        // Who is behind with a plan stays so.
        let unanswered = self.unanswered;
        self.note(&handed);
        self.unanswered |= unanswered;
    }

    /// Gives the plan to every pump.
    fn hand_out(
        &self,
        plan: &HandlerTable,
        index: &Arc<RoutingIndex>,
        topics: &[String],
    ) -> Handed {
        self.ask_pumps(|pump, wait| {
            let handlers = plan
                .handlers
                .iter()
                .map(|plan| (plan.ix, settings::handler(plan)))
                .collect();
            let taken = pump.apply(index.clone(), handlers, topics.to_vec(), wait);
            if let Some(Ok(())) = taken {
                pump.set_record_log(self.snapshot.switches.record_log);
            }
            taken
        })
    }

    /// Asks every pump to take something, and takes note of the topics that it is refused.
    fn ask_pumps(
        &self,
        ask: impl Fn(&PumpAddress, Duration) -> Option<Result<(), SourceError>>,
    ) -> Handed {
        let mut handed = Handed {
            taken: true,
            subscribed: true,
        };
        let mut refused = None;
        for pump in self.view.pumps() {
            match ask(pump, self.pump_answer) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    if !self.refused_topics {
                        tracing::error!(%error, "subscription refused; it is tried again");
                    }
                    refused = Some(error.to_string());
                    handed.subscribed = false;
                }
                None => {
                    if !self.unanswered {
                        tracing::warn!("a pump has not taken its plan or topics yet");
                    }
                    handed.taken = false;
                }
            }
        }
        if refused.is_some() || handed.taken {
            self.view.note_subscription(refused.as_deref());
        }
        handed
    }

    /// Starts the thread; the sink feeds it.
    pub(super) fn spawn(mut self) -> std::io::Result<(Control, UpdateSink)> {
        let (orders, inbox) = channel();
        if let (Some(looker), Some(wanted)) = (self.topics.looker.take(), &self.topics.wanted) {
            let seen = orders.clone();
            let watch = TopicWatch::start(looker, wanted.clone(), move |sight| {
                // After the stop nobody asks any more.
                let _ = seen.send(ControlCommand::Topics(sight));
            })?;
            self.topics.watch = Some(watch);
        }
        let ready = orders.clone();
        let preparer = Preparer::new(self.registry.clone(), move || {
            // After the stop nobody takes them any more.
            let _ = ready.send(ControlCommand::Prepared);
        });
        self.view.set_control(orders.clone());
        let changes = orders.clone();
        let plugins = FolderWatch::start(self.registry.catalogue().folder(), RESCAN, move || {
            // After the stop nobody scans any more.
            let _ = changes.send(ControlCommand::Rescan);
        })?;
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || self.run(&inbox, &preparer))?;
        let updates = orders.clone();
        let sink: UpdateSink = Box::new(move |update| {
            // After the stop nobody takes updates any more.
            let _ = updates.send(ControlCommand::Update(update));
        });
        let control = Control {
            orders,
            thread,
            _plugins: plugins,
        };
        Ok((control, sink))
    }

    fn run(mut self, inbox: &Receiver<ControlCommand>, preparer: &Preparer) {
        let mut clock = Every::new(HANDLER_CHECK_INTERVAL, Instant::now());
        loop {
            match inbox.recv_timeout(clock.left(Instant::now())) {
                Ok(ControlCommand::Stop(deadline)) => return self.end(deadline),
                Ok(order) => self.order(order, preparer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Orders that come all the time must not keep the gates of handlers shut that are well again.
            if clock.take(HANDLER_CHECK_INTERVAL, Instant::now()) {
                self.recheck_handlers();
                self.look_for_missed_topics();
            }
            self.tell_fleet();
        }
    }

    /// Has the cluster's topics looked at when a pump has met one that is not there.
    fn look_for_missed_topics(&mut self) {
        let missed: u64 = self
            .view
            .pumps()
            .iter()
            .map(PumpAddress::missed_topics)
            .sum();
        if std::mem::replace(&mut self.topics.missed, missed) != missed
            && let Some(watch) = &self.topics.watch
        {
            watch.look();
        }
    }

    /// Opens the gates of handlers that are well again, and hands out what pumps have not taken.
    fn recheck_handlers(&mut self) {
        if self.registry.recover() || self.unanswered && self.view.pumps_answer() {
            self.put_current_in_force(self.snapshot.clone());
        }
    }

    fn order(&mut self, order: ControlCommand, preparer: &Preparer) {
        match order {
            ControlCommand::Update(update) => self.update(update, preparer),
            ControlCommand::Rescan => {
                if self.registry.rescan() {
                    preparer.wake();
                    self.put_current_in_force(self.snapshot.clone());
                }
            }
            ControlCommand::Prepare => preparer.wake(),
            ControlCommand::Prepared => self.put_current_in_force(self.snapshot.clone()),
            ControlCommand::Topics(sight) => self.topics(sight),
            // It ends the loop.
            ControlCommand::Stop(_) => {}
        }
    }

    fn end(mut self, deadline: Instant) {
        // A member that is gone is not waited for.
        self.member = None;
        if !self.registry.shutdown(deadline) {
            tracing::warn!("some handler instances did not end in time");
        }
    }

    fn update(&mut self, update: Update, preparer: &Preparer) {
        match update {
            Update::Snapshot(snapshot) => self.apply(snapshot, preparer),
            Update::Unreachable { reason } => {
                // The reason can change with every attempt.
                let logged = self.away_logged;
                if logged.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    self.away_logged = Some(Instant::now());
                    tracing::warn!(
                        reason,
                        "handler specs cannot be read; the last good ones stay in force"
                    );
                }
                self.view.note_unreachable(Some(reason));
            }
            Update::Held { reason } => {
                tracing::error!(
                    reason,
                    remedy = HELD_REMEDY,
                    "what stands in the control plane is not applied; the last specs stay in force"
                );
                self.view.note_held(Some(&reason));
                self.held = Some(reason);
            }
            Update::Released => {
                self.view.note_held(None);
                self.held = None;
                tracing::info!("what stands in the control plane is applied again");
            }
            Update::Repaired { keys } => {
                tracing::warn!(
                    keys,
                    "a re-read found changes that the watch had not told of; they are in force from now on"
                );
                self.view.note_repairs(keys as u64);
            }
            Update::Reachable => {
                self.away_logged = None;
                let away = self.view.note_unreachable(None).unwrap_or_default();
                tracing::info!(
                    away_s = away.as_secs_f64(),
                    "handler specs can be read again"
                );
            }
        }
    }
}

impl Topics {
    /// The names that pumps subscribe to.
    fn names(&self) -> Vec<String> {
        self.subscription.topics.iter().cloned().collect()
    }

    /// Tells what patterns take in and leave out from now on, as far as it is news.
    fn announce(&self, next: &Subscription) {
        let before = &self.subscription;
        let new = next.taken_in.difference(&before.taken_in);
        tell("patterns take in topics", None, new);
        let gone = before.taken_in.difference(&next.taken_in);
        tell("patterns do not take in topics any more", None, gone);
        for reason in [LeftOut::Internal, LeftOut::DeadLetter] {
            let new = next.left_out.iter().filter(|(topic, why)| {
                **why == reason && before.left_out.get(*topic) != Some(&reason)
            });
            let new = new.map(|(topic, _)| topic);
            tell(
                "patterns leave out topics; name one exactly to read it",
                Some(reason),
                new,
            );
        }
    }
}

fn tell<'t>(what: &str, reason: Option<LeftOut>, topics: impl Iterator<Item = &'t String>) {
    let topics: Vec<String> = topics.cloned().collect();
    if !topics.is_empty() {
        let (count, topics) = (topics.len(), listed(&topics));
        let reason = reason.map(tracing::field::display);
        tracing::info!(count, topics, reason, "{what}");
    }
}

impl Control {
    /// Ends the thread and the handlers' pools. By `deadline` they are left behind: the thread may be at a broker or a store
    /// that is away, or at a plugin that loads.
    pub(super) fn stop(self, deadline: Instant) {
        if self.orders.send(ControlCommand::Stop(deadline)).is_err() {
            return;
        }
        while !self.thread.is_finished() {
            if Instant::now() >= deadline {
                tracing::warn!("the control thread did not end in time");
                return;
            }
            std::thread::sleep(JOIN_PAUSE);
        }
        if self.thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
