//! PostgreSQL for tests, started from an installation or from Debian's packages: it can be stopped, started again and frozen.
//!
//! A server accepts connections on the loopback address only, with no password. Root may not run it, so that root
//! starts it as another user.

use std::io::Write;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::launcher::{run, works};
use crate::ports::free_port;
use crate::process::{Guarded, Signal};
use crate::wait::try_wait_for;
use crate::{cache, debian};

/// Variable with the URL of a server (`postgres://user:password@host/database`) for the tests of handlers.
pub const URL: &str = "SLUICEGATE_TEST_POSTGRES_URL";

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long a dropped server may take to remove its shared memory before it is killed.
const DROP_GRACE: Duration = Duration::from_secs(5);
/// The programs that are needed of an installation.
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "psql"];

/// The user of services without rights, by convention.
const UNPRIVILEGED: u32 = 65534;

/// Durability is what costs time in a transaction: it is on, as in production, so that measurements mean something.
const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 100
shared_buffers = 64MB
dynamic_shared_memory_type = mmap
fsync = on
synchronous_commit = on
full_page_writes = on
jit = off
logging_collector = off
";

/// How a running server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Transactions are rolled back and connections closed, then it writes a checkpoint.
    Fast,
    /// Its processes end at once, as far as it can arrange that; the next start recovers from the log.
    Immediate,
    /// All its processes are killed with SIGKILL.
    Kill,
}

/// A PostgreSQL server; it ends when the value is dropped or the process ends.
pub struct Postgres {
    url: String,
    programs: Programs,
    user: Option<User>,
    // Before the folder: the server ends before its folder is removed.
    process: Option<Guarded>,
    folder: TempDir,
}

/// An installation.
#[derive(Clone, Debug)]
struct Programs {
    /// The folder of [`PROGRAMS`].
    bin: PathBuf,
    /// Where they are unpacked; `None` if they are installed.
    root: Option<PathBuf>,
}

/// A user that is not root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

/// Prepares what [`Postgres::start`] needs on this machine and describes it briefly.
///
/// # Errors
/// If no server can be started here; the message says what to install.
pub fn provision() -> Result<String> {
    let programs = Programs::find()?;
    let version = run(programs.command("postgres").arg("--version"))?;
    server_user()?;
    Ok(version
        .trim()
        .replace("postgres (PostgreSQL)", "PostgreSQL"))
}

