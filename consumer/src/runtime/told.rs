//! What the log says of the plan in force: once a plan, and how much of the revision is refused.

use sluicegate_config::Snapshot;

use crate::handlers::Applied;

/// Revision, handlers and refused specs of the plan that was told last.
#[derive(Debug, Default)]
pub(super) struct Told(pub(super) Option<(u64, usize, usize)>);

impl Told {
    /// Tells of a plan, once: the pumps are given the same one again for many a reason.
    pub(super) fn plan(&mut self, snapshot: &Snapshot, applied: &Applied) {
        let (revision, handlers) = (applied.plan.revision, applied.plan.handlers.len());
        let refused = snapshot.rejections.len() + applied.refusals.len();
        let now = (revision, handlers, refused);
        if self.0.replace(now) != Some(now) {
            tracing::info!(revision, handlers, refused, "plan in force");
        }
    }
}
