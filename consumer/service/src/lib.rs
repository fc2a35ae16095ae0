//! Assembly of the service: start and shutdown order of its parts.
//!
//! ```text
//!  start: admin HTTP (`/livez`) ─► specs ─► emitter ─► pumps ─► registry: first plan ─► the rest of HTTP ─► watch of specs
//!         and plugins
//!  stop:  pumps (drain, last commit, leave) ─► emitter (flush) ─► pools ─► admin HTTP, all by one deadline
//! ```
//!
//! Config changes are applied by `control`: update → registry (verify, load, create, health) → routing index → every
//! pump, which applies routes and handlers in one step.
//!
//! The first plan is all or nothing: a declared handler that cannot be served ends the start, since its records would
//! pass by and be committed (G1, ADR 0009). Pumps exist before but subscribe with the first plan, so that no member
//! joins the group that has nothing to run. Only then is the source watched; what changed in between is its first
//! update.
//!
//! At the stop each part ends before the parts that it needs: draining records run in pools and wait for the emitter's
//! acknowledgements, and probes read the drain's progress from the admin server. Each has a share of [`STOP_GRACE`], so
//! that one that hangs does not take the time of the next.

pub mod bridge;
mod commands;
mod control;
mod every;
mod group;
mod members;
mod preparer;
mod problem_log;
pub mod pump;
mod settings;
mod told;
mod topics;
mod view;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluicegate_admin::{ServiceSlot, http};
use sluicegate_config::{Environment, Problems, ServiceConfig};
use sluicegate_kafka::{ClientSettings, KafkaEmitter};
use sluicegate_plugins::Registry;
use sluicegate_sync::source::{SnapshotError, WatchHandle, open_source};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::pump::{JoinGate, LEAVE_GRACE, PumpError, StopReport};
use control::{Control, Controller};
use group::RunningGroup;
use problem_log::ProblemWatch;
use view::ServiceStatus;

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Invalid specs; lists every problem.
    #[error("{0}")]
    Specs(Problems),
    /// Rejected handlers. The service never starts without a declared handler: its records would be skipped (G1).
    #[error("{}", .why.join("\n"))]
    Handlers {
        /// Each with its reason.
        why: Vec<String>,
        /// Another start may succeed with the same specs and plugins, once what these need is available.
        may_heal: bool,
    },
    /// A part could not be started.
    #[error("{part}: {source}")]
    Part {
        /// Which part.
        part: &'static str,
        /// The cause, with the remedy if known.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StartError {
    fn part<E: Into<Box<dyn Error + Send + Sync>>>(part: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::Part {
            part,
            source: source.into(),
        }
    }
}

/// The running service.
pub struct Service {
    view: Arc<ServiceStatus>,
    group: RunningGroup,
    emitter: Arc<KafkaEmitter>,
    control: Option<Control>,
    problems: Option<ProblemWatch>,
    watch: Option<Arc<dyn WatchHandle>>,
    tokio: Option<tokio::runtime::Runtime>,
    admin_stop: Option<oneshot::Sender<()>>,
    admin_address: std::net::SocketAddr,
    drain_timeout: Duration,
    stopping: AtomicBool,
}

/// Maximum shutdown time after `processing.drain_timeout`, whatever brokers, stores and plugins do. Used in sequence by the pumps'
/// last commits and leaving the group, the producer, the handlers' instances and the admin server: the sum of [`LEAVE_GRACE`],
/// the three constants below, and 500 ms for the instances. What exceeds its share is abandoned, so that the rest keeps its own.
pub const STOP_GRACE: Duration = Duration::from_secs(5);
/// Time for a pump's thread to exit after it has left the group.
const PUMP_EXIT_GRACE: Duration = Duration::from_millis(500);
/// Time to flush emitted records. Records that waited for their acks are settled by now, so no guarantee depends on it.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Time for the admin server to finish open requests.
const ADMIN_SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

