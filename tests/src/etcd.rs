//! etcd for tests: the server of the environment, or one of our own from the PATH, Debian's package or its Go module.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::cache;
use crate::launcher::{run, works};
use crate::ports::free_port;
use crate::process::Guarded;
use crate::wait::try_wait_for;

/// Names an endpoint (`http://host:port`) that is used instead of a server of our own.
pub const ENDPOINT: &str = "SLUICEGATE_TEST_ETCD";

const GO_MODULE: &str = "go.etcd.io/etcd/server/v3@v3.6.8";
const GO_MAIN: &str = "package main\n\nimport (\n\t\"os\"\n\n\t\"go.etcd.io/etcd/server/v3/etcdmain\"\n)\n\nfunc main() { etcdmain.Main(os.Args) }\n";

/// An etcd server; one of our own ends with the value, or with the process.
pub struct Etcd {
    endpoint: String,
    // The process ends before its folder goes.
    _own: Option<(Guarded, TempDir)>,
}

/// Makes ready what [`Etcd::start`] needs on this machine and says in a few words what that is.
///
/// # Errors
/// If no server can be had; the message says what to install or to set.
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
    /// The server of the environment, else one of our own.
    ///
    /// # Errors
    /// If none can be had or it does not come up; the message then ends with its log.
    pub fn start() -> Result<Self> {
        if let Ok(endpoint) = std::env::var(ENDPOINT) {
            return Ok(Self {
                endpoint,
                _own: None,
            });
        }
        let program = find()?;
        let folder = tempfile::Builder::new()
            .prefix("sluicegate-etcd-")
            .tempdir()?;
        let endpoint = format!("http://127.0.0.1:{}", free_port());
        let peers = format!("http://127.0.0.1:{}", free_port());
        let mut command = Command::new(program);
        command.arg("--name=node").arg(format!(
            "--data-dir={}",
            folder.path().join("data").display()
        ));
        command
            .arg(format!("--listen-client-urls={endpoint}"))
            .arg(format!("--advertise-client-urls={endpoint}"));
        command
            .arg(format!("--listen-peer-urls={peers}"))
            .arg(format!("--initial-advertise-peer-urls={peers}"));
        command.arg(format!("--initial-cluster=node={peers}"));
        let log = folder.path().join("etcd.log");
        let process = Guarded::start("etcd", &mut command, &log, Some(folder.path()))?;
        let health = format!("{endpoint}/health");
        let up = try_wait_for(Duration::from_secs(30), || {
            ureq::get(&health)
                .call()
                .map(drop)
                .map_err(|error| error.to_string())
        });
        if let Err(why) = up {
            bail!(
                "etcd did not start: {why}; its log ends:\n{}",
                process.log_tail()
            );
        }
        Ok(Self {
            endpoint,
            _own: Some((process, folder)),
        })
    }

    /// `http://host:port` for clients.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
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

/// Debian's package, unpacked beside the system and not installed, so that no rights are needed.
fn from_package(folder: &Path) -> Result<()> {
    run(Command::new("apt-get")
        .args(["download", "etcd-server"])
        .current_dir(folder))?;
    let package = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    run(Command::new("dpkg")
        .arg("--extract")
        .arg(&package)
        .arg(folder.join("package")))?;
    std::fs::copy(folder.join("package/usr/bin/etcd"), folder.join("etcd"))?;
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
