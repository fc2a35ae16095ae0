//! A child process that cannot outlive its owner: its own process group, its output in a file, and a watchdog that kills
//! the group even when the owner dies without running a destructor.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{kill_process, kill_process_group};

pub use rustix::process::{Pid, Signal};

use crate::wait::try_wait_for;

const TAIL_BYTES: u64 = 12_000;

/// A running child and everything it started.
pub struct Guarded {
    name: String,
    child: Child,
    log: PathBuf,
    watchdog: Option<Watchdog>,
}

/// A shell that waits for the end of its standard input, which comes when the owner dies, and then kills the process group,
/// with children of its leader that have a group of their own, and removes the folder. It has its own process group, so that Ctrl-C in a terminal does not end it early.
///
/// Dropping it disarms it.
pub struct Watchdog {
    shell: Child,
    _open: Option<ChildStdin>,
}

impl Watchdog {
    /// Watches over the process group `group` and the folder `remove`.
    ///
    /// # Errors
    /// If `sh` cannot be started.
    pub fn start(group: u32, remove: Option<&Path>) -> Result<Self> {
        // `kill` without `--`, which that of dash takes for a process. A child in a group of its own does not notice that its
        // parent is dead while it is frozen.
        let script = r#"
            read -r _
            children=$(grep -ls "^PPid:[[:space:]]*$0\$" /proc/[0-9]*/status)
            kill -9 "-$0" 2>/dev/null
            for child in $children; do child=${child#/proc/}; kill -9 "${child%/status}" 2>/dev/null; done
            [ -n "$1" ] && rm -rf -- "$1""#;
        let mut shell = Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(group.to_string())
            .arg(remove.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        let open = shell.stdin.take();
        Ok(Self { shell, _open: open })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

impl Guarded {
    /// Starts `command` with its output going to `log`. `remove` is a folder that the watchdog removes when the owner
    /// dies without a destructor.
    ///
    /// # Errors
    /// If the program cannot be started or the log cannot be written.
    pub fn start(
        name: &str,
        command: &mut Command,
        log: &Path,
        remove: Option<&Path>,
    ) -> Result<Self> {
        Self::start_with_stderr(name, command, log, remove, None)
    }

    /// As [`Guarded::start`], with its stderr going to `stderr` instead, if that is given.
    ///
    /// # Errors
    /// As [`Guarded::start`].
    pub fn start_with_stderr(
        name: &str,
        command: &mut Command,
        log: &Path,
        remove: Option<&Path>,
        stderr: Option<Stdio>,
    ) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(stderr.unwrap_or(out.into()))
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start {name} ({})",
                    command.get_program().to_string_lossy()
                )
            })?;
        let watchdog = Watchdog::start(child.id(), remove)?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            watchdog: Some(watchdog),
        })
    }

    /// The process id, which is also its group's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to the process only. Does nothing if it has ended.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.group() {
            let _ = kill_process(pid, signal);
        }
    }

    /// The exit status, if the process has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until the process ends.
    ///
    /// # Errors
    /// If it still runs after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        try_wait_for(deadline, || {
            self.exited()
                .ok_or_else(|| format!("{name} is still running"))
        })
        .map_err(|last| {
            anyhow::anyhow!(
                "{last} after {deadline:?}; its log ends:\n{}",
                self.log_tail()
            )
        })
    }

    /// Kills the process, its group and its children at once.
    pub fn kill(&mut self) {
        let children = match self.exited() {
            Some(_) => Vec::new(),
            None => self.children(),
        };
        if let Some(group) = self.group() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        for child in children {
            let _ = kill_process(child, Signal::KILL);
        }
        let _ = self.child.wait();
    }

    /// The running children of the process, also those in a group of their own.
    #[must_use]
    pub fn children(&self) -> Vec<Pid> {
        let parent = format!("PPid:\t{}", self.pid());
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let is_child = |entry: &std::fs::DirEntry| {
            let status = std::fs::read_to_string(entry.path().join("status"));
            status.is_ok_and(|status| status.lines().any(|line| line == parent))
        };
        let children = processes.filter(is_child);
        children
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(Pid::from_raw)
            .collect()
    }

    /// All output of the process.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of its output.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// [`resident_bytes`] of the process.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        resident_bytes(self.pid())
    }

    /// Sends `signal` to the process and its children.
    pub fn signal_with_children(&self, signal: Signal) {
        self.signal(signal);
        for child in self.children() {
            let _ = kill_process(child, signal);
        }
    }

    fn group(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- the log of {} ends:\n{}\n---",
                self.name,
                self.log_tail()
            );
        }
        self.kill();
        // Last, because the watchdog is needed until the group is dead.
        self.watchdog = None;
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Resident memory of a process in bytes, while it runs.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell with a child in its group and a child in a group of its own, which writes its id to `pid` and freezes.
    fn family(folder: &Path) -> (Command, PathBuf) {
        let pid = folder.join("pid");
        let mut command = Command::new("sh");
        let script = r#"sleep 600 & setsid sh -c 'echo $$ > "$0.new"; mv "$0.new" "$0"; kill -STOP $$; sleep 600' "$0" & wait"#;
        command.args(["-c", script]).arg(&pid).process_group(0);
        (command, pid)
    }

    fn wait_frozen(pid: &Path) -> u32 {
        let frozen = try_wait_for(Duration::from_secs(30), || {
            let id = std::fs::read_to_string(pid).map_err(|error| error.to_string())?;
            let id: u32 = id.trim().parse().map_err(|_| id.clone())?;
            match state_of(id) {
                Some('T') => Ok(id),
                other => Err(format!("{other:?}")),
            }
        });
        frozen.expect("the child freezes")
    }

    /// The letter of a process's state; zombies are gone.
    fn state_of(pid: u32) -> Option<char> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let state = status
            .lines()
            .find_map(|line| line.strip_prefix("State:\t"))?;
        state.chars().next().filter(|state| *state != 'Z')
    }

    fn wait_gone(pid: u32) {
        let gone = try_wait_for(Duration::from_secs(30), || {
            state_of(pid).map_or(Ok(()), |state| Err(state.to_string()))
        });
        gone.expect("the child ends");
    }

    /// As when the owner is killed: it closes its end and runs no destructor.
    #[test]
    fn a_watchdog_whose_owner_dies_kills_the_whole_group_and_frozen_children() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut command, pid) = family(folder.path());
        let mut group = command.spawn().expect("a shell");
        let frozen = wait_frozen(&pid);
        let mut watchdog = Watchdog::start(group.id(), None).expect("a shell");
        drop(watchdog._open.take());
        watchdog.shell.wait().expect("it ends");
        let status = group.wait().expect("it is ours");
        assert!(!status.success(), "{status}");
        wait_gone(frozen);
    }

    #[test]
    fn a_killed_process_leaves_no_frozen_child() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut command, pid) = family(folder.path());
        let log = folder.path().join("log");
        let mut group = Guarded::start("family", &mut command, &log, None).expect("a shell");
        let frozen = wait_frozen(&pid);
        group.kill();
        wait_gone(frozen);
    }
}
