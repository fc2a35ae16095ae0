//! The way of a config change: one thread takes updates and turns each into a plan that every pump runs by.
//!
//! ```text
//!  update ─► registry.apply: verify, load, create, health ─► routing index ─► every pump: routes and handlers at once
//! ```
//!
//! What is refused stays as it was; the reason goes to log, metric and API.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sluicegate_config::source::{Update, UpdateSink};
use sluicegate_config::spec::TopicPattern;
use sluicegate_config::{Snapshot, diff};
use tokio::runtime::Handle;

use super::view::View;
use super::{StartError, settings};
use crate::emit::topics::{NeededTopic, TopicError, ensure_topics};
use crate::handlers::{Applied, Plan, Refusal, Registry};
use crate::routing::{RoutingIndex, subscription};
use crate::source::ClientSettings;

/// Between two looks at the plugin folder.
const RESCAN: Duration = Duration::from_secs(1);
/// Longest wait for a pump to take a plan; it takes it in any case.
const PUMP_ANSWER: Duration = Duration::from_secs(30);

enum Order {
    Update(Update),
    Stop(Duration),
}

/// The control side before its thread is started.
pub(super) struct Desk {
    registry: Arc<Registry>,
    view: Arc<View>,
    snapshot: Arc<Snapshot>,
    client: ClientSettings,
    tokio: Handle,
}

/// The control thread.
pub(super) struct Control {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
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
        }
    }

    /// Puts the first snapshot in force, whole.
    ///
    /// # Errors
    /// Every handler that is refused, or the dead-letter topic that is missing.
    pub(super) fn start(&mut self, snapshot: Arc<Snapshot>) -> Result<(), StartError> {
        let applied = self.registry.apply(&snapshot);
        if !applied.refusals.is_empty() {
            let why =
                |refusal: &Refusal| format!("handler `{}`: {}", refusal.handler, refusal.reason);
            return Err(StartError::Handlers(
                applied.refusals.iter().map(why).collect(),
            ));
        }
        self.ensure_dead_letter_topics(&applied.plan)
            .map_err(|error| StartError::part("dead letters")(error.to_string()))?;
        self.put_in_force(snapshot, &applied);
        Ok(())
    }

    /// Makes the dead-letter topics of topics that are named exactly. Those of patterns are known only when their
    /// first record comes; the producer's own topic creation serves them, or their partition waits (G7).
    fn ensure_dead_letter_topics(&self, plan: &Plan) -> Result<(), TopicError> {
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
        let needed: Vec<NeededTopic> = needed.into_iter().collect();
        self.tokio.block_on(ensure_topics(&self.client, &needed))
    }

    /// Puts a snapshot in force as far as it can be; what is refused stays as it was.
    fn apply(&mut self, snapshot: Arc<Snapshot>) {
        for change in diff(&self.snapshot, &snapshot) {
            tracing::info!(handler = change.handler(), revision = snapshot.revision, %change, "spec changed");
        }
        let applied = self.registry.apply(&snapshot);
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
        let index = RoutingIndex::compile(plan.revision, routes).map_err(|error| error.to_string());
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
        for pump in self.view.pumps() {
            let handlers = plan
                .handlers
                .iter()
                .map(|plan| (plan.ix, settings::handler(plan)))
                .collect();
            match pump.apply(index.clone(), handlers, topics.clone(), PUMP_ANSWER) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::error!(%error, "subscription refused");
                    self.view.note_rejection(&error.to_string());
                }
                None => tracing::warn!("a pump has not taken the plan yet"),
            }
        }
        tracing::info!(
            revision = plan.revision,
            handlers = plan.handlers.len(),
            "plan in force"
        );
    }

    /// Starts the thread; the sink feeds it.
    pub(super) fn spawn(self) -> std::io::Result<(Control, UpdateSink)> {
        let (orders, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || self.run(&inbox))?;
        let updates = orders.clone();
        let sink: UpdateSink = Box::new(move |update| {
            // After the stop nobody takes updates any more.
            let _ = updates.send(Order::Update(update));
        });
        Ok((Control { orders, thread }, sink))
    }

    fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            match inbox.recv_timeout(RESCAN) {
                Ok(Order::Update(update)) => self.update(update),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(applied) = self.registry.refresh() {
                        self.put_in_force(self.snapshot.clone(), &applied);
                    }
                }
                Ok(Order::Stop(deadline)) => {
                    if !self.registry.shutdown(Instant::now() + deadline) {
                        tracing::warn!("some handler instances did not end in time");
                    }
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::Snapshot(snapshot) => self.apply(snapshot),
            Update::Unreachable { reason } => {
                tracing::warn!(
                    reason,
                    "handler specs cannot be read; the last good ones stay in force"
                );
                self.view.note_unreachable(Some(reason));
            }
            Update::Reachable => {
                tracing::info!("handler specs can be read again");
                self.view.note_unreachable(None);
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
