//! The trial of code that runs in the service's process: another process loads it first, builds an instance and checks its health.
//!
//! A damaged library can end the process that maps it, in the system's loader or at its first instruction: no thread contains that. What
//! ends the other process is refused (G14). Everything else that goes wrong there is not decided here, as it goes wrong in the service
//! too, with its reason.
//!
//! ```text
//!  prepare ─► Trial::of ─► `sluicegate try-plugin` ◄─ request (stdin): load ─► create ─► health
//!                 ▲                 │ DONE (stdout), or its end
//!                 └─────────────────┘
//! ```

use std::collections::BTreeSet;
use std::io::{self, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluicegate_pool::pool::relock;
use sluicegate_runtime::{
    CreateRequest, HandlerRuntime, HostServices, LogLine, MetricKind, VerifiedArtefact,
};

/// The subcommand of the other process.
pub const COMMAND: &str = "try-plugin";
/// Maximum time of a trial; what lasts longer passes: damage shows early.
const TIME: Duration = Duration::from_secs(10);
/// Time for a process that has closed its output to end.
const END_TIME: Duration = Duration::from_secs(1);
/// What the other process writes last.
const DONE: &[u8] = b"\0sluicegate: tried\n";
/// Signals that others send; all others are the code's own.
const SENT: [i32; 4] = [1, 2, 9, 15];

/// What is tried, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    kind: String,
    path: PathBuf,
    sha256: String,
    cache: PathBuf,
    handler: String,
    config: String,
}

/// Code that a generation is about to run.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) runtime: &'a dyn HandlerRuntime,
    pub(crate) artefact: &'a VerifiedArtefact,
    pub(crate) cache: &'a Path,
    pub(crate) handler: &'a str,
    pub(crate) config: &'a str,
}

/// Tries code in other processes, each handler of a file once.
#[derive(Debug)]
pub struct Trial {
    program: PathBuf,
    time: Duration,
    /// Digests and handlers that have passed.
    passed: Mutex<BTreeSet<(String, String)>>,
}

impl Trial {
    /// Runs this program with [`COMMAND`] as its argument.
    #[must_use]
    pub fn by_program(program: PathBuf) -> Self {
        Self {
            program,
            time: TIME,
            passed: Mutex::default(),
        }
    }

    /// Runs the program of this process, also if its file was replaced.
    #[must_use]
    pub fn by_this_program() -> Self {
        Self::by_program(PathBuf::from("/proc/self/exe"))
    }

    /// Whether the code does not end a process. If none can be started, that is logged and the code passes.
    ///
    /// # Errors
    /// How the process ended.
    pub(crate) fn of(&self, candidate: &Candidate<'_>) -> Result<(), ExitStatus> {
        let sha256 = &candidate.artefact.sha256;
        let key = (sha256.clone(), candidate.handler.to_owned());
        if relock(&self.passed).contains(&key) {
            return Ok(());
        }
        match self.run(candidate) {
            Ok(Some(status)) if !status.signal().is_some_and(|one| SENT.contains(&one)) => {
                return Err(status);
            }
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(error) => {
                let path = candidate.artefact.path.display();
                tracing::warn!(%path, %error, "a plugin is loaded without a trial: no process could be started for it");
                return Ok(());
            }
        }
        relock(&self.passed).insert(key);
        Ok(())
    }

    /// How the process ended, if it did so before it was done.
    fn run(&self, candidate: &Candidate<'_>) -> io::Result<Option<ExitStatus>> {
        let request = Request {
            kind: candidate.runtime.kind().to_owned(),
            path: candidate.artefact.path.clone(),
            sha256: candidate.artefact.sha256.clone(),
            cache: candidate.cache.to_owned(),
            handler: candidate.handler.to_owned(),
            config: candidate.config.to_owned(),
        };
        let request = serde_json::to_vec(&request)?;
        let mut child = Command::new(&self.program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let told = tell(stdin, request);
        let (sender, done) = channel();
        let listening = std::thread::Builder::new()
            .name("trial".to_owned())
            .spawn(move || sender.send(stdout.is_some_and(is_done)));
        let end = match (told, listening) {
            (Ok(()), Ok(_)) => match done.recv_timeout(self.time) {
                Ok(false) => ended(&mut child),
                Ok(true) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    Ok(None)
                }
            },
            // It may have ended before it has read the request.
            (Err(_), Ok(_)) => ended(&mut child),
            (_, Err(error)) => Err(error),
        };
        // The pipe is closed by that, which ends the thread.
        child.kill()?;
        child.wait()?;
        end
    }
}

fn tell(stdin: Option<ChildStdin>, request: Vec<u8>) -> io::Result<()> {
    let mut stdin = stdin.ok_or(io::ErrorKind::BrokenPipe)?;
    stdin.write_all(&request)
}

