//! Apache Kafka for tests: the broker named in the environment, or KRaft nodes started here.
//!
//! ```text
//! Kafka::shared()         one node for all tests of a process, or the broker of SLUICEGATE_TEST_KAFKA
//! Kafka::start(&options)  started nodes: TLS, SASL, an authorizer, nodes that can be stopped and restarted
//! ```

mod acl;
mod properties;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

pub use acl::Acl;

use crate::certificates::Certificates;
use crate::launcher::{JavaServer, Launcher, run};
use crate::ports::free_port;
use crate::process::{Guarded, Signal};
use crate::wait::try_wait_for;

/// Variable with an endpoint (`host:port`, plain text) to use instead of starting a broker.
pub const ENDPOINT: &str = "SLUICEGATE_TEST_KAFKA";

/// The user of the secured listeners, in addition to the super users.
pub const USER: &str = "service";
/// That user's password.
pub const PASSWORD: &str = "service-secret";

const SERVER: JavaServer = JavaServer {
    name: "kafka-4.3.1",
    // Without the last one Kafka's log is discarded, including the line that reports readiness.
    artefacts: &[
        "org.apache.kafka:kafka_2.13:4.3.1",
        "org.apache.kafka:kafka-tools:4.3.1",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
    ],
    image: "apache/kafka:4.3.1",
    image_classpath: "/opt/kafka/libs/*",
};

const CLUSTER_ID: &str = "4L6g3nShT-eMCtK--X86sw";
const OTHER_CLUSTER_ID: &str = "MkU3OEVBNTcwNTJENDM2Qk";
const START_DEADLINE: Duration = Duration::from_secs(90);
const READY_LINE: &str = "Kafka Server started";

/// Options of a started cluster.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// 1, or 3 with replicated internal topics.
    pub nodes: u16,
    /// Heap of each node in MiB.
    pub heap_mb: u32,
    /// Listeners with SASL (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER), without and with TLS.
    pub secured: bool,
    /// An authorizer that enforces [`Acl`]s and allows everything that none covers.
    pub authorizer: bool,
    /// Further broker properties.
    pub extra: Vec<(String, String)>,
}

impl KafkaOptions {
    /// Three nodes that can share a small machine.
    pub fn three_nodes() -> Self {
        Self {
            nodes: 3,
            heap_mb: 384,
            ..Self::default()
        }
    }
}

impl Default for KafkaOptions {
    fn default() -> Self {
        Self {
            nodes: 1,
            heap_mb: 768,
            secured: false,
            authorizer: false,
            extra: Vec::new(),
        }
    }
}

/// A Kafka cluster; a started one ends when the value is dropped or the process ends.
pub struct Kafka {
    bootstrap: String,
    own: Option<Own>,
}

struct Own {
    launcher: Launcher,
    nodes: Vec<Node>,
    certificates: Option<Certificates>,
    heap_mb: u32,
    // Last field: the nodes end before their folder is removed.
    folder: TempDir,
}

/// One KRaft node, broker and controller in one.
struct Node {
    id: u16,
    ports: Ports,
    process: Option<Guarded>,
}

#[derive(Clone, Copy)]
struct Ports {
    plain: u16,
    controller: u16,
    login: u16,
    secure: u16,
}

/// Prepares what [`Kafka::start`] needs on this machine and describes it briefly.
///
/// # Errors
/// If no broker is available; the message says what to install or to set.
pub fn provision() -> Result<String> {
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        return Ok(format!("Kafka at {endpoint} ({ENDPOINT})"));
    }
    provision_own()
}

/// As [`provision`], for tests that need their own cluster regardless of the environment.
///
/// # Errors
/// If no broker can be started here; the message says what to install.
pub fn provision_own() -> Result<String> {
    let launcher =
        Launcher::find(&SERVER).with_context(|| format!("no Kafka: set {ENDPOINT}=host:port"))?;
    let shared = Launcher::share_classes(&SERVER, |launcher| {
        let mut kafka = Kafka::start_with(launcher, &KafkaOptions::default())?;
        kafka.stop_node(0, Signal::TERM)
    });
    if let Err(error) = shared {
        println!("    without class archives, nodes start slower: {error:#}");
    }
    Ok(format!("Kafka 4.3.1, {}", launcher.describe()))
}

