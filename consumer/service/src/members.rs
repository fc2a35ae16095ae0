//! State that this process publishes to its fleet: the active revision, and rejected specs.

use std::sync::Arc;

use sluicegate_config::control::{MemberHandler, MemberRejection, MemberReport, host, instance};
use sluicegate_config::service::HandlersConfig;
use sluicegate_config::{Rejection, Snapshot};
use sluicegate_engine::status::{HandlerState, PoolReport, ProblemKind, ServiceProblem};
use sluicegate_plugins::Refusal;
use sluicegate_pool::clock::now_ms;
use sluicegate_store::{Membership, MembershipStatus, Store, StoreError};
use sluicegate_sync::source::OwnId;

use super::commands::ActivePlan;

/// This process's member key.
pub(super) struct Member {
    membership: Box<dyn Membership>,
    published: MemberReport,
    /// Shared with the spec source, which selects this process's rollouts by it.
    own: Option<OwnId>,
    wanted: String,
    status: MembershipStatus,
    clash_since_ms: i64,
}

impl Member {
    /// Joins under the configured id.
    ///
    /// # Errors
    /// [`StoreError`] if the store rejects the id.
    pub(super) fn join(
        store: &Arc<dyn Store>,
        config: &HandlersConfig,
        own: Option<OwnId>,
        state: MemberState<'_>,
    ) -> Result<Self, StoreError> {
        let published = state.report(MemberReport {
            id: config.member(),
            instance: instance().to_owned(),
            host: host(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: jiff::Timestamp::now().to_string(),
            ..MemberReport::default()
        });
        let membership = store.join(published.clone())?;
        let status = membership.status();
        if let Some(own) = &own {
            own.set(&status.id);
        }
        Ok(Self {
            status,
            membership,
            own,
            wanted: published.id.clone(),
            published,
            clash_since_ms: now_ms(),
        })
    }

    /// Publishes the state if it has changed, and reads the id that the store has assigned.
    pub(super) fn publish(&mut self, state: MemberState<'_>) {
        let status = self.membership.status();
        if status != self.status {
            if status.clash.is_some() && self.status.clash.is_none() {
                self.clash_since_ms = now_ms();
            }
            if let Some(own) = &self.own {
                own.set(&status.id);
            }
            self.status = status;
        }
        let report = state.report(MemberReport {
            id: self.status.id.clone(),
            preparing: Vec::new(),
            handlers: Vec::new(),
            rejections: Vec::new(),
            ..self.published.clone()
        });
        if report != self.published {
            self.membership.report(report.clone());
            self.published = report;
        }
    }

    /// The conflict about the configured id, if any.
    pub(super) fn problem(&self) -> Option<ServiceProblem> {
        Some(ServiceProblem {
            kind: ProblemKind::MemberId,
            count: 1,
            what: format!("another process has the member id `{}`", self.wanted),
            since_ms: self.clash_since_ms,
            cause: self.status.clash.clone()?,
            remedy: "give each process a `handlers.member_id` of its own, or leave it out, and restart this one"
                .to_owned(),
        })
    }
}

/// This process's state.
pub(super) struct MemberState<'a> {
    /// The plan applied by every pump.
    pub(super) active: &'a ActivePlan,
    pub(super) snapshot: &'a Snapshot,
    /// Why the store's content is held back, if it is.
    pub(super) held: Option<&'a str>,
    pub(super) refusals: &'a [Refusal],
    pub(super) pools: &'a [PoolReport],
}

impl MemberState<'_> {
    fn report(&self, base: MemberReport) -> MemberReport {
        let refused = self.refusals.iter().map(|refusal| MemberHandler {
            name: refusal.handler.clone(),
            state: "REFUSED".to_owned(),
            reason: refusal.reason.clone(),
        });
        let unhealthy = self.pools.iter().filter_map(|pool| {
            let unhealthy = matches!(pool.state, HandlerState::Failed | HandlerState::Unhealthy);
            unhealthy.then(|| MemberHandler {
                name: pool.handler.clone(),
                state: pool.state.to_string(),
                reason: pool.reason.clone().unwrap_or_default(),
            })
        });
        MemberReport {
            applied_revision: self.active.revision,
            preparing: self.active.preparing.clone(),
            held: self.held.map(str::to_owned),
            handlers: refused.chain(unhealthy).collect(),
            rejections: self
                .snapshot
                .rejections
                .iter()
                .flat_map(member_rejections)
                .collect(),
            ..base
        }
    }
}

fn member_rejections(rejection: &Rejection) -> impl Iterator<Item = MemberRejection> + '_ {
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
