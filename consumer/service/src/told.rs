//! The log line about the active plan: once per plan, with the number of rejected specs of its revision.

use sluicegate_config::Snapshot;
use sluicegate_plugins::Applied;

/// Revision, handlers and rejected specs of the plan that was logged last.
#[derive(Debug, Default)]
pub(super) struct PlanLog(pub(super) Option<(u64, usize, usize)>);

impl PlanLog {
    /// Logs a plan unless it was logged before: the pumps receive the same plan again for various reasons.
    pub(super) fn log(&mut self, snapshot: &Snapshot, applied: &Applied) {
        let (revision, handlers) = (applied.plan.revision, applied.plan.handlers.len());
        let refused = snapshot.rejections.len() + applied.refusals.len();
        let now = (revision, handlers, refused);
        if self.0.replace(now) != Some(now) {
            tracing::info!(revision, handlers, refused, "plan applied");
        }
    }
}