/// The folder of the jars that started clusters run, among them Kafka's client for Java.
///
/// # Errors
/// If Kafka is not available on this machine, or runs in a container.
pub fn jars() -> Result<PathBuf> {
    match Launcher::find(&SERVER)? {
        Launcher::Java { jars, .. } => Ok(jars),
        Launcher::Docker { .. } => {
            bail!("Kafka runs in a container here, from which jars are not taken")
        }
    }
}

impl Kafka {
    /// The broker named in the environment, else one node shared by all tests of this process.
    ///
    /// # Panics
    /// If none can be started.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var(ENDPOINT) {
            Ok(bootstrap) => Self {
                bootstrap,
                own: None,
            },
            Err(_) => {
                Self::start(&KafkaOptions::default()).unwrap_or_else(|error| panic!("{error:#}"))
            }
        })
    }

    /// Starts a cluster on free ports, with its data in a temporary folder.
    ///
    /// # Errors
    /// If Kafka is not available on this machine, or a node does not start; the message then ends with its log.
    pub fn start(options: &KafkaOptions) -> Result<Self> {
        Self::start_with(Launcher::find(&SERVER)?, options)
    }

    fn start_with(launcher: Launcher, options: &KafkaOptions) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("sluicegate-kafka-")
            .tempdir()?;
        let certificates = if options.secured {
            Some(Certificates::make(folder.path())?)
        } else {
            None
        };
        let ports = (0..options.nodes)
            .map(|_| Ports {
                plain: free_port(),
                controller: free_port(),
                login: free_port(),
                secure: free_port(),
            })
            .collect::<Vec<_>>();
        let mut nodes = Vec::new();
        for (id, own_ports) in (1..).zip(&ports) {
            let home = folder.path().join(format!("node{id}"));
            std::fs::create_dir_all(&home)?;
            let text = properties::server(id, &ports, options, &home, certificates.as_ref());
            std::fs::write(home.join("server.properties"), text)?;
            std::fs::write(home.join("log4j2.xml"), properties::LOG4J2)?;
            format_storage(&launcher, folder.path(), &home, options, CLUSTER_ID)?;
            nodes.push(Node {
                id,
                ports: *own_ports,
                process: None,
            });
        }
        let bootstrap = ports
            .iter()
            .map(|port| format!("127.0.0.1:{}", port.plain))
            .collect::<Vec<_>>()
            .join(",");
        let mut own = Own {
            launcher,
            nodes,
            certificates,
            heap_mb: options.heap_mb,
            folder,
        };
        for index in 0..own.nodes.len() {
            own.launch(index)?;
        }
        for index in 0..own.nodes.len() {
            own.await_ready(index)?;
        }
        Ok(Self {
            bootstrap,
            own: Some(own),
        })
    }

    /// `host:port` of the plain listeners, joined by commas; its clients are super users.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// `host:port` of the first node's SASL listener without TLS.
    ///
    /// # Panics
    /// If the cluster was not started here.
    #[must_use]
    pub fn login(&self) -> String {
        format!("127.0.0.1:{}", self.own().nodes[0].ports.login)
    }

    /// `host:port` of the first node's SASL listener over TLS, and the CA to trust.
    ///
    /// # Panics
    /// If the cluster was not started with `secured`.
    #[must_use]
    pub fn secure(&self) -> (String, &Path) {
        let own = self.own();
        let certificates = own
            .certificates
            .as_ref()
            .expect("start the cluster with secured: true");
        (
            format!("localhost:{}", own.nodes[0].ports.secure),
            &certificates.ca,
        )
    }

    /// Sends `signal` to a node (counted from 0) and waits for its end.
    ///
    /// # Errors
    /// If it does not end within a minute.
    pub fn stop_node(&mut self, index: usize, signal: Signal) -> Result<()> {
        let node = &mut self.own_mut().nodes[index];
        let Some(mut process) = node.process.take() else {
            bail!("node {} is not running", node.id)
        };
        process.signal(signal);
        process.wait(Duration::from_secs(60)).map(drop)
    }

    /// Sends `signal` to a node (counted from 0) without waiting: SIGSTOP freezes it, and SIGCONT ends that.
    ///
    /// # Panics
    /// If the node is not running.
    pub fn signal_node(&self, index: usize, signal: Signal) {
        let process = self.own().nodes[index].process.as_ref();
        process.expect("a node that runs").signal(signal);
    }

    /// Starts a stopped node again with its data and waits until it serves.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_node(&mut self, index: usize) -> Result<()> {
        let own = self.own_mut();
        own.launch(index)?;
        own.await_ready(index)
    }

    /// Replaces a single-node cluster by another, empty one at the same address.
    ///
    /// # Errors
    /// If it cannot be stopped, formatted or started.
    pub fn replace_cluster(&mut self, options: &KafkaOptions) -> Result<()> {
        self.stop_node(0, Signal::KILL)?;
        let own = self.own_mut();
        let home = own.folder.path().join(format!("node{}", own.nodes[0].id));
        std::fs::remove_dir_all(home.join("data"))?;
        format_storage(
            &own.launcher,
            own.folder.path(),
            &home,
            options,
            OTHER_CLUSTER_ID,
        )?;
        self.start_node(0)
    }

    /// The folder of a partition's log on a node (counted from 0).
    ///
    /// # Panics
    /// If the cluster was not started here.
    #[must_use]
    pub fn log_folder(&self, index: usize, topic: &str, partition: i32) -> PathBuf {
        let own = self.own();
        let node = format!("node{}", own.nodes[index].id);
        let data = own.folder.path().join(node).join("data");
        data.join(format!("{topic}-{partition}"))
    }

    /// Adds or removes an ACL with Kafka's own tool, which takes some seconds.
    ///
    /// # Errors
    /// If the tool fails.
    pub fn change_acl(&self, acl: &Acl, add: bool) -> Result<()> {
        let own = self.own();
        let mut command = own.launcher.command(
            own.folder.path(),
            &["-Xmx128m"],
            "org.apache.kafka.tools.AclCommand",
        );
        command.args(["--bootstrap-server", self.bootstrap()]);
        command.args(acl.arguments(add));
        run(&mut command).map(drop)
    }

    fn own(&self) -> &Own {
        self.own
            .as_ref()
            .expect("this test needs a cluster of its own: Kafka::start")
    }

    fn own_mut(&mut self) -> &mut Own {
        self.own
            .as_mut()
            .expect("this test needs a cluster of its own: Kafka::start")
    }
}

