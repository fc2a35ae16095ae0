//! Waits until a written gate takes effect, or reports why it does not.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use sluicegate_admin::GateError;
use sluicegate_engine::status::{Gate, HandlerState};
use sluicegate_sync::source::GateWrite;

use super::{ControlStatus, POLL_INTERVAL, ServiceStatus};

/// Maximum wait of a gate request: for an opened handler to run, or for a closed one to receive no more records.
const GATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Readiness of a handler whose gate was opened.
enum Readiness {
    Ready,
    /// Not ready yet, with the reason if known.
    Pending(Option<String>),
    /// The spec is rejected.
    Rejected(String),
}

impl ControlStatus {
    /// Whether every pump has applied the revision of the write, or a later one.
    fn includes(&self, written: &GateWrite) -> bool {
        let revision = written.revision;
        revision.is_none_or(|revision| self.gates_revision >= revision)
    }

    /// Whether the gate is closed in the spec and in every pump. A missing handler counts as closed.
    fn is_closed(&self, handler: &str) -> bool {
        let declared = self.declared.iter().find(|one| one.name == handler);
        declared.is_none_or(|one| one.gate == Gate::Closed)
            && self.active.get(handler) != Some(&true)
    }
}

impl ServiceStatus {
    /// Waits until an opened handler is ready, by a status that includes the write.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn await_open(&self, handler: &str, written: &GateWrite) -> Result<(), GateError> {
        let deadline = Instant::now() + GATE_TIMEOUT;
        loop {
            let late = Instant::now() >= deadline;
            let readiness = match self.read(|status| status.includes(written)) {
                true => self.readiness(handler),
                false => Readiness::Pending(None),
            };
            let reason = match readiness {
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

    /// Waits until no pump dispatches records to the handler, by a status that includes the write: while the watch lags, a status
    /// from before an earlier write can be identical.
    ///
    /// # Errors
    /// Why some still do.
    pub(super) fn await_closed(&self, handler: &str, written: &GateWrite) -> Result<(), GateError> {
        let deadline = Instant::now() + GATE_TIMEOUT;
        while !self.read(|status| status.includes(written) && status.is_closed(handler)) {
            if Instant::now() >= deadline {
                return Err(GateError::NotClosed {
                    name: handler.to_owned(),
                    reason: self.why_not(handler, written),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Runs `read` on the control thread's state, under its lock.
    fn read<T>(&self, read: impl FnOnce(&ControlStatus) -> T) -> T {
        read(&self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn readiness(&self, handler: &str) -> Readiness {
        let (gate, active) = {
            let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            let declared = status.declared.iter().find(|one| one.name == handler);
            let active = status.active.get(handler).copied();
            (declared.map(|one| one.gate), active)
        };
        match gate {
            None | Some(Gate::Closed) => return Readiness::Pending(None),
            Some(Gate::Open | Gate::Held) => {}
        }
        let pools = self.registry.report();
        let running = pools
            .into_iter()
            .find(|pool| pool.handler == handler && pool.state != HandlerState::Draining);
        match running {
            Some(pool) if pool.state == HandlerState::Active => match gate {
                Some(Gate::Held) => {
                    Readiness::Pending(Some("its gate is about to open".to_owned()))
                }
                _ if active != Some(true) => Readiness::Pending(None),
                _ => Readiness::Ready,
            },
            Some(pool) => {
                let why = pool.reason.unwrap_or_default();
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

    /// The known reasons why a written gate has not taken effect.
    pub(crate) fn why_not(&self, handler: &str, written: &GateWrite) -> String {
        let mut whys = Vec::new();
        let active = {
            let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(reason) = &status.unreachable {
                whys.push(format!("handler specs cannot be read: {reason}"));
            }
            if let Some(held) = &status.held {
                whys.push(format!("{}: {}; {}", held.what, held.cause, held.remedy));
            }
            let of_handler = |names: &[String]| names.iter().any(|name| name == handler);
            let rejected = status.rejected.iter();
            let rejected = rejected.filter(|(names, _)| of_handler(names));
            whys.extend(rejected.map(|(_, why)| why.clone()));
            status.active.get(handler).copied()
        };
        let refusals = self.registry.refusals().into_iter();
        let refusals = refusals.filter(|refusal| refusal.handler == handler);
        whys.extend(refusals.map(|refusal| refusal.reason));
        let seconds = GATE_TIMEOUT.as_secs();
        let origin = &written.origin;
        let write = match written.changed {
            true => format!("it is written to {origin}"),
            false => format!("{origin} already says so"),
        };
        let effect = match active {
            Some(true) => "; the active gate is open",
            Some(false) => "; the active gate is closed",
            None => "",
        };
        match whys.is_empty() {
            true => format!(
                "{write}, but after {seconds} s not every pump has applied it; it takes effect as soon as they have{effect}"
            ),
            false => format!("{write}, but has no effect: {}{effect}", whys.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use sluicegate_engine::status::DeclaredHandler;

    use super::*;

    #[test]
    fn a_status_from_before_a_write_does_not_include_it() {
        let mut status = ControlStatus {
            declared: vec![DeclaredHandler {
                name: "copy".to_owned(),
                plugin: "relay".to_owned(),
                gate: Gate::Closed,
                route: serde_json::Value::Null,
                rejected: None,
                refused_spec: None,
            }],
            active: [("copy".into(), false)].into(),
            gates_revision: 4,
            ..ControlStatus::default()
        };
        // Opened at 5 and closed at 6; the watch has reported neither, so the gate is about to open.
        let written = |revision| GateWrite {
            origin: "/plugins/copy/enabled".to_owned(),
            changed: true,
            revision,
        };
        assert!(status.is_closed("copy"));
        assert!(!status.includes(&written(Some(6))));
        status.gates_revision = 6;
        assert!(status.includes(&written(Some(6))));
        assert!(status.includes(&written(None)), "a folder has no revisions");
    }
}