impl Postgres {
    /// Starts a server.
    ///
    /// # Errors
    /// If none is available or it does not start; the message then ends with its log.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("sluicegate-postgres-")
            .tempdir()?;
        let user = server_user()?;
        let mut programs = Programs::find()?;
        if let Some(user) = user {
            programs = programs.copied_for(folder.path())?;
            chown(folder.path(), Some(user.uid), Some(user.gid))?;
        }
        let port = free_port();
        let data = folder.path().join("data");
        let mut init = as_user(user, &programs.command("initdb"), folder.path());
        init.args(["--auth=trust", "--username=postgres", "--encoding=UTF8"])
            .args(["--locale=C", "--no-sync", "--pgdata"])
            .arg(&data);
        run(&mut init)?;
        let mut config = std::fs::File::options()
            .append(true)
            .open(data.join("postgresql.conf"))?;
        writeln!(config, "{SETTINGS}port = {port}")?;
        let mut postgres = Self {
            url: format!("postgres://postgres@127.0.0.1:{port}/postgres"),
            programs,
            user,
            process: None,
            folder,
        };
        postgres.start_again()?;
        Ok(postgres)
    }

    /// Starts a stopped server again, with its data, and waits until it answers.
    ///
    /// # Errors
    /// If it does not start; the message then ends with its log.
    pub fn start_again(&mut self) -> Result<()> {
        let folder = self.folder.path();
        let mut command = as_user(self.user, &self.programs.command("postgres"), folder);
        command.arg("-D").arg(folder.join("data"));
        let log = folder.join("postgres.log");
        let process = Guarded::start("PostgreSQL", &mut command, &log, Some(folder))?;
        let process = self.process.insert(process);
        let programs = &self.programs;
        let came_up = try_wait_for(START_DEADLINE, || match process.exited() {
            Some(status) => Ok(Err(format!("it exited with {status}"))),
            None => match ask(programs, &self.url, "SELECT 1") {
                Ok(_) => Ok(Ok(())),
                Err(error) => Err(format!("{error:#}")),
            },
        });
        came_up.and_then(|inner| inner).map_err(|why| {
            anyhow::anyhow!(
                "PostgreSQL did not start: {why}; its log ends:\n{}",
                process.log_tail()
            )
        })
    }

    /// Stops the server and waits for its end.
    ///
    /// # Panics
    /// If it is not running, or does not end.
    pub fn stop(&mut self, how: Stop) {
        let mut process = self.process.take().expect("a server that runs");
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
            Stop::Kill => return process.kill(),
        };
        process.signal(signal);
        process
            .wait(STOP_DEADLINE)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Stops all processes of the server with SIGSTOP: connections stay open and are not answered.
    ///
    /// # Panics
    /// If it is not running.
    pub fn freeze(&self) {
        // The process that accepts connections is frozen first, so that no child is added.
        self.process().signal_with_children(Signal::STOP);
    }

    /// Lets a frozen server continue.
    ///
    /// # Panics
    /// If it is not running.
    pub fn thaw(&self) {
        self.process().signal_with_children(Signal::CONT);
    }

    fn process(&self) -> &Guarded {
        self.process.as_ref().expect("a server that runs")
    }

    /// `postgres://user@host:port/database`, for clients.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs SQL and returns what it selects: one line per row, with `|` between columns.
    ///
    /// # Panics
    /// If the server refuses it or does not answer.
    #[must_use]
    pub fn query(&self, sql: &str) -> String {
        self.try_query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error:#}"))
    }

    /// As [`Postgres::query`].
    ///
    /// # Errors
    /// If the server refuses it or does not answer.
    pub fn try_query(&self, sql: &str) -> Result<String> {
        ask(&self.programs, &self.url, sql)
    }

    /// The number that SQL selects.
    ///
    /// # Panics
    /// As [`Postgres::query`], or if it does not select a number.
    #[must_use]
    pub fn number(&self, sql: &str) -> u64 {
        let selected = self.query(sql);
        selected
            .parse()
            .unwrap_or_else(|_| panic!("{sql} selects {selected:?}"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Killed at once, it would leave a segment of shared memory.
        if let Some(process) = &mut self.process {
            process.signal_with_children(Signal::CONT);
            process.signal(Signal::QUIT);
            let _ = process.wait(DROP_GRACE);
        }
    }
}

fn ask(programs: &Programs, url: &str, sql: &str) -> Result<String> {
    let mut psql = programs.command("psql");
    psql.args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet"])
        .args(["--set=ON_ERROR_STOP=1", "--no-password"])
        .args(["--dbname", url, "--command", sql])
        .env("PGCONNECT_TIMEOUT", "10");
    Ok(run(&mut psql)?.trim().to_owned())
}

/// `command` as this user, in `folder`, because the working folder of the test may be closed to that user.
fn as_user(user: Option<User>, command: &Command, folder: &Path) -> Command {
    let mut done = match user {
        None => Command::new(command.get_program()),
        Some(User { uid, gid }) => {
            let mut done = Command::new("setpriv");
            done.arg(format!("--reuid={uid}"))
                .arg(format!("--regid={gid}"))
                .arg("--clear-groups")
                .arg(command.get_program());
            done
        }
    };
    let variables = command.get_envs();
    done.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    done.current_dir(folder);
    done
}

/// The user that the server runs as, if it is another one: `postgres`, else the unprivileged one.
fn server_user() -> Result<Option<User>> {
    if !rustix::process::getuid().is_root() {
        return Ok(None);
    }
    if !works(Command::new("setpriv").arg("--version")) {
        bail!("root may not run PostgreSQL: install setpriv (util-linux)");
    }
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let user =
        user_of(&users).context("root may not run PostgreSQL, and the user 65534 is missing")?;
    Ok(Some(user))
}

/// The user for a server, from the text of `/etc/passwd`.
fn user_of(users: &str) -> Option<User> {
    let parsed = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        Some((name, User { uid, gid }))
    });
    let all: Vec<(&str, User)> = parsed.collect();
    let own = all.iter().find(|(name, _)| *name == "postgres");
    let unprivileged = || all.iter().find(|(_, user)| user.uid == UNPRIVILEGED);
    own.or_else(unprivileged).map(|(_, user)| *user)
}