impl Service {
    /// Starts the service; records are processed as soon as Kafka assigns partitions. The pumps pass `join_gate` before they join
    /// the group.
    ///
    /// # Errors
    /// [`StartError`]; no part of the service is left running in that case.
    pub fn start(
        config: &ServiceConfig,
        environment: &Environment,
        join_gate: &Arc<JoinGate>,
    ) -> Result<Self, StartError> {
        let tokio = start_tokio()?;
        // Before anything else: another service with the same config fails here, and this one answers `/livez` however long
        // stores, plugins or the cluster delay the start.
        let listener = listen(&tokio, config.admin.listen)?;
        let slot = Arc::new(ServiceSlot::default());
        let (admin_stop, admin_address) = start_admin(&tokio, listener, &slot)?;
        let mut source = open_source(&config.handlers, environment)
            .map_err(StartError::part("handler specs"))?;
        let snapshot = source.snapshot().map_err(|error| match error {
            SnapshotError::Problems(problems) => StartError::Specs(problems),
            error @ SnapshotError::Unreachable { .. } => StartError::part("handler specs")(error),
        })?;
        if config.plugins.allow_unsigned {
            tracing::warn!(
                folder = %config.plugins.folder.display(),
                "plugins run unsigned (plugins.allow_unsigned): anyone who can write to the folder can run code in this process"
            );
        }
        let client = ClientSettings::new(&config.kafka, config.processing.memory);
        // The producer's messages and what plugins write are shown without the secrets of any handler.
        let secrets = Arc::default();
        let emitter = KafkaEmitter::new(&client, &secrets)
            .map(Arc::new)
            .map_err(StartError::part("kafka producer"))?;
        let group = RunningGroup::start(config, &client, &emitter, join_gate)?;
        let registry = Registry::new(settings::registry(config, emitter.clone(), secrets))
            .map(Arc::new)
            .map_err(StartError::part("worker threads"))?;
        let view = Arc::new(ServiceStatus::new(
            config,
            group.group().clone(),
            registry.clone(),
            source.gates(),
        ));
        let mut controller = Controller::new(registry, group.group().clone(), view.clone(), client);
        controller.start(Arc::new(snapshot))?;
        if let Some(store) = source.store() {
            controller
                .join(&store, &config.handlers, source.own_id())
                .map_err(StartError::part("member key"))?;
        }
        slot.fill(view.clone());
        let (control, sink) = controller
            .spawn()
            .map_err(StartError::part("control thread"))?;
        let problems =
            ProblemWatch::start(view.clone()).map_err(StartError::part("problems thread"))?;
        let watch = source
            .watch(sink)
            .map_err(StartError::part("handler specs"))?;
        let watch: Arc<dyn WatchHandle> = Arc::from(watch);
        view.set_watch(&watch);
        Ok(Self {
            view,
            group,
            emitter,
            control: Some(control),
            problems: Some(problems),
            watch: Some(watch),
            tokio: Some(tokio),
            admin_stop: Some(admin_stop),
            admin_address,
            drain_timeout: config.processing.drain_timeout,
            stopping: AtomicBool::new(false),
        })
    }

    /// The address of the admin server.
    pub fn admin_address(&self) -> std::net::SocketAddr {
        self.admin_address
    }

    /// The service's admin interface.
    pub fn view(&self) -> Arc<dyn sluicegate_admin::ServiceView> {
        self.view.clone()
    }

    /// Makes what halts this bridge a problem of the service.
    pub fn watch_bridge(&self, report: sluicegate_admin::http::BridgeReporter) {
        self.view.set_bridge(report);
    }

    /// Re-reads the spec source immediately.
    pub fn reread(&self) {
        if let Some(watch) = &self.watch {
            watch.reread();
        }
    }

    /// Whether a pump has terminated unexpectedly; [`Service::stop`] returns the reason.
    pub fn has_failed(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed) && self.group.has_ended()
    }

    /// Drains, commits, leaves the group and stops every part, within the drain timeout plus [`STOP_GRACE`]. Returns the work that
    /// was not finished or committed by then.
    ///
    /// # Errors
    /// The failure of a pump. The next owner reprocesses its uncommitted records.
    pub fn stop(mut self) -> Result<StopReport, PumpError> {
        self.stopping.store(true, Ordering::Relaxed);
        self.problems = None;
        self.view.record_stopping();
        self.group.stop();
        let drained = Instant::now() + self.drain_timeout;
        let end = drained + STOP_GRACE;
        self.watch = None;
        let left = drained + LEAVE_GRACE + PUMP_EXIT_GRACE;
        let result = self.group.join_until(left);
        self.emitter.flush(FLUSH_TIMEOUT);
        if let Some(control) = self.control.take() {
            control.stop(end - ADMIN_SHUTDOWN_GRACE);
        }
        if let Some(stop) = self.admin_stop.take() {
            // The receiver is gone if the server has already failed.
            let _ = stop.send(());
        }
        if let Some(tokio) = self.tokio.take() {
            tokio.shutdown_timeout(ADMIN_SHUTDOWN_GRACE);
        }
        result
    }
}

fn start_tokio() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("admin")
        .enable_all()
        .build()
        .map_err(StartError::part("admin thread"))
}

fn listen(
    tokio: &tokio::runtime::Runtime,
    address: std::net::SocketAddr,
) -> Result<TcpListener, StartError> {
    let listener = tokio.block_on(http::bind(address));
    listener.map_err(StartError::part("admin server"))
}

type Admin = (oneshot::Sender<()>, std::net::SocketAddr);

fn start_admin(
    tokio: &tokio::runtime::Runtime,
    listener: TcpListener,
    slot: &Arc<ServiceSlot>,
) -> Result<Admin, StartError> {
    let address = listener
        .local_addr()
        .map_err(StartError::part("admin server"))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let slot = Arc::clone(slot);
    tokio.spawn(async move {
        let stop = async {
            let _ = stopped.await;
        };
        http::serve_starting(listener, slot, stop).await;
    });
    Ok((stop, address))
}
