//! etcd for tests: the server named in the environment, or a cluster started from the PATH, Debian's package or the Go module.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cache;
use crate::certificates::Certificates;
use crate::debian;
use crate::launcher::{copy_folder, run, works};
use crate::ports::free_port;
use crate::process::{Guarded, Signal};
use crate::wait::{try_wait_for, wait_for};

/// Variable with an endpoint (`http://host:port`) to use instead of starting a server.
pub const ENDPOINT: &str = "SLUICEGATE_TEST_ETCD";

const GO_MODULE: &str = "go.etcd.io/etcd/server/v3@v3.6.8";
const GO_MAIN: &str = "package main\n\nimport (\n\t\"os\"\n\n\t\"go.etcd.io/etcd/server/v3/etcdmain\"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n";

/// Options of a started cluster; the default is one node without TLS.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Members of the cluster.
    pub nodes: usize,
    /// Serve clients over TLS with these files.
    pub tls: Option<Certificates>,
    /// Require client certificates of the same CA.
    pub client_certificates: bool,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            nodes: 1,
            tls: None,
            client_certificates: false,
        }
    }
}

/// An etcd cluster; a started one ends when the value is dropped or the process ends.
pub struct Etcd {
    endpoints: Vec<String>,
    // Dropped first: the processes end before their folder is removed.
    nodes: Vec<Node>,
    own: Option<Own>,
}

struct Own {
    program: PathBuf,
    options: EtcdOptions,
    folder: TempDir,
    /// `name=url,…` of all peers.
    peers: Vec<String>,
    /// How often it was set up as another cluster; part of the token, which with the peers determines the cluster id.
    lives: u32,
}

struct Node {
    process: Option<Guarded>,
}

/// Prepares what [`Etcd::start`] needs on this machine and describes it briefly.
///
/// # Errors
/// If no server is available; the message says what to install or to set.
pub fn provision() -> Result<String> {
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        return Ok(format!("etcd at {endpoint} ({ENDPOINT})"));
    }
    let program = find().with_context(|| format!("no etcd: set {ENDPOINT}=http://host:port"))?;
    let version = run(Command::new(&program).arg("--version"))?;
    let first = version
        .lines()
        .next()
        .unwrap_or("etcd")
        .replace(" Version:", "");
    Ok(first)
}

impl Etcd {
    /// The server named in the environment, else a started one.
    ///
    /// # Errors
    /// If none is available or it does not start; the message then ends with its log.
    pub fn start() -> Result<Self> {
        match std::env::var(ENDPOINT) {
            Ok(endpoint) => Ok(Self {
                endpoints: vec![endpoint],
                nodes: Vec::new(),
                own: None,
            }),
            Err(_) => Self::start_own(&EtcdOptions::default()),
        }
    }

    /// Starts a cluster, regardless of the environment.
    ///
    /// # Errors
    /// If none is available or it does not start; the message then ends with a node's log.
    pub fn start_own(options: &EtcdOptions) -> Result<Self> {
        let program = find()?;
        let folder = tempfile::Builder::new()
            .prefix("sluicegate-etcd-")
            .tempdir()?;
        let scheme = if options.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let ports = || (0..options.nodes).map(|_| free_port());
        let endpoints = ports().map(|port| format!("{scheme}://127.0.0.1:{port}"));
        let mut etcd = Self {
            endpoints: endpoints.collect(),
            nodes: (0..options.nodes).map(|_| Node { process: None }).collect(),
            own: Some(Own {
                program,
                options: options.clone(),
                folder,
                peers: ports()
                    .map(|port| format!("http://127.0.0.1:{port}"))
                    .collect(),
                lives: 0,
            }),
        };
        // Starts all before waiting for the first, because one alone has no majority.
        for node in 0..options.nodes {
            etcd.spawn(node)?;
        }
        for node in 0..options.nodes {
            etcd.await_node(node)?;
        }
        Ok(etcd)
    }