impl Own {
    fn launch(&mut self, index: usize) -> Result<()> {
        let id = self.nodes[index].id;
        let home = self.folder.path().join(format!("node{id}"));
        let heap = format!("-Xmx{}m", self.heap_mb);
        let log4j = format!(
            "-Dlog4j2.configurationFile={}",
            home.join("log4j2.xml").display()
        );
        let options = [
            &*heap,
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            &*log4j,
        ];
        let mut command = self.launcher.command(&home, &options, "kafka.Kafka");
        command.arg(home.join("server.properties"));
        // A restarted node gets a new log file, so that its readiness line is its own.
        let log = home.join("node.log");
        let _ = std::fs::rename(&log, home.join("node.log.old"));
        let name = format!("Kafka node {id}");
        self.nodes[index].process = Some(Guarded::start(
            &name,
            &mut command,
            &log,
            Some(self.folder.path()),
        )?);
        Ok(())
    }

    fn await_ready(&mut self, index: usize) -> Result<()> {
        let node = &mut self.nodes[index];
        let Some(process) = node.process.as_mut() else {
            bail!("node {} was not launched", node.id)
        };
        let came_up = try_wait_for(START_DEADLINE, || {
            if process.log().contains(READY_LINE) {
                return Ok(Ok(()));
            }
            match process.exited() {
                Some(status) => Ok(Err(format!("it exited with {status}"))),
                None => Err(format!("not ready after {START_DEADLINE:?}")),
            }
        });
        match came_up.and_then(|inner| inner) {
            Ok(()) => Ok(()),
            Err(why) => bail!(
                "Kafka node {} did not start: {why}; its log ends:\n{}",
                node.id,
                process.log_tail()
            ),
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.process = None;
            self.launcher
                .clean_up(&self.folder.path().join(format!("node{}", node.id)));
        }
    }
}

fn format_storage(
    launcher: &Launcher,
    folder: &Path,
    home: &Path,
    options: &KafkaOptions,
    cluster: &str,
) -> Result<()> {
    let mut command: Command = launcher.command(
        folder,
        &["-Xmx128m", "-XX:TieredStopAtLevel=1"],
        "kafka.tools.StorageTool",
    );
    command
        .args(["format", "-t", cluster, "-c"])
        .arg(home.join("server.properties"));
    if options.secured {
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            command
                .arg("--add-scram")
                .arg(format!("{mechanism}=[name={USER},password={PASSWORD}]"));
        }
    }
    run(&mut command)
        .context("cannot format a Kafka node's storage")
        .map(drop)
}
