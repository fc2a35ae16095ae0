//! Readiness of the service, derived from its report alone. Problems that block only some records do not make the service
//! unready: a rollout or a load balancer acting on them would make things worse.

use crate::status::{Gate, HandlerReport, HandlerState, ServiceReport};

impl ServiceReport {
    /// Whether the service is ready.
    ///
    /// # Errors
    /// The reason, a text that `/readyz` and the commands show: the service is shutting down, it has not joined its group yet, Kafka has been unreachable for longer
    /// than `processing.stall_timeout`, or none of its enabled handlers takes records.
    pub fn readiness(&self, now_ms: i64) -> Result<(), String> {
        let facts = &self.facts;
        if facts.stopping {
            return Err("the service is shutting down: draining in-flight records".to_owned());
        }
        if let Some(pump) = facts.not_joined.first() {
            return Err(self.with_cause(&format!(
                "pump {pump} has not joined group {} yet",
                facts.group_id
            )));
        }
        if let Some(since_ms) = facts.kafka_unreachable_since_ms {
            let unreachable_ms = now_ms.saturating_sub(since_ms);
            if unreachable_ms >= facts.stall_timeout_ms {
                let seconds = unreachable_ms / 1_000;
                return Err(self.with_cause(&format!(
                    "no Kafka broker has answered for {seconds} s, longer than processing.stall_timeout"
                )));
            }
        }
        self.some_handler_runs()
    }

    /// Appends the cause and remedy of a known client problem.
    fn with_cause(&self, sentence: &str) -> String {
        let known = self
            .facts
            .problems
            .iter()
            .find(|one| one.kind.is_of_client());
        match known {
            Some(known) => format!("{sentence}: {}; {}", known.cause, known.remedy),
            None => sentence.to_owned(),
        }
    }

    fn some_handler_runs(&self) -> Result<(), String> {
        let mut enabled = self
            .handlers
            .iter()
            .filter(|one| is_enabled(one))
            .peekable();
        let Some(first) = enabled.peek().copied() else {
            return Ok(());
        };
        if !enabled.all(is_held) {
            return Ok(());
        }
        let why = first.reason.as_deref().or(first.last_error.as_deref());
        let why = why.unwrap_or("no reason given");
        let state = match first.gate {
            Gate::Held => "held".to_owned(),
            _ => first.state.to_string(),
        };
        Err(format!(
            "no enabled handler takes records; handler `{}` is {state}: {why}",
            first.name
        ))
    }
}

fn is_enabled(handler: &HandlerReport) -> bool {
    !handler.removed && handler.gate != Gate::Closed
}

/// No record reaches it before an operator acts or it becomes healthy.
fn is_held(handler: &HandlerReport) -> bool {
    handler.gate == Gate::Held
        || matches!(handler.state, HandlerState::Failed | HandlerState::Rejected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ServiceInfo;
    use crate::status::{ProblemKind, ServiceProblem};

    fn handler(name: &str, gate: Gate, state: HandlerState) -> HandlerReport {
        HandlerReport {
            name: name.into(),
            gate,
            state,
            last_error: Some("out of order".into()),
            ..HandlerReport::default()
        }
    }

    fn report(handlers: Vec<HandlerReport>) -> ServiceReport {
        ServiceReport {
            facts: ServiceInfo {
                group_id: "g".into(),
                stall_timeout_ms: 300_000,
                ..ServiceInfo::default()
            },
            handlers,
            ..ServiceReport::default()
        }
    }

    #[test]
    fn a_handler_makes_the_service_unready_only_when_no_enabled_one_is_left() {
        use Gate::{Closed, Held, Open};
        use HandlerState::{Active, Failed, Rejected, Starting, Unhealthy};
        for (handlers, ready) in [
            (vec![], true),
            (vec![(Open, Active)], true),
            (vec![(Open, Unhealthy)], true),
            (vec![(Open, Starting)], true),
            (
                vec![
                    (Open, Active),
                    (Open, Failed),
                    (Open, Rejected),
                    (Held, Unhealthy),
                ],
                true,
            ),
            (vec![(Open, Failed)], false),
            (
                vec![(Open, Failed), (Held, Unhealthy), (Open, Rejected)],
                false,
            ),
            (vec![(Open, Failed), (Closed, Active)], false),
            (vec![(Closed, Failed)], true),
        ] {
            let all = handlers
                .iter()
                .map(|&(gate, state)| handler("h", gate, state));
            let verdict = report(all.collect()).readiness(0);
            assert_eq!(verdict.is_ok(), ready, "{handlers:?}: {verdict:?}");
            if let Err(why) = verdict {
                assert!(
                    why.contains("`h` is") && why.contains("out of order"),
                    "{why}"
                );
            }
        }
        let mut removed = handler("h", Open, Failed);
        removed.removed = true;
        assert_eq!(report(vec![removed]).readiness(0), Ok(()));
    }

    #[test]
    fn every_kind_of_problem_leaves_a_joined_service_ready() {
        let mut report = report(vec![handler("h", Gate::Open, HandlerState::Active)]);
        for &kind in ProblemKind::ALL {
            report.facts.problems.push(ServiceProblem {
                kind,
                what: "w".into(),
                since_ms: 0,
                count: 1,
                cause: "c".into(),
                remedy: "r".into(),
            });
        }
        assert_eq!(report.readiness(i64::MAX), Ok(()));
        report.facts.not_joined = vec![1];
        let why = report.readiness(0).expect_err("it has not joined");
        assert_eq!(why, "pump 1 has not joined group g yet: c; r");
    }

    #[test]
    fn kafka_may_be_unreachable_for_the_stall_timeout_and_a_stopping_service_is_never_ready() {
        let mut report = report(Vec::new());
        report.facts.kafka_unreachable_since_ms = Some(1_000);
        assert_eq!(report.readiness(300_999), Ok(()));
        assert!(report.readiness(301_000).is_err());
        report.facts.kafka_unreachable_since_ms = None;
        assert_eq!(report.readiness(301_000), Ok(()));
        report.facts.stopping = true;
        assert!(
            report
                .readiness(0)
                .expect_err("it stops")
                .contains("the service is shutting down")
        );
    }
}
