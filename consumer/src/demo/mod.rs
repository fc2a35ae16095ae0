//! `sluicegate demo`: the service on a Kafka inside the process, with real flights flowing.
//!
//! ```text
//!  flights.csv.zip ─► feed (paced) ─► mock cluster: flights ─► the service, as `run` starts it ─► other topics
//!                                                                  │ report, every second
//!                                                                  ▼
//!                                                                screen: table or lines, then a summary
//! ```
//!
//! The mock cluster keeps 5 MiB a partition and forgets older records silently, so the feed is paced, and waits while
//! the service is behind.

mod display;
mod environment;
mod load_generator;

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sluicegate_config::{Environment, Problems, ServiceConfig, load_service_config};

use crate::admin::ServiceReport;
use crate::logging::{self, LoggingError};
use crate::produce::ProduceError;
use crate::pump::PumpError;
use crate::runtime::{Service, StartError};
use crate::source::mock::MockKafka;
use display::{Moment, Screen};
use environment::{DemoEnvironment, PARTITIONS, TOPIC, TOPICS};
use load_generator::Feed;

pub use environment::SceneError;

/// What the demo is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Flights a second.
    pub rate: f64,
    /// Ends by itself after this time.
    pub run_for: Option<Duration>,
    /// The file of flights; found in the source tree unless given.
    pub data: Option<PathBuf>,
    /// The folder of plugins; the program's own unless given.
    pub plugins: Option<PathBuf>,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// It cannot be set up.
    #[error("{0}")]
    Scene(#[from] SceneError),
    /// The in-process cluster does not run.
    #[error("the in-process Kafka cluster does not start: {0}")]
    Cluster(String),
    /// Its config is not accepted.
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
    Feed(#[from] ProduceError),
    /// A thread cannot be started.
    #[error("cannot start the feed's thread: {0}")]
    Thread(std::io::Error),
    /// The service ended before it was asked to, or did not end well.
    #[error("{0}")]
    Stop(#[from] PumpError),
    /// Records were left over.
    #[error("{left} of {written} flights were not settled within {} s of the end; the demo's figures above say where", CATCH_UP.as_secs())]
    LeftOver {
        /// Not settled.
        left: u64,
        /// Written.
        written: u64,
    },
}

/// Time between two pictures.
const TICK: Duration = Duration::from_secs(1);
/// How long a report may take.
const REPORT_DEADLINE: Duration = Duration::from_secs(1);
/// How long the end waits for what is still on its way.
const CATCH_UP: Duration = Duration::from_secs(15);
/// Records of lag at which the feed waits: a part of what the cluster keeps.
const HOLD_AT: i64 = 20_000;

/// Runs the demo until its time is over or `stop_asked` (which waits up to the time it is given) says so.
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
    let scene = DemoEnvironment::set_up(&plugins, &cluster.bootstrap_servers())?;
    let environment = Environment::default();
    let config =
        load_service_config(&scene.config(), &environment, &[]).map_err(DemoError::Config)?;
    logging::start(&config.logging, Some(&scene.log()))?;
    let service = start_service(&scene, &config, &environment)?;
    let feed = Feed::start(data, cluster.bootstrap_servers(), TOPIC, options.rate)
        .map_err(DemoError::Thread)?;
    display::write(&welcome(&scene, &service, options));
    let mut screen = Screen::new();
    let ends = options.run_for.map(|time| Instant::now() + time);
    while !service.has_failed() && !feed.has_failed() {
        let left = ends.map_or(TICK, |ends| ends.saturating_duration_since(Instant::now()));
        if left.is_zero() || stop_asked(left.min(TICK)) {
            break;
        }
        let report = service.view().report(REPORT_DEADLINE);
        feed.hold(lag(&report) > HOLD_AT);
        screen.show(&Moment {
            report: &report,
            written: feed.written(),
            held: feed.is_held(),
        });
    }
    let written = feed.stop()?;
    let report = catch_up(&service, written);
    screen.summary(&Moment {
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

/// Starts the service; on any free admin address if somebody has taken the chosen one meanwhile, such as a second demo.
fn start_service(
    scene: &DemoEnvironment,
    config: &ServiceConfig,
    environment: &Environment,
) -> Result<Service, DemoError> {
    let join_gate = std::sync::Arc::default();
    match Service::start(config, environment, &join_gate) {
        Err(StartError::Part { .. }) if TcpListener::bind(config.admin.listen).is_err() => {
            let any = "admin.listen=127.0.0.1:0".to_owned();
            let config = load_service_config(&scene.config(), environment, &[any]);
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

/// Flights that the frontiers have passed: the topic begins at offset 0 with the demo.
fn settled(report: &ServiceReport) -> u64 {
    let of_flights = report
        .partitions
        .iter()
        .filter(|partition| partition.topic == TOPIC);
    of_flights
        .map(|partition| u64::try_from(partition.frontier).unwrap_or(0))
        .sum()
}

/// Waits until everything written is settled, or the time for that is over; gives the last report.
fn catch_up(service: &Service, written: u64) -> ServiceReport {
    let deadline = Instant::now() + CATCH_UP;
    loop {
        let report = service.view().report(REPORT_DEADLINE);
        if settled(&report) >= written || Instant::now() >= deadline || service.has_failed() {
            return report;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The folder of this program, unless a shell finds it there by itself.
fn own_folder() -> Option<PathBuf> {
    let folder = std::env::current_exe().ok()?.parent()?.to_path_buf();
    let search = std::env::var_os("PATH").unwrap_or_default();
    (!std::env::split_paths(&search).any(|known| known == folder)).then_some(folder)
}

fn welcome(scene: &DemoEnvironment, service: &Service, options: &Options) -> String {
    let admin = format!("http://{}", service.admin_address());
    let specs = scene.specs();
    let left_out = match scene.left_out[..] {
        [] => String::new(),
        ref names => format!(
            "  left out   {} (their plugins are not built)\n",
            names.join(", ")
        ),
    };
    let path = own_folder().map_or_else(String::new, |folder| {
        format!(
            "  export PATH=\"{}:$PATH\"     so that `sluicegate` is found\n",
            folder.display()
        )
    });
    let end = match options.run_for {
        Some(time) => format!(
            "It ends by itself after {} s; Ctrl-C ends it sooner.",
            time.as_secs()
        ),
        None => "Ctrl-C ends it.".to_owned(),
    };
    format!(
        "Flights that left New York in 2013 flow through a Kafka inside this process: {} records/s, paced, since it keeps\n\
         only 5 MiB a partition. {end}\n  \
           plugins    {}\n  \
           specs      {}\n  \
           log        {}\n  \
           admin      {admin}\n\
         {left_out}\
         Try next, in another terminal:\n\
         {path}  \
           sluicegate handlers off late --admin {admin}     switch a handler off while records flow\n  \
           edit {}     another threshold, applied at once\n  \
           open {admin}/api/v1/handlers or {admin}/metrics\n  \
           a handler of your own, in five minutes: the README says how\n\n",
        options.rate,
        scene.plugins().display(),
        specs.display(),
        scene.log().display(),
        specs.join("late.yaml").display(),
    )
}
