//! What this process tells the other members of its fleet: which revision is in force here, and what it refuses.

use std::sync::Arc;

use sluicegate_config::member::{MemberHandler, MemberRejection, instance};
use sluicegate_config::service::HandlersConfig;
use sluicegate_config::source::{OwnId, host};
use sluicegate_config::store::{Membership, MembershipStatus, Store, StoreError};
use sluicegate_config::{MemberReport, Rejection, Snapshot};

use super::control::InForce;
use crate::admin::view::now_ms;
use crate::admin::{HandlerState, PoolReport, ProblemKind, ServiceProblem};
use crate::handlers::Refusal;

/// The own member key.
pub(super) struct Member {
    membership: Box<dyn Membership>,
    told: MemberReport,
    /// By which the source of specs knows the rollouts of this process.
    own: Option<OwnId>,
    wanted: String,
    status: MembershipStatus,
    clash_since_ms: i64,
}

impl Member {
    /// Joins under the id that the config gives.
    ///
    /// # Errors
    /// [`StoreError`] when the store takes no such id.
    pub(super) fn join(
        store: &Arc<dyn Store>,
        config: &HandlersConfig,
        own: Option<OwnId>,
        standing: MemberState<'_>,
    ) -> Result<Self, StoreError> {
        let told = standing.report(MemberReport {
            id: config.member(),
            instance: instance().to_owned(),
            host: host(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: jiff::Timestamp::now().to_string(),
            ..MemberReport::default()
        });
        let membership = store.join(told.clone())?;
        let status = membership.status();
        if let Some(own) = &own {
            own.set(&status.id);
        }
        Ok(Self {
            status,
            membership,
            own,
            wanted: told.id.clone(),
            told,
            clash_since_ms: now_ms(),
        })
    }

    /// Tells how things stand, if that is news, and hears under which id.
    pub(super) fn tell(&mut self, standing: MemberState<'_>) {
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
        let report = standing.report(MemberReport {
            id: self.status.id.clone(),
            preparing: Vec::new(),
            handlers: Vec::new(),
            rejections: Vec::new(),
            ..self.told.clone()
        });
        if report != self.told {
            self.membership.report(report.clone());
            self.told = report;
        }
    }

    /// What stands in the way of the wanted id.
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

/// How things stand here.
pub(super) struct MemberState<'a> {
    /// What all pumps run by.
    pub(super) in_force: &'a InForce,
    pub(super) snapshot: &'a Snapshot,
    /// Why what stands in the store is not applied.
    pub(super) held: Option<&'a str>,
    pub(super) refusals: &'a [Refusal],
    pub(super) pools: &'a [PoolReport],
}

impl MemberState<'_> {
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
            applied_revision: self.in_force.revision,
            preparing: self.in_force.preparing.clone(),
            held: self.held.map(str::to_owned),
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
