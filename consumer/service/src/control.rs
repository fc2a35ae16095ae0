//! Application of config changes: one thread turns each update into a plan and applies it to every pump.
//!
//! ```text
//!  update ─► registry.settle ─► routing index ─► every pump: routes and handlers in one step
//!                 └─► preparer threads: verify, load, create, health ─► the same again, with the new generations
//! ```
//!
//! Gates do not wait for handlers that are slow to start. A rejected change leaves the previous state active; the
//! reason goes to log, metric and API. A plan counts as active, for `--wait` and for the member key, only once every
//! pump has confirmed it: before that, records are still dispatched by the old one. A pump that does not answer in time
//! still has the request in its inbox, and gets the plan again. Calls to the cluster, such as listing topics, run on
//! other threads: here they would delay gates.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluicegate_config::Snapshot;
use sluicegate_config::service::HandlersConfig;
use sluicegate_engine::routing::{LeftOut, Subscription};
use sluicegate_kafka::ClientSettings;
use sluicegate_kafka::topics::{ClusterTopics, listed};
use sluicegate_plugins::{Applied, FolderWatch, Registry};
use sluicegate_store::{Store, StoreError};
use sluicegate_sync::source::{OwnId, Update, UpdateSink};

use super::StartError;
use super::commands::{ActivePlan, ControlCommand, named};
use super::every::Every;
use super::group::{Delivery, Group};
use super::members::{Member, MemberState};
use super::preparer::Preparer;
use super::told::PlanLog;
use super::topics::{TopicReport, TopicScanner, TopicWatch, Wanted};
use super::view::{HELD_REMEDY, ServiceStatus};

/// Interval between two scans of the plugin folder without a change notification.
const RESCAN_INTERVAL: Duration = Duration::from_secs(30);
/// How long a scan waits for files that are still being written.
const NEW_FILES_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum wait for a pump to apply a plan. The request stays queued, so a slow pump still applies it later.
const PUMP_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval between two checks for handlers that have failed or recovered.
const HANDLER_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Minimum interval between two log lines about an outage whose reason changes.
const OUTAGE_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Interval between two checks whether the thread has exited.
const JOIN_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The control loop's state; runs on its own thread after [`Controller::spawn`].
pub(super) struct Controller {
    registry: Arc<Registry>,
    group: Arc<Group>,
    view: Arc<ServiceStatus>,
    snapshot: Arc<Snapshot>,
    topics: Topics,
    /// The plan applied by every pump.
    active: ActivePlan,
    /// A pump has not confirmed the last plan: it is sent again.
    unanswered: bool,
    /// A pump's subscription failed: it is retried whenever the cluster's topics have been listed.
    refused_topics: bool,
    /// Maximum wait for a pump to apply a plan.
    pump_timeout: Duration,
    /// The plan that was logged last.
    plan_log: PlanLog,
    /// Why the store's content is held back, if it is.
    held: Option<String>,
    /// When an outage of the spec source was last logged.
    outage_logged: Option<Instant>,
    member: Option<Member>,
}

/// The cluster's topics, their watch, and the pumps' subscription.
struct Topics {
    /// Lists the topics at the start; then owned by the watch.
    scanner: Option<TopicScanner>,
    watch: Option<TopicWatch>,
    wanted: Option<Arc<Wanted>>,
    /// The topics listed last; empty before the first listing.
    cluster: Arc<ClusterTopics>,
    subscription: Subscription,
    /// Total of the pumps' missed topics at the last check.
    missed: u64,
}

/// The control thread.
pub(super) struct Control {
    commands: Sender<ControlCommand>,
    thread: JoinHandle<()>,
    _plugins: FolderWatch,
}

impl Controller {
    pub(super) fn new(
        registry: Arc<Registry>,
        group: Arc<Group>,
        view: Arc<ServiceStatus>,
        client: ClientSettings,
    ) -> Self {
        Self {
            registry,
            group,
            view,
            snapshot: Arc::new(Snapshot::default()),
            topics: Topics {
                scanner: Some(TopicScanner::new(client)),
                watch: None,
                wanted: None,
                cluster: Arc::default(),
                subscription: Subscription::default(),
                missed: 0,
            },
            active: ActivePlan::default(),
            unanswered: false,
            refused_topics: false,
            pump_timeout: PUMP_TIMEOUT,
            plan_log: PlanLog::default(),
            held: None,
            outage_logged: None,
            member: None,
        }
    }

