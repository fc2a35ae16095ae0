//! The bridge inside the service (a `bridge:` block): what halts it is a problem of the service as well, since operators
//! watch the service's `/readyz`. It does not make the service unready: records are handled without it.

use sluicegate_admin::http::BridgeReporter;
use sluicegate_bridge::{BridgeReport, HaltReport};
use sluicegate_engine::status::{ProblemKind, ServiceProblem};

use super::ServiceStatus;

impl ServiceStatus {
    /// Sets the bridge that runs inside the service.
    pub(crate) fn set_bridge(&self, report: BridgeReporter) {
        let _ = self.bridge.set(report);
    }

    /// Why the bridge replicates nothing, if it does not.
    pub(super) fn bridge_problem(&self) -> Option<ServiceProblem> {
        self.bridge.get().and_then(|report| problem(&report()))
    }
}

fn problem(report: &BridgeReport) -> Option<ServiceProblem> {
    let halted = |halt: &HaltReport, what: &str, remedy: &str| ServiceProblem {
        kind: ProblemKind::BridgeHalted,
        count: 1,
        what: what.to_owned(),
        // The report's own time; an unreadable one counts from the epoch rather than hiding the problem.
        since_ms: halt
            .since
            .parse()
            .map_or(1, |since: jiff::Timestamp| since.as_millisecond()),
        cause: halt.reason.clone(),
        remedy: remedy.to_owned(),
    };
    let failed = report.failed.as_ref().map(|failed| {
        halted(
            failed,
            "the bridge has failed and replicates nothing",
            "restart the service, and report the log lines before the failure",
        )
    });
    failed.or_else(|| {
        let halt = report.halted.as_ref()?;
        Some(halted(
            halt,
            "the bridge is halted and replicates nothing",
            "follow the cause; `sluicegate bridge status` shows both sides",
        ))
    })
}

#[cfg(test)]
mod tests {
    use sluicegate_bridge::{Counts, StoreReport};
    use sluicegate_config::control::{Pair, Side};

    use super::*;

    fn report() -> BridgeReport {
        BridgeReport {
            id: "b".into(),
            preferred_side: Side::Etcd,
            sides: Pair::default(),
            sync_state: StoreReport::default(),
            halted: None,
            failed: None,
            keys: 0,
            unsettled: 0,
            lag_seconds: 0.0,
            counts: Counts::default(),
            refused: Vec::new(),
            conflicts: Vec::new(),
        }
    }

    #[test]
    fn a_halted_or_failed_bridge_is_a_problem_with_its_cause_and_time() {
        assert_eq!(problem(&report()), None);
        let halt = |reason: &str| {
            Some(HaltReport {
                reason: reason.into(),
                since: "1970-01-01T00:00:07Z".into(),
            })
        };
        let halted = BridgeReport {
            halted: halt("12 of 20 keys are missing"),
            ..report()
        };
        let found = problem(&halted).expect("it is halted");
        assert_eq!(
            (found.kind, found.since_ms, found.cause.as_str()),
            (
                ProblemKind::BridgeHalted,
                7_000,
                "12 of 20 keys are missing"
            )
        );
        let failed = BridgeReport {
            failed: halt("its thread panicked"),
            ..halted
        };
        let found = problem(&failed).expect("it has failed");
        assert_eq!(found.cause, "its thread panicked");
        assert!(found.what.contains("has failed"), "{found:?}");
    }
}