/// Whether the output contains [`DONE`]; `false` at its end.
fn is_done(mut output: impl Read) -> bool {
    let mut last = Vec::new();
    let mut part = [0; 4096];
    while let Ok(read @ 1..) = output.read(&mut part) {
        last.extend_from_slice(&part[..read]);
        if last.windows(DONE.len()).any(|window| window == DONE) {
            return true;
        }
        last.drain(..last.len().saturating_sub(DONE.len()));
    }
    false
}

/// How a process ended whose output is closed; `None` if it runs on.
fn ended(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let end = std::time::Instant::now() + END_TIME;
    loop {
        match child.try_wait()? {
            None if std::time::Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            status => return Ok(status),
        }
    }
}

/// The services of an instance on trial.
struct Silent;

impl HostServices for Silent {
    fn log(&self, _: &LogLine<'_>) {}
    fn metric(&self, _: MetricKind, _: &str, _: f64) {}
}

/// The other process: tries what stdin asks for, tells that it is done, and waits to be killed, so that no destructor of the code runs
/// at its exit.
///
/// # Errors
/// If the request cannot be read.
pub fn try_out(runtimes: &[&dyn HandlerRuntime]) -> io::Result<()> {
    let request: Request = serde_json::from_reader(io::stdin().lock())?;
    let runtime = runtimes.iter().find(|one| one.kind() == request.kind);
    if let Some(runtime) = runtime {
        let artefact = VerifiedArtefact::of_digest(&request.path, &request.sha256);
        if let Ok(plugin) = runtime.load(&artefact, &request.cache, 0) {
            let create = CreateRequest::new(
                &request.handler,
                &request.handler,
                &request.config,
                Arc::new(Silent),
            );
            if let Ok(mut instance) = plugin.create(create) {
                // What it says is asked again in the service.
                let _ = instance.health();
            }
        }
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(DONE)?;
    stdout.flush()?;
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use sluicegate_native::NativeRuntime;

    use super::*;

    /// A trial by a shell script, and the file that the script may write.
    struct Scripted {
        folder: tempfile::TempDir,
        trial: Trial,
    }

    impl Scripted {
        fn new(script: &str) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let program = folder.path().join("program");
            let text = format!("#!/bin/sh\ncd {}\n{script}\n", folder.path().display());
            std::fs::write(&program, text).expect("a script");
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&program, mode).expect("a program");
            let trial = Trial {
                time: Duration::from_millis(300),
                ..Trial::by_program(program)
            };
            Self { folder, trial }
        }

        fn of(&self, sha256: &str, config: &str) -> Result<(), ExitStatus> {
            self.trial.of(&Candidate {
                runtime: &NativeRuntime,
                artefact: &VerifiedArtefact::of_digest(Path::new("/a.so"), sha256),
                cache: Path::new("/cache"),
                handler: "one",
                config,
            })
        }

        fn wrote(&self) -> String {
            std::fs::read_to_string(self.folder.path().join("out")).unwrap_or_default()
        }
    }

    const DONE_SCRIPT: &str = "printf '\\0sluicegate: tried\\n'; exec sleep 100";

    #[test]
    fn what_ends_the_process_is_refused_each_time() {
        for (script, how) in [
            ("kill -SEGV $$", "signal: 11"),
            ("cat > /dev/null; exit 127", "exit status: 127"),
            ("exit 0", "exit status: 0"),
        ] {
            let scripted = Scripted::new(&format!("echo x >> out; {script}"));
            for times in 1..3 {
                let status = scripted.of("00", "{}").expect_err(script);
                assert!(status.to_string().contains(how), "{script}: {status}");
                assert_eq!(scripted.wrote(), "x\n".repeat(times));
            }
        }
    }

    #[test]
    fn what_is_done_passes_once_for_each_digest() {
        let scripted = Scripted::new(&format!(
            "cat >> out; dd if=/dev/zero bs=10000 count=1; {DONE_SCRIPT}"
        ));
        for sha256 in ["00", "00", "01"] {
            assert_eq!(scripted.of(sha256, r#"{"url":"u"}"#), Ok(()));
        }
        let told = scripted.wrote();
        assert_eq!(
            told.matches(r#""handler":"one","config":"{\"url\":\"u\"}""#)
                .count(),
            2
        );
        assert_eq!(told.matches(r#""sha256":"00""#).count(), 1, "{told}");
    }

    #[test]
    fn what_takes_long_or_is_ended_by_others_passes() {
        for script in [
            "exec sleep 100",
            "kill -TERM $$",
            "kill -KILL $$",
            "exec >&-; exec sleep 100",
        ] {
            let scripted = Scripted::new(script);
            assert_eq!(scripted.of("00", "{}"), Ok(()), "{script}");
        }
        let trial = Trial::by_program(PathBuf::from("/not/there"));
        let scripted = Scripted {
            trial,
            ..Scripted::new("")
        };
        assert_eq!(scripted.of("00", "{}"), Ok(()), "no process can be started");
    }
}