    /// Registers this process as a member of the fleet in `store`.
    ///
    /// # Errors
    /// The store's error if it rejects the member id.
    pub(super) fn join(
        &mut self,
        store: &Arc<dyn Store>,
        config: &HandlersConfig,
        own: Option<OwnId>,
    ) -> Result<(), StoreError> {
        let (refusals, pools) = (self.registry.refusals(), self.registry.report());
        let state = MemberState {
            active: &self.active,
            snapshot: &self.snapshot,
            held: self.held.as_deref(),
            refusals: &refusals,
            pools: &pools,
        };
        self.member = Some(Member::join(store, config, own, state)?);
        Ok(())
    }

    /// Publishes this member's state to the fleet if it has changed.
    fn publish_state(&mut self) {
        let Some(member) = &mut self.member else {
            return;
        };
        let (refusals, pools) = (self.registry.refusals(), self.registry.report());
        member.publish(MemberState {
            active: &self.active,
            snapshot: &self.snapshot,
            held: self.held.as_deref(),
            refusals: &refusals,
            pools: &pools,
        });
        self.view.record_member(member.problem());
    }

    /// Applies the first snapshot, all or nothing.
    ///
    /// # Errors
    /// Every rejected handler, or every missing dead-letter topic.
    pub(super) fn start(&mut self, snapshot: Arc<Snapshot>) -> Result<(), StartError> {
        let applied = self.registry.apply(&snapshot);
        if !applied.refusals.is_empty() {
            return Err(StartError::Handlers {
                why: applied.refusals.iter().map(named).collect(),
                may_heal: applied.refusals.iter().all(|refusal| refusal.may_heal),
            });
        }
        let index = applied.plan.routes().map_err(StartError::part("routes"))?;
        self.check_topics_at_start(&Wanted::new(index, &applied.plan))?;
        self.activate(snapshot, &applied);
        Ok(())
    }

    /// Checks the topics at the start: the dead-letter topic of a topic that a route names exactly must exist. A missing one of a
    /// topic matched by a pattern does not fail the start; it is reported as a problem.
    fn check_topics_at_start(&mut self, wanted: &Wanted) -> Result<(), StartError> {
        let refused = StartError::part("dead letters");
        let Some(scanner) = &mut self.topics.scanner else {
            return Ok(());
        };
        scanner
            .wait_for_broker(wanted)
            .map_err(StartError::part("kafka"))?;
        let found = scanner
            .scan(wanted)
            .map_err(|error| refused(format!("cannot list the cluster's topics: {error}")))?;
        let refusals = found.refusals(wanted);
        if !refusals.is_empty() {
            return Err(refused(refusals.join("\n")));
        }
        self.topics.cluster = found.topics.clone().unwrap_or_default();
        self.view.record_problems(scanner.problems());
        Ok(())
    }

    /// Applies the parts of a snapshot that need no preparation, such as gates; the preparer threads do the rest.
    fn apply(&mut self, snapshot: Arc<Snapshot>, preparer: &Preparer) {
        let settled = self.registry.settle(&snapshot);
        for (handler, change) in &settled.changes {
            tracing::info!(handler, revision = snapshot.revision, %change, "spec changed in the source");
        }
        if settled.prepares {
            preparer.wake();
        }
        self.activate_current(snapshot);
    }

    fn activate_current(&mut self, snapshot: Arc<Snapshot>) {
        let applied = self.registry.current();
        self.activate(snapshot, &applied);
    }

    fn activate(&mut self, snapshot: Arc<Snapshot>, applied: &Applied) {
        self.view.record_snapshot(&snapshot, applied);
        self.snapshot = snapshot;
        let plan = &applied.plan;
        let index = match plan.routes() {
            Ok(index) => index,
            Err(error) => {
                tracing::error!(
                    revision = plan.revision,
                    %error,
                    "routes rejected; the previous ones stay active"
                );
                self.view.record_rejection(&error.to_string());
                return;
            }
        };
        let wanted = Arc::new(Wanted::new(index.clone(), plan));
        let subscription = wanted.subscription(&self.topics.cluster);
        self.topics.announce(&subscription);
        if let Some(watch) = &self.topics.watch {
            watch.want(wanted.clone());
        }
        self.topics.wanted = Some(wanted);
        self.topics.subscription = subscription;
        let topics = self.topics.names();
        let record_log = self.snapshot.switches.record_log;
        let delivery = self
            .group
            .apply(plan, &index, &topics, record_log, self.pump_timeout);
        self.tell(&delivery);
        if delivery.applied {
            self.view.record_active_plan(plan);
        }
        self.record_delivery(&delivery);
        if delivery.applied && delivery.refused.is_none() {
            self.active = ActivePlan {
                revision: applied.settled,
                preparing: applied.preparing.clone(),
            };
            self.plan_log.log(&self.snapshot, applied);
        }
    }

