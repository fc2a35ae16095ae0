//! ZooKeeper for tests: the server of the environment, or one of our own on a free port.

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
    own: Option<Own>,
}

/// How a server of our own is set up; the default is one that anybody may speak to.
#[derive(Clone, Debug, Default)]
pub struct ZooKeeperOptions {
    /// Serve clients over TLS too, with these files.
    pub tls: Option<Certificates>,
    /// Ask TLS clients for a certificate of the same authority.
    pub client_certificates: bool,
}

struct Own {
    launcher: Launcher,
    process: Guarded,
    folder: TempDir,
    /// `host:port` that speaks TLS, if it was asked for.
    secure: Option<String>,
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
    /// The server of the environment, else one of our own.
    ///
    /// # Errors
    /// If none can be had or it does not come up; the message then ends with its log.
    pub fn start() -> Result<Self> {
        match std::env::var(ENDPOINT) {
            Ok(connect) => Ok(Self { connect, own: None }),
            Err(_) => Self::start_own(&ZooKeeperOptions::default()),
        }
    }

    /// A server of our own, whatever the environment says.
    ///
    /// # Errors
    /// If none can be had or it does not come up; the message then ends with its log.
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

    /// Ends a server of our own gracefully.
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

    /// Kills a server of our own and starts it again with its data.
    ///
    /// # Errors
    /// If it does not come up; the message then ends with its log.
    ///
    /// # Panics
    /// If it is not ours.
    pub fn restart(&mut self) -> Result<()> {
        let own = self.own.as_mut().expect("a server of our own");
        own.process.kill();
        own.launcher.clean_up(own.folder.path());
        own.process = spawn(&own.launcher, own.folder.path())?;
        self.await_answer()
    }

    /// Stops a server of our own and gives a copy of its data, as a backup has it; then starts it again.
    ///
    /// # Errors
    /// If the data cannot be copied, or it does not come up again.
    ///
    /// # Panics
    /// If it is not ours.
    pub fn back_up(&mut self) -> Result<TempDir> {
        let copy = tempfile::tempdir()?;
        self.with_data(|data| copy_folder(data, copy.path()))?;
        Ok(copy)
    }

    /// Puts the data of a backup in the place of that of a server of our own; without one it begins empty.
    ///
    /// # Errors
    /// If the data cannot be replaced, or it does not come up again.
    ///
    /// # Panics
    /// If it is not ours.
    pub fn restore(&mut self, backup: Option<&TempDir>) -> Result<()> {
        self.with_data(|data| {
            std::fs::remove_dir_all(data)?;
            backup.map_or(Ok(()), |backup| copy_folder(backup.path(), data))
        })
    }

    /// Works on the data while the server is down.
    fn with_data(&mut self, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let own = self.own.as_mut().expect("a server of our own");
        own.process.kill();
        own.launcher.clean_up(own.folder.path());
        work(&own.folder.path().join("data"))?;
        own.process = spawn(&own.launcher, own.folder.path())?;
        self.await_answer()
    }

    /// Sends a signal to a server of our own.
    ///
    /// # Panics
    /// If it is not ours.
    pub fn signal(&self, signal: Signal) {
        self.own().process.signal(signal);
    }

    /// `host:port` for clients that speak TLS.
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
        files.authority.display()
    )
}

/// `ruok` is answered before sessions are; `srvr` says when those are.
fn is_serving(connect: &str) -> Result<()> {
    let mut stream = TcpStream::connect(connect)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"srvr")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.contains("Mode: ") {
        Ok(())
    } else {
        bail!("it does not serve yet: {answer:?}")
    }
}
