//! What a running call tells of itself.

use sluicegate_runtime::{RawOutcome, outcome_code};

/// What a running call has published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// An outcome for each record; those without one are [`sluicegate_runtime::outcome_code::NOT_RUN`], and so are those that are
    /// missing at the end.
    pub outcomes: Vec<RawOutcome>,
    /// The place of the record that the call is at: the one to blame if it hangs.
    pub current: usize,
}

impl Published {
    /// Of a call that handles its records in order: it is at the one after these.
    pub fn up_to(outcomes: Vec<RawOutcome>) -> Self {
        Self {
            current: outcomes.len(),
            outcomes,
        }
    }

    /// The outcome of the record at a place, if it has one.
    pub fn outcome(&self, place: usize) -> Option<RawOutcome> {
        let outcome = self.outcomes.get(place).copied();
        outcome.filter(|outcome| outcome.code != outcome_code::NOT_RUN)
    }
}
