//! What the control thread is told, and what it tells others: the commands, the active plan, the reason of a refusal.

use std::time::Instant;

use sluicegate_plugins::Refusal;
use sluicegate_sync::source::Update;

use super::topics::TopicReport;

/// A command to the control thread.
pub(super) enum ControlCommand {
    Update(Update),
    /// Prepare a generation that no update requested, such as for a restart.
    Prepare,
    /// The plugin folder was scanned.
    Scanned {
        /// It differs from the previous scan.
        changed: bool,
    },
    /// New generations are ready, or were rejected.
    Prepared,
    /// The topic watch has listed the cluster's topics.
    Topics(TopicReport),
    Stop(Instant),
}

/// The plan applied by every pump.
#[derive(Clone, Debug, Default)]
pub(super) struct ActivePlan {
    /// The revision of the active snapshot.
    pub(super) revision: u64,
    /// Handlers of which only the gate is active: their specs are still being prepared.
    pub(super) preparing: Vec<String>,
}

/// The refusal's reason, prefixed with the handler's name unless it names it already.
pub(super) fn named(refusal: &Refusal) -> String {
    match refusal.reason.starts_with("handler `") {
        true => refusal.reason.clone(),
        false => format!("handler `{}`: {}", refusal.handler, refusal.reason),
    }
}
