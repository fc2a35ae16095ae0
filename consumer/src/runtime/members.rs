//! What this process tells the other members of its fleet: which revision is in force here, and what it refuses.

use std::sync::Arc;

use sluicegate_config::member::{MemberHandler, MemberRejection};
use sluicegate_config::service::HandlersConfig;
use sluicegate_config::source::host;
use sluicegate_config::store::{Membership, Store, StoreError};
use sluicegate_config::{MemberReport, Rejection, Snapshot};

use crate::admin::{HandlerState, PoolReport};
use crate::handlers::Refusal;

/// The own member key.
pub(super) struct Member {
    membership: Box<dyn Membership>,
    told: MemberReport,
}

impl Member {
    /// Joins under the id that the config gives.
    ///
    /// # Errors
    /// [`StoreError`] when the store takes no such id.
    pub(super) fn join(
        store: &Arc<dyn Store>,
        config: &HandlersConfig,
        standing: Standing<'_>,
    ) -> Result<Self, StoreError> {
        let told = standing.report(MemberReport {
            id: config.member(),
            host: host(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: jiff::Timestamp::now().to_string(),
            ..MemberReport::default()
        });
        let membership = store.join(&told.id, told.to_json())?;
        Ok(Self { membership, told })
    }

    /// Tells how things stand, if that is news.
    pub(super) fn tell(&mut self, standing: Standing<'_>) {
        let report = standing.report(MemberReport {
            handlers: Vec::new(),
            rejections: Vec::new(),
            ..self.told.clone()
        });
        if report != self.told {
            self.membership.report(report.to_json());
            self.told = report;
        }
    }
}

/// How things stand here.
pub(super) struct Standing<'a> {
    /// The revision that all pumps run by.
    pub(super) in_force: u64,
    pub(super) snapshot: &'a Snapshot,
    pub(super) refusals: &'a [Refusal],
    pub(super) pools: &'a [PoolReport],
}

impl Standing<'_> {
    fn report(&self, whose: MemberReport) -> MemberReport {
        let refused = self.refusals.iter().map(|refusal| MemberHandler {
            name: refusal.handler.clone(),
            state: "REFUSED".to_owned(),
            reason: refusal.reason.clone(),
        });
        let ill = self.pools.iter().filter_map(|pool| {
            let ill = matches!(pool.state, HandlerState::Failed | HandlerState::Unhealthy);
            ill.then(|| MemberHandler {
                name: pool.handler.clone(),
                state: pool.state.to_string(),
                reason: pool.last_error.clone().unwrap_or_default(),
            })
        });
        MemberReport {
            applied_revision: self.in_force,
            handlers: refused.chain(ill).collect(),
            rejections: self.snapshot.rejections.iter().flat_map(told).collect(),
            ..whose
        }
    }
}

fn told(rejection: &Rejection) -> impl Iterator<Item = MemberRejection> + '_ {
    rejection.problems.iter().map(|problem| {
        let place = match problem.line {
            0 => String::new(),
            line => format!("line {line}, column {}: ", problem.column),
        };
        MemberRejection {
            key: rejection.origin.clone(),
            path: Some(problem.path.clone()).filter(|path| !path.is_empty()),
            reason: format!("{place}{}", problem.message),
            handlers: rejection.handlers.clone(),
        }
    })
}
