//! Decides whether a service that is stopped during its start has a group to leave: pumps pass the gate before they join, and a
//! stop closes it as long as no pump has passed.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const PASSED: u8 = 1;
const CLOSED: u8 = 2;

/// One gate for all pumps of a service.
#[derive(Debug, Default)]
pub struct JoinGate(AtomicU8);

impl JoinGate {
    /// Called by a pump before it joins. `false`: the gate is closed, and the pump must not join.
    pub(super) fn pass(&self) -> bool {
        let before = self
            .0
            .compare_exchange(OPEN, PASSED, Ordering::AcqRel, Ordering::Acquire);
        before != Err(CLOSED)
    }

    /// Closes the gate for all pumps. `false`: a pump has passed already, so the gate stays open for all of them.
    pub fn close(&self) -> bool {
        let before = self
            .0
            .compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire);
        before != Err(PASSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_pass_and_close_wins() {
        let gate = JoinGate::default();
        assert!(gate.pass() && gate.pass());
        assert!(!gate.close() && gate.pass());
        let gate = JoinGate::default();
        assert!(gate.close() && gate.close());
        assert!(!gate.pass());
    }
}
