//! The control thread of a loaded plugin, on which its library is opened if it is not yet, described and shut down.
//!
//! Thread-local state that an image leaves behind (destructors, a runtime's context) thus stays on a thread that runs
//! nothing else. If a task times out, the thread is abandoned and the caller gets an error for the operator.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

type Task = Box<dyn FnOnce() + Send>;

pub(crate) struct ControlThread {
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    stuck: std::sync::atomic::AtomicBool,
}

/// What came of a task within its time.
pub(crate) enum Answered<T> {
    Now(T),
    /// It timed out; the thread is abandoned and may still answer.
    Late(Answer<T>),
    /// The thread has exited.
    Gone,
}

/// The result of a task that had timed out.
pub(crate) struct Answer<T>(Receiver<T>);

impl<T> Answer<T> {
    /// The result, if there is one by now.
    pub(crate) fn poll(self) -> Answered<T> {
        match self.0.try_recv() {
            Ok(result) => Answered::Now(result),
            Err(TryRecvError::Empty) => Answered::Late(self),
            Err(TryRecvError::Disconnected) => Answered::Gone,
        }
    }
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
        match self.begin(timeout, work) {
            Ok(Answered::Now(result)) => Ok(result),
            Ok(Answered::Late(_)) => Err(NoAnswer::Late),
            Ok(Answered::Gone) => Err(NoAnswer::Gone),
            Err(no_answer) => Err(no_answer),
        }
    }

    /// Runs `work` on the thread; if it takes longer than `timeout`, its result can be had later. Fails if the thread cannot take it.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Answered<T>, NoAnswer> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.stuck.load(Relaxed) {
            return Err(NoAnswer::Late);
        }
        let (answer, incoming) = mpsc::channel();
        let task: Task = Box::new(move || {
            // Fails if its result is not wanted any more.
            let _ = answer.send(work());
        });
        self.tasks
            .as_ref()
            .ok_or(NoAnswer::Gone)?
            .send(task)
            .map_err(|_| NoAnswer::Gone)?;
        Ok(match incoming.recv_timeout(timeout) {
            Ok(result) => Answered::Now(result),
            Err(RecvTimeoutError::Timeout) => {
                self.stuck.store(true, Relaxed);
                Answered::Late(Answer(incoming))
            }
            Err(RecvTimeoutError::Disconnected) => Answered::Gone,
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
