//! Whether a service that is told to stop while it starts has to leave a group: pumps pass the gate before they join, and a
//! stop shuts it while nobody has.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const PASSED: u8 = 1;
const SHUT: u8 = 2;

/// One gate for all pumps of a service.
#[derive(Debug, Default)]
pub struct JoinGate(AtomicU8);

impl JoinGate {
    /// A pump is about to join. `false`: it must not.
    pub(super) fn pass(&self) -> bool {
        let before = self
            .0
            .compare_exchange(OPEN, PASSED, Ordering::AcqRel, Ordering::Acquire);
        before != Err(SHUT)
    }

    /// Keeps every pump from joining. `false`: one may have joined, and all of them may from now on.
    pub fn shut(&self) -> bool {
        let before = self
            .0
            .compare_exchange(OPEN, SHUT, Ordering::AcqRel, Ordering::Acquire);
        before != Err(PASSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_first_decides() {
        let gate = JoinGate::default();
        assert!(gate.pass() && gate.pass());
        assert!(!gate.shut() && gate.pass());
        let gate = JoinGate::default();
        assert!(gate.shut() && gate.shut());
        assert!(!gate.pass());
    }
}
