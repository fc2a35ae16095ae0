//! `sluicegate try-plugin`: the process in which the service tries a plugin before it loads it (`sluicegate_plugins::trial`).

use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use sluicegate_native::NativeRuntime;
use sluicegate_plugins::trial;

use super::failure::Failure;

/// Tries what stdin asks for.
pub(super) fn run() -> Result<(), Failure> {
    // It neither outlives the service nor leaves anything behind.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(Failure::other)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(Failure::other)?;
    trial::try_out(&[&NativeRuntime]).map_err(Failure::other)
}