    fn spawn(&mut self, at: usize) -> Result<()> {
        let own = self
            .own
            .as_ref()
            .context("the server was not started here")?;
        let (endpoint, peer) = (&self.endpoints[at], &own.peers[at]);
        let mut command = Command::new(&own.program);
        let data = own.folder.path().join(format!("data-{at}"));
        command
            .arg(format!("--name=node-{at}"))
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--initial-cluster-token=cluster-{}", own.lives))
            .arg(format!("--listen-client-urls={endpoint}"))
            .arg(format!("--advertise-client-urls={endpoint}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"));
        let peers = own.peers.iter().enumerate();
        let cluster: Vec<String> = peers.map(|(at, url)| format!("node-{at}={url}")).collect();
        command.arg(format!("--initial-cluster={}", cluster.join(",")));
        if let Some(files) = &own.options.tls {
            command
                .arg(format!(
                    "--cert-file={}",
                    files.server_certificate.display()
                ))
                .arg(format!("--key-file={}", files.server_key.display()));
            if own.options.client_certificates {
                command
                    .arg("--client-cert-auth")
                    .arg(format!("--trusted-ca-file={}", files.ca.display()));
            }
        }
        let log = own.folder.path().join(format!("etcd-{at}.log"));
        let process = Guarded::start("etcd", &mut command, &log, Some(own.folder.path()))?;
        self.nodes[at].process = Some(process);
        Ok(())
    }

    fn await_node(&self, at: usize) -> Result<()> {
        let process = self.nodes[at].process.as_ref().context("it is stopped")?;
        let plain = self
            .own
            .as_ref()
            .is_none_or(|own| own.options.tls.is_none());
        let up = try_wait_for(Duration::from_secs(30), || match plain {
            true => ureq::get(format!("{}/health", self.endpoints[at]))
                .call()
                .map(drop)
                .map_err(|error| error.to_string()),
            // With TLS its readiness is visible only in the log.
            false => match process.log().contains("ready to serve client requests") {
                true => Ok(()),
                false => Err("not serving yet".to_owned()),
            },
        });
        up.map_err(|why| {
            anyhow::anyhow!(
                "etcd did not start: {why}; its log ends:\n{}",
                process.log_tail()
            )
        })
    }

    /// Kills a started node with SIGKILL.
    ///
    /// # Panics
    /// If it was not started here, or is not running.
    pub fn kill(&mut self, at: usize) {
        let mut process = self.nodes[at].process.take().expect("a node that runs");
        process.kill();
    }

    /// Starts a killed node again, with its data, and waits until it serves.
    ///
    /// # Errors
    /// If it does not start; the message then ends with its log.
    pub fn start_again(&mut self, at: usize) -> Result<()> {
        self.spawn(at)?;
        self.await_node(at)
    }

    /// Stops the only node, copies its data as a backup, and starts it again.
    ///
    /// # Errors
    /// If the data cannot be copied, or the node does not start again.
    pub fn back_up(&mut self) -> Result<TempDir> {
        let copy = tempfile::tempdir()?;
        self.kill(0);
        copy_folder(&self.data()?, copy.path())?;
        self.start_again(0)?;
        Ok(copy)
    }

    /// Replaces the data of the only node by a backup: the same cluster, at an earlier revision. Without a backup, starts
    /// another, empty cluster.
    ///
    /// # Errors
    /// If the data cannot be replaced, or the node does not start again.
    pub fn restore(&mut self, backup: Option<&TempDir>) -> Result<()> {
        self.kill(0);
        let data = self.data()?;
        std::fs::remove_dir_all(&data)?;
        match backup {
            Some(backup) => copy_folder(backup.path(), &data)?,
            None => self.own.as_mut().context("it was not started here")?.lives += 1,
        }
        self.start_again(0)
    }

