//! The log line about the active plan: once per plan and code, with the number of rejected specs of its revision and the plugin
//! files whose code runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluicegate_config::Snapshot;
use sluicegate_plugins::{Applied, CodeOrigin};

/// Revision, handlers and rejected specs of a plan, and the code that it runs.
type Told = (u64, usize, usize, BTreeSet<Arc<CodeOrigin>>);

/// The plan that was logged last.
#[derive(Debug, Default)]
pub(super) struct PlanLog(pub(super) Option<Told>);

impl PlanLog {
    /// Logs a plan unless it was logged before: the pumps receive the same plan again for various reasons.
    pub(super) fn log(&mut self, snapshot: &Snapshot, applied: &Applied) {
        let (revision, handlers) = (applied.plan.revision, applied.plan.handlers.len());
        let refused = snapshot.rejections.len() + applied.refusals.len();
        let targets = applied.plan.handlers.iter().flat_map(|one| &one.targets);
        let code: BTreeSet<_> = targets.map(|target| target.origin.clone()).collect();
        let shown: Vec<String> = code.iter().map(ToString::to_string).collect();
        let now = Some((revision, handlers, refused, code));
        if self.0 != now {
            let plugins = shown.join("; ");
            tracing::info!(revision, handlers, refused, %plugins, "plan applied");
            self.0 = now;
        }
    }
}
