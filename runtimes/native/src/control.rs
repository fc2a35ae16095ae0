//! The thread of a generation on which its library is opened, asked and shut down.
//!
//! Whatever an image leaves behind on a thread (thread-local destructors, a runtime's context) stays on a thread that
//! runs nothing else. A question that is not answered in time leaves the thread behind, with a reason for the
//! operator.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

type Task = Box<dyn FnOnce() + Send>;

pub(crate) struct ControlThread {
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    stuck: std::sync::atomic::AtomicBool,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Not in time; the thread is given up.
    Late,
    /// The thread is gone.
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

    /// Runs `work` on the thread and waits for what it gives.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.stuck.load(Relaxed) {
            return Err(NoAnswer::Late);
        }
        let (answer, incoming) = mpsc::channel();
        let task: Task = Box::new(move || {
            // Nobody waits any more when this fails.
            let _ = answer.send(work());
        });
        self.tasks
            .as_ref()
            .ok_or(NoAnswer::Gone)?
            .send(task)
            .map_err(|_| NoAnswer::Gone)?;
        incoming
            .recv_timeout(patience)
            .map_err(|error| match error {
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