impl Programs {
    /// Those of the PATH, of an installed package, or of a downloaded one.
    fn find() -> Result<Self> {
        let is_complete = |bin: &PathBuf| PROGRAMS.iter().all(|name| bin.join(name).is_file());
        if let Some(bin) = installations().into_iter().find(is_complete) {
            return Ok(Self { bin, root: None });
        }
        let cached = cache::once("postgres", |folder| {
            let root = debian::unpack(&packages()?, folder)?;
            let programs = Self::unpacked(&root)?;
            run(programs.command("postgres").arg("--version")).map(drop)
        });
        let cached = cached.context("no PostgreSQL: install it, with psql")?;
        Self::unpacked(&cached.join("package"))
    }

    fn unpacked(root: &Path) -> Result<Self> {
        let bin = versions(&root.join("usr/lib/postgresql"))
            .into_iter()
            .next();
        Ok(Self {
            bin: bin.context("the package has no server")?,
            root: Some(root.to_owned()),
        })
    }

    /// Themselves if they are installed, else a copy in `folder`: the cache is closed to other users.
    fn copied_for(self, folder: &Path) -> Result<Self> {
        let Some(root) = &self.root else {
            return Ok(self);
        };
        let copy = folder.join("package");
        run(Command::new("cp").arg("-a").arg(root).arg(&copy))?;
        Self::unpacked(&copy)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        if let Some(root) = &self.root {
            command.env("LD_LIBRARY_PATH", libraries(root));
        }
        command
    }
}

/// The folders that may contain installed [`PROGRAMS`], preferred ones first.
fn installations() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("postgres"));
    // The target of a link has the other programs next to it.
    let real = on_path.filter_map(|server| server.canonicalize().ok());
    let mut found: Vec<PathBuf> = real
        .filter_map(|server| server.parent().map(Path::to_owned))
        .collect();
    found.extend(versions(Path::new("/usr/lib/postgresql")));
    found
}

/// The `bin` folders of all versions in a folder of Debian's, newest first.
fn versions(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((number, entry.path().join("bin")))
    });
    let mut numbered: Vec<(u32, PathBuf)> = numbered.collect();
    numbered.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    numbered.into_iter().map(|(_, bin)| bin).collect()
}

/// The search path for shared libraries in unpacked packages: one folder per architecture.
fn libraries(root: &Path) -> std::ffi::OsString {
    let folders = ["usr/lib", "lib"].map(|folder| root.join(folder));
    let entries = folders.iter().filter_map(|folder| folder.read_dir().ok());
    let of_machine = entries.flatten().flatten().map(|entry| entry.path());
    let of_machine = of_machine.filter(|path| path.to_string_lossy().contains("-linux-gnu"));
    std::env::join_paths(of_machine).unwrap_or_default()
}

/// Debian's packages of the server, of `psql`, and of the libraries that this machine does not have.
fn packages() -> Result<Vec<String>> {
    let is_version = |name: &String| {
        let number = name.strip_prefix("postgresql-");
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let server = debian::dependencies("postgresql")?
        .into_iter()
        .find(is_version);
    let server = server.context("the package postgresql names no version")?;
    let client = server.replace("postgresql-", "postgresql-client-");
    let mut packages = debian::to_install(&server).unwrap_or_default();
    // Compiles expressions, which is off, and is the largest.
    packages.retain(|name| !name.starts_with("libllvm"));
    packages.extend([server, client, "libpq5".to_owned()]);
    packages.sort();
    packages.dedup();
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_postgres_or_else_the_unprivileged_one() {
        let others = "root:x:0:0:root:/root:/bin/bash\nn:x:65534:65533:n:/nonexistent:/bin/false\n";
        let (uid, gid) = (UNPRIVILEGED, 65533);
        assert_eq!(user_of(others), Some(User { uid, gid }));
        let own = format!("{others}postgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n");
        assert_eq!(user_of(&own), Some(User { uid: 101, gid: 104 }));
        assert_eq!(user_of("root:x:0:0:root:/root:/bin/bash\n"), None);
    }

    #[test]
    fn the_newest_version_comes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["9", "15", "common"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder in a fresh folder");
        }
        let bins = ["15/bin", "9/bin"].map(|name| folder.path().join(name));
        assert_eq!(versions(folder.path()), bins);
    }
}
