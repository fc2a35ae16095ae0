//! Waiting until a gate that was written is as it was written, or saying why it is not.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use sluicegate_config::source::GateWrite;

use super::{ControlStatus, POLL_INTERVAL, ServiceStatus};
use crate::admin::{Gate, GateError, HandlerState};

/// How long whoever opens a gate waits for the handler to serve, and whoever shuts one for its records to pass it by.
const MOVES_WITHIN: Duration = Duration::from_secs(5);

/// Whether an opened handler serves.
enum Readiness {
    Ready,
    /// It may yet; what keeps it, if that is known.
    Pending(Option<String>),
    /// It is refused.
    Rejected(String),
}

impl ControlStatus {
    /// Whether every pump runs by the state in which the gate was written, or by a later one.
    fn knows_of(&self, written: &GateWrite) -> bool {
        let revision = written.revision;
        revision.is_none_or(|revision| self.gates_as_of >= revision)
    }

    /// Whether the gate is shut by the spec and in every pump. A handler that is not there has none that is open.
    fn is_shut(&self, handler: &str) -> bool {
        let declared = self.declared.iter().find(|one| one.name == handler);
        declared.is_none_or(|one| one.gate == Gate::Shut)
            && self.in_force.get(handler) != Some(&true)
    }
}

impl ServiceStatus {
    /// Waits until an opened handler serves, by a standing that knows of the write.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn await_open(&self, handler: &str, written: &GateWrite) -> Result<(), GateError> {
        let deadline = Instant::now() + MOVES_WITHIN;
        loop {
            let late = Instant::now() >= deadline;
            let serves = match self.look(|standing| standing.knows_of(written)) {
                true => self.serves(handler),
                false => Readiness::Pending(None),
            };
            let reason = match serves {
                Readiness::Ready => return Ok(()),
                Readiness::Rejected(reason) => reason,
                Readiness::Pending(reason) if late => {
                    reason.unwrap_or_else(|| self.why_not(handler, written))
                }
                Readiness::Pending(_) => {
                    std::thread::sleep(POLL_INTERVAL);
                    continue;
                }
            };
            return Err(GateError::NotServing {
                name: handler.to_owned(),
                reason,
            });
        }
    }

    /// Waits until no pump gives the handler records any more, by a standing that knows of the write: while a watch lags, one
    /// from before an earlier write may look the same.
    ///
    /// # Errors
    /// Why some do.
    pub(super) fn await_shut(&self, handler: &str, written: &GateWrite) -> Result<(), GateError> {
        let deadline = Instant::now() + MOVES_WITHIN;
        while !self.look(|standing| standing.knows_of(written) && standing.is_shut(handler)) {
            if Instant::now() >= deadline {
                return Err(GateError::NotShut {
                    name: handler.to_owned(),
                    reason: self.why_not(handler, written),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// What the control side knows, for a look at it.
    fn look<T>(&self, look: impl FnOnce(&ControlStatus) -> T) -> T {
        look(&self.standing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn serves(&self, handler: &str) -> Readiness {
        let (gate, in_force) = {
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            let declared = standing.declared.iter().find(|one| one.name == handler);
            let in_force = standing.in_force.get(handler).copied();
            (declared.map(|one| one.gate), in_force)
        };
        match gate {
            None | Some(Gate::Shut) => return Readiness::Pending(None),
            Some(Gate::Open | Gate::Held) => {}
        }
        let pools = self.registry.report();
        let serving = pools
            .into_iter()
            .find(|pool| pool.handler == handler && pool.state != HandlerState::Draining);
        match serving {
            Some(pool) if pool.state == HandlerState::Active => match gate {
                Some(Gate::Held) => {
                    Readiness::Pending(Some("its gate is about to open".to_owned()))
                }
                _ if in_force != Some(true) => Readiness::Pending(None),
                _ => Readiness::Ready,
            },
            Some(pool) => {
                let why = pool.last_error.unwrap_or_default();
                Readiness::Pending(Some(format!("it is {}: {why}", pool.state)))
            }
            None => {
                let refusals = self.registry.refusals();
                let refusal = refusals.into_iter().find(|one| one.handler == handler);
                refusal.map_or(Readiness::Pending(None), |one| {
                    Readiness::Rejected(one.reason)
                })
            }
        }
    }

    /// What keeps a gate that was written from acting, as far as it is known.
    pub(in crate::runtime) fn why_not(&self, handler: &str, written: &GateWrite) -> String {
        let mut whys = Vec::new();
        let in_force = {
            let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(reason) = &standing.unreachable {
                whys.push(format!("handler specs cannot be read: {reason}"));
            }
            if let Some(held) = &standing.held {
                whys.push(format!("{}: {}; {}", held.what, held.cause, held.remedy));
            }
            let of_handler = |names: &[String]| names.iter().any(|name| name == handler);
            let rejected = standing.rejected.iter();
            let rejected = rejected.filter(|(names, _)| of_handler(names));
            whys.extend(rejected.map(|(_, why)| why.clone()));
            standing.in_force.get(handler).copied()
        };
        let refusals = self.registry.refusals().into_iter();
        let refusals = refusals.filter(|refusal| refusal.handler == handler);
        whys.extend(refusals.map(|refusal| refusal.reason));
        let seconds = MOVES_WITHIN.as_secs();
        let origin = &written.origin;
        let stands = match written.changed {
            true => format!("it is written to {origin}"),
            false => format!("{origin} says so already"),
        };
        let acts = match in_force {
            Some(true) => "; the gate in force is open",
            Some(false) => "; the gate in force is shut",
            None => "",
        };
        match whys.is_empty() {
            true => format!(
                "{stands}, and after {seconds} s not every pump runs by it; it acts as soon as they do{acts}"
            ),
            false => format!("{stands}, and does not act: {}{acts}", whys.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::DeclaredHandler;

    #[test]
    fn a_standing_from_before_a_write_does_not_answer_for_it() {
        let mut standing = ControlStatus {
            declared: vec![DeclaredHandler {
                name: "copy".to_owned(),
                plugin: "relay".to_owned(),
                gate: Gate::Shut,
                route: serde_json::Value::Null,
                rejected: None,
                refused_spec: None,
            }],
            in_force: [("copy".into(), false)].into(),
            gates_as_of: 4,
            ..ControlStatus::default()
        };
        // It was opened at 5 and shut at 6, and the watch has told of neither: it is about to open.
        let written = |revision| GateWrite {
            origin: "/plugins/copy/enabled".to_owned(),
            changed: true,
            revision,
        };
        assert!(standing.is_shut("copy"));
        assert!(!standing.knows_of(&written(Some(6))));
        standing.gates_as_of = 6;
        assert!(standing.knows_of(&written(Some(6))));
        assert!(standing.knows_of(&written(None)), "a folder has no such");
    }
}