    /// Empties the only node and sets it up again with the same flags: an empty cluster with the same id.
    ///
    /// # Errors
    /// If the data cannot be removed, or the node does not start again.
    pub fn recreate_with_same_id(&mut self) -> Result<()> {
        self.kill(0);
        std::fs::remove_dir_all(self.data()?)?;
        self.start_again(0)
    }

    fn data(&self) -> Result<PathBuf> {
        let own = self
            .own
            .as_ref()
            .context("the server was not started here")?;
        Ok(own.folder.path().join("data-0"))
    }

    /// Sends a signal to a started node.
    ///
    /// # Panics
    /// If it was not started here, or is not running.
    pub fn signal(&self, at: usize, signal: Signal) {
        let process = self.nodes[at].process.as_ref().expect("a node that runs");
        process.signal(signal);
    }

    /// `http://host:port` of the first member, for clients.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoints[0]
    }

    /// The URLs of all members.
    #[must_use]
    pub fn endpoints(&self) -> Vec<&str> {
        self.endpoints.iter().map(String::as_str).collect()
    }

    /// Compacts the history before `revision`.
    ///
    /// # Panics
    /// If the first node refuses or fails.
    pub fn compact(&self, revision: u64) {
        let compaction = json!({ "revision": revision.to_string(), "physical": true });
        self.ask(0, "/v3/kv/compaction", &compaction, None)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Removes a member other than the first from the cluster, by its name (`node-2`).
    ///
    /// # Panics
    /// If no member has that name, or the first node does not remove it within `deadline`.
    pub fn remove_member(&self, name: &str, deadline: Duration) {
        let members = self
            .ask(0, "/v3/cluster/member/list", &json!({}), None)
            .unwrap_or_else(|error| panic!("{error:#}"));
        let gone = members["members"]
            .as_array()
            .and_then(|members| members.iter().find(|member| member["name"] == name))
            .map(|member| json!({ "ID": member["ID"] }))
            .expect("a member of that name");
        wait_for("the removal", deadline, || {
            self.ask(0, "/v3/cluster/member/remove", &gone, None)
                .map_err(|error| error.to_string())
        });
    }

    /// Calls the JSON gateway of a member, such as `/v3/kv/compaction`; bytes in it are base64.
    ///
    /// # Errors
    /// The server's error message.
    pub fn ask(&self, at: usize, path: &str, body: &Value, token: Option<&str>) -> Result<Value> {
        let mut request = ureq::post(format!("{}{path}", self.endpoints[at]))
            .config()
            .http_status_as_error(false)
            .build();
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
        let mut answer = request.send_json(body)?;
        let text = answer.body_mut().read_to_string()?;
        if !answer.status().is_success() {
            bail!("{path}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }
}

fn find() -> Result<PathBuf> {
    if works(Command::new("etcd").arg("--version")) {
        return Ok(PathBuf::from("etcd"));
    }
    let cached = cache::once("etcd", |folder| {
        if from_package(folder).is_ok() {
            return Ok(());
        }
        from_go(folder).context("install etcd, or Go to build it")
    })?;
    Ok(cached.join("etcd"))
}

fn from_package(folder: &Path) -> Result<()> {
    let root = debian::unpack(&["etcd-server"], folder)?;
    std::fs::copy(root.join("usr/bin/etcd"), folder.join("etcd"))?;
    run(Command::new(folder.join("etcd")).arg("--version")).map(drop)
}

fn from_go(folder: &Path) -> Result<()> {
    std::fs::write(folder.join("main.go"), GO_MAIN)?;
    run(Command::new("go")
        .args(["mod", "init", "etcd"])
        .current_dir(folder))?;
    run(Command::new("go")
        .args(["get", GO_MODULE])
        .current_dir(folder))?;
    run(Command::new("go").args(["mod", "tidy"]).current_dir(folder))?;
    run(Command::new("go")
        .args(["build", "-o", "etcd", "."])
        .current_dir(folder))
    .map(drop)
}