    /// Records what has to be sent to the pumps again.
    fn record_delivery(&mut self, delivery: &Delivery) {
        self.unanswered = !delivery.applied;
        self.refused_topics = delivery.refused.is_some();
    }

    /// Handles a report of the topic watch: the subscription may have changed.
    fn topics(&mut self, report: TopicReport) {
        self.view.record_problems(report.problems);
        if let Some(cluster) = report.topics {
            self.topics.cluster = cluster;
        }
        if self.refused_topics {
            // Also applies the parts of the plan that depend on the subscription.
            return self.activate_current(self.snapshot.clone());
        }
        let Some(wanted) = &self.topics.wanted else {
            return;
        };
        let subscription = wanted.subscription(&self.topics.cluster);
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
        let delivery = self.group.subscribe(&topics, self.pump_timeout);
        self.tell(&delivery);
        // A pump that has not confirmed a plan still has to.
        let unanswered = self.unanswered;
        self.record_delivery(&delivery);
        self.unanswered |= unanswered;
    }

    /// Records and logs what the pumps have answered.
    fn tell(&self, delivery: &Delivery) {
        if let Some(error) = &delivery.refused
            && !self.refused_topics
        {
            tracing::error!(%error, "subscription failed; retrying");
        }
        if !delivery.applied && !self.unanswered {
            tracing::warn!("a pump has not applied its plan or topics yet");
        }
        let refused = delivery.refused.as_ref().map(ToString::to_string);
        if refused.is_some() || delivery.applied {
            self.view.record_subscription(refused.as_deref());
        }
    }

