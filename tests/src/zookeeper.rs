//! ZooKeeper for tests: the server of the environment, or one of our own on a free port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::launcher::{JavaServer, Launcher};
use crate::ports::free_port;
use crate::process::Guarded;
use crate::wait::try_wait_for;

/// Names an endpoint (`host:port`) that is used instead of a server of our own.
pub const ENDPOINT: &str = "SLUICEGATE_TEST_ZOOKEEPER";

const SERVER: JavaServer = JavaServer {
    name: "zookeeper-3.9.5",
    // The last two are not declared by ZooKeeper, and it does not start without them.
    artefacts: &[
        "org.apache.zookeeper:zookeeper:3.9.5",
        "io.dropwizard.metrics:metrics-core:4.2.33",
        "org.xerial.snappy:snappy-java:1.1.10.8",
    ],
    image: "zookeeper:3.9.5",
    image_classpath: "/apache-zookeeper-3.9.5-bin/lib/*",
};

/// A ZooKeeper server; one of our own ends with the value, or with the process.
pub struct ZooKeeper {
    connect: String,
    _own: Option<Own>,
}

struct Own {
    launcher: Launcher,
    process: Guarded,
    folder: TempDir,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.process.kill();
        self.launcher.clean_up(self.folder.path());
    }
}

/// Makes ready what [`ZooKeeper::start`] needs on this machine and says in a few words what that is.
///
/// # Errors
/// If no server can be had; the message says what to install or to set.
pub fn provision() -> Result<String> {
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        return Ok(format!("ZooKeeper at {endpoint} ({ENDPOINT})"));
    }
    let launcher = Launcher::find(&SERVER)
        .with_context(|| format!("no ZooKeeper: set {ENDPOINT}=host:port"))?;
    Ok(format!("ZooKeeper 3.9.5, {}", launcher.describe()))
}

impl ZooKeeper {
    /// The server of the environment, else one of our own.
    ///
    /// # Errors
    /// If none can be had or it does not come up; the message then ends with its log.
    pub fn start() -> Result<Self> {
        if let Ok(connect) = std::env::var(ENDPOINT) {
            return Ok(Self {
                connect,
                _own: None,
            });
        }
        let launcher = Launcher::find(&SERVER)?;
        let folder = tempfile::Builder::new()
            .prefix("sluicegate-zookeeper-")
            .tempdir()?;
        let port = free_port();
        let config = folder.path().join("zoo.cfg");
        let data = folder.path().join("data");
        std::fs::write(
            &config,
            format!(
                "tickTime=500\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
                 admin.enableServer=false\n4lw.commands.whitelist=*\n",
                data.display()
            ),
        )?;
        let main = "org.apache.zookeeper.server.ZooKeeperServerMain";
        let mut command = launcher.command(folder.path(), &["-Xmx256m", "-XX:+UseSerialGC"], main);
        command.arg(&config);
        let log = folder.path().join("zookeeper.log");
        let process = Guarded::start("ZooKeeper", &mut command, &log, Some(folder.path()))?;
        let connect = format!("127.0.0.1:{port}");
        let up = try_wait_for(Duration::from_secs(60), || {
            ruok(&connect).map_err(|error| error.to_string())
        });
        if let Err(why) = up {
            bail!(
                "ZooKeeper did not start: {why}; its log ends:\n{}",
                process.log_tail()
            );
        }
        Ok(Self {
            connect,
            _own: Some(Own {
                launcher,
                process,
                folder,
            }),
        })
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn connect(&self) -> &str {
        &self.connect
    }
}

fn ruok(connect: &str) -> Result<()> {
    let mut stream = TcpStream::connect(connect)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"ruok")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer == "imok" {
        Ok(())
    } else {
        bail!("answered {answer:?} instead of imok")
    }
}
