//! Waits for members: collects which have applied a revision, which refuse it and which do not answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use sluicegate_config::control::MemberReport;
use sluicegate_store::Store;

use super::FleetError;

/// Poll interval of the member reports.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// State of a member with respect to a handler and a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum MemberState {
    /// It has applied the revision, and the handler is healthy there.
    Applied,
    /// It has applied the revision, and refuses the handler or cannot run it.
    Refused {
        /// The reasons.
        reasons: Vec<String>,
    },
    /// It is alive but has not applied the revision.
    Behind {
        /// The revision that it has applied.
        applied: u64,
    },
    /// It has the revision and is still building and checking the handler.
    Preparing,
    /// Its report cannot be read.
    Unreadable {
        /// Why.
        reason: String,
    },
    /// Its key disappeared: it has stopped, or is disconnected from the store.
    Gone,
}

/// A member and its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Its id.
    pub member: String,
    /// Its state.
    #[serde(flatten)]
    pub state: MemberState,
}

/// Result of waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WaitResult {
    /// Whether there are members, and all have applied the revision without refusing.
    pub converged: bool,
    /// Each member, by id.
    pub members: Vec<MemberStatus>,
}

impl WaitResult {
    /// The members that refuse.
    pub fn refusals(&self) -> impl Iterator<Item = &MemberStatus> {
        let refuses = |member: &&MemberStatus| matches!(member.state, MemberState::Refused { .. });
        self.members.iter().filter(refuses)
    }

    /// The members that did not answer.
    pub fn missing(&self) -> impl Iterator<Item = &MemberStatus> {
        self.members.iter().filter(|member| {
            !matches!(
                member.state,
                MemberState::Refused { .. } | MemberState::Applied
            )
        })
    }
}

/// The state that members are waited for to reach.
#[derive(Clone, Copy, Debug)]
struct WaitTarget<'w> {
    handler: &'w str,
    revision: u64,
    /// Whether the change closes a gate: members follow that even if they refuse the handler.
    closed: bool,
}

/// Waits until every member (of `only`, if given) has applied `revision`, or until `deadline`. A member that was seen
/// and disappears counts as one that does not answer: it may still run the earlier revision. `notify` receives each
/// change of the result.
///
/// # Errors
/// [`FleetError::Store`] when the store refuses; an unreachable one is polled until the deadline.
pub fn await_members(
    store: &dyn Store,
    handler: &str,
    revision: u64,
    only: Option<&[String]>,
    deadline: Instant,
    notify: &mut dyn FnMut(&WaitResult),
) -> Result<WaitResult, FleetError> {
    let target = WaitTarget {
        handler,
        revision,
        closed: false,
    };
    await_target(store, target, only, deadline, notify)
}

/// Waits until every member has closed the gate that was written at `revision`, or until `deadline`. A spec that a
/// member refuses or still prepares does not keep its gate open.
///
/// # Errors
/// As for [`await_members`].
pub fn await_closed(
    store: &dyn Store,
    handler: &str,
    revision: u64,
    deadline: Instant,
) -> Result<WaitResult, FleetError> {
    let target = WaitTarget {
        handler,
        revision,
        closed: true,
    };
    await_target(store, target, None, deadline, &mut |_| {})
}

fn await_target(
    store: &dyn Store,
    target: WaitTarget<'_>,
    only: Option<&[String]>,
    deadline: Instant,
    notify: &mut dyn FnMut(&WaitResult),
) -> Result<WaitResult, FleetError> {
    let mut seen: BTreeMap<String, MemberState> = BTreeMap::new();
    for member in only.unwrap_or_default() {
        seen.insert(member.clone(), MemberState::Gone);
    }
    let mut reported = None;
    loop {
        match store.members() {
            Ok(members) => update_states(&mut seen, members, target, only),
            Err(error) if error.is_retryable() && Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
        let now = result_of(&seen);
        if reported.as_ref() != Some(&now) {
            notify(&now);
            reported = Some(now.clone());
        }
        // A member that has not applied yet may still refuse, so a refusal ends the wait only after all have answered.
        let settled = !now.members.is_empty() && now.missing().next().is_none();
        if settled || Instant::now() >= deadline {
            return Ok(now);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn update_states(
    seen: &mut BTreeMap<String, MemberState>,
    members: Vec<(String, Vec<u8>)>,
    target: WaitTarget<'_>,
    only: Option<&[String]>,
) {
    for state in seen.values_mut() {
        *state = MemberState::Gone;
    }
    for (id, report) in members {
        if only.is_none_or(|only| only.contains(&id)) {
            seen.insert(id, state(&report, target));
        }
    }
}

fn state(report: &[u8], target: WaitTarget<'_>) -> MemberState {
    match MemberReport::from_json(report) {
        // Its revision is that of a store that no longer exists.
        Ok(MemberReport {
            held: Some(why), ..
        }) => MemberState::Refused {
            reasons: vec![format!("it does not apply the content of its store: {why}")],
        },
        Ok(report) if report.applied_revision < target.revision => MemberState::Behind {
            applied: report.applied_revision,
        },
        Ok(_) if target.closed => MemberState::Applied,
        Ok(report) => handler_state(&report, target.handler),
        Err(error) => MemberState::Unreadable {
            reason: error.to_string(),
        },
    }
}

/// State of a handler at a member that has the revision.
pub(super) fn handler_state(report: &MemberReport, handler: &str) -> MemberState {
    // Reported problems may be those of the earlier revision.
    if report.preparing.iter().any(|name| name == handler) {
        return MemberState::Preparing;
    }
    let reasons = report.problems_for(handler);
    if !reasons.is_empty() {
        return MemberState::Refused { reasons };
    }
    match report.omitted.handlers {
        0 => MemberState::Applied,
        omitted => MemberState::Unreadable {
            reason: format!(
                "its report omits {omitted} entries of refused, failed or preparing handlers, possibly `{handler}`; query it with `sluicegate handlers show {handler}`"
            ),
        },
    }
}

fn result_of(seen: &BTreeMap<String, MemberState>) -> WaitResult {
    let members: Vec<MemberStatus> = seen
        .iter()
        .map(|(member, state)| MemberStatus {
            member: member.clone(),
            state: state.clone(),
        })
        .collect();
    let applied = |member: &MemberStatus| member.state == MemberState::Applied;
    WaitResult {
        converged: !members.is_empty() && members.iter().all(applied),
        members,
    }
}
