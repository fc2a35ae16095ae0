//! ZooKeeper for tests: the server named in the environment, or one started on a free port.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::launcher::{JavaServer, Launcher, copy_folder};
use crate::ports::free_port;
use crate::process::{Guarded, Signal};
use crate::wait::try_wait_for;

/// Variable with an endpoint (`host:port`) to use instead of starting a server.
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

/// A ZooKeeper server; a started one ends when the value is dropped or the process ends.
pub struct ZooKeeper {
    connect: String,
    own: Option<Own>,
}

/// Options of a started server; the default is one without TLS.
#[derive(Clone, Debug, Default)]
pub struct ZooKeeperOptions {
    /// Serve clients over TLS too, with these files.
    pub tls: Option<Certificates>,
    /// Require client certificates of the same CA.
    pub client_certificates: bool,
}

struct Own {
    launcher: Launcher,
    process: Guarded,
    folder: TempDir,
    /// `host:port` of the TLS listener, if requested.
    secure: Option<String>,
}

impl Drop for Own {
    fn drop(&mut self) {
        self.process.kill();
        self.launcher.clean_up(self.folder.path());
    }
}

/// Prepares what [`ZooKeeper::start`] needs on this machine and describes it briefly.
///
/// # Errors
/// If no server is available; the message says what to install or to set.
pub fn provision() -> Result<String> {
    if let Ok(endpoint) = std::env::var(ENDPOINT) {
        return Ok(format!("ZooKeeper at {endpoint} ({ENDPOINT})"));
    }
    let launcher = Launcher::find(&SERVER)
        .with_context(|| format!("no ZooKeeper: set {ENDPOINT}=host:port"))?;
    let shared = Launcher::share_classes(&SERVER, |launcher| {
        let mut zookeeper = ZooKeeper::start_with(launcher, &ZooKeeperOptions::default())?;
        zookeeper.end()
    });
    if let Err(error) = shared {
        println!("    without class archives, servers start slower: {error:#}");
    }
    Ok(format!("ZooKeeper 3.9.5, {}", launcher.describe()))
}

impl ZooKeeper {
    /// The server named in the environment, else a started one.
    ///
    /// # Errors
    /// If none is available or it does not start; the message then ends with its log.
    pub fn start() -> Result<Self> {
        match std::env::var(ENDPOINT) {
            Ok(connect) => Ok(Self { connect, own: None }),
            Err(_) => Self::start_own(&ZooKeeperOptions::default()),
        }
    }

    /// Starts a server, regardless of the environment.
    ///
    /// # Errors
    /// If none is available or it does not start; the message then ends with its log.
    pub fn start_own(options: &ZooKeeperOptions) -> Result<Self> {
        Self::start_with(Launcher::find(&SERVER)?, options)
    }