    /// Starts the thread, and returns the sink for updates of the spec source.
    pub(super) fn spawn(mut self) -> std::io::Result<(Control, UpdateSink)> {
        let (commands, inbox) = channel();
        if let (Some(scanner), Some(wanted)) = (self.topics.scanner.take(), &self.topics.wanted) {
            let seen = commands.clone();
            let watch = TopicWatch::start(scanner, wanted.clone(), move |report| {
                // The receiver is gone after the stop.
                let _ = seen.send(ControlCommand::Topics(report));
            })?;
            self.topics.watch = Some(watch);
        }
        let ready = commands.clone();
        let preparer = Preparer::new(self.registry.clone(), move || {
            // The receiver is gone after the stop.
            let _ = ready.send(ControlCommand::Prepared);
        });
        self.view.set_control(commands.clone());
        let (changes, registry) = (commands.clone(), self.registry.clone());
        let plugins = FolderWatch::start(
            self.registry.catalogue().folder(),
            RESCAN_INTERVAL,
            move || {
                // On the watch's thread: reading plugin files can take long, and commands wait for this one.
                let catalogue = registry.catalogue();
                let changed = catalogue.scan_settled(NEW_FILES_TIMEOUT, |_| false);
                // The receiver is gone after the stop.
                let _ = changes.send(ControlCommand::Scanned { changed });
            },
        )?;
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || self.run(&inbox, &preparer))?;
        let updates = commands.clone();
        let sink: UpdateSink = Box::new(move |update| {
            // The receiver is gone after the stop.
            let _ = updates.send(ControlCommand::Update(update));
        });
        let control = Control {
            commands,
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
                Ok(command) => self.command(command, preparer),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Checked after every command too: a stream of commands must not keep the gates of recovered handlers closed.
            if clock.take(HANDLER_CHECK_INTERVAL, Instant::now()) {
                self.recover();
                self.check_missed_topics();
            }
            self.publish_state();
        }
    }

    /// Has the cluster's topics listed again when a pump has met a missing one.
    fn check_missed_topics(&mut self) {
        let missed = self.group.missed_topics();
        if std::mem::replace(&mut self.topics.missed, missed) != missed
            && let Some(watch) = &self.topics.watch
        {
            watch.rescan();
        }
    }

    /// Opens the gates of recovered handlers, and resends the plan to pumps that have not confirmed it.
    fn recover(&mut self) {
        if self.registry.recover() || self.unanswered && self.view.pumps_answer() {
            self.activate_current(self.snapshot.clone());
        }
    }

    fn command(&mut self, command: ControlCommand, preparer: &Preparer) {
        match command {
            ControlCommand::Update(update) => self.update(update, preparer),
            ControlCommand::Scanned { changed } => {
                if self.registry.follow_scan(changed) {
                    preparer.wake();
                    self.activate_current(self.snapshot.clone());
                }
            }
            ControlCommand::Prepare => preparer.wake(),
            ControlCommand::Prepared => self.activate_current(self.snapshot.clone()),
            ControlCommand::Topics(report) => self.topics(report),
            // Handled by the loop.
            ControlCommand::Stop(_) => {}
        }
    }

    fn end(mut self, deadline: Instant) {
        // Leaves the fleet first: other members do not wait for one that has left.
        self.member = None;
        if !self.registry.shutdown(deadline) {
            tracing::warn!("some handler instances did not stop in time");
        }
    }

    fn update(&mut self, update: Update, preparer: &Preparer) {
        match update {
            Update::Snapshot(snapshot) => self.apply(snapshot, preparer),
            Update::Unreachable { reason } => {
                // The reason can change with every attempt.
                let logged = self.outage_logged;
                if logged.is_none_or(|at| at.elapsed() >= OUTAGE_LOG_INTERVAL) {
                    self.outage_logged = Some(Instant::now());
                    tracing::warn!(
                        reason,
                        "handler specs cannot be read; the last good ones stay active"
                    );
                }
                self.view.record_unreachable(Some(reason));
            }
            Update::Held { reason } => {
                tracing::error!(
                    reason,
                    remedy = HELD_REMEDY,
                    "the control plane's content is not applied; the last specs stay active"
                );
                self.view.record_held(Some(&reason));
                self.held = Some(reason);
            }
            Update::Released => {
                self.view.record_held(None);
                self.held = None;
                tracing::info!("the control plane's content is applied again");
            }
            Update::Repaired { keys } => {
                tracing::warn!(
                    keys,
                    "a re-read found changes that the watch had missed; they are applied now"
                );
                self.view.record_repairs(keys as u64);
            }
            Update::Reachable => {
                self.outage_logged = None;
                let away = self.view.record_unreachable(None).unwrap_or_default();
                tracing::info!(
                    away_s = away.as_secs_f64(),
                    "handler specs can be read again"
                );
            }
        }
    }
}

impl Topics {
    /// The topic names that pumps subscribe to.
    fn names(&self) -> Vec<String> {
        self.subscription.topics.iter().cloned().collect()
    }

    /// Logs changes in the topics that patterns include and exclude.
    fn announce(&self, next: &Subscription) {
        let before = &self.subscription;
        let new = next.taken_in.difference(&before.taken_in);
        log_topics("patterns include topics", None, new);
        let gone = before.taken_in.difference(&next.taken_in);
        log_topics("patterns no longer include topics", None, gone);
        for reason in [LeftOut::Internal, LeftOut::DeadLetter] {
            let new = next.left_out.iter().filter(|(topic, why)| {
                **why == reason && before.left_out.get(*topic) != Some(&reason)
            });
            let new = new.map(|(topic, _)| topic);
            log_topics(
                "patterns exclude topics; name one exactly to read it",
                Some(reason),
                new,
            );
        }
    }
}

fn log_topics<'t>(what: &str, reason: Option<LeftOut>, topics: impl Iterator<Item = &'t String>) {
    let topics: Vec<String> = topics.cloned().collect();
    if !topics.is_empty() {
        let (count, topics) = (topics.len(), listed(&topics));
        let reason = reason.map(tracing::field::display);
        tracing::info!(count, topics, reason, "{what}");
    }
}

impl Control {
    /// Stops the thread and the handlers' pools. They are abandoned at `deadline`: the thread may be blocked on an unreachable
    /// broker or store, or on a plugin that is loading.
    pub(super) fn stop(self, deadline: Instant) {
        if self.commands.send(ControlCommand::Stop(deadline)).is_err() {
            return;
        }
        while !self.thread.is_finished() {
            if Instant::now() >= deadline {
                tracing::warn!("the control thread did not end in time");
                return;
            }
            std::thread::sleep(JOIN_POLL_INTERVAL);
        }
        if self.thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
