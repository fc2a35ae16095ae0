//! `sluicegate demo`: the service with an in-process Kafka cluster and real flight data.
//!
//! ```text
//!  flights.csv.zip ─► load generator (paced) ─► mock cluster: flights ─► the service, as `run` starts it ─► other topics
//!                                                                          │ report, every second
//!                                                                          ▼
//!                                                                        display: table or lines, then a summary
//! ```
//!
//! The mock cluster keeps 5 MiB per partition and drops older records silently, so the load is paced, and pauses while
//! the service is behind.

mod display;
mod environment;
mod load_generator;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sluicegate_admin::logging;
use sluicegate_admin::logging::LoggingError;
use sluicegate_config::{Environment, Problems, ServiceConfig, load_service_config};
use sluicegate_engine::status::ServiceReport;
use sluicegate_kafka::mock::MockKafka;
use sluicegate_service::pump::PumpError;
use sluicegate_service::{Service, StartError};

use crate::load::ProduceError;
use display::{Display, Frame};
use environment::{DemoEnvironment, PARTITIONS, TOPIC, TOPICS};
use load_generator::LoadGenerator;

pub use environment::SetupError;

/// Options of the demo.
#[derive(Clone, Debug)]
pub struct Options {
    /// Flights per second.
    pub rate: f64,
    /// Ends the demo after this time.
    pub run_for: Option<Duration>,
    /// The flight data; found in the source tree by default.
    pub data: Option<PathBuf>,
    /// The folder of plugins; the executable's own by default.
    pub plugins: Option<PathBuf>,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// It cannot be set up.
    #[error("{0}")]
    Setup(#[from] SetupError),
    /// The in-process cluster does not start.
    #[error("the in-process Kafka cluster does not start: {0}")]
    Cluster(String),
    /// Its config is rejected.
    #[error("{0}")]
    Config(Problems),
    /// Its log cannot be written.
    #[error("{0}")]
    Logging(#[from] LoggingError),
    /// The service does not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// Flights cannot be written.
    #[error("{0}")]
    Load(#[from] ProduceError),
    /// A thread cannot be started.
    #[error("cannot start the load generator's thread: {0}")]
    Thread(std::io::Error),
    /// The service ended early, or did not shut down cleanly.
    #[error("{0}")]
    Stop(#[from] PumpError),
    /// Some records were not settled.
    #[error("{left} of {written} flights were not settled within {} s after the load stopped; the figures above show where", CATCH_UP_TIMEOUT.as_secs())]
    LeftOver {
        /// Unsettled records.
        left: u64,
        /// Records written.
        written: u64,
    },
}

/// Time between two frames.
const FRAME_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a report.
const REPORT_DEADLINE: Duration = Duration::from_secs(1);
/// How long the shutdown waits for unsettled records.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(15);
/// Lag in records at which the load is paused: a fraction of what the cluster keeps.
const MAX_LAG: i64 = 20_000;

/// Runs the demo until its time is over or `stop_asked`, which waits up to the given time, returns `true`.
///
/// # Errors
/// [`DemoError`].
pub fn run(
    options: &Options,
    stop_asked: &mut dyn FnMut(Duration) -> bool,
) -> Result<(), DemoError> {
    let data = environment::find_data(options.data.as_deref())?;
    let plugins = environment::find_plugins(options.plugins.as_deref());
    let cluster = start_cluster()?;
    let demo = DemoEnvironment::set_up(&plugins, &cluster.bootstrap_servers())?;
    let environment = Environment::default();
    let config =
        load_service_config(&demo.config(), &environment, &[]).map_err(DemoError::Config)?;
    logging::start(&config.logging, Some(&demo.log()))?;
    let service = start_service(&demo, &config, &environment)?;
    let load = LoadGenerator::start(data, cluster.bootstrap_servers(), TOPIC, options.rate)
        .map_err(DemoError::Thread)?;
    display::write(&welcome(&demo, &service, options));
    let mut display = Display::new();
    let ends = options.run_for.map(|time| Instant::now() + time);
    while !service.has_failed() && !load.has_failed() {
        let left = ends.map_or(FRAME_INTERVAL, |ends| {
            ends.saturating_duration_since(Instant::now())
        });
        if left.is_zero() || stop_asked(left.min(FRAME_INTERVAL)) {
            break;
        }
        let report = service.view().report(REPORT_DEADLINE);
        load.hold(lag(&report) > MAX_LAG);
        display.show(&Frame {
            report: &report,
            written: load.written(),
            held: load.is_held(),
        });
    }
    let written = load.stop()?;
    let report = catch_up(&service, written);
    display.summary(&Frame {
        report: &report,
        written,
        held: false,
    });
    service.stop()?;
    match written.saturating_sub(settled(&report)) {
        0 => Ok(()),
        left => Err(DemoError::LeftOver { left, written }),
    }
}

/// Starts the service; on any free admin address if another process, such as another demo, has taken the configured
/// one since.
fn start_service(
    demo: &DemoEnvironment,
    config: &ServiceConfig,
    environment: &Environment,
) -> Result<Service, DemoError> {
    let join_gate = std::sync::Arc::default();
    match Service::start(config, environment, &join_gate) {
        Err(StartError::Part { .. }) if TcpListener::bind(config.admin.listen).is_err() => {
            let any = "admin.listen=127.0.0.1:0".to_owned();
            let config = load_service_config(&demo.config(), environment, &[any]);
            Ok(Service::start(
                &config.map_err(DemoError::Config)?,
                environment,
                &join_gate,
            )?)
        }
        started => Ok(started?),
    }
}

fn start_cluster() -> Result<MockKafka, DemoError> {
    let failed = |error: rdkafka::error::KafkaError| DemoError::Cluster(error.to_string());
    let cluster = MockKafka::start(1).map_err(failed)?;
    for topic in TOPICS {
        cluster.create_topic(topic, PARTITIONS).map_err(failed)?;
    }
    Ok(cluster)
}

fn lag(report: &ServiceReport) -> i64 {
    report
        .partitions
        .iter()
        .filter_map(|partition| partition.lag)
        .sum()
}

/// Flights passed by the frontiers: the topic starts at offset 0 with the demo.
fn settled(report: &ServiceReport) -> u64 {
    let of_flights = report
        .partitions
        .iter()
        .filter(|partition| partition.topic == TOPIC);
    of_flights
        .map(|partition| u64::try_from(partition.frontier).unwrap_or(0))
        .sum()
}

/// Waits until all written records are settled, or `CATCH_UP_TIMEOUT` has passed; returns the last report.
fn catch_up(service: &Service, written: u64) -> ServiceReport {
    let deadline = Instant::now() + CATCH_UP_TIMEOUT;
    loop {
        let report = service.view().report(REPORT_DEADLINE);
        if settled(&report) >= written || Instant::now() >= deadline || service.has_failed() {
            return report;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The folder of this executable, unless it is in the shell's search path.
fn own_folder() -> Option<PathBuf> {
    let folder = std::env::current_exe().ok()?.parent()?.to_path_buf();
    let search = std::env::var_os("PATH").unwrap_or_default();
    (!std::env::split_paths(&search).any(|known| known == folder)).then_some(folder)
}

fn welcome(demo: &DemoEnvironment, service: &Service, options: &Options) -> String {
    let admin = format!("http://{}", service.admin_address());
    let specs = demo.specs();
    let left_out = match demo.left_out[..] {
        [] => String::new(),
        ref names => format!(
            "  left out   {} (their plugins are not built)\n",
            names.join(", ")
        ),
    };
    let path = own_folder().map_or_else(String::new, |folder| {
        format!(
            "  export PATH=\"{}:$PATH\"     to find `sluicegate`\n",
            folder.display()
        )
    });
    let end = match options.run_for {
        Some(time) => format!(
            "The demo ends after {} s; Ctrl-C ends it sooner.",
            time.as_secs()
        ),
        None => "Ctrl-C ends the demo.".to_owned(),
    };
    format!(
        "Flights that left New York in 2013 flow through an in-process Kafka cluster: {} records/s, paced because it keeps\n\
         only 5 MiB per partition. {end}\n  \
           plugins    {}\n  \
           specs      {}\n  \
           log        {}\n  \
           admin      {admin}\n\
         {left_out}\
         Try next, in another terminal:\n\
         {path}  \
           sluicegate handlers off late --admin {admin}     switch a handler off while records flow\n  \
           edit {}     change the threshold; it is applied at once\n  \
           open {admin}/api/v1/handlers or {admin}/metrics\n  \
           write a handler of your own in five minutes: see the README\n\n",
        options.rate,
        demo.plugins().display(),
        specs.display(),
        demo.log().display(),
        specs.join("late.yaml").display(),
    )
}
