//! Why an instance could not be built, reconfigured or health-checked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sluicegate_runtime::{CreateError, InstanceError, NotTaken};

/// Why a probe failed: the instance that it builds, reconfigures or checks cannot be used, or there is none.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProbeError {
    /// The plugin did not build the instance.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The instance did not take the new config.
    #[error(transparent)]
    Config(#[from] NotTaken),
    /// The instance is not healthy.
    #[error("health check failed: {0}")]
    Health(#[from] InstanceError),
    /// The instance cannot follow what happens to a partition.
    #[error("it cannot follow a change of its partitions: {0}")]
    Partition(#[source] InstanceError),
    /// A panic of the plugin's runtime, which is a bug in the runtime.
    #[error("the plugin's runtime panicked while building it")]
    RuntimePanicked,
    /// The instance was dropped in the meantime.
    #[error("the instance no longer exists")]
    Gone,
    /// The operating system started no thread for it.
    #[error("cannot start a worker thread: {0}")]
    NoThread(#[source] Arc<io::Error>),
    /// The thread exited without an answer.
    #[error("the worker thread ended during the health check")]
    ThreadEnded,
    /// The watchdog abandoned the thread, which did not return within this time.
    #[error("instance creation, config change or health check timed out after {0:?}")]
    Abandoned(Duration),
    /// No answer within this time.
    #[error("instance creation and health check timed out after {0:?}")]
    NoAnswer(Duration),
}

impl ProbeError {
    /// Whether the same code and config may work later: nothing is known to be wrong with them.
    #[must_use]
    pub fn may_heal(&self) -> bool {
        match self {
            Self::Create(CreateError::Unknown { .. } | CreateError::Config(_))
            | Self::Config(_)
            | Self::RuntimePanicked => false,
            Self::Create(CreateError::Failed(_))
            | Self::Health(_)
            | Self::Partition(_)
            | Self::Gone
            | Self::NoThread(_)
            | Self::ThreadEnded
            | Self::Abandoned(_)
            | Self::NoAnswer(_) => true,
        }
    }
}

/// Why a pool's instances did not take a config.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigNotTaken {
    /// All workers were in long calls, or no thread could be started; a later attempt, or another pool, may succeed.
    #[error("no worker was free in time")]
    Busy,
    /// The probed instance refused it, failed with it or is unhealthy with it, or none could be built with it; or the
    /// attempt ended without an answer, so that the config may not be to blame: [`ProbeError::Abandoned`],
    /// [`ProbeError::NoAnswer`], [`ProbeError::ThreadEnded`], [`ProbeError::RuntimePanicked`].
    #[error(transparent)]
    Refused(#[from] ProbeError),
}