    fn start_with(launcher: Launcher, options: &ZooKeeperOptions) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("sluicegate-zookeeper-")
            .tempdir()?;
        let port = free_port();
        let data = folder.path().join("data");
        let mut config = format!(
            "tickTime=500\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
             admin.enableServer=false\n4lw.commands.whitelist=*\n",
            data.display()
        );
        let secure = options.tls.as_ref().map(|files| {
            let port = free_port();
            config.push_str(&tls_config(files, port, options.client_certificates));
            format!("127.0.0.1:{port}")
        });
        std::fs::write(folder.path().join("zoo.cfg"), config)?;
        let process = spawn(&launcher, folder.path())?;
        let zookeeper = Self {
            connect: format!("127.0.0.1:{port}"),
            own: Some(Own {
                launcher,
                process,
                folder,
                secure,
            }),
        };
        zookeeper.await_answer()?;
        Ok(zookeeper)
    }

    /// Stops a started server gracefully.
    fn end(&mut self) -> Result<()> {
        let own = self.own.as_mut().context("a server of our own")?;
        own.process.signal(Signal::TERM);
        own.process.wait(Duration::from_secs(60)).map(drop)
    }

    fn own(&self) -> &Own {
        self.own.as_ref().expect("a server of our own")
    }

    fn await_answer(&self) -> Result<()> {
        let up = try_wait_for(Duration::from_secs(60), || {
            is_serving(&self.connect).map_err(|error| error.to_string())
        });
        up.map_err(|why| {
            anyhow::anyhow!(
                "ZooKeeper did not start: {why}; its log ends:\n{}",
                self.own().process.log_tail()
            )
        })
    }

    /// Kills a started server and starts it again with its data.
    ///
    /// # Errors
    /// If it does not start; the message then ends with its log.
    ///
    /// # Panics
    /// If it was not started here.
    pub fn restart(&mut self) -> Result<()> {
        let own = self.own.as_mut().expect("a server of our own");
        own.process.kill();
        own.launcher.clean_up(own.folder.path());
        own.process = spawn(&own.launcher, own.folder.path())?;
        self.await_answer()
    }

    /// Stops a started server, copies its data as a backup, and starts it again.
    ///
    /// # Errors
    /// If the data cannot be copied, or the server does not start again.
    ///
    /// # Panics
    /// If it was not started here.
    pub fn back_up(&mut self) -> Result<TempDir> {
        let copy = tempfile::tempdir()?;
        self.with_data(|data| copy_folder(data, copy.path()))?;
        Ok(copy)
    }

    /// Replaces the data of a started server by a backup; without one it starts empty.
    ///
    /// # Errors
    /// If the data cannot be replaced, or the server does not start again.
    ///
    /// # Panics
    /// If it was not started here.
    pub fn restore(&mut self, backup: Option<&TempDir>) -> Result<()> {
        self.with_data(|data| {
            std::fs::remove_dir_all(data)?;
            backup.map_or(Ok(()), |backup| copy_folder(backup.path(), data))
        })
    }

    /// Calls `work` with the data folder while the server is down.
    fn with_data(&mut self, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let own = self.own.as_mut().expect("a server of our own");
        own.process.kill();
        own.launcher.clean_up(own.folder.path());
        work(&own.folder.path().join("data"))?;
        own.process = spawn(&own.launcher, own.folder.path())?;
        self.await_answer()
    }

    /// Sends a signal to a started server.
    ///
    /// # Panics
    /// If it was not started here.
    pub fn signal(&self, signal: Signal) {
        self.own().process.signal(signal);
    }

    /// `host:port` for TLS clients.
    ///
    /// # Panics
    /// If it was not started with certificates.
    #[must_use]
    pub fn secure(&self) -> &str {
        self.own().secure.as_deref().expect("started with TLS")
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn connect(&self) -> &str {
        &self.connect
    }
}

fn spawn(launcher: &Launcher, folder: &Path) -> Result<Guarded> {
    let main = "org.apache.zookeeper.server.ZooKeeperServerMain";
    let mut command = launcher.command(folder, &["-Xmx256m", "-XX:+UseSerialGC"], main);
    command.arg(folder.join("zoo.cfg"));
    let log = folder.join("zookeeper.log");
    Guarded::start("ZooKeeper", &mut command, &log, Some(folder))
}

fn tls_config(files: &Certificates, port: u16, client_certificates: bool) -> String {
    let asked = if client_certificates { "need" } else { "none" };
    format!(
        "secureClientPort={port}\nsecureClientPortAddress=127.0.0.1\n\
         serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
         ssl.keyStore.type=PEM\nssl.keyStore.location={}\n\
         ssl.trustStore.type=PEM\nssl.trustStore.location={}\nssl.clientAuth={asked}\n",
        files.server.display(),
        files.ca.display()
    )
}

/// Queries `srvr`, because `ruok` is answered before sessions are accepted.
fn is_serving(connect: &str) -> Result<()> {
    let mut stream = TcpStream::connect(connect)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"srvr")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.contains("Mode: ") {
        Ok(())
    } else {
        bail!("not serving yet: {answer:?}")
    }
}
