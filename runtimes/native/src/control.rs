//! The control thread of a generation, on which its library is opened, described and shut down.
//!
//! Thread-local state that an image leaves behind (destructors, a runtime's context) thus stays on a thread that runs
//! nothing else. If a task times out, the thread is abandoned and the caller gets an error for the operator.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

type Task = Box<dyn FnOnce() + Send>;

pub(crate) struct ControlThread {
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    stuck: std::sync::atomic::AtomicBool,
}

/// Why a task returned no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// It timed out; the thread is abandoned.
    Late,
    /// The thread has exited.
    Gone,
}

impl ControlThread {
    pub(crate) fn start(name: &str) -> std::io::Result<Self> {
        let (tasks, incoming) = mpsc::channel::<Task>();
        let thread = std::thread::Builder::new()
            .name(name.to_string())
            .spawn(move || {
                for task in incoming {
                    task();
                }
            })?;
        Ok(Self {
            tasks: Some(tasks),
            thread: Some(thread),
            stuck: false.into(),
        })
    }

    /// Runs `work` on the thread and waits for its result.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.stuck.load(Relaxed) {
            return Err(NoAnswer::Late);
        }
        let (answer, incoming) = mpsc::channel();
        let task: Task = Box::new(move || {
            // Fails if the caller has timed out.
            let _ = answer.send(work());
        });
        self.tasks
            .as_ref()
            .ok_or(NoAnswer::Gone)?
            .send(task)
            .map_err(|_| NoAnswer::Gone)?;
        incoming.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                self.stuck.store(true, Relaxed);
                NoAnswer::Late
            }
            RecvTimeoutError::Disconnected => NoAnswer::Gone,
        })
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        drop(self.tasks.take());
        if let Some(thread) = self.thread.take()
            && !self.stuck.load(std::sync::atomic::Ordering::Relaxed)
        {
            let _ = thread.join();
        }
    }
}
