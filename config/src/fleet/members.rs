//! Waiting for members: who has applied a revision, who refuses, who does not answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::FleetError;
use crate::member::MemberReport;
use crate::store::Store;

/// How often members are asked.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Where a member stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum MemberState {
    /// It has applied the revision, and the handler is well there.
    Applied,
    /// It has applied the revision, and refuses the handler or cannot run it.
    Refused {
        /// Why, a line each.
        reasons: Vec<String>,
    },
    /// It is alive, and has not applied the revision.
    Behind {
        /// What it has applied.
        applied: u64,
    },
    /// It has the revision, and is still building and checking what the handler needs.
    Preparing,
    /// Its report cannot be read.
    Unreadable {
        /// Why.
        reason: String,
    },
    /// It was there, and its key is gone: it has stopped, or is cut off.
    Gone,
}

/// A member and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// Its id.
    pub member: String,
    /// Where it stands.
    #[serde(flatten)]
    pub state: MemberState,
}

/// What came of waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WaitResult {
    /// Whether every member has applied it and none refuses.
    pub converged: bool,
    /// Each member, by id.
    pub members: Vec<MemberStatus>,
}

impl WaitResult {
    /// Those that refuse.
    pub fn refusals(&self) -> impl Iterator<Item = &MemberStatus> {
        let refuses =
            |verdict: &&MemberStatus| matches!(verdict.state, MemberState::Refused { .. });
        self.members.iter().filter(refuses)
    }

    /// Those that did not answer.
    pub fn missing(&self) -> impl Iterator<Item = &MemberStatus> {
        self.members.iter().filter(|verdict| {
            !matches!(
                verdict.state,
                MemberState::Refused { .. } | MemberState::Applied
            )
        })
    }
}

/// What members are waited for to have.
#[derive(Clone, Copy, Debug)]
struct WaitTarget<'w> {
    handler: &'w str,
    revision: u64,
    /// A gate that is shut: members follow it whatever they have against the handler.
    closed: bool,
}

/// Waits until every member (of `only`, if given) has applied `revision`, or `deadline`. A member that was seen and goes
/// away counts as one that does not answer: it may still run what was before. `tell` hears each new state of the fleet.
///
/// # Errors
/// [`FleetError::Store`] when the store refuses; one that is away is asked again until the deadline.
pub fn await_members(
    store: &dyn Store,
    handler: &str,
    revision: u64,
    only: Option<&[String]>,
    deadline: Instant,
    tell: &mut dyn FnMut(&WaitResult),
) -> Result<WaitResult, FleetError> {
    let wanted = WaitTarget {
        handler,
        revision,
        closed: false,
    };
    await_wanted(store, wanted, only, deadline, tell)
}

/// Waits until every member has shut the gate that was written at `revision`, or `deadline`. A spec that a member refuses
/// or still prepares keeps no gate open.
///
/// # Errors
/// As [`await_members`].
pub fn await_closed(
    store: &dyn Store,
    handler: &str,
    revision: u64,
    deadline: Instant,
) -> Result<WaitResult, FleetError> {
    let wanted = WaitTarget {
        handler,
        revision,
        closed: true,
    };
    await_wanted(store, wanted, None, deadline, &mut |_| {})
}

fn await_wanted(
    store: &dyn Store,
    wanted: WaitTarget<'_>,
    only: Option<&[String]>,
    deadline: Instant,
    tell: &mut dyn FnMut(&WaitResult),
) -> Result<WaitResult, FleetError> {
    let mut seen: BTreeMap<String, MemberState> = BTreeMap::new();
    for member in only.unwrap_or_default() {
        seen.insert(member.clone(), MemberState::Gone);
    }
    let mut told = None;
    loop {
        match store.members() {
            Ok(members) => look(&mut seen, members, wanted, only),
            Err(error) if error.is_retryable() && Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
        let now = awaited(&seen);
        if told.as_ref() != Some(&now) {
            tell(&now);
            told = Some(now.clone());
        }
        // Whoever has not applied yet may still refuse, so all are heard before a refusal ends it.
        let settled = !now.members.is_empty() && now.missing().next().is_none();
        if settled || Instant::now() >= deadline {
            return Ok(now);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn look(
    seen: &mut BTreeMap<String, MemberState>,
    members: Vec<(String, Vec<u8>)>,
    wanted: WaitTarget<'_>,
    only: Option<&[String]>,
) {
    for state in seen.values_mut() {
        *state = MemberState::Gone;
    }
    for (id, report) in members {
        if only.is_none_or(|only| only.contains(&id)) {
            seen.insert(id, state(&report, wanted));
        }
    }
}

fn state(report: &[u8], wanted: WaitTarget<'_>) -> MemberState {
    match MemberReport::from_json(report) {
        // Its revision is that of a store that is there no more.
        Ok(MemberReport {
            held: Some(why), ..
        }) => MemberState::Refused {
            reasons: vec![format!("it holds back what stands in its store: {why}")],
        },
        Ok(report) if report.applied_revision < wanted.revision => MemberState::Behind {
            applied: report.applied_revision,
        },
        Ok(_) if wanted.closed => MemberState::Applied,
        Ok(report) => standing(&report, wanted.handler),
        Err(reason) => MemberState::Unreadable { reason },
    }
}

/// Where a handler stands at a member, by the revision that the member has.
pub(super) fn standing(report: &MemberReport, handler: &str) -> MemberState {
    // What it says against the handler may be of what ran before.
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
                "its report leaves out {omitted} entries of handlers that are refused, failed or being prepared, and `{handler}` may be among them; ask it with `sluicegate handlers show {handler}`"
            ),
        },
    }
}

fn awaited(seen: &BTreeMap<String, MemberState>) -> WaitResult {
    let members: Vec<MemberStatus> = seen
        .iter()
        .map(|(member, state)| MemberStatus {
            member: member.clone(),
            state: state.clone(),
        })
        .collect();
    let applied = |verdict: &MemberStatus| verdict.state == MemberState::Applied;
    WaitResult {
        converged: !members.is_empty() && members.iter().all(applied),
        members,
    }
}
